package protocol

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestSecret(t *testing.T) {
	a, b := NewSecret(), NewSecret()
	if a == b || a == (Secret{}) {
		t.Fatal("two secrets are equal, or one was not drawn")
	}
	if !a.Equal(a[:]) || a.Equal(b[:]) || a.Equal(a[:SecretSize-1]) || a.Equal(append(a[:], 0)) || a.Equal(nil) {
		t.Error("Equal is wrong")
	}
}

// TestSecretDoesNotPrint: no way of printing a secret shows a byte of it.
func TestSecretDoesNotPrint(t *testing.T) {
	s := NewSecret()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c", "%U", "%t"} {
		for _, text := range []string{fmt.Sprintf(verb, s), fmt.Sprintf(verb, &s), fmt.Sprintf(verb, Offer{VsockCID: 3, Secret: s})} {
			if !strings.Contains(text, "[secret]") || strings.Contains(strings.ToLower(text), hex.EncodeToString(s[:4])) ||
				strings.Contains(text, fmt.Sprintf("%d %d", s[0], s[1])) {
				t.Errorf("%s prints %q", verb, text)
			}
		}
	}
}

// TestOfferArrives: the agent gets the host's offer, and is ready before it answers.
func TestOfferArrives(t *testing.T) {
	for _, want := range []Offer{{}, {VsockCID: 1<<31 - 1, Secret: NewSecret()}} {
		h, a := pair(t)
		var got Offer
		done := make(chan error, 1)
		go func() { done <- Answer(a, "b1", func(o Offer) error { got = o; return nil }) }()
		if err := Greet(h, "b1", want); err != nil {
			t.Fatal(err)
		}
		if got != want { // Greet has returned, so the agent has set it
			t.Error("another offer arrived")
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestAgentThatIsNotReadyDoesNotAnswer(t *testing.T) {
	h, a := pair(t)
	notReady := errors.New("not ready")
	done := make(chan error, 1)
	go func() {
		done <- Answer(a, "b1", func(Offer) error { return notReady })
		_ = a.Close()
	}()
	if err := Greet(h, "b1", Offer{}); err == nil {
		t.Error("it has answered")
	}
	if err := <-done; !errors.Is(err, notReady) {
		t.Errorf("got %v", err)
	}
}

func TestOfferRefused(t *testing.T) {
	whole := Offer{VsockCID: 5, Secret: NewSecret()}.encode()
	for name, b := range map[string][]byte{
		"nothing":   nil,
		"cut short": whole[:offerSize-1],
		"no secret": Offer{VsockCID: 5}.encode(),
	} {
		if o, err := readOffer(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: accepted as %v", name, o)
		}
	}
}

// FuzzAnswer: the agent's side of the handshake gets bytes that do not come from a host.
func FuzzAnswer(f *testing.F) {
	const build = "b1"
	host := append([]byte(greeting(build)+"\n"), Offer{VsockCID: 5, Secret: NewSecret()}.encode()...)
	f.Add(host)
	f.Add(host[:len(host)-1])
	f.Add(append(host, "session"...))
	f.Add(append([]byte(greeting("b2")+"\n"), Offer{}.encode()...))
	f.Fuzz(func(t *testing.T, b []byte) {
		rw := &oneWay{in: bytes.NewReader(b)}
		var offers []Offer
		err := Answer(rw, build, func(o Offer) error { offers = append(offers, o); return nil })
		used := len(b) - rw.in.Len()
		if used > maxGreeting+offerSize {
			t.Fatalf("read %d bytes", used)
		}
		if (err == nil) != (len(offers) == 1) {
			t.Fatalf("offers %v, error %v", offers, err)
		}
		if err != nil {
			return
		}
		if want := append([]byte(greeting(build)+"\n"), offers[0].encode()...); !bytes.Equal(b[:used], want) {
			t.Fatalf("took %q for a host's", b[:used])
		}
		if offers[0].VsockCID != 0 && offers[0].Secret == (Secret{}) {
			t.Fatal("a vsock session without a secret")
		}
		if rw.out.String() != greeting(build)+"\n" {
			t.Fatalf("answered %q", rw.out.String())
		}
	})
}

type oneWay struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (o *oneWay) Read(p []byte) (int, error)  { return o.in.Read(p) }
func (o *oneWay) Write(p []byte) (int, error) { return o.out.Write(p) }
