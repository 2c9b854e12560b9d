package opaque

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// testOnly: the configuration of most tests. It stretches nothing, which is
// what RFC 9807's vectors call the Identity KSF, so that thousands of logins
// take a second.
func testOnlyConfig() config {
	return config{stretch: func(oprfOutput []byte) []byte { return oprfOutput }}
}

// house is one server with its setup, and clients that talk to it.
type house struct {
	t      testing.TB
	config config
	setup  ServerSetup
	server *Server
}

func newHouse(t testing.TB, c config) *house {
	t.Helper()
	setup, err := NewServerSetup(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server, err := newServer(c, setup)
	if err != nil {
		t.Fatal(err)
	}
	return &house{t: t, config: c, setup: setup, server: server}
}

// registers runs a whole registration and returns the record and export key.
func (h *house) registers(name, password string) (record, exportKey []byte) {
	h.t.Helper()
	client, request, err := newRegistration(h.config, rand.Reader, []byte(password))
	if err != nil {
		h.t.Fatal(err)
	}
	response, err := h.server.RegistrationResponse(request, []byte(name))
	if err != nil {
		h.t.Fatal(err)
	}
	record, exportKey, err = client.Finish(response)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := h.server.CheckRegistrationUpload(record); err != nil {
		h.t.Fatal(err)
	}
	return record, exportKey
}

// asks begins a login and has it answered; nothing may fail so far.
func (h *house) asks(name, password string, record []byte) (*Login, []byte, LoginState) {
	h.t.Helper()
	client, ke1, err := newLogin(h.config, rand.Reader, []byte(password))
	if err != nil {
		h.t.Fatal(err)
	}
	ke2, state, err := h.server.LoginResponse(rand.Reader, record, []byte(name), ke1)
	if err != nil {
		h.t.Fatal(err)
	}
	return client, ke2, state
}

// logsIn runs a whole login that may fail on either side.
func (h *house) logsIn(name, password string, record []byte) (exportKey []byte, err error) {
	h.t.Helper()
	client, ke2, state := h.asks(name, password, record)
	ke3, clientKey, exportKey, serverKey, err := client.Finish(ke2)
	if err != nil {
		if ke3 != nil || clientKey != nil || exportKey != nil || serverKey != nil {
			h.t.Error("a failed login returned something besides its error")
		}
		return nil, err
	}
	if !bytes.Equal(serverKey, h.server.PublicKey()) {
		h.t.Error("the client was told another server public key")
	}
	sessionKey, err := state.Finish(ke3)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(sessionKey, clientKey) || len(sessionKey) != SessionKeyLength {
		h.t.Errorf("session keys differ or are short: client %x, server %x", clientKey, sessionKey)
	}
	return exportKey, nil
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type badElement struct {
	reason string
	bytes  []byte
}

// badElements reads testdata/rfc9496-invalid.txt.
func badElements(t testing.TB) []badElement {
	t.Helper()
	file, err := os.ReadFile("testdata/rfc9496-invalid.txt")
	if err != nil {
		t.Fatal(err)
	}
	var out []badElement
	lines := bufio.NewScanner(bytes.NewReader(file))
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		reason, encoding, ok := strings.Cut(lines.Text(), " ")
		if !ok {
			t.Fatalf("testdata/rfc9496-invalid.txt: no reason on line %q", lines.Text())
		}
		out = append(out, badElement{reason, unhex(t, encoding)})
	}
	if len(out) != 30 {
		t.Fatalf("testdata/rfc9496-invalid.txt has %d encodings, want 30", len(out))
	}
	return out
}
