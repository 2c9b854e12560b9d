package transport

import (
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

// A Pin names a server's key: SHA-256 over the SubjectPublicKeyInfo of its
// certificate (RFC 5280, section 4.1), as HTTP key pinning had it (RFC 7469,
// section 2.4). It outlives a renewed certificate as long as the key stays.
type Pin [sha256.Size]byte

// PinOf is the pin of a certificate.
func PinOf(cert *x509.Certificate) Pin {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// String is 64 lower-case hex digits.
func (p Pin) String() string { return hex.EncodeToString(p[:]) }

// Base64URL is the form of mDNS records (PROTOCOL section 9): 43 characters
// without padding.
func (p Pin) Base64URL() string { return base64.RawURLEncoding.EncodeToString(p[:]) }

// ParsePin reads a pin in hex, where upper case and separating colons, spaces
// and hyphens are accepted, or in the form of [Pin.Base64URL].
func ParsePin(s string) (Pin, error) {
	var p Pin
	if len(s) == base64.RawURLEncoding.EncodedLen(len(p)) {
		if b, err := base64.RawURLEncoding.Strict().DecodeString(s); err == nil && len(b) == len(p) {
			return Pin(b), nil
		}
	}
	digits := strings.Map(func(r rune) rune {
		if r == ':' || r == ' ' || r == '-' {
			return -1
		}
		return r
	}, s)
	if len(digits) != hex.EncodedLen(len(p)) {
		return Pin{}, fmt.Errorf("fingerprint has %d hex digits, want %d", len(digits), hex.EncodedLen(len(p)))
	}
	if _, err := hex.Decode(p[:], []byte(digits)); err != nil {
		return Pin{}, fmt.Errorf("fingerprint %q is not hexadecimal", cut80(s))
	}
	return p, nil
}

// pinWordBytes is how much of a pin its words show. A forger needs a key whose
// pin begins with these very 128 bits, which is out of reach; and people do
// compare twelve words, hardly twenty-four.
const pinWordBytes = 16

// wordList is the English list of BIP-39: 2,048 common words, each known by its
// first four letters. Taken from the npm package @scure/bip39 2.4.0 (MIT); it
// is byte for byte the list of the standard
// (SHA-256 2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda).
//
//go:embed words.txt
var wordList string

// wordBits is the bits one word of the list stands for.
const wordBits = 11

// Words shows the first 128 bits of the pin as twelve words, in the encoding of
// BIP-39: the last word carries four bits of checksum.
func (p Pin) Words() []string {
	words := strings.Fields(wordList)
	entropy := p[:pinWordBytes]
	sum := sha256.Sum256(entropy)
	out := make([]string, 0, 12)
	acc, bits := uint32(0), 0
	for _, b := range append(entropy[:len(entropy):len(entropy)], sum[0]) {
		acc, bits = acc<<8|uint32(b), bits+8
		if bits >= wordBits {
			bits -= wordBits
			out = append(out, words[acc>>bits&(1<<wordBits-1)])
		}
	}
	return out
}
