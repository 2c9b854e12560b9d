package opaque

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"
)

// keyLogin runs a login by password key and returns what both sides say.
func (h *house) keyLogin(name string, record []byte, key PasswordKey) (client, server error) {
	h.t.Helper()
	login, ke1, err := NewLoginWithKey(rand.Reader, key)
	if err != nil {
		h.t.Fatal(err)
	}
	ke2, state, err := h.server.LoginResponse(rand.Reader, record, []byte(name), ke1)
	if err != nil {
		h.t.Fatal(err)
	}
	ke3, again, err := login.FinishKeeping(ke2)
	if err != nil {
		return err, nil
	}
	if !bytes.Equal(again, key) {
		h.t.Error("the login returns another key than it was begun with")
	}
	_, err = state.Finish(ke3)
	return nil, err
}

// The password key of a registration or a login gets in as the password does,
// until the password is changed.
func TestPasswordKey(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	register := func(password string) ([]byte, PasswordKey) {
		r, request, err := newRegistration(h.config, rand.Reader, []byte(password))
		if err != nil {
			t.Fatal(err)
		}
		response, err := h.server.RegistrationResponse(request, []byte("alice"))
		if err != nil {
			t.Fatal(err)
		}
		record, _, key, err := r.FinishKeeping(response)
		if err != nil {
			t.Fatal(err)
		}
		return record, key
	}
	record, key := register("old")
	if client, server := h.keyLogin("alice", record, key); client != nil || server != nil {
		t.Errorf("the key does not get in: %v, %v", client, server)
	}
	login, ke1, err := newLogin(h.config, rand.Reader, []byte("old"))
	if err != nil {
		t.Fatal(err)
	}
	ke2, _, err := h.server.LoginResponse(rand.Reader, record, []byte("alice"), ke1)
	if err != nil {
		t.Fatal(err)
	}
	if _, fromLogin, err := login.FinishKeeping(ke2); err != nil || !bytes.Equal(fromLogin, key) {
		t.Errorf("a login gives another key than the registration (%v)", err)
	}
	changed, _ := register("new")
	if client, _ := h.keyLogin("alice", changed, key); !errors.Is(client, ErrAuthentication) {
		t.Errorf("the key after a change of password: %v", client)
	}
	other := newHouse(t, testOnlyConfig())
	if client, _ := other.keyLogin("alice", nil, key); !errors.Is(client, ErrAuthentication) {
		t.Errorf("the key at another server: %v", client)
	}
	for _, bad := range []PasswordKey{nil, key[1:], append(bytes.Clone(key), 0)} {
		if _, _, err := NewLoginWithKey(rand.Reader, bad); err == nil {
			t.Errorf("a key of %d bytes is taken", len(bad))
		}
	}
}
