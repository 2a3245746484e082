package main

import "strings"

// examples are shown in the help and the man page of each verb.
var examples = map[string][]string{
	"create":       {"husk create --bundle /srv/web web"},
	"start":        {"husk start web"},
	"state":        {"husk state web"},
	"kill":         {"husk kill web", "husk kill --all web KILL"},
	"delete":       {"husk delete web", "husk delete --force web"},
	"run":          {"husk run --bundle /srv/web web", "husk --timings run --detach --bundle /srv/web web"},
	"exec":         {"husk exec --tty web sh", "husk exec --user 1000:1000 --env LANG=C web id"},
	"ps":           {"husk ps web", "husk ps --format json web"},
	"list":         {"husk list", "husk --root /run/docker/runtime-runc/moby list --quiet"},
	"pause":        {"husk pause web"},
	"resume":       {"husk resume web"},
	"update":       {"husk update --memory 536870912 web", "husk update --cpu-quota 50000 --cpu-period 100000 web"},
	"events":       {"husk events --stats web", "husk events --interval 10s web"},
	"features":     {"husk features"},
	"spec":         {"husk spec --bundle /srv/web"},
	"check":        {"husk check", "husk check --run"},
	"config":       {"husk config show", "husk config sample > /etc/husk/config.toml"},
	"template":     {"husk template list", "husk template create --memory 2048", "husk template prune --unused 24h"},
	"install":      {"husk install docker", "husk install --dry-run podman"},
	"uninstall":    {"husk uninstall docker"},
	"failures":     {"husk failures", "husk failures web"},
	"version":      {"husk version"},
	"help":         {"husk help kill"},
	"debug-report": {"husk debug-report > report.txt"},
}

// withExamples is a verb's description followed by its examples.
func withExamples(verb, description string) string {
	lines := examples[verb]
	if len(lines) == 0 {
		return description
	}
	if description != "" {
		description += "\n\n"
	}
	return description + "Examples:\n   " + strings.Join(lines, "\n   ")
}
