package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/state"
)

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]unix.Signal{
		"15": unix.SIGTERM, "TERM": unix.SIGTERM, "SIGTERM": unix.SIGTERM, "sigterm": unix.SIGTERM, "Term": unix.SIGTERM,
		"9": unix.SIGKILL, "KILL": unix.SIGKILL, "0": 0, "1": unix.SIGHUP, "64": 64,
		"USR1": unix.SIGUSR1, "SIGUSR2": unix.SIGUSR2, "WINCH": unix.SIGWINCH, "28": unix.SIGWINCH, "CHLD": unix.SIGCHLD,
		// docker kill -s 37 and conmon send real-time signals.
		"37": 37, "SIGRTMIN": 34, "RTMIN": 34, "RTMIN+3": 37, "rtmin+15": 49, "SIGRTMAX": 64, "RTMAX-14": 50, "RTMAX-30": 34,
	} {
		if got, err := parseSignal(s); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", s, got, err, want)
		}
	}
	for s, text := range map[string]string{
		"NOSUCH": `unknown signal "NOSUCH"`, "": `unknown signal ""`, "SIG": `unknown signal "SIG"`,
		"SIGSIGTERM": `unknown signal "SIGSIGTERM"`, "15x": `unknown signal "15x"`,
		"999": "unable to signal init: invalid argument", "-1": "unable to signal init: invalid argument",
		"65":      "unable to signal init: invalid argument",
		"RTMIN-1": `unknown signal "RTMIN-1"`, "RTMAX+1": `unknown signal "RTMAX+1"`, "RTMIN+31": `unknown signal "RTMIN+31"`,
		"RTMAX-31": `unknown signal "RTMAX-31"`, "RTMIN+x": `unknown signal "RTMIN+x"`, "RTMINx": `unknown signal "RTMINx"`,
	} {
		got, err := parseSignal(s)
		if err == nil {
			t.Errorf("%q is taken for %d", s, got)
			continue
		}
		wantError(t, err, text)
	}
}

// TestKillLeaves: a container that ends waits for connected callers, so kill must have
// disconnected when it waits for the container's end.
func TestKillLeaves(t *testing.T) {
	process := startProcess(t)
	f := newFakeContainer(t, state.Running, process.Process.Pid)
	ended := make(chan bool, 1)
	f.killed = func() {
		go func() {
			select {
			case <-f.left:
				ended <- true
			case <-time.After(2 * time.Second): // less than kill waits for the end
				ended <- false
			}
			_ = process.Process.Kill()
		}()
	}
	if _, err := f.husk("kill", "c1", "KILL"); err != nil {
		t.Fatal(err)
	}
	if !<-ended {
		t.Error("kill stayed connected while it waited for the container to end")
	}
}

// TestKillAllOfOneThatEnds: kill --all succeeds if the container ends meanwhile.
func TestKillAllOfOneThatEnds(t *testing.T) {
	process := startProcess(t)
	f := newFakeContainer(t, state.Running, process.Process.Pid)
	f.killed = func() {
		_ = process.Process.Kill()
		_ = process.Wait()
		f.end()
	}
	if _, err := f.husk("kill", "--all", "c1", "TERM"); err != nil {
		t.Error(err)
	}
}

func FuzzParseSignal(f *testing.F) {
	for _, s := range []string{"15", "KILL", "sigterm", "RTMIN+3", "RTMAX-1", "-1", "RTMIN+99999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		sig, err := parseSignal(s)
		if err != nil {
			return
		}
		if sig < 0 || sig > 64 {
			t.Errorf("%q is taken for %d", s, sig)
		}
		// The same with and without SIG, in any case, and by its number.
		for _, same := range []string{strings.ToLower(s), fmt.Sprint(int(sig))} {
			if again, err := parseSignal(same); err != nil || again != sig {
				t.Errorf("%q is %d but %q is %d, %v", s, sig, same, again, err)
			}
		}
	})
}
