package protocol

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// SecretSize is the length of a Secret, in bytes.
const SecretSize = 32

// Secret is what a connection to the agent's vsock port must begin with. One is
// made for each VM. It prints as a placeholder, so that no log can hold it.
type Secret [SecretSize]byte

// NewSecret draws one.
func NewSecret() Secret {
	var s Secret
	// It never fails: it ends the program instead (crypto/rand).
	rand.Read(s[:])
	return s
}

// Equal compares in constant time.
func (s Secret) Equal(b []byte) bool { return subtle.ConstantTimeCompare(s[:], b) == 1 }

// Format implements fmt.Formatter for all verbs.
func (Secret) Format(f fmt.State, _ rune) {
	// fmt has no way to report that its own buffer failed.
	_, _ = io.WriteString(f, "[secret]")
}

// Offer follows the host's greeting and says where the host will open the
// channel's session.
type Offer struct {
	// VsockCID is the guest's context id; 0 means that the session follows on the
	// byte path of the greeting itself, and Secret is of no meaning then.
	VsockCID uint32
	Secret   Secret
}

const offerSize = 4 + SecretSize

func (o Offer) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, o.VsockCID)
	return append(b, o.Secret[:]...)
}

// readOffer reads an offer and not one byte more.
func readOffer(r io.Reader) (Offer, error) {
	var b [offerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Offer{}, fmt.Errorf("read offer: %w", noEOF(err))
	}
	o := Offer{VsockCID: binary.BigEndian.Uint32(b[:])}
	copy(o.Secret[:], b[4:])
	// No host draws zeros: it has forgotten to draw, and anybody can send zeros.
	if o.VsockCID != 0 && o.Secret.Equal(make([]byte, SecretSize)) {
		return Offer{}, errors.New("read offer: a vsock session without a secret")
	}
	return o, nil
}
