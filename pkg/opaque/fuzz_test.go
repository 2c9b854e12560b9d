package opaque

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"
)

// Each fuzz target feeds one message to the side that parses it. Whatever
// arrives, the answer is a message of the right length or one of the two errors
// that a peer can cause; nothing panics, and only the true message opens a
// session. The seeds are the RFC's own messages and the true ones of a run.

func seed(f *testing.F, name string, more ...[]byte) {
	f.Helper()
	for _, v := range readVectors(f) {
		for _, m := range []map[string]string{v.Inputs, v.Outputs} {
			if s, ok := m[name]; ok {
				f.Add(unhex(f, s))
			}
		}
	}
	for _, b := range more {
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(append(bytes.Clone(b), 0))
	}
	f.Add([]byte{})
}

func peersFault(err error) bool {
	return errors.Is(err, ErrMalformed) || errors.Is(err, ErrAuthentication)
}

func FuzzRegistrationRequest(f *testing.F) {
	h := newHouse(f, testOnlyConfig())
	seed(f, "registration_request", make([]byte, RegistrationRequestLength))
	f.Fuzz(func(t *testing.T, request []byte) {
		response, err := h.server.RegistrationResponse(request, []byte("alice"))
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if _, err := parseRegistrationResponse(response); err != nil {
			t.Fatalf("our own response: %v", err)
		}
	})
}

func FuzzRegistrationResponse(f *testing.F) {
	h := newHouse(f, testOnlyConfig())
	seed(f, "registration_response", make([]byte, RegistrationResponseLength))
	f.Fuzz(func(t *testing.T, response []byte) {
		client, _, err := newRegistration(h.config, rand.Reader, []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		upload, _, err := client.Finish(response)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if err := h.server.CheckRegistrationUpload(upload); err != nil {
			t.Fatalf("our own upload: %v", err)
		}
	})
}

func FuzzRegistrationUpload(f *testing.F) {
	h := newHouse(f, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	_, ke1, err := newLogin(h.config, rand.Reader, []byte("secret"))
	if err != nil {
		f.Fatal(err)
	}
	seed(f, "registration_upload", record, make([]byte, RegistrationUploadLength))
	f.Fuzz(func(t *testing.T, upload []byte) {
		if err := h.server.CheckRegistrationUpload(upload); err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		// What was accepted once must serve a login later.
		ke2, _, err := h.server.LoginResponse(rand.Reader, upload, []byte("alice"), ke1)
		if err != nil || len(ke2) != KE2Length {
			t.Fatalf("accepted, but no login is possible: %v", err)
		}
	})
}

func FuzzKE1(f *testing.F) {
	h := newHouse(f, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	seed(f, "KE1", make([]byte, KE1Length))
	f.Fuzz(func(t *testing.T, ke1 []byte) {
		for _, r := range [][]byte{record, nil} {
			ke2, _, err := h.server.LoginResponse(rand.Reader, r, []byte("alice"), ke1)
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Fatal(err)
				}
				continue
			}
			if _, err := parseKE2(ke2); err != nil {
				t.Fatalf("our own KE2: %v", err)
			}
		}
	})
}

func FuzzKE2(f *testing.F) {
	h := newHouse(f, testOnlyConfig())
	seed(f, "KE2", make([]byte, KE2Length))
	f.Fuzz(func(t *testing.T, ke2 []byte) {
		client, _, err := newLogin(h.config, rand.Reader, []byte("secret"))
		if err != nil {
			t.Fatal(err)
		}
		// The key share is fresh, so no KE2 from elsewhere can be right.
		if _, _, _, _, err := client.Finish(ke2); !peersFault(err) {
			t.Fatalf("got %v", err)
		}
	})
}

func FuzzKE3(f *testing.F) {
	seed(f, "KE3", make([]byte, KE3Length))
	want := bytes.Repeat([]byte{7}, KE3Length)
	f.Add(want)
	f.Fuzz(func(t *testing.T, ke3 []byte) {
		state := LoginState{&loginSecrets{clientMAC: bytes.Clone(want), sessionKey: make([]byte, SessionKeyLength)}}
		key, err := state.Finish(ke3)
		if right := bytes.Equal(ke3, want); right != (err == nil) || right != (key != nil) || (!right && !peersFault(err)) {
			t.Fatalf("%x: %x, %v", ke3, key, err)
		}
	})
}

func FuzzServerSetup(f *testing.F) {
	setup, err := NewServerSetup(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	good, err := setup.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:100])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var s ServerSetup
		if err := s.UnmarshalBinary(b); err != nil {
			return
		}
		again, err := s.MarshalBinary()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("accepted %x, wrote %x, %v", b, again, err)
		}
		if _, err := NewServer(s); err != nil {
			t.Fatalf("decoded, but unusable: %v", err)
		}
	})
}
