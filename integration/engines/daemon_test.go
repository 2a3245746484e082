//go:build integration

package engines

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// engine is a container engine whose containers are run by one runtime.
type engine struct {
	name, version string
	caseFiles     []string
	// prelude is shell code that puts the program engine into PATH, and defines restart_engine
	// if there is a daemon.
	prelude string
	// cleanUp is shell code that removes what a case has made; $n is the case's name.
	cleanUp string
	root    *root
	archive bool // images are OCI archives, not plain trees
	stop    func()
}

// runtime returns the program that an engine calls: husk with the settings of the test run.
func (r *root) runtime(t *testing.T, name, dir, setPath string) string {
	t.Helper()
	if name != "husk" {
		return r.shell(t, setPath+"command -v "+name)
	}
	path := filepath.Join(dir, "husk")
	script := fmt.Sprintf("#!/bin/sh\nexec %s --config %s \"$@\"\n", huskPath, settings)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// daemon is a background process with its log.
type daemon struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

// startDaemon starts a daemon and returns when its socket answers.
func startDaemon(log, socket string, args ...string) (*daemon, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	os.Remove(socket)
	d := &daemon{cmd: exec.Command(args[0], args[1:]...), log: log, ended: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = out, out
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.ended)
	}()
	deadline := time.After(time.Minute)
	for {
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return d, nil
		}
		select {
		case <-d.ended:
			return nil, fmt.Errorf("%s ended: %s", args[0], tail(log))
		case <-deadline:
			return nil, fmt.Errorf("%s does not answer on %s: %s", args[0], socket, tail(log))
		case <-time.After(50 * time.Millisecond): // nothing tells when it listens
		}
	}
}

func tail(log string) string {
	text, _ := os.ReadFile(log)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// program writes a program that executes a shell line with its arguments, and returns the line
// that puts it into PATH.
func program(t *testing.T, dir, name, line string) string {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+line+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + bin + ":$PATH\n"
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
