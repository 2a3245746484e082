package execprocess

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// TestExecuted checks that an answer that came in time counts even if the deadline passes
// before the answer is looked at.
func TestExecuted(t *testing.T) {
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := executed(over, nil, 7); err != nil {
		t.Errorf("an answer, and then the deadline: %v", err)
	}
	if err := executed(over, context.Canceled, 7); err == nil || !strings.Contains(err.Error(), "has not answered within") {
		t.Errorf("no answer: %v", err)
	}
	no := errors.New("no")
	if err := executed(t.Context(), no, 7); !errors.Is(err, no) {
		t.Errorf("a refusal: %v", err)
	}
}
