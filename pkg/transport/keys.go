package transport

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
)

// The info strings of HKDF-Expand. Append only; never reuse one.
const (
	infoStatelessReset = "qpc transport stateless reset v1"
	infoAddressToken   = "qpc transport address token v1"
	infoSessionTicket  = "qpc transport session ticket v1"
)

// derive makes one of a server's keys (RFC 5869).
//
// Session ticket keys do not rotate by time: all of them would follow from the
// same secret, so rotation would protect nothing that the secret's owner could
// not read. TLS 1.3 resumption runs a fresh key exchange (psk_dhe_ke), so the
// secret opens 0-RTT data only.
func (s Secret) derive(info string) ([32]byte, error) {
	key, err := hkdf.Expand(sha256.New, s[:], info, 32)
	if err != nil {
		return [32]byte{}, fmt.Errorf("derive %q: %w", info, err)
	}
	return [32]byte(key), nil
}
