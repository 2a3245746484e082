package control

import (
	"testing"

	"github.com/huskvm/husk/host/state"
)

func TestAnswerTimeout(t *testing.T) {
	for _, verb := range []state.Verb{state.Start, state.Kill, state.Exec, state.Pause, state.Resume, state.Update, state.Events, state.Ps} {
		if limit, bounded := answerTimeout(verb, &state.Container{}); !bounded || limit <= 0 {
			t.Errorf("%s may take any time", verb)
		}
	}
}
