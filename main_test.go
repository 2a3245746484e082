package main

import (
	"strings"
	"testing"
)

func TestFlagsFirst(t *testing.T) {
	for typed, want := range map[string]string{
		"update c1 --memory 1G":                      "update --memory 1G c1",
		"update c1 --memory=1G --pids-limit 5":       "update --memory=1G --pids-limit 5 c1",
		"update --memory 1G c1":                      "update --memory 1G c1",
		"update c1 --resources -":                    "update --resources - c1",
		"update -r - c1":                             "update -r - c1",
		"--root /r --debug delete c1 --force":        "--root /r --debug delete --force c1",
		"--root=/r delete c1 -force":                 "--root=/r delete -force c1",
		"kill c1 -a KILL":                            "kill -a c1 KILL",
		"kill -- c1 -9":                              "kill -- c1 -9",
		"kill c1 -a -- -9":                           "kill -a -- c1 -9",
		"create c1 --bundle":                         "create --bundle c1",
		"delete c1 --nosuchflag x":                   "delete --nosuchflag c1 x",
		"template create x --memory 256":             "template create --memory 256 x",
		"template prune k --unused 1h j":             "template prune --unused 1h k j",
		"template list -f json":                      "template list -f json",
		"exec c1 sh -c true":                         "exec c1 sh -c true",
		"exec -d c1 sleep --help":                    "exec -d c1 sleep --help",
		"ps c1 -ef":                                  "ps c1 -ef",
		"nosuchverb c1 --force":                      "nosuchverb c1 --force",
		"--root /r":                                  "--root /r",
		"--root":                                     "--root",
		"run c1 -d --console-socket /s --pid-file p": "run -d --console-socket /s --pid-file p c1",
	} {
		got := flagsFirst(newApp(), strings.Fields("husk "+typed))
		if want = "husk " + want; strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", typed, got, want)
		}
	}
}
