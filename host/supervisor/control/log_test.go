package control

import (
	"bytes"
	"testing"

	"github.com/sirupsen/logrus"
)

// TestMessage: what a supervisor has logged is told without its own time and level.
func TestMessage(t *testing.T) {
	log := logrus.New()
	var line bytes.Buffer
	log.SetOutput(&line)
	for text, want := range map[string]string{
		"simple": `simple what="a b"`, "with \"quotes\" and\na line": "with \"quotes\" and\na line what=\"a b\"",
	} {
		line.Reset()
		log.WithField("what", "a b").Warn(text)
		if got := message(line.String()[:line.Len()-1]); got != want {
			t.Errorf("message of %q is %q, want %q", line.String(), got, want)
		}
	}
	if got := message("fatal error: all goroutines"); got != "fatal error: all goroutines" {
		t.Errorf("another line has become %q", got)
	}
}
