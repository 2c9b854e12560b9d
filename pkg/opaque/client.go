package opaque

import (
	"bytes"
	"crypto/hmac"
	"fmt"
	"io"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/oprf"
)

// Registration is the client's half of one registration, between its request
// and its upload. It holds the password, serves one Finish and belongs to one
// goroutine.
type Registration struct {
	config        config
	password      []byte
	oprf          *oprf.FinalizeData
	envelopeNonce []byte
}

// NewRegistration begins a registration (RFC 9807, section 5.2.1). The password
// is copied. It fails when rand does or when the password is longer than
// [MaxPasswordLength]; an empty one is the caller's to refuse.
func NewRegistration(rand io.Reader, password []byte) (*Registration, []byte, error) {
	return newRegistration(protocolConfig(), rand, password)
}

func newRegistration(c config, rand io.Reader, password []byte) (*Registration, []byte, error) {
	r := &Registration{config: c}
	var request []byte
	var err error
	if r.password, r.oprf, request, err = startOPRF(rand, password); err != nil {
		return nil, nil, err
	}
	if r.envelopeNonce, err = randomBytes(rand, nonceLength); err != nil {
		return nil, nil, err
	}
	return r, request, nil
}

// Finish takes the server's response and returns the upload to send and the
// export key (RFC 9807, section 5.2.3), a secret of [ExportKeyLength] bytes
// that only this password yields and that every login returns again. It takes
// as long as Argon2id does. The error is [ErrMalformed] for a bad response. The
// registration is used up either way, and its password wiped.
func (r *Registration) Finish(response []byte) (upload, exportKey []byte, err error) {
	upload, exportKey, passwordKey, err := r.FinishKeeping(response)
	clear(passwordKey)
	return upload, exportKey, err
}

// FinishKeeping is Finish that returns the password key too.
func (r *Registration) FinishKeeping(response []byte) (upload, exportKey []byte, passwordKey PasswordKey, err error) {
	if r.oprf == nil {
		return nil, nil, nil, errUsed
	}
	data := r.oprf
	r.oprf = nil
	defer clear(r.password)

	m, err := parseRegistrationResponse(response)
	if err != nil {
		return nil, nil, nil, err
	}
	randomized, err := r.config.randomizedPassword(data, m.evaluated)
	if err != nil {
		return nil, nil, nil, err
	}
	creds, err := r.config.derive(randomized, r.envelopeNonce, m.serverPublicKey)
	if err != nil {
		clear(randomized)
		return nil, nil, nil, err
	}
	upload = make([]byte, 0, RegistrationUploadLength)
	upload = append(upload, creds.publicKey...)
	upload = append(upload, expand(randomized, nil, labelMaskingKey, hashLength)...)
	upload = append(upload, r.envelopeNonce...)
	upload = append(upload, creds.tag...)
	return upload, creds.exportKey, randomized, nil
}

// Login is the client's half of one login, between KE1 and KE3. It holds the
// password, serves one Finish and belongs to one goroutine.
type Login struct {
	config   config
	password []byte
	known    PasswordKey // in place of the password
	oprf     *oprf.FinalizeData
	keyShare group.Scalar
	ke1      []byte
}

// NewLogin begins a login and returns KE1 (RFC 9807, section 6.2.1). Password
// and errors are as with [NewRegistration].
func NewLogin(rand io.Reader, password []byte) (*Login, []byte, error) {
	return newLogin(protocolConfig(), rand, password)
}

func newLogin(c config, rand io.Reader, password []byte) (*Login, []byte, error) {
	l := &Login{config: c}
	var blinded []byte
	var err error
	if l.password, l.oprf, blinded, err = startOPRF(rand, password); err != nil {
		return nil, nil, err
	}
	fresh, err := randomBytes(rand, nonceLength+seedLength)
	if err != nil {
		return nil, nil, err
	}
	defer clear(fresh)
	var public []byte
	if l.keyShare, public, err = deriveDHKeyPair(fresh[nonceLength:]); err != nil {
		return nil, nil, err
	}
	l.ke1 = make([]byte, 0, KE1Length)
	l.ke1 = append(l.ke1, blinded...)
	l.ke1 = append(l.ke1, fresh[:nonceLength]...)
	l.ke1 = append(l.ke1, public...)
	return l, bytes.Clone(l.ke1), nil
}

// Finish takes KE2 and returns KE3, the session key shared with the server, the
// export key of the registration and the server's public key, now proven to be
// the one the account was registered with (RFC 9807, section 6.2.3). It takes
// as long as Argon2id does.
//
// The error is [ErrAuthentication] for a wrong password, an unknown name or the
// wrong server, and [ErrMalformed] for a bad KE2; no key is returned then. The
// login is used up either way, and its password wiped.
func (l *Login) Finish(ke2 []byte) (ke3, sessionKey, exportKey, serverPublicKey []byte, err error) {
	ke3, sessionKey, exportKey, serverPublicKey, passwordKey, err := l.finish(ke2)
	clear(passwordKey)
	return ke3, sessionKey, exportKey, serverPublicKey, err
}

// FinishKeeping is Finish that returns the password key too, and not the other
// keys.
func (l *Login) FinishKeeping(ke2 []byte) (ke3 []byte, passwordKey PasswordKey, err error) {
	ke3, sessionKey, exportKey, _, passwordKey, err := l.finish(ke2)
	clear(sessionKey)
	clear(exportKey)
	return ke3, passwordKey, err
}

func (l *Login) finish(ke2 []byte) (ke3, sessionKey, exportKey, serverPublicKey []byte, passwordKey PasswordKey, err error) {
	if l.oprf == nil {
		return nil, nil, nil, nil, nil, errUsed
	}
	data, keyShare := l.oprf, l.keyShare
	l.oprf, l.keyShare = nil, nil
	defer clear(l.password)

	m, err := parseKE2(ke2)
	if err != nil {
		return nil, nil, nil, nil, nil, err
	}

	// Recover the credentials (section 6.3.2.3). With a wrong password what is
	// unmasked is noise; the envelope's tag is what tells.
	randomized := []byte(l.known)
	if randomized == nil {
		if randomized, err = l.config.randomizedPassword(data, m.evaluated); err != nil {
			return nil, nil, nil, nil, nil, err
		}
	}
	defer func() {
		if err != nil {
			clear(randomized)
		}
	}()
	maskingKey := expand(randomized, nil, labelMaskingKey, hashLength)
	defer clear(maskingKey)
	unmasked := applyMask(maskingKey, m.maskingNonce, m.maskedResponse)
	serverPublicKey, envelope := unmasked[:elementLength:elementLength], unmasked[elementLength:]
	creds, err := l.config.recoverCredentials(randomized, serverPublicKey, envelope)
	if err != nil {
		return nil, nil, nil, nil, nil, err
	}
	serverKey, err := decodeElement("server public key", serverPublicKey)
	if err != nil {
		// The tag holds, so the client itself once sealed this key: it would
		// have to be another implementation that did not check it.
		return nil, nil, nil, nil, nil, fmt.Errorf("%w: the account is bound to an invalid server key", ErrAuthentication)
	}

	// Finish the key exchange (section 6.4.3).
	result := finishHandshake(
		l.config.transcript(creds.publicKey, l.ke1, serverPublicKey, m.credentialResponse, m.serverNonce, m.serverKeyShare),
		diffieHellman(keyShare, m.keyShare),
		diffieHellman(keyShare, serverKey),
		diffieHellman(creds.privateKey, m.keyShare),
	)
	if !hmac.Equal(result.serverMAC, m.serverMAC) {
		clear(result.sessionKey)
		clear(result.clientMAC)
		clear(creds.exportKey)
		return nil, nil, nil, nil, nil, ErrAuthentication
	}
	return result.clientMAC, result.sessionKey, creds.exportKey, bytes.Clone(serverPublicKey), randomized, nil
}

// startOPRF blinds a copy of the password with a fresh scalar.
func startOPRF(rand io.Reader, password []byte) (kept []byte, data *oprf.FinalizeData, blinded []byte, err error) {
	if len(password) > MaxPasswordLength {
		return nil, nil, nil, fmt.Errorf("opaque: password has %d bytes, at most %d are possible", len(password), MaxPasswordLength)
	}
	r, err := randomScalar(rand)
	if err != nil {
		return nil, nil, nil, err
	}
	kept = bytes.Clone(password)
	data, blinded, err = blind(kept, r)
	if err != nil {
		return nil, nil, nil, err
	}
	return kept, data, blinded, nil
}
