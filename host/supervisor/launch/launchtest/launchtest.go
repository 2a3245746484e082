// Package launchtest helps tests of the processes that package launch starts.
package launchtest

import (
	"os"
	"testing"
	"time"

	"github.com/huskvm/husk/host/supervisor/launch"
)

// patience is how long a process may take to end on a busy machine.
const patience = time.Minute

// WantExit waits for the end of a process and checks its exit code.
func WantExit(t *testing.T, child *launch.Child, want int) {
	t.Helper()
	ended := make(chan *os.ProcessState, 1)
	go func() {
		st, _ := child.Process.Wait()
		ended <- st
	}()
	select {
	case st := <-ended:
		if st.ExitCode() != want {
			t.Errorf("%s, want exit code %d", st, want)
		}
	case <-time.After(patience):
		child.Abort()
		t.Error("the process lives on")
	}
}
