package protocol

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestNotificationRoundTrip(t *testing.T) {
	var b bytes.Buffer
	for _, text := range []string{"READY=1", strings.Repeat("x", MaxNotification), "a\x00b"} {
		if err := WriteNotification(&b, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadNotification(&b); err != nil || string(got) != text {
			t.Errorf("got %d bytes of %d, %v", len(got), len(text), err)
		}
	}
	if _, err := ReadNotification(&b); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	for _, text := range []string{"", strings.Repeat("x", MaxNotification+1)} {
		if err := WriteNotification(io.Discard, []byte(text)); err == nil {
			t.Errorf("wrote %d bytes", len(text))
		}
	}
}

func FuzzNotification(f *testing.F) {
	f.Add([]byte("\x00\x07READY=1"))
	f.Add([]byte("\x00\x00"))
	f.Add([]byte("\xff\xffx"))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			text, err := ReadNotification(r)
			if err != nil {
				if errors.Is(err, io.EOF) && r.Len() > 0 {
					t.Error("the end before the end")
				}
				return
			}
			if len(text) == 0 || len(text) > MaxNotification {
				t.Errorf("%d bytes", len(text))
			}
		}
	})
}
