//go:build integration

package integration

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestDebug: with --debug each verb tells its steps in --log, nothing of them elsewhere,
// and nothing that is the container's own.
func TestDebug(t *testing.T) {
	needVM(t)
	t.Parallel()
	e := newEnv(t)
	const secret = "s3cr3t-of-the-container"
	bundle := e.bundle(withArgs("sh", "-c", "echo out; exec sleep 1000", secret), func(s *specs.Spec) {
		s.Process.Env = append(s.Process.Env, "PASSWORD="+secret)
	})
	id := e.id()
	var all strings.Builder
	verb := func(args []string, wants ...string) {
		t.Helper()
		p := e.start(call{}, append([]string{"--debug"}, args...)...)
		if code := p.code(); code != 0 || p.stderr.String() != "" {
			t.Fatalf("%s: exit code %d, stderr %q\n%s", args[0], code, p.stderr, p.log())
		}
		text := p.log()
		all.WriteString(text)
		for _, want := range append(wants, `"level":"debug","msg":"husk `, "): "+args[0]) {
			if !strings.Contains(text, want) {
				t.Errorf("the log of %s lacks %q:\n%s", args[0], want, text)
			}
		}
	}
	pidFile := e.path("pid")
	verb([]string{"create", "--bundle", bundle, "--pid-file", pidFile, id},
		"accel ", "guest kernel ", "the setting kernel names it", "memory template ", "virtual machine: ", "cgroup ",
		"supervisor: vmm: /", " -machine microvm", "phase agent create of supervisor: ", "phase wait for supervisor of cli: ")
	exit := reap(readPID(t, pidFile))
	verb([]string{"start", id}, "start container "+id+": the supervisor is process ", "phase execve of supervisor: ")
	verb([]string{"exec", "--env", "PASSWORD=" + secret, id, "true", secret}, "phase ")
	verb([]string{"kill", id, "KILL"}, "kill container "+id)
	e.exitOf(exit)
	verb([]string{"delete", id}, "cgroups and ", "are removed")
	if strings.Contains(all.String(), secret) {
		t.Errorf("the log has the container's environment or arguments:\n%s", all.String())
	}
}
