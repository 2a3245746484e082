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

// Secret is what a connection to the agent's vsock port must begin with. Each VM has a secret
// of its own. When printed it shows a placeholder, so that no log contains it.
type Secret [SecretSize]byte

// NewSecret returns a new random secret.
func NewSecret() Secret {
	var s Secret
	// rand.Read never returns an error: it ends the program instead.
	rand.Read(s[:])
	return s
}

// Equal compares in constant time.
func (s Secret) Equal(b []byte) bool { return subtle.ConstantTimeCompare(s[:], b) == 1 }

// Format implements fmt.Formatter. It prints the placeholder for every verb.
func (Secret) Format(f fmt.State, _ rune) {
	// fmt's buffer does not fail.
	_, _ = io.WriteString(f, "[secret]")
}

// Offer follows the host's greeting. It says where the host opens the session.
type Offer struct {
	// VsockCID is the guest's context id. If it is 0, the session follows on the connection of
	// the greeting itself, and Secret is not used.
	VsockCID uint32
	Secret   Secret
}

const offerSize = 4 + SecretSize

func (o Offer) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, o.VsockCID)
	return append(b, o.Secret[:]...)
}

// readOffer reads exactly one offer.
func readOffer(r io.Reader) (Offer, error) {
	var b [offerSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Offer{}, fmt.Errorf("read offer: %w", noEOF(err))
	}
	o := Offer{VsockCID: binary.BigEndian.Uint32(b[:])}
	copy(o.Secret[:], b[4:])
	// A secret of zeros means that the host has forgotten to draw one, and anybody can send
	// zeros.
	if o.VsockCID != 0 && o.Secret.Equal(make([]byte, SecretSize)) {
		return Offer{}, errors.New("read offer: a vsock session without a secret")
	}
	return o, nil
}
