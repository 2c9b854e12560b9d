package opaque

import (
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/oprf"
)

// Server is the server's half. It holds only keys, keeps nothing between calls,
// and may be used by many goroutines at once.
type Server struct {
	config        config
	setup         ServerSetup
	privateKey    group.Scalar
	fakeClientKey []byte
}

// NewServer checks the setup and returns a server that uses it.
func NewServer(setup ServerSetup) (*Server, error) {
	return newServer(protocolConfig(), setup)
}

func newServer(c config, setup ServerSetup) (*Server, error) {
	if err := setup.check(); err != nil {
		return nil, err
	}
	privateKey, err := decodeScalar(setup.privateKey[:])
	if err != nil {
		return nil, fmt.Errorf("opaque: the server's private key is %w", err)
	}
	// One client key for all fake records: it never leaves the server, and a
	// key per name would cost a multiplication that real records do not.
	fakeSeed := expand(setup.fakeSeed[:], nil, labelFakeClientKey, seedLength)
	defer clear(fakeSeed)
	_, fakeClientKey, err := deriveDHKeyPair(fakeSeed)
	if err != nil {
		return nil, err
	}
	return &Server{config: c, setup: setup, privateKey: privateKey, fakeClientKey: fakeClientKey}, nil
}

// PublicKey returns the server's public key, which clients learn at
// registration and verify at every login.
func (s *Server) PublicKey() []byte { return s.setup.PublicKey() }

// RegistrationResponse answers a registration request (RFC 9807, section
// 5.2.2). It depends on the request and the credential identifier only, so it
// tells nothing about who is registered. The error is [ErrMalformed] for a bad
// request, another one for a credential identifier that is empty or longer than
// [MaxCredentialIDLength].
func (s *Server) RegistrationResponse(request, credentialID []byte) (response []byte, err error) {
	if err := checkCredentialID(credentialID); err != nil {
		return nil, err
	}
	blinded, err := parseRegistrationRequest(request)
	if err != nil {
		return nil, err
	}
	evaluated, err := s.evaluate(credentialID, blinded)
	if err != nil {
		return nil, err
	}
	return append(evaluated, s.setup.publicKey[:]...), nil
}

// CheckRegistrationUpload says whether an upload can be stored as a record:
// [ErrMalformed] unless it has [RegistrationUploadLength] bytes and its client
// public key is valid (RFC 9807, section 10.7). What else it holds is the
// client's own affair: a nonsensical envelope only keeps its maker out.
func (*Server) CheckRegistrationUpload(upload []byte) error {
	_, err := parseRecord(upload)
	return err
}

// LoginResponse answers KE1 (RFC 9807, section 6.2.2). The record is the upload
// of the registration, or nil for a name that does not exist: then the answer
// is made from a fake record, the same for every attempt at that name, for the
// same work and with the same shape (section 10.9), and no KE3 can match it.
//
// The caller keeps the state, for a limited time and bound to the connection,
// and passes KE3 to it. An attempt whose KE3 never comes counts as failed
// (section 9.2).
//
// The error is [ErrMalformed] for a bad KE1; another one means a bad record,
// a bad credential identifier or a failing rand: the server's own trouble.
func (s *Server) LoginResponse(rand io.Reader, record, credentialID, ke1 []byte) (ke2 []byte, state LoginState, err error) {
	if err := checkCredentialID(credentialID); err != nil {
		return nil, LoginState{}, err
	}
	request, err := parseKE1(ke1)
	if err != nil {
		return nil, LoginState{}, err
	}
	// The fake record is made in any case, and either one is parsed afresh, so
	// that the time taken does not tell which it was.
	chosen := s.fakeRecord(credentialID)
	if record != nil {
		chosen = record
	}
	client, err := parseRecord(chosen)
	if err != nil {
		// Not wrapped: the peer's message is fine, the store's row is not.
		return nil, LoginState{}, fmt.Errorf("opaque: the stored record is unusable: %v", err)
	}
	fresh, err := randomBytes(rand, nonceLength+nonceLength+seedLength)
	if err != nil {
		return nil, LoginState{}, err
	}
	defer clear(fresh)
	c := cutter{fresh}
	maskingNonce, serverNonce, keyShareSeed := c.take(nonceLength), c.take(nonceLength), c.take(seedLength)

	// The credential response (section 6.3.2.2).
	evaluated, err := s.evaluate(credentialID, request.blinded)
	if err != nil {
		return nil, LoginState{}, err
	}
	plain := make([]byte, 0, maskedResponseLength)
	plain = append(plain, s.setup.publicKey[:]...)
	plain = append(plain, client.envelope...)
	ke2 = make([]byte, 0, KE2Length)
	ke2 = append(ke2, evaluated...)
	ke2 = append(ke2, maskingNonce...)
	ke2 = append(ke2, applyMask(client.maskingKey, maskingNonce, plain)...)

	// The key exchange (section 6.4.4).
	keyShare, keySharePublic, err := deriveDHKeyPair(keyShareSeed)
	if err != nil {
		return nil, LoginState{}, err
	}
	result := finishHandshake(
		s.config.transcript(client.clientPublicKey, request.raw, s.setup.publicKey[:], ke2, serverNonce, keySharePublic),
		diffieHellman(keyShare, request.keyShare),
		diffieHellman(s.privateKey, request.keyShare),
		diffieHellman(keyShare, client.clientKey),
	)
	ke2 = append(ke2, serverNonce...)
	ke2 = append(ke2, keySharePublic...)
	ke2 = append(ke2, result.serverMAC...)
	return ke2, LoginState{&loginSecrets{clientMAC: result.clientMAC, sessionKey: result.sessionKey}}, nil
}

// fakeRecord is what a name without a record is answered from: RFC 9807,
// section 6.3.2.2, asks for a valid public key, a random masking key and an
// envelope of zeros. The masking key is derived from the name, so that two
// attempts at it look as related as two attempts at a real one.
func (s *Server) fakeRecord(credentialID []byte) []byte {
	b := make([]byte, 0, RegistrationUploadLength)
	b = append(b, s.fakeClientKey...)
	b = append(b, expand(s.setup.fakeSeed[:], credentialID, labelFakeMaskingKey, hashLength)...)
	return append(b, make([]byte, envelopeLength)...)
}

// evaluate runs the OPRF under the key of one credential.
func (s *Server) evaluate(credentialID []byte, blinded group.Element) ([]byte, error) {
	seed := expand(s.setup.oprfSeed[:], credentialID, labelOPRFKey, seedLength)
	defer clear(seed)
	key, err := oprf.DeriveKey(oprf.SuiteRistretto255, oprf.BaseMode, seed, []byte(labelOPRFDerive))
	if err != nil {
		return nil, fmt.Errorf("opaque: derive the OPRF key: %w", err)
	}
	evaluation, err := oprf.NewServer(oprf.SuiteRistretto255, key).
		Evaluate(&oprf.EvaluationRequest{Elements: []group.Element{blinded}})
	if err != nil {
		return nil, fmt.Errorf("opaque: evaluate the OPRF: %w", err)
	}
	return encodeElement(evaluation.Elements[0]), nil
}

func checkCredentialID(id []byte) error {
	if len(id) == 0 || len(id) > MaxCredentialIDLength {
		return fmt.Errorf("opaque: credential identifier has %d bytes, want 1 to %d", len(id), MaxCredentialIDLength)
	}
	return nil
}

// LoginState is what a server remembers between KE2 and KE3. It is small (two
// 64-byte secrets), lives in memory only, and allows one attempt. Copies share
// that attempt. The zero value refuses everything.
type LoginState struct{ secrets *loginSecrets }

type loginSecrets struct {
	used       atomic.Bool
	clientMAC  []byte
	sessionKey []byte
}

// Finish checks KE3 (RFC 9807, section 6.2.4), in constant time, and returns
// the session key. The error is [ErrMalformed] for another length than
// [KE3Length], [ErrAuthentication] for a wrong one. Whatever comes of it, a
// state answers one call; every later one, and the zero value, is refused.
func (s LoginState) Finish(ke3 []byte) (sessionKey []byte, err error) {
	if s.secrets == nil {
		return nil, errors.New("opaque: there is no login to finish")
	}
	if s.secrets.used.Swap(true) {
		return nil, errUsed
	}
	expected, key := s.secrets.clientMAC, s.secrets.sessionKey
	s.secrets.clientMAC, s.secrets.sessionKey = nil, nil
	defer clear(expected)
	if err := checkLength("KE3", ke3, KE3Length); err != nil {
		clear(key)
		return nil, err
	}
	if !hmac.Equal(expected, ke3) {
		clear(key)
		return nil, ErrAuthentication
	}
	return key, nil
}
