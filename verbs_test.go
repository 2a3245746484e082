package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/huskvm/husk/host/state"
)

// TestUnknownContainer: every verb has runc's text for a container that does not exist.
func TestUnknownContainer(t *testing.T) {
	for _, args := range [][]string{
		{"ps", "nope"},
		{"pause", "nope"},
		{"resume", "nope"},
		{"update", "--memory", "1000000", "nope"},
		{"events", "--stats", "nope"},
		{"checkpoint", "nope"},
		{"start", "nope"},
		{"kill", "nope", "KILL"},
		{"state", "nope"},
	} {
		out, err := husk(t.TempDir(), args...)
		if out != "" {
			t.Errorf("%v printed %q", args, out)
		}
		if !errors.Is(err, state.ErrNotExist) {
			t.Errorf("%v: error %v, want %v", args, err, state.ErrNotExist)
		}
	}
}

func TestWrongArguments(t *testing.T) {
	for _, tc := range []struct {
		args []string
		text string
	}{
		{[]string{"list", "x"}, `husk: "list" requires exactly 0 argument(s)`},
		{[]string{"ps"}, `husk: "ps" requires a minimum of 1 argument(s)`},
		{[]string{"spec", "x"}, `husk: "spec" requires exactly 0 argument(s)`},
		{[]string{"features", "x"}, `husk: "features" requires exactly 0 argument(s)`},
		{[]string{"metrics", "x"}, `husk: "metrics" requires exactly 0 argument(s)`},
		{[]string{"check", "x"}, `husk: "check" requires exactly 0 argument(s)`},
		{[]string{"pause"}, `husk: "pause" requires exactly 1 argument(s)`},
		{[]string{"resume", "a", "b"}, `husk: "resume" requires exactly 1 argument(s)`},
		{[]string{"update"}, `husk: "update" requires exactly 1 argument(s)`},
		{[]string{"events"}, `husk: "events" requires exactly 1 argument(s)`},
		{[]string{"checkpoint"}, `husk: "checkpoint" requires exactly 1 argument(s)`},
		{[]string{"restore"}, `husk: "restore" requires a minimum of 1 argument(s)`},
		{[]string{"restore", "--lsm-mount-context"}, `husk: "restore" requires a minimum of 1 argument(s)`},
		{[]string{"kill", "a", "KILL", "b"}, `husk: "kill" requires a maximum of 2 argument(s)`},
		{[]string{"template", "list", "x"}, `husk: "list" requires exactly 0 argument(s)`},
		{[]string{"template", "create", "x"}, `husk: "create" requires exactly 0 argument(s)`},
		{[]string{"install"}, `husk: "install" requires exactly 1 argument(s)`},
		{[]string{"uninstall", "a", "b"}, `husk: "uninstall" requires exactly 1 argument(s)`},
		{[]string{"version", "x"}, `husk: "version" requires exactly 0 argument(s)`},
	} {
		out, err := husk(t.TempDir(), tc.args...)
		if !strings.HasPrefix(out, "Incorrect Usage.\n\nNAME:\n   husk "+tc.args[0]) {
			t.Errorf("%v printed %q", tc.args, out)
		}
		wantError(t, err, tc.text)
	}
	out, err := husk(t.TempDir(), "list", "--nosuch")
	if !strings.HasPrefix(out, "Incorrect Usage: flag provided but not defined: -nosuch\n\nNAME:") {
		t.Errorf("an unknown flag printed %q", out)
	}
	wantError(t, err, "flag provided but not defined: -nosuch")
}

// TestHelp: help works in every form, and exists only for what husk can do.
func TestHelp(t *testing.T) {
	for _, tc := range []struct {
		args  string
		begin string
		err   string
	}{
		{"help", "NAME:\n   husk - ", ""},
		{"--help", "NAME:\n   husk - ", ""},
		{"help update", "NAME:\n   husk update - ", ""},
		{"update --help", "NAME:\n   husk update - ", ""},
		{"help template", "NAME:\n   husk template - ", ""},
		{"template", "NAME:\n   husk template - ", ""},
		{"version", "husk version ", ""},
		{"--version", "husk version ", ""},
		{"help strat", "", `No help topic for 'strat': did you mean "start"?`}, //nolint:misspell // the suggested verb
		{"help nosuchverb", "", "No help topic for 'nosuchverb'"},
		{"template prnue", "", `template: No help topic for 'prnue': did you mean "prune"?`},
		{"checkpoint --help", "NAME:\n   husk checkpoint - not supported", errCheckpoint.Error()},
		{"restore --help", "NAME:\n   husk restore - not supported", errCheckpoint.Error()},
		{"restore --lsm-mount-context label c1", "", errCheckpoint.Error()},
		{"spec --rootless", "", "--rootless is not supported: husk needs root"},
	} {
		out, err := husk(t.TempDir(), strings.Fields(tc.args)...)
		if !strings.HasPrefix(out, tc.begin) || (tc.begin == "") != (out == "") {
			t.Errorf("%s printed %q, want what begins with %q", tc.args, out, tc.begin)
		}
		if tc.err != "" {
			wantError(t, err, tc.err)
		} else if err != nil {
			t.Errorf("%s: %v", tc.args, err)
		}
	}
}

// TestContainerNamedHelp: the library would take such an id for a command of its own.
func TestContainerNamedHelp(t *testing.T) {
	for _, verb := range []string{"ps", "pause", "resume", "update", "events", "checkpoint"} {
		for _, id := range []string{"h", "help"} {
			if out, err := husk(t.TempDir(), verb, id); !errors.Is(err, state.ErrNotExist) || out != "" {
				t.Errorf("%s %s: %q, %v", verb, id, out, err)
			}
		}
	}
}

func TestListNone(t *testing.T) {
	root := filepath.Join(t.TempDir(), "nosuch")
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"list"}, "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"},
		{[]string{"list", "-f", "json"}, "null\n"},
		{[]string{"list", "-q"}, ""},
	} {
		if out, err := husk(root, tc.args...); err != nil || out != tc.want {
			t.Errorf("%v: %q, %v; want %q", tc.args, out, err, tc.want)
		}
	}
	for _, args := range [][]string{{"list"}, {"config", "show"}, {"template", "list"}} {
		_, err := husk(root, append(args, "--format", "yaml")...)
		wantError(t, err, "invalid format option")
	}
}

func TestList(t *testing.T) {
	f := runningContainer(t)
	want := "ID          PID         STATUS      BUNDLE      CREATED                          OWNER\n" +
		fmt.Sprintf("c1          %-12drunning     /bundle     2026-01-02T03:04:05.000000006Z   root\n", os.Getpid())
	if out, err := f.husk("list"); err != nil || out != want {
		t.Errorf("list: %v\n%s, want\n%s", err, out, want)
	}
	want = fmt.Sprintf(`[{"ociVersion":"1.3.0","id":"c1","pid":%d,"status":"running","bundle":"/bundle",`+
		`"rootfs":"/bundle/rootfs","created":"2026-01-02T03:04:05.000000006Z","owner":"root"}]`+"\n", os.Getpid())
	if out, err := f.husk("list", "--format=json"); err != nil || out != want {
		t.Errorf("list: %v\n%s, want\n%s", err, out, want)
	}
	for _, args := range [][]string{{"list", "-q"}, {"list", "--quiet", "-f", "json"}} {
		if out, err := f.husk(args...); err != nil || out != "c1\n" {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}

func TestListStopped(t *testing.T) {
	out, err := stoppedContainer(t).husk("list", "-f", "json")
	if err != nil {
		t.Fatal(err)
	}
	var all []state.Description
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0].Status != state.Stopped || all[0].PID != 0 {
		t.Errorf("listed %+v, want one that is stopped, without a pid", all)
	}
}

func TestPs(t *testing.T) {
	f := runningContainer(t)
	child := startProcess(t)
	f.pids = []int32{int32(os.Getpid()), int32(child.Process.Pid)}

	want := fmt.Sprintf("[%d,%d]\n", f.pids[0], f.pids[1])
	if out, err := f.husk("ps", "--format", "json", "c1"); err != nil || out != want {
		t.Errorf("ps: %q, %v; want %q", out, err, want)
	}

	out, err := f.husk("ps", "c1", "-e", "-o", "pid,args")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if len(lines) != 3 || strings.Join(strings.Fields(lines[0]), " ") != "PID COMMAND" ||
		!strings.Contains(out, fmt.Sprintf("%d sleep 300\n", child.Process.Pid)) {
		t.Errorf("ps printed %q, want a header, this process and its child", out)
	}

	_, err = f.husk("ps", "c1", "-o", "args")
	wantError(t, err, "couldn't find PID field in ps output")
	_, err = f.husk("ps", "-f", "xml", "c1")
	wantError(t, err, "invalid format option")
	if _, err = f.husk("ps", "c1", "--nosuchoption"); err == nil || !strings.HasPrefix(err.Error(), "run ps: ") {
		t.Errorf("ps with an option of no ps: %v", err)
	}
}

func TestPsStopped(t *testing.T) {
	f := stoppedContainer(t)
	if out, err := f.husk("ps", "-f", "json", "c1"); err != nil || out != "null\n" {
		t.Errorf("ps: %q, %v; want null", out, err)
	}
	out, err := f.husk("ps", "c1")
	if err != nil || strings.Count(out, "\n") != 1 || !slices.Contains(strings.Fields(out), "PID") {
		t.Errorf("ps: %q, %v; want only the header", out, err)
	}
	if calls := f.called(); len(calls) > 0 {
		t.Errorf("asked the supervisor of a stopped container: %v", calls)
	}
}

func TestPickLines(t *testing.T) {
	const listing = "  PID TTY STAT\n    7 ?   S\n   77 ?   S\n    - -   -\n\n    8 ?   R\n"
	got, err := pickLines(listing, []int32{8, 7})
	if want := "  PID TTY STAT\n    7 ?   S\n    8 ?   R\n"; err != nil || got != want {
		t.Errorf("picked %q, %v; want %q", got, err, want)
	}
	for _, without := range []string{"", "\n", "PPID CMD\n1 sh\n"} {
		if got, err := pickLines(without, []int32{1}); err == nil {
			t.Errorf("%q: picked %q from a listing without PID", without, got)
		}
	}
}

func TestPauseResume(t *testing.T) {
	f := runningContainer(t)
	if out, err := f.husk("pause", "c1"); err != nil || out != "" {
		t.Errorf("pause: %q, %v", out, err)
	}
	_, err := f.husk("resume", "c1")
	wantError(t, err, "container not paused")
	f.save(t, state.Paused)
	_, err = f.husk("pause", "c1")
	wantError(t, err, "container not running")
	if out, err := f.husk("resume", "c1"); err != nil || out != "" {
		t.Errorf("resume: %q, %v", out, err)
	}
	if calls := f.called(); !slices.Equal(calls, []string{"pause", "resume"}) {
		t.Errorf("the supervisor was asked to %v", calls)
	}
	f.err = errors.New("the guest does not answer")
	_, err = f.husk("resume", "c1")
	wantError(t, err, "the guest does not answer")
}

func TestStopped(t *testing.T) {
	f := stoppedContainer(t)
	for _, tc := range []struct {
		args []string
		text string
	}{
		{[]string{"pause", "c1"}, "container not running"},
		{[]string{"resume", "c1"}, "container not paused"},
		{[]string{"update", "--memory", "100m", "c1"}, "container not running"},
		{[]string{"events", "--stats", "c1"}, "container with id c1 is not running"},
		{[]string{"kill", "c1", "0"}, "container not running"},
	} {
		_, err := f.husk(tc.args...)
		wantError(t, err, tc.text)
	}
	if _, err := f.husk("kill", "--all", "c1", "KILL"); err != nil {
		t.Errorf("kill --all: %v", err)
	}
}

func TestEventsStats(t *testing.T) {
	f := runningContainer(t)
	f.stats = `{"cpu":{"usage":{"total":1}}}`
	const want = `{"type":"stats","id":"c1","data":{"cpu":{"usage":{"total":1}}}}` + "\n"
	if out, err := f.husk("events", "--stats", "c1"); err != nil || out != want {
		t.Errorf("events: %q, %v; want %q", out, err, want)
	}
	for _, interval := range []string{"0s", "-1s"} {
		_, err := f.husk("events", "--interval", interval, "c1")
		wantError(t, err, "duration interval must be greater than 0")
	}
	f.err = errors.New("the guest does not answer")
	_, err := f.husk("events", "--stats", "c1")
	wantError(t, err, "the guest does not answer")
	_, err = f.husk("events", "--interval", "1ms", "c1")
	wantError(t, err, "the guest does not answer")
}

// TestEventsEnd: events ends with the supervisor, not at the next tick.
func TestEventsEnd(t *testing.T) {
	supervisor := startProcess(t)
	f := newFakeContainer(t, state.Running, supervisor.Process.Pid)
	ended := make(chan error, 1)
	go func() {
		out, err := f.husk("events", "--interval", "1h", "c1")
		if out != "" {
			err = fmt.Errorf("printed %q before the first tick", out)
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Fatalf("events ended before the container: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := supervisor.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := within(t, ended); err != nil {
		t.Error(err)
	}
}

// TestEventsEndUnread: the container has stopped, but its supervisor goes on because nobody
// reads the container's output.
func TestEventsEndUnread(t *testing.T) {
	f := runningContainer(t)
	f.stats = "{}"
	ended := make(chan error, 1)
	go func() {
		out, err := f.husk("events", "--interval", "1ms", "c1")
		if !strings.HasPrefix(out, `{"type":"stats","id":"c1","data":{}}`+"\n") {
			err = fmt.Errorf("printed %q, %w", out, err)
		}
		ended <- err
	}()
	deadline := time.After(10 * time.Second)
	for len(f.called()) < 2 {
		select {
		case <-time.After(time.Millisecond):
		case <-deadline:
			t.Fatal("stats were not asked for twice")
		}
	}
	f.save(t, state.Stopped)
	f.mu.Lock()
	f.err = errors.New("container with id c1 is not running")
	f.mu.Unlock()
	if err := within(t, ended); err != nil {
		t.Error(err)
	}
}

func within(t *testing.T, ended <-chan error) error {
	t.Helper()
	select {
	case err := <-ended:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
		return nil
	}
}

func TestSpec(t *testing.T) {
	bundle := t.TempDir()
	if out, err := husk(t.TempDir(), "spec", "--bundle", bundle); err != nil || out != "" {
		t.Fatalf("spec: %q, %v", out, err)
	}
	path := filepath.Join(bundle, "config.json")
	written, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(written, &spec); err != nil {
		t.Fatal(err)
	}
	if spec.Root.Path != "rootfs" || !slices.Equal(spec.Process.Args, []string{"sh"}) || !spec.Process.Terminal {
		t.Errorf("wrote %s, want sh on a terminal in rootfs, as runc", written)
	}

	_, err = husk(t.TempDir(), "spec", "-b", bundle)
	wantError(t, err, "File config.json exists. Remove it first")
	if again, err := os.ReadFile(path); err != nil || string(again) != string(written) {
		t.Errorf("the existing file is now %q, %v", again, err)
	}

	t.Chdir(t.TempDir())
	if _, err := husk(t.TempDir(), "spec", "--rootless"); err == nil {
		t.Error("spec --rootless was accepted")
	}
	if _, err := os.Stat("config.json"); !os.IsNotExist(err) {
		t.Errorf("a refused spec wrote a file: %v", err)
	}
	if _, err := husk(t.TempDir(), "spec"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("config.json"); err != nil {
		t.Error(err)
	}
}

// TestCheckpoint: the error is the same with runc's flags.
func TestCheckpoint(t *testing.T) {
	f := runningContainer(t)
	const want = "checkpoint is not supported: husk cannot save a virtual machine yet"
	for _, args := range [][]string{
		{"checkpoint"},
		{
			"checkpoint", "--image-path", "i", "--work-path", "w", "--parent-path", "p", "--leave-running",
			"--tcp-established", "--ext-unix-sk", "--shell-job", "--lazy-pages", "--status-fd", "3", "--page-server", "a:1",
			"--file-locks", "--pre-dump", "--manage-cgroups-mode", "soft", "--empty-ns", "network", "--auto-dedup",
		},
		{"restore"},
		{
			"restore", "--console-socket", "c", "--image-path", "i", "--work-path", "w", "--tcp-established", "--ext-unix-sk",
			"--shell-job", "--file-locks", "--manage-cgroups-mode", "soft", "--bundle", "b", "--detach",
			"--pid-file", "p", "-no-subreaper", "--no-pivot", "--empty-ns", "network", "--auto-dedup", "--lazy-pages",
			"--lsm-profile", "x:y", "--lsm-mount-context", "z",
		},
		{"restore", "-b", "b", "-d"},
	} {
		_, err := f.husk(append(args, "c1")...)
		wantError(t, err, want)
	}
}

// TestEventsOOM: an event is printed when it happens, also the one that has ended the
// container.
func TestEventsOOM(t *testing.T) {
	supervisor := startProcess(t)
	f := newFakeContainer(t, state.Running, supervisor.Process.Pid)
	f.kills = make(chan uint64)
	const line = `{"type":"oom","id":"c1"}` + "\n"
	ended := make(chan error, 1)
	go func() {
		out, err := f.husk("events", "--interval", "1h", "c1")
		if out != line+line {
			err = fmt.Errorf("printed %q, not two lines of oom: %w", out, err)
		}
		ended <- err
	}()
	f.kills <- 1
	f.kills <- 3
	f.kills <- 3 // no more: the container ends
	if err := supervisor.Process.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := within(t, ended); err != nil {
		t.Error(err)
	}
}
