package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

// TestPanicIsAnError runs this test binary again, which panics as a verb would.
func TestPanicIsAnError(t *testing.T) {
	const debug = "HUSK_TEST_PANIC"
	if v, set := os.LookupEnv(debug); set {
		if v != "" {
			logrus.SetLevel(logrus.DebugLevel)
		}
		defer failOnPanic()
		var none map[string]int
		none["x"]++ //nolint:govet,staticcheck // the panic to test
	}
	for _, tc := range []struct {
		debug string
		trace bool
	}{{"", false}, {"1", true}} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestPanicIsAnError$")
		cmd.Env = append(os.Environ(), debug+"="+tc.debug)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitPanic {
			t.Errorf("ended with %v, want exit code %d", err, exitPanic)
		}
		if text := stderr.String(); !strings.Contains(text, "assignment to entry in nil map") || strings.Contains(text, "panic_test.go") != tc.trace {
			t.Errorf("with debug %q stderr is %q", tc.debug, text)
		}
		if lines := strings.Count(stderr.String(), "\n"); !tc.trace && lines != 1 {
			t.Errorf("stderr has %d lines: %q", lines, stderr.String())
		}
	}
}
