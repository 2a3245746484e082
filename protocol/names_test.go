package protocol

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"
)

func TestNameMessages(t *testing.T) {
	want := []NameMessage{
		{ID: 1, Message: []byte("a")},
		{ID: 0xfffffffe, TCP: true, Message: bytes.Repeat([]byte("x"), 0xffff)},
	}
	var b bytes.Buffer
	for _, m := range want {
		if err := m.Write(&b); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range want {
		got, err := ReadNameMessage(&b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("read %v, %v", got, err)
		}
	}
	if _, err := ReadNameMessage(&b); err != io.EOF { //nolint:errorlint // the promise is io.EOF itself
		t.Errorf("after the last message: %v, want io.EOF", err)
	}
	for _, size := range []int{0, 0x10000} {
		if err := (NameMessage{Message: make([]byte, size)}).Write(&b); err == nil {
			t.Errorf("a message of %d bytes was written", size)
		}
	}
}

func FuzzReadNameMessage(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 0, 0, 1, 'a'})
	f.Add([]byte{0, 0, 0, 1, 2, 0, 1, 'a'})
	f.Add([]byte{0, 0, 0, 1, 1, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		m, err := ReadNameMessage(r)
		if err != nil {
			if len(data) > 0 && errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("a message cut short passes for the end: %v", err)
			}
			return
		}
		var b bytes.Buffer
		if err := m.Write(&b); err != nil || !bytes.Equal(b.Bytes(), data[:len(data)-r.Len()]) {
			t.Errorf("%x is written back as %x: %v", data, b.Bytes(), err)
		}
	})
}
