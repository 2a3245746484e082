package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

const greetingLine = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}`

// command is a command as the client sends it.
type command struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        uint64          `json:"id"`
}

// serveQMP plays QEMU: it sends the greeting, and answer returns what to send for each command.
func serveQMP(t *testing.T, answer func(command) string) (*qmp, chan string) {
	t.Helper()
	near, far := net.Pipe()
	events := make(chan string, 10)
	q := newQMP(near, func(name string, data json.RawMessage) { events <- name + " " + string(data) })
	served := make(chan struct{})
	go func() {
		defer close(served)
		defer far.Close()
		if _, err := io.WriteString(far, greetingLine+"\r\n"); err != nil {
			return
		}
		lines := bufio.NewScanner(far)
		for lines.Scan() {
			var c command
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("client sent %q: %v", lines.Text(), err)
				return
			}
			reply := answer(c)
			if reply == "hang up" {
				return
			}
			if _, err := io.WriteString(far, reply); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		q.Close()
		<-served
	})
	return q, events
}

func ok(c command) string { return fmt.Sprintf(`{"return": {}, "id": %d}`+"\r\n", c.ID) }

func TestQMPNegotiateAndExecute(t *testing.T) {
	q, events := serveQMP(t, func(c command) string {
		switch c.Execute {
		case "query-kvm":
			// An event and an answer that nobody waits for come first.
			return `{"event": "RESUME", "timestamp": {}}` + "\n" + `{"return": {}, "id": 999}` + "\n" +
				fmt.Sprintf(`{"id": %d, "return": {"enabled": true, "present": true}}`+"\n", c.ID)
		case "cont":
			return fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "no\u001b[31m"}, "id": %d}`+"\n", c.ID)
		case "echo":
			return fmt.Sprintf(`{"return": %s, "id": %d}`+"\n", c.Arguments, c.ID)
		}
		return ok(c)
	})
	g, err := q.negotiate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := g.Version.QEMU.String(); got != "QEMU 7.2.22" {
		t.Errorf("version = %q", got)
	}
	var kvm struct{ Enabled bool }
	if err := q.Execute(t.Context(), "query-kvm", nil, &kvm); err != nil || !kvm.Enabled {
		t.Errorf("query-kvm = %+v, %v", kvm, err)
	}
	if got := <-events; got != "RESUME " {
		t.Errorf("event = %q", got)
	}
	var refused *QMPError
	if err := q.Execute(t.Context(), "cont", nil, nil); !errors.As(err, &refused) || refused.Error() != "qmp cont: GenericError: no[31m" {
		t.Errorf("cont = %v", err)
	}
	var echo struct{ A int }
	if err := q.Execute(t.Context(), "echo", map[string]int{"a": 7}, &echo); err != nil || echo.A != 7 {
		t.Errorf("echo = %+v, %v", echo, err)
	}
}

func TestQMPConcurrentCommandsGetTheirOwnAnswers(t *testing.T) {
	var held string
	q, _ := serveQMP(t, func(c command) string {
		// Two answers are sent together, that to the later command first.
		answer := fmt.Sprintf(`{"return": %s, "id": %d}`+"\n", c.Arguments, c.ID)
		if held == "" {
			held = answer
			return ""
		}
		answer, held = answer+held, ""
		return answer
	})
	errs := make(chan error, 20)
	for i := range 20 {
		go func() {
			var got int
			err := q.Execute(t.Context(), "echo", i, &got)
			if err == nil && got != i {
				err = fmt.Errorf("command %d got the answer of %d", i, got)
			}
			errs <- err
		}()
	}
	for range 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestQMPEnds(t *testing.T) {
	t.Run("hang up", func(t *testing.T) {
		q, _ := serveQMP(t, func(command) string { return "hang up" })
		if _, err := q.negotiate(t.Context()); !errors.Is(err, errQMPClosed) {
			t.Errorf("negotiate = %v, want errQMPClosed", err)
		}
		if err := q.Execute(t.Context(), "query-kvm", nil, nil); !errors.Is(err, errQMPClosed) {
			t.Errorf("Execute after the end = %v, want errQMPClosed", err)
		}
	})
	t.Run("no answer", func(t *testing.T) {
		q, _ := serveQMP(t, func(command) string { return "" })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if err := q.Execute(ctx, "query-kvm", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Execute = %v, want DeadlineExceeded", err)
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		if len(q.pending) != 0 {
			t.Errorf("%d commands still pending", len(q.pending))
		}
	})
	for name, line := range map[string]string{
		"not json":      "hello\n",
		"two greetings": greetingLine + "\n" + greetingLine + "\n",
		"lost error":    `{"error": {"class": "GenericError", "desc": "what"}}` + "\n",
		"endless line":  `{"event": "` + strings.Repeat("x", maxQMPLine) + `"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			q, _ := serveQMP(t, func(command) string { return line })
			err := q.Execute(t.Context(), "query-kvm", nil, nil)
			if !errors.Is(err, errQMPClosed) {
				t.Errorf("Execute = %v, want errQMPClosed", err)
			}
			<-q.ended
		})
	}
}

func TestReadLine(t *testing.T) {
	long := strings.Repeat("a", 100)
	r := bufio.NewReaderSize(strings.NewReader("x\r\n\n"+long+"\n"+long+"b\n"), 16)
	for _, want := range []string{"x", "", long} {
		got, err := readLine(r, 101)
		if err != nil || string(got) != want {
			t.Errorf("readLine = %q, %v, want %q", got, err, want)
		}
	}
	if got, err := readLine(r, 101); err == nil {
		t.Errorf("readLine of a line above the limit = %q", got)
	}
	if _, err := readLine(bufio.NewReader(strings.NewReader("half")), 100); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("readLine of half a line = %v", err)
	}
}

// FuzzParseMessage: no line makes the parser panic, and what it accepts is exactly one kind of
// message.
func FuzzParseMessage(f *testing.F) {
	for _, s := range []string{
		greetingLine, `{"return": {}, "id": 1}`, `{"return": null, "id": 1}`, `{"return": {}}`,
		`{"error": {"class": "GenericError", "desc": "x"}, "id": 2}`, `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`,
		`{"event": "A", "return": 1}`, `{}`, `null`, `[]`, `{"id": -1, "return": 1}`, "\xff",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseMessage(line)
		if err != nil {
			return
		}
		kinds := 0
		if m.Greeting != nil {
			kinds++
		}
		if m.Return != nil {
			kinds++
			if m.ID == nil {
				t.Error("an answer without an id was accepted")
			}
		}
		if m.Error != nil {
			kinds++
		}
		if m.Event != "" {
			kinds++
		}
		if kinds != 1 {
			t.Errorf("%q is %d kinds of message", line, kinds)
		}
	})
}

// FuzzQMPStream: a client that gets arbitrary bytes ends, and blocks no caller.
func FuzzQMPStream(f *testing.F) {
	f.Add([]byte(greetingLine + "\n" + `{"return": {}, "id": 1}` + "\n"))
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		near, far := net.Pipe()
		q := newQMP(near, nil)
		defer q.Close()
		go func() {
			// Write fails when the client has closed the connection.
			far.Write(stream)
			far.Close()
		}()
		select {
		case <-q.ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the client did not end with its stream")
		}
		if err := q.Execute(t.Context(), "query-kvm", nil, nil); !errors.Is(err, errQMPClosed) {
			t.Errorf("Execute after the end = %v", err)
		}
	})
}
