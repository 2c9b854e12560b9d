package opaque

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"
)

type vector struct {
	Section string
	Config  struct{ Context, Fake, Group, KSF string }
	Inputs  map[string]string
	Outputs map[string]string
}

func readVectors(t testing.TB) []vector {
	t.Helper()
	data, err := os.ReadFile("testdata/rfc9807.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Vectors []vector }
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) != 3 {
		t.Fatalf("testdata/rfc9807.json has %d vectors, want 3", len(file.Vectors))
	}
	return file.Vectors
}

// The vectors fix every random value. The package reads its randomness in a
// fixed order, so a reader over those values is all the injection needed; only
// context, identities and the KSF have no way in through the front door.
func TestRFC9807Vectors(t *testing.T) {
	for _, v := range readVectors(t) {
		t.Run(v.Section, func(t *testing.T) {
			in := func(name string) []byte {
				t.Helper()
				if _, ok := v.Inputs[name]; !ok {
					return nil
				}
				return unhex(t, v.Inputs[name])
			}
			want := func(name string, got []byte) {
				t.Helper()
				if !bytes.Equal(got, unhex(t, v.Outputs[name])) {
					t.Errorf("%s:\n got %x\nwant %s", name, got, v.Outputs[name])
				}
			}
			join := func(names ...string) *bytes.Reader {
				var b []byte
				for _, name := range names {
					b = append(b, in(name)...)
				}
				return bytes.NewReader(b)
			}

			c := testOnlyConfig()
			c.context = unhex(t, v.Config.Context)
			c.clientIdentity, c.serverIdentity = in("client_identity"), in("server_identity")
			setup := ServerSetup{fakeSeed: [hashLength]byte{1}}
			copy(setup.oprfSeed[:], in("oprf_seed"))
			copy(setup.privateKey[:], in("server_private_key"))
			copy(setup.publicKey[:], in("server_public_key"))
			server, err := newServer(c, setup)
			if err != nil {
				t.Fatal(err)
			}
			id := in("credential_identifier")
			serverRandom := join("masking_nonce", "server_nonce", "server_keyshare_seed")

			if v.Config.Fake == "True" {
				record := append(in("client_public_key"), in("masking_key")...)
				record = append(record, make([]byte, envelopeLength)...)
				ke2, _, err := server.LoginResponse(serverRandom, record, id, in("KE1"))
				if err != nil {
					t.Fatal(err)
				}
				want("KE2", ke2)
				return
			}

			registration, request, err := newRegistration(c, join("blind_registration", "envelope_nonce"), in("password"))
			if err != nil {
				t.Fatal(err)
			}
			want("registration_request", request)
			response, err := server.RegistrationResponse(request, id)
			if err != nil {
				t.Fatal(err)
			}
			want("registration_response", response)
			upload, exportKey, err := registration.Finish(response)
			if err != nil {
				t.Fatal(err)
			}
			want("registration_upload", upload)
			want("export_key", exportKey)

			login, ke1, err := newLogin(c, join("blind_login", "client_nonce", "client_keyshare_seed"), in("password"))
			if err != nil {
				t.Fatal(err)
			}
			want("KE1", ke1)
			ke2, state, err := server.LoginResponse(serverRandom, upload, id, ke1)
			if err != nil {
				t.Fatal(err)
			}
			want("KE2", ke2)
			ke3, sessionKey, exportKey, serverKey, err := login.Finish(ke2)
			if err != nil {
				t.Fatal(err)
			}
			want("KE3", ke3)
			want("session_key", sessionKey)
			want("export_key", exportKey)
			if !bytes.Equal(serverKey, in("server_public_key")) {
				t.Errorf("server public key is %x", serverKey)
			}
			sessionKey, err = state.Finish(ke3)
			if err != nil {
				t.Fatal(err)
			}
			want("session_key", sessionKey)
		})
	}
}
