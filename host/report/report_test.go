package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/template"
)

// TestWrite: the report has each container with the end of its log, and nothing of its process.
func TestWrite(t *testing.T) {
	root := t.TempDir()
	dir, err := state.Create(root, &state.Container{
		ID: "web", Created: time.Unix(1700000000, 0), Saved: state.Created,
		Process: &specs.Process{Args: []string{"/secret-program"}, Env: []string{"PASSWORD=secret"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	log := strings.Repeat("old line\n", maxLog) + "the last line\n"
	if err := os.WriteFile(filepath.Join(dir.Path, state.LogFile), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	settings := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(settings, []byte("accel = \"tcg\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	err = Write(t.Context(), &b, Options{
		Version: "husk version 1\n", ConfigPath: settings, StateRoot: root, Templates: template.Store{Dir: t.TempDir()},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"== husk\nhusk version 1\n", `accel = "tcg" (` + settings, "web: ", "the last line\n", "== /proc/version\nLinux version ",
		"== templates\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "secret") {
		t.Errorf("the report tells of the container's process:\n%s", b.String())
	}
	if b.Len() > 10*maxLog {
		t.Errorf("the report has %d bytes", b.Len())
	}
}
