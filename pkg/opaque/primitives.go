package opaque

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha512"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/oprf"
)

// config holds what RFC 9807's test vectors vary and the qpc protocol fixes.
// It is a testOnly seam: every exported constructor uses [protocolConfig], and
// only tests of this package pass another to newServer, newRegistration and
// newLogin.
type config struct {
	context        []byte
	clientIdentity []byte // nil: the client's public key
	serverIdentity []byte // nil: the server's public key
	stretch        func(oprfOutput []byte) []byte
}

// protocolConfig is PROTOCOL 7.2.
func protocolConfig() config {
	return config{stretch: DefaultArgon2id().stretch}
}

// clientID and serverID apply the default of RFC 9807, section 4.
func (c config) clientID(publicKey []byte) []byte {
	if c.clientIdentity != nil {
		return c.clientIdentity
	}
	return publicKey
}

func (c config) serverID(publicKey []byte) []byte {
	if c.serverIdentity != nil {
		return c.serverIdentity
	}
	return publicKey
}

// maxScalarDraws bounds the search for a scalar below the group order. A draw
// succeeds with a chance of one half, so a working source never comes near it;
// a stuck one ends in an error and not in a loop.
const maxScalarDraws = 256

// The OPRF and the key exchange share one group. circl's RandomScalar ignores
// the reader it is given, hence randomScalar below.

// decodeElement refuses what is not canonical, and the identity: RFC 9807,
// section 10.7, and RFC 9497, section 2.1.
func decodeElement(what string, b []byte) (group.Element, error) {
	e := group.Ristretto255.NewElement()
	if err := e.UnmarshalBinary(b); err != nil {
		return nil, fmt.Errorf("%w: %s is not a canonical ristretto255 encoding", ErrMalformed, what)
	}
	if e.IsIdentity() {
		return nil, fmt.Errorf("%w: %s is the identity", ErrMalformed, what)
	}
	return e, nil
}

func encodeElement(e group.Element) []byte {
	b, err := e.MarshalBinary()
	if err != nil {
		panic("opaque: encoding a ristretto255 element cannot fail: " + err.Error())
	}
	return b
}

var errScalar = errors.New("not a canonical, non-zero ristretto255 scalar")

func decodeScalar(b []byte) (group.Scalar, error) {
	s := group.Ristretto255.NewScalar()
	if err := s.UnmarshalBinary(b); err != nil || s.IsZero() {
		return nil, errScalar
	}
	return s, nil
}

// randomScalar draws a uniform non-zero scalar by rejection: 253 random bits,
// again while they are zero or not below the group order.
func randomScalar(rand io.Reader) (group.Scalar, error) {
	for range maxScalarDraws {
		b, err := randomBytes(rand, scalarLength)
		if err != nil {
			return nil, err
		}
		b[scalarLength-1] &= 0x1f
		s, err := decodeScalar(b)
		clear(b)
		if err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("opaque: no scalar below the group order in %d draws: the source of randomness is broken", maxScalarDraws)
}

func randomBytes(rand io.Reader, n int) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(rand, b); err != nil {
		return nil, fmt.Errorf("opaque: read randomness: %w", err)
	}
	return b, nil
}

// deriveDHKeyPair is DeriveDiffieHellmanKeyPair of RFC 9807, section 6.4.1.1.
func deriveDHKeyPair(seed []byte) (private group.Scalar, public []byte, err error) {
	key, err := oprf.DeriveKey(oprf.SuiteRistretto255, oprf.BaseMode, seed, []byte(labelDHDerive))
	if err != nil {
		return nil, nil, fmt.Errorf("opaque: derive a key pair: %w", err)
	}
	encoded, err := key.MarshalBinary()
	if err != nil {
		return nil, nil, fmt.Errorf("opaque: encode a derived key: %w", err)
	}
	defer clear(encoded)
	if private, err = decodeScalar(encoded); err != nil {
		return nil, nil, fmt.Errorf("opaque: derived key is %w", err)
	}
	return private, publicKeyOf(private), nil
}

func publicKeyOf(private group.Scalar) []byte {
	return encodeElement(group.Ristretto255.NewElement().MulGen(private))
}

// diffieHellman cannot yield the identity: the group has prime order, and both
// decoders refuse what would lead there.
func diffieHellman(private group.Scalar, public group.Element) []byte {
	return encodeElement(group.Ristretto255.NewElement().Mul(public, private))
}

func blind(password []byte, blind group.Scalar) (*oprf.FinalizeData, []byte, error) {
	data, request, err := oprf.NewClient(oprf.SuiteRistretto255).
		DeterministicBlind([][]byte{password}, []group.Scalar{blind})
	if err != nil {
		return nil, nil, fmt.Errorf("opaque: blind the password: %w", err)
	}
	return data, encodeElement(request.Elements[0]), nil
}

// randomizedPassword is the common part of RFC 9807, sections 5.2.3 and
// 6.3.2.3: finish the OPRF, stretch its output, and mix both.
func (c config) randomizedPassword(data *oprf.FinalizeData, evaluated group.Element) ([]byte, error) {
	outputs, err := oprf.NewClient(oprf.SuiteRistretto255).
		Finalize(data, &oprf.Evaluation{Elements: []group.Element{evaluated}})
	if err != nil {
		return nil, fmt.Errorf("opaque: finish the OPRF: %w", err)
	}
	output := outputs[0]
	ikm := append(output[:len(output):len(output)], c.stretch(output)...)
	defer clear(output)
	defer clear(ikm)
	return extract(ikm), nil
}

// extract is HKDF-Extract with an empty salt.
func extract(ikm []byte) []byte {
	prk, err := hkdf.Extract(sha512.New, ikm, nil)
	if err != nil {
		panic("opaque: HKDF-Extract with SHA-512 cannot fail: " + err.Error())
	}
	return prk
}

// expand is HKDF-Expand; the info string is prefix and label, in that order.
func expand(prk, prefix []byte, label string, length int) []byte {
	var info strings.Builder
	info.Write(prefix)
	info.WriteString(label)
	out, err := hkdf.Expand(sha512.New, prk, info.String(), length)
	if err != nil {
		// Only a length over 255 hashes fails, and every length is a constant.
		panic("opaque: HKDF-Expand: " + err.Error())
	}
	return out
}

func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha512.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// applyMask both masks and unmasks (RFC 9807, sections 6.3.2.2 and 6.3.2.3).
func applyMask(maskingKey, maskingNonce, text []byte) []byte {
	out := expand(maskingKey, maskingNonce, labelResponsePad, maskedResponseLength)
	subtle.XORBytes(out, out, text)
	return out
}
