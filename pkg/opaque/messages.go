package opaque

import (
	"fmt"

	"github.com/cloudflare/circl/group"
)

// The layouts (RFC 9807, sections 5.1, 6.1 and 6.3.1); numbers are bytes.
//
//	RegistrationRequest   blinded element 32
//	RegistrationResponse  evaluated element 32 | server public key 32
//	RegistrationUpload    client public key 32 | masking key 64 | envelope 96
//	  envelope            nonce 32 | tag 64
//	KE1                   blinded element 32 | client nonce 32 | client key share 32
//	KE2                   evaluated element 32 | masking nonce 32 | masked response 128
//	                      | server nonce 32 | server key share 32 | server MAC 64
//	  masked response     pad XOR (server public key 32 | envelope 96)
//	KE3                   client MAC 64
//
// The parsers return views into their input and decode its group elements.

type registrationResponse struct {
	evaluated       group.Element
	serverPublicKey []byte
}

type record struct {
	clientPublicKey []byte
	clientKey       group.Element
	maskingKey      []byte
	envelope        []byte
}

type ke1Message struct {
	raw      []byte
	blinded  group.Element
	keyShare group.Element
}

type ke2Message struct {
	credentialResponse []byte // the first 192 bytes, for the transcript
	evaluated          group.Element
	maskingNonce       []byte
	maskedResponse     []byte
	serverNonce        []byte
	serverKeyShare     []byte
	keyShare           group.Element
	serverMAC          []byte
}

// cutter takes a message apart from front to back.
type cutter struct{ rest []byte }

func (c *cutter) take(n int) []byte {
	b := c.rest[:n:n]
	c.rest = c.rest[n:]
	return b
}

func checkLength(what string, b []byte, want int) error {
	if len(b) != want {
		return fmt.Errorf("%w: %s has %d bytes, want %d", ErrMalformed, what, len(b), want)
	}
	return nil
}

func parseRegistrationRequest(b []byte) (group.Element, error) {
	if err := checkLength("registration request", b, RegistrationRequestLength); err != nil {
		return nil, err
	}
	return decodeElement("blinded element of the registration request", b)
}

func parseRegistrationResponse(b []byte) (m registrationResponse, err error) {
	if err := checkLength("registration response", b, RegistrationResponseLength); err != nil {
		return m, err
	}
	c := cutter{b}
	if m.evaluated, err = decodeElement("evaluated element of the registration response", c.take(elementLength)); err != nil {
		return m, err
	}
	m.serverPublicKey = c.take(elementLength)
	if _, err = decodeElement("server public key of the registration response", m.serverPublicKey); err != nil {
		return m, err
	}
	return m, nil
}

func parseRecord(b []byte) (r record, err error) {
	if err := checkLength("registration upload", b, RegistrationUploadLength); err != nil {
		return r, err
	}
	c := cutter{b}
	r.clientPublicKey = c.take(elementLength)
	if r.clientKey, err = decodeElement("client public key of the registration upload", r.clientPublicKey); err != nil {
		return r, err
	}
	r.maskingKey = c.take(hashLength)
	r.envelope = c.take(envelopeLength)
	return r, nil
}

func parseKE1(b []byte) (m ke1Message, err error) {
	if err := checkLength("KE1", b, KE1Length); err != nil {
		return m, err
	}
	c := cutter{b}
	m.raw = b
	if m.blinded, err = decodeElement("blinded element of KE1", c.take(elementLength)); err != nil {
		return m, err
	}
	c.take(nonceLength) // only the transcript sees the client nonce
	if m.keyShare, err = decodeElement("client key share of KE1", c.take(elementLength)); err != nil {
		return m, err
	}
	return m, nil
}

func parseKE2(b []byte) (m ke2Message, err error) {
	if err := checkLength("KE2", b, KE2Length); err != nil {
		return m, err
	}
	c := cutter{b}
	m.credentialResponse = b[:credentialResponseLength]
	if m.evaluated, err = decodeElement("evaluated element of KE2", c.take(elementLength)); err != nil {
		return m, err
	}
	m.maskingNonce = c.take(nonceLength)
	m.maskedResponse = c.take(maskedResponseLength)
	m.serverNonce = c.take(nonceLength)
	m.serverKeyShare = c.take(elementLength)
	if m.keyShare, err = decodeElement("server key share of KE2", m.serverKeyShare); err != nil {
		return m, err
	}
	m.serverMAC = c.take(macLength)
	return m, nil
}
