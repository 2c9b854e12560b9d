package opaque

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// setupVersion is the first byte of an encoded [ServerSetup].
const setupVersion = 1

// ServerSetup holds a server's long-lived secrets: made once, kept for ever.
// Losing it makes every stored record useless, and whoever reads it can test
// password guesses against stored records offline. The zero value is invalid.
//
// Encoded (ServerSetupLength bytes):
//
//	version 1 | OPRF seed 64 | private key 32 | public key 32 | fake seed 64
//	| SHA-256 of all before 32
//
// The fake seed makes up the answers for names that do not exist. The checksum
// is there because a flipped bit in the OPRF seed would otherwise show only as
// every password being wrong.
type ServerSetup struct {
	oprfSeed   [hashLength]byte
	privateKey [scalarLength]byte
	publicKey  [elementLength]byte
	fakeSeed   [hashLength]byte
}

// NewServerSetup makes a fresh setup from rand (crypto/rand.Reader outside
// tests). It fails only when rand does.
func NewServerSetup(rand io.Reader) (ServerSetup, error) {
	var s ServerSetup
	secrets, err := randomBytes(rand, hashLength+seedLength+hashLength)
	if err != nil {
		return ServerSetup{}, err
	}
	defer clear(secrets)
	c := cutter{secrets}
	copy(s.oprfSeed[:], c.take(hashLength))
	private, public, err := deriveDHKeyPair(c.take(seedLength))
	if err != nil {
		return ServerSetup{}, err
	}
	copy(s.fakeSeed[:], c.take(hashLength))

	encoded, err := private.MarshalBinary()
	if err != nil {
		return ServerSetup{}, fmt.Errorf("opaque: encode the server's private key: %w", err)
	}
	copy(s.privateKey[:], encoded)
	copy(s.publicKey[:], public)
	clear(encoded)
	return s, nil
}

// PublicKey returns the server's public key, which is also its identity in the
// protocol. It is no secret.
func (s ServerSetup) PublicKey() []byte { return append([]byte(nil), s.publicKey[:]...) }

// Format prints the public key whatever the verb, so that no log line, error or
// debugger's print shows the secrets.
func (s ServerSetup) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, "opaque.ServerSetup(public key "+hex.EncodeToString(s.publicKey[:])+")")
}

// MarshalBinary encodes the setup. The result is secret.
func (s ServerSetup) MarshalBinary() ([]byte, error) {
	b := make([]byte, 0, ServerSetupLength)
	b = append(b, setupVersion)
	b = append(b, s.oprfSeed[:]...)
	b = append(b, s.privateKey[:]...)
	b = append(b, s.publicKey[:]...)
	b = append(b, s.fakeSeed[:]...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

// UnmarshalBinary decodes what MarshalBinary made. It refuses another length or
// version, a wrong checksum, and keys that do not belong together; the receiver
// is then unchanged.
func (s *ServerSetup) UnmarshalBinary(b []byte) error {
	if len(b) != ServerSetupLength {
		return fmt.Errorf("opaque: server setup has %d bytes, want %d", len(b), ServerSetupLength)
	}
	if b[0] != setupVersion {
		return fmt.Errorf("opaque: server setup has version %d, this program knows %d", b[0], setupVersion)
	}
	body := b[:ServerSetupLength-checksumLength]
	sum := sha256.Sum256(body)
	if subtle.ConstantTimeCompare(sum[:], b[len(body):]) != 1 {
		return errors.New("opaque: server setup is damaged (checksum): restore it from a backup, since a new one invalidates every password")
	}
	c := cutter{body[1:]}
	var out ServerSetup
	copy(out.oprfSeed[:], c.take(hashLength))
	copy(out.privateKey[:], c.take(scalarLength))
	copy(out.publicKey[:], c.take(elementLength))
	copy(out.fakeSeed[:], c.take(hashLength))
	if err := out.check(); err != nil {
		return err
	}
	*s = out
	return nil
}

// check refuses a setup whose secrets are unset or whose keys do not match.
func (s ServerSetup) check() error {
	private, err := decodeScalar(s.privateKey[:])
	if err != nil {
		return fmt.Errorf("opaque: the private key of the server setup is %w", err)
	}
	if subtle.ConstantTimeCompare(publicKeyOf(private), s.publicKey[:]) != 1 {
		return errors.New("opaque: the keys of the server setup do not belong together")
	}
	if s.oprfSeed == [hashLength]byte{} || s.fakeSeed == [hashLength]byte{} {
		return errors.New("opaque: a seed of the server setup is all zero")
	}
	return nil
}
