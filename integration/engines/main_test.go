//go:build integration

// Package engines does with real engines what users do every day, first with runc and then with
// husk, and prints what passes. An engine and everything it starts live in new mount, network
// and pid namespaces and end with them.
package engines

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// insideVariable tells the test binary, which executes itself, that it is in its namespaces.
const insideVariable = "HUSK_ENGINES_INSIDE"

// TestMain sets these once.
var (
	huskPath string
	settings string // husk's settings file
	testprog string // built by make
	outDir   string // for the table
	repeats  int    // how often what is to be done many times is done
)

func TestMain(m *testing.M) {
	if os.Getenv(insideVariable) == "" {
		flag.Parse()
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "engines:", err)
			os.Exit(1)
		}
		os.Exit(enterNamespaces())
	}
	if err := setUp(); err != nil {
		fmt.Fprintln(os.Stderr, "engines:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// prepares are scripts of integration/setup that tests need, each with a directory below OUT
// for what it makes.
var prepares = []struct{ tests, script, dir string }{
	{"TestDocker26 TestDocker29 TestPodman5 TestCtr17 TestCtr2", "debian13.sh", "debian13"},
	{"TestDocker29 TestCtr2", "engines.sh", "engines"},
}

// builtPrograms returns the directory in which engines.sh puts what it builds.
func builtPrograms() string { return filepath.Join(outDir, "engines") }

// prepare runs the scripts that the selected tests need, while there is a network.
func prepare() error {
	picked, _, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	for _, p := range prepares {
		for _, test := range strings.Fields(p.tests) {
			if ok, err := regexp.MatchString(picked, test); err != nil || !ok {
				continue
			}
			cmd := exec.Command(filepath.Join("..", "setup", p.script), filepath.Join(os.Getenv("OUT"), p.dir))
			cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%s: %w", p.script, err)
			}
			break
		}
	}
	return nil
}

// enterNamespaces runs this test again in new namespaces. Their first process is a shell, which
// reaps orphans of an engine that was killed.
func enterNamespaces() int {
	args := append([]string{
		"--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"bash", "-c", `"$@"; exit $?`, "init",
	}, os.Args...)
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), insideVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "engines: enter namespaces:", err)
		return 1
	}
	return 0
}

func setUp() error {
	for name, to := range map[string]*string{"RUNTIME": &huskPath, "HUSK_CONFIG": &settings, "TESTPROG": &testprog, "OUT": &outDir} {
		path := os.Getenv(name)
		if path == "" {
			return fmt.Errorf("%s is not set: run this by make engines", name)
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		*to = abs
	}
	repeats = 3
	if text := os.Getenv("REPEATS"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("REPEATS: %w", err)
		}
		repeats = n
	}
	// crun takes a hybrid machine whose v2 hierarchy has controllers for a misconfigured one.
	if err := unix.Unmount("/sys/fs/cgroup/unified", 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount the unified hierarchy: %w", err)
	}
	for _, command := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.route_localnet=1"},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", command, err, out)
		}
	}
	return nil
}
