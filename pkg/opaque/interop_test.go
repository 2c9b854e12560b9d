//go:build amd64 || arm64 || riscv64

// bytemare/ksf does not compile where int has 32 bits, hence the constraint.

package opaque_test

import (
	"bytes"
	"crypto/rand"
	"testing"

	"github.com/bytemare/ecc"
	oracle "github.com/bytemare/opaque"

	"github.com/quicprochat/qpcd/pkg/opaque"
)

// What PROTOCOL 7.2 asks for, in the oracle's words; its own defaults differ.
func oracleClientOptions() *oracle.ClientOptions {
	return &oracle.ClientOptions{
		KSFSalt:       make([]byte, 16),
		KSFParameters: []uint64{2, 19456, 1}, // passes, KiB, lanes
		KSFLength:     64,
	}
}

func oracleClient(t *testing.T) *oracle.Client {
	t.Helper()
	c, err := oracle.NewClient(oracle.DefaultConfiguration())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// oracleServer runs the oracle on one of our setups.
func oracleServer(t *testing.T, setup opaque.ServerSetup) *oracle.Server {
	t.Helper()
	saved, err := setup.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	private := ecc.Ristretto255Sha512.NewScalar()
	if err := private.Decode(saved[65:97]); err != nil {
		t.Fatal(err)
	}
	s, err := oracle.NewServer(oracle.DefaultConfiguration())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetKeyMaterial(&oracle.ServerKeyMaterial{
		PrivateKey:     private,
		PublicKeyBytes: setup.PublicKey(),
		OPRFGlobalSeed: saved[1:65],
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// client and server are the two roles, in bytes; each has two implementations.
type client interface {
	register(t *testing.T, password []byte, server server, id []byte) (record, exportKey []byte)
	login(t *testing.T, password []byte, server server, record, id []byte) (sessionKey, exportKey []byte, err error)
}

type server interface {
	registrationResponse(t *testing.T, request, id []byte) []byte
	loginResponse(t *testing.T, record, id, ke1 []byte) (ke2 []byte, finish func(ke3 []byte) ([]byte, error))
}

type ourClient struct{}

func (ourClient) register(t *testing.T, password []byte, s server, id []byte) ([]byte, []byte) {
	t.Helper()
	c, request, err := opaque.NewRegistration(rand.Reader, password)
	if err != nil {
		t.Fatal(err)
	}
	upload, exportKey, err := c.Finish(s.registrationResponse(t, request, id))
	if err != nil {
		t.Fatal(err)
	}
	return upload, exportKey
}

func (ourClient) login(t *testing.T, password []byte, s server, record, id []byte) ([]byte, []byte, error) {
	t.Helper()
	c, ke1, err := opaque.NewLogin(rand.Reader, password)
	if err != nil {
		t.Fatal(err)
	}
	ke2, finish := s.loginResponse(t, record, id, ke1)
	ke3, sessionKey, exportKey, _, err := c.Finish(ke2)
	if err != nil {
		return nil, nil, err
	}
	serverKey, err := finish(ke3)
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(sessionKey, serverKey) {
		t.Error("session keys differ")
	}
	return sessionKey, exportKey, nil
}

type theirClient struct{}

func (theirClient) register(t *testing.T, password []byte, s server, id []byte) ([]byte, []byte) {
	t.Helper()
	c := oracleClient(t)
	request, err := c.RegistrationInit(password)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Deserialize.RegistrationResponse(s.registrationResponse(t, request.Serialize(), id))
	if err != nil {
		t.Fatal(err)
	}
	record, exportKey, err := c.RegistrationFinalize(response, nil, nil, oracleClientOptions())
	if err != nil {
		t.Fatal(err)
	}
	return record.Serialize(), exportKey
}

func (theirClient) login(t *testing.T, password []byte, s server, record, id []byte) ([]byte, []byte, error) {
	t.Helper()
	c := oracleClient(t)
	ke1, err := c.GenerateKE1(password)
	if err != nil {
		t.Fatal(err)
	}
	answer, finish := s.loginResponse(t, record, id, ke1.Serialize())
	ke2, err := c.Deserialize.KE2(answer)
	if err != nil {
		t.Fatal(err)
	}
	ke3, sessionKey, exportKey, err := c.GenerateKE3(ke2, nil, nil, oracleClientOptions())
	if err != nil {
		return nil, nil, err
	}
	serverKey, err := finish(ke3.Serialize())
	if err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(sessionKey, serverKey) {
		t.Error("session keys differ")
	}
	return sessionKey, exportKey, nil
}

type ourServer struct{ *opaque.Server }

func (s ourServer) registrationResponse(t *testing.T, request, id []byte) []byte {
	t.Helper()
	b, err := s.RegistrationResponse(request, id)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s ourServer) loginResponse(t *testing.T, record, id, ke1 []byte) ([]byte, func([]byte) ([]byte, error)) {
	t.Helper()
	ke2, state, err := s.LoginResponse(rand.Reader, record, id, ke1)
	if err != nil {
		t.Fatal(err)
	}
	return ke2, state.Finish
}

type theirServer struct{ *oracle.Server }

func (s theirServer) registrationResponse(t *testing.T, request, id []byte) []byte {
	t.Helper()
	m, err := s.Deserialize.RegistrationRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	response, err := s.RegistrationResponse(m, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return response.Serialize()
}

func (s theirServer) loginResponse(t *testing.T, record, id, ke1 []byte) ([]byte, func([]byte) ([]byte, error)) {
	t.Helper()
	client := &oracle.ClientRecord{CredentialIdentifier: id}
	var err error
	if record == nil {
		client, err = oracle.DefaultConfiguration().GetFakeRecord(id)
	} else {
		client.RegistrationRecord, err = s.Deserialize.RegistrationRecord(record)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Deserialize.KE1(ke1)
	if err != nil {
		t.Fatal(err)
	}
	ke2, output, err := s.GenerateKE2(m, client)
	if err != nil {
		t.Fatal(err)
	}
	return ke2.Serialize(), func(b []byte) ([]byte, error) {
		ke3, err := s.Deserialize.KE3(b)
		if err != nil {
			return nil, err
		}
		return output.SessionSecret, s.LoginFinish(ke3, output.ClientMAC)
	}
}

// One setup runs on both servers, and every way through is tried: who
// registers, at which server, who logs in, at which server. Records are shared.
func TestInteropWithBytemare(t *testing.T) {
	setup, err := opaque.NewServerSetup(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server1, err := opaque.NewServer(setup)
	if err != nil {
		t.Fatal(err)
	}
	clients := map[string]client{"ours": ourClient{}, "theirs": theirClient{}}
	servers := map[string]server{"ours": ourServer{server1}, "theirs": theirServer{oracleServer(t, setup)}}
	password, id := []byte("pässword 🔑"), []byte("alice")

	for rc, registrar := range clients {
		for rs, registry := range servers {
			record, exportKey := registrar.register(t, password, registry, id)
			if err := server1.CheckRegistrationUpload(record); err != nil {
				t.Fatalf("the record of client %s at server %s: %v", rc, rs, err)
			}
			for lc, c := range clients {
				for ls, s := range servers {
					t.Run("registered by "+rc+" at "+rs+", login by "+lc+" at "+ls, func(t *testing.T) {
						_, again, err := c.login(t, password, s, record, id)
						if err != nil {
							t.Fatal(err)
						}
						if !bytes.Equal(again, exportKey) {
							t.Error("export keys differ")
						}
					})
				}
			}
		}
	}

	record, _ := ourClient{}.register(t, password, servers["ours"], id)
	for name, tt := range map[string]struct {
		client           client
		server           server
		password, record []byte
	}{
		"wrong password, our client":   {ourClient{}, servers["theirs"], []byte("wrong"), record},
		"wrong password, their client": {theirClient{}, servers["ours"], []byte("wrong"), record},
		"unknown name, our client":     {ourClient{}, servers["theirs"], password, nil},
		"unknown name, their client":   {theirClient{}, servers["ours"], password, nil},
	} {
		if _, _, err := tt.client.login(t, tt.password, tt.server, tt.record, id); err == nil {
			t.Errorf("%s: got in", name)
		}
	}
}
