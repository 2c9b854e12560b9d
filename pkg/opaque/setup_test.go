package opaque

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestServerSetupRoundTrip(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	saved, err := h.setup.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if len(saved) != ServerSetupLength {
		t.Errorf("%d bytes, want %d", len(saved), ServerSetupLength)
	}
	var loaded ServerSetup
	if err := loaded.UnmarshalBinary(saved); err != nil {
		t.Fatal(err)
	}
	if loaded != h.setup {
		t.Error("the setup changed on its way")
	}
	if h.server, err = newServer(h.config, loaded); err != nil {
		t.Fatal(err)
	}
	if _, err := h.logsIn("alice", "secret", record); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func TestServerSetupRefusesDamage(t *testing.T) {
	setup, err := NewServerSetup(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, err := setup.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, b []byte) {
		t.Helper()
		loaded := setup
		if err := loaded.UnmarshalBinary(b); err == nil {
			t.Errorf("%s was accepted", what)
		}
		if loaded != setup {
			t.Errorf("%s changed the receiver", what)
		}
	}
	for at := range good {
		b := bytes.Clone(good)
		b[at] ^= 1 << (at % 8)
		refused(fmt.Sprintf("a flipped bit in byte %d", at), b)
	}
	refused("nothing", nil)
	refused("a byte less", good[:len(good)-1])
	refused("a byte more", append(bytes.Clone(good), 0))

	// The same with the checksum made to fit.
	resealed := func(change func(body []byte)) []byte {
		b := bytes.Clone(good)
		body := b[:len(b)-checksumLength]
		change(body)
		sum := sha256.Sum256(body)
		copy(b[len(body):], sum[:])
		return b
	}
	const private, public, fake = 1 + 64, 1 + 64 + 32, 1 + 64 + 32 + 32
	refused("another version", resealed(func(b []byte) { b[0] = 2 }))
	refused("no OPRF seed", resealed(func(b []byte) { clear(b[1:private]) }))
	refused("no private key", resealed(func(b []byte) { clear(b[private:public]) }))
	refused("a private key beyond the order", resealed(func(b []byte) { b[public-1] = 0xff }))
	refused("another private key", resealed(func(b []byte) { b[private] ^= 1 }))
	refused("another public key", resealed(func(b []byte) { b[public] ^= 1 }))
	refused("no fake seed", resealed(func(b []byte) { clear(b[fake:]) }))
}

func TestServerSetupsDiffer(t *testing.T) {
	a, err := NewServerSetup(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewServerSetup(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if a.oprfSeed == b.oprfSeed || a.privateKey == b.privateKey || a.publicKey == b.publicKey || a.fakeSeed == b.fakeSeed {
		t.Error("two fresh setups share a secret")
	}
}

func TestServerSetupHidesItsSecrets(t *testing.T) {
	setup, err := NewServerSetup(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		fmt.Fprintf(&out, verb+" "+verb+"\n", setup, &setup)
		fmt.Fprintf(&out, verb+"\n", struct{ S ServerSetup }{setup})
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("started", "setup", setup)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("started", "setup", setup)
	text := out.String()
	if !strings.Contains(text, hex.EncodeToString(setup.publicKey[:])) {
		t.Error("the public key is not shown")
	}
	for name, secret := range map[string][]byte{"OPRF seed": setup.oprfSeed[:], "private key": setup.privateKey[:], "fake seed": setup.fakeSeed[:]} {
		part := secret[:6]
		decimal := strings.Trim(fmt.Sprint(part), "[]")
		for _, form := range []string{hex.EncodeToString(part), strings.ReplaceAll(decimal, " ", ","), decimal, string(part)} {
			if strings.Contains(text, form) {
				t.Errorf("the %s is shown as %q", name, form)
			}
		}
	}
}
