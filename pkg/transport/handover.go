package transport

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
)

// A hand-over is the word of a server's old key that a new one takes its place.
// It stands in the new certificate, as an extension that clients which do not
// know it ignore, so that it arrives where it is needed: in the handshake in
// which a client misses the key it has pinned.
//
//	extension value = DER SEQUENCE OF SEQUENCE {
//	    old        OCTET STRING   SubjectPublicKeyInfo, DER
//	    signature  OCTET STRING   by old over label ‖ SHA-256(old) ‖ SHA-256(next)
//	}
//
// next is the key of the following statement, or of the certificate itself
// after the last. The signature is ECDSA with SHA-256, Ed25519, or RSA-PSS with
// SHA-256, as old's type has it.
type handOver struct {
	Old       []byte
	Signature []byte
}

const (
	// labelHandOver begins what is signed, so that it can be taken for nothing
	// else that the key signs.
	labelHandOver = "qpc certificate hand-over v1"
	// maxHandOvers bounds the statements in a certificate. Each is about 170
	// bytes, and with many the certificate would not fit the three datagrams
	// that a server may send to an address it has not validated (RFC 9000,
	// section 8.1). A client that missed more changes than these meets the
	// server as after a new set-up.
	maxHandOvers = 4
)

// oidHandOver names the extension. It lies below 2.25, where anybody may take a
// number (ITU-T X.667); this one fits the 31 bits that an arc has on a 32-bit
// machine.
func oidHandOver() asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 25, 1903816549} }

func handOverMessage(old, next Pin) []byte {
	return append(append([]byte(labelHandOver), old[:]...), next[:]...)
}

// signHandOvers returns the extension value for a certificate of the key next
// that follows the certificate old, whose key is oldKey.
func signHandOvers(old *x509.Certificate, oldKey crypto.Signer, next Pin) ([]byte, error) {
	message := handOverMessage(PinOf(old), next)
	digest := sha256.Sum256(message)
	var signature []byte
	var err error
	switch oldKey.Public().(type) {
	case ed25519.PublicKey:
		signature, err = oldKey.Sign(rand.Reader, message, crypto.Hash(0))
	case *rsa.PublicKey:
		signature, err = oldKey.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	default:
		signature, err = oldKey.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
	if err != nil {
		return nil, fmt.Errorf("sign the hand-over: %w", err)
	}
	all := append(handOversOf(old), handOver{Old: old.RawSubjectPublicKeyInfo, Signature: signature})
	if len(all) > maxHandOvers {
		all = all[len(all)-maxHandOvers:]
	}
	return asn1.Marshal(all)
}

// handOversOf returns the statements in a certificate, oldest first, unverified;
// none when they do not parse.
func handOversOf(cert *x509.Certificate) []handOver {
	for _, extension := range cert.Extensions {
		if !extension.Id.Equal(oidHandOver()) {
			continue
		}
		var all []handOver
		if rest, err := asn1.Unmarshal(extension.Value, &all); err != nil || len(rest) > 0 || len(all) > maxHandOvers {
			return nil
		}
		return all
	}
	return nil
}

// HandedOver reports whether a certificate carries the word of the key known by
// a pin, directly or through keys in between, that its own key has taken over.
// The caller makes sure that the other side has the certificate's key, as a TLS
// handshake does.
func HandedOver(cert *x509.Certificate, known Pin) bool {
	all := handOversOf(cert)
	for first := range all {
		if Pin(sha256.Sum256(all[first].Old)) == known {
			return verifyHandOvers(all[first:], PinOf(cert)) == nil
		}
	}
	return false
}

// verifyHandOvers checks each statement, the last for the key presented.
func verifyHandOvers(all []handOver, presented Pin) error {
	for i, statement := range all {
		next := presented
		if i+1 < len(all) {
			next = sha256.Sum256(all[i+1].Old)
		}
		key, err := x509.ParsePKIXPublicKey(statement.Old)
		if err != nil {
			return fmt.Errorf("read the old key: %w", err)
		}
		algorithm := x509.UnknownSignatureAlgorithm
		switch k := key.(type) {
		case *ecdsa.PublicKey:
			algorithm = x509.ECDSAWithSHA256
		case ed25519.PublicKey:
			algorithm = x509.PureEd25519
		case *rsa.PublicKey:
			if k.N.BitLen() < minRSABits {
				return errors.New("the old key is too short")
			}
			algorithm = x509.SHA256WithRSAPSS
		}
		signer := &x509.Certificate{PublicKey: key}
		if err := signer.CheckSignature(algorithm, handOverMessage(sha256.Sum256(statement.Old), next), statement.Signature); err != nil {
			return fmt.Errorf("check the hand-over: %w", err)
		}
	}
	return nil
}
