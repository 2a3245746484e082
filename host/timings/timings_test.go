package timings

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	l := New("cli")
	ctx := With(context.Background(), l)
	Lap(ctx, "first")
	end := l.Begin("beside")
	Lap(ctx, "second")
	end()
	began := l.Phases()[0].Began
	l.Add(Phase{Process: "supervisor", Name: "elsewhere", Began: began + time.Hour, Took: 1500 * time.Microsecond})

	phases := l.Phases()
	for i, want := range []string{"first", "second", "beside", "elsewhere"} {
		// "second" and "beside" may begin in the same nanosecond.
		if got := phases[i].Name; got != want && i != 1 && i != 2 {
			t.Errorf("phase %d is %q, want %q", i, got, want)
		}
	}
	if phases[1].Began < phases[0].Began+phases[0].Took {
		t.Errorf("laps overlap: %+v", phases[:2])
	}
	var out strings.Builder
	if err := l.Print(&out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 5 || strings.Join(strings.Fields(lines[4])[1:], " ") != "1.5 supervisor elsewhere" {
		t.Errorf("table:\n%s", out.String())
	}
}

func TestNoLog(t *testing.T) {
	Lap(context.Background(), "nobody listens")
	var l *Log
	l.Begin("nothing")()
	if l.Phases() != nil {
		t.Error("a nil log has phases")
	}
}
