package state

import (
	"errors"
	"testing"
)

// TestAllowed tests every verb in every status, with runc's texts, which engines match.
func TestAllowed(t *testing.T) {
	const allowed = ""
	statuses := []Status{Creating, Created, Running, Paused, Stopped}
	for _, row := range []struct {
		verb Verb
		want [5]string
	}{
		{Start, [5]string{
			"cannot start container c1: it is creating", allowed, "cannot start an already running container",
			"cannot start a container in the paused state", "cannot start a container that has stopped",
		}},
		{Kill, [5]string{"cannot kill container c1: it is creating", allowed, allowed, allowed, "container not running"}},
		{Delete, [5]string{
			"cannot delete container c1 that is not stopped: creating", allowed,
			"cannot delete container c1 that is not stopped: running",
			"cannot delete container c1 that is not stopped: paused", allowed,
		}},
		{Exec, [5]string{
			"cannot exec container c1: it is creating", allowed, allowed,
			"cannot exec in a paused container (use --ignore-paused to override)", "cannot exec in a stopped container",
		}},
		{Pause, [5]string{
			"cannot pause container c1: it is creating", allowed, allowed, "container not running", "container not running",
		}},
		{Resume, [5]string{
			"cannot resume container c1: it is creating", "container not paused", "container not paused", allowed, "container not paused",
		}},
		{Update, [5]string{"cannot update container c1: it is creating", allowed, allowed, allowed, "container not running"}},
		{Events, [5]string{
			"cannot events container c1: it is creating", allowed, allowed, allowed, "container with id c1 is not running",
		}},
		{Ps, [5]string{"cannot ps container c1: it is creating", allowed, allowed, allowed, "container not running"}},
	} {
		for i, status := range statuses {
			err := Allowed(row.verb, "c1", status)
			if row.want[i] == allowed {
				if err != nil {
					t.Errorf("%s when %s: %v, want it allowed", row.verb, status, err)
				}
				continue
			}
			if err == nil || err.Error() != row.want[i] {
				t.Errorf("%s when %s: error %v, want %q", row.verb, status, err, row.want[i])
			}
			var refused *Error
			if !errors.As(err, &refused) || refused.Verb != row.verb || refused.Status != status || refused.ID != "c1" {
				t.Errorf("%s when %s: %#v does not tell verb, id and status apart", row.verb, status, err)
			}
		}
	}
	if len(transitions) != 9 {
		t.Errorf("the table has %d verbs, this test 9: add the new one", len(transitions))
	}
}

func TestAllowedUnknownStatus(t *testing.T) {
	// The state file of a later version may have a status that this one does not know.
	if err := Allowed(Kill, "c1", "hibernated"); err == nil {
		t.Error("a verb is allowed in an unknown status")
	}
}
