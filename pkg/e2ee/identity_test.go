package e2ee_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

func TestIdentityProof(t *testing.T) {
	id := newIdentity(t, "alice")
	upload := []byte("an OPAQUE upload")
	proof := id.IdentityProof("alice", upload)
	if !e2ee.VerifyIdentityProof(id.Key(), "alice", upload, proof) {
		t.Fatal("own proof is refused")
	}
	for name, ok := range map[string]bool{
		"another name":   e2ee.VerifyIdentityProof(id.Key(), "alicf", upload, proof),
		"another upload": e2ee.VerifyIdentityProof(id.Key(), "alice", upload[1:], proof),
		"another key":    e2ee.VerifyIdentityProof(newIdentity(t, "bob").Key(), "alice", upload, proof),
		"no proof":       e2ee.VerifyIdentityProof(id.Key(), "alice", upload, nil),
		"short proof":    e2ee.VerifyIdentityProof(id.Key(), "alice", upload, proof[:63]),
	} {
		if ok {
			t.Errorf("%s is accepted", name)
		}
	}
	for i := range proof {
		bad := bytes.Clone(proof)
		bad[i] ^= 1
		if e2ee.VerifyIdentityProof(id.Key(), "alice", upload, bad) {
			t.Errorf("proof with byte %d changed is accepted", i)
		}
	}
}

func TestDeviceCredential(t *testing.T) {
	id := newIdentity(t, "alice")
	deviceKey := newIdentity(t, "alice's phone").Key()
	deviceID := [16]byte{1, 2, 3}
	credential, err := id.IssueDevice(deviceID, deviceKey[:])
	must(t, err)
	got, err := e2ee.ParseCredential(credential, deviceKey[:])
	must(t, err)
	want := e2ee.Credential{Identity: id.Key(), SignatureKey: deviceKey, DeviceID: deviceID, Linked: true}
	if got != want {
		t.Fatalf("%+v", got)
	}
	for i := range credential {
		bad := bytes.Clone(credential)
		bad[i] ^= 1
		if _, err := e2ee.ParseCredential(bad, deviceKey[:]); !errors.Is(err, e2ee.ErrCredential) {
			t.Errorf("credential with byte %d changed: %v", i, err)
		}
	}
	own := id.Key()
	other := newIdentity(t, "mallory").Key()
	for name, pair := range map[string][2][]byte{
		"another device key":         {credential, other[:]},
		"identity key as device key": {credential, own[:]},
		"first device, other key":    {own[:], other[:]},
		"cut short":                  {credential[:111], deviceKey[:]},
		"too long":                   {append(bytes.Clone(credential), 0), deviceKey[:]},
		"empty":                      {nil, deviceKey[:]},
		"no key":                     {credential, nil},
	} {
		if _, err := e2ee.ParseCredential(pair[0], pair[1]); !errors.Is(err, e2ee.ErrCredential) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if first, err := e2ee.ParseCredential(own[:], own[:]); err != nil || first.Linked || first.Identity != own {
		t.Errorf("first device: %+v, %v", first, err)
	}
	if _, err := id.IssueDevice(deviceID, own[:]); !errors.Is(err, e2ee.ErrCredential) {
		t.Errorf("identity key as a device: %v", err)
	}
	if _, err := id.IssueDevice(deviceID, ed25519.PublicKey{1}); !errors.Is(err, e2ee.ErrMalformed) {
		t.Errorf("short device key: %v", err)
	}
}

func TestSeedLengths(t *testing.T) {
	for _, n := range []int{0, 31, 33} {
		if _, err := e2ee.NewIdentity(make([]byte, n)); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("identity from %d bytes: %v", n, err)
		}
		if _, err := e2ee.NewHybridKey(make([]byte, n)); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("hybrid key from %d bytes: %v", n, err)
		}
		if _, err := e2ee.NewLinkedDevice(make([]byte, n), nil); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("device from %d bytes: %v", n, err)
		}
		if _, err := e2ee.ParseIdentityKey(make([]byte, n)); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("identity key of %d bytes: %v", n, err)
		}
	}
}

func TestSafetyNumber(t *testing.T) {
	alice, bob, carol := newIdentity(t, "alice").Key(), newIdentity(t, "bob").Key(), newIdentity(t, "carol").Key()
	number := e2ee.SafetyNumber(alice, bob)
	if len(number) != 60 || strings.Trim(number, "0123456789") != "" {
		t.Fatalf("%q", number)
	}
	if e2ee.SafetyNumber(bob, alice) != number {
		t.Error("the two sides see different numbers")
	}
	if e2ee.SafetyNumber(alice, carol) == number {
		t.Error("two peers have one number")
	}
	// Computed apart from this package, with Python's hmac.
	if got, want := e2ee.SafetyNumber(e2ee.IdentityKey{}, e2ee.IdentityKey{1}), safetyNumberVector(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	grouped := e2ee.GroupSafetyNumber(number)
	if lines := strings.Split(grouped, "\n"); len(lines) != 3 || len(strings.Fields(lines[0])) != 4 {
		t.Errorf("grouped: %q", grouped)
	}
	if strings.Join(strings.Fields(grouped), "") != number {
		t.Errorf("grouped: %q", grouped)
	}
	if e2ee.GroupSafetyNumber("12") != "12" {
		t.Error("a short number was changed")
	}
}

func safetyNumberVector() string {
	return "680430965901985158543417643565753881721486578917125673258416"
}
