//go:build !js

package transport

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// rotated gives the store a new key, and returns the pin it had before.
func rotated(t testing.TB, s *CertificateStore) (old Pin) {
	t.Helper()
	old = s.Pin()
	if err := s.Rotate(DefaultNames("router", nil), nil); err != nil {
		t.Fatal(err)
	}
	if s.Pin() == old {
		t.Fatal("the key is the old one")
	}
	return old
}

func TestPinnedClientsFollowAHandOver(t *testing.T) {
	certs := newStore(t)
	s := serve(t, ServerOptions{Certificates: certs})
	known := memory{}
	stored := DialOptions{Address: s.addr, Trust: TrustFirstUse(known)}
	mustDial(t, stored)
	first := rotated(t, certs)

	mustDial(t, stored)
	if known[s.addr] != certs.Pin() {
		t.Error("the new pin is not stored")
	}
	mustDial(t, DialOptions{Address: s.addr, Trust: TrustPin(first)})
	// Who stayed away for four changes still follows, for five no more.
	for range maxHandOvers - 1 {
		rotated(t, certs)
	}
	mustDial(t, DialOptions{Address: s.addr, Trust: TrustPin(first)})
	mustDial(t, stored)
	rotated(t, certs)
	if _, err := Dial(within(t), DialOptions{Address: s.addr, Trust: TrustPin(first)}); !errors.As(err, new(*ErrPinChanged)) {
		t.Errorf("a key %d changes ago: %v", maxHandOvers+1, err)
	}
	mustDial(t, stored)

	// The old key does not come back.
	if HandedOver(certs.Leaf(), certs.Pin()) || HandedOver(certs.Leaf(), first) {
		t.Error("a hand-over from nowhere")
	}
	failing := flaky{memory: memory{s.addr: certs.Pin()}, remember: errors.New("disk full")}
	rotated(t, certs)
	if _, err := Dial(within(t), DialOptions{Address: s.addr, Trust: TrustFirstUse(failing)}); !errors.Is(err, failing.remember) {
		t.Errorf("a store that fails: %v", err)
	}
}

func TestHandOverOfEachKeyType(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{
		"P-256": ecdsaKey(t, elliptic.P256()), "P-384": ecdsaKey(t, elliptic.P384()), "Ed25519": ed, "RSA": r,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cert, keyFile := filepath.Join(dir, "c"), filepath.Join(dir, "k")
			write(t, cert, signed(t, key))
			write(t, keyFile, pkcs8(t, key))
			if err := os.Chmod(keyFile, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := LoadOrCreate(cert, keyFile, nil, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			old := rotated(t, s)
			if !HandedOver(s.Leaf(), old) {
				t.Error("the hand-over does not verify")
			}
		})
	}
}

// Whatever is changed in a hand-over, it hands nothing over.
func TestHandOverTampered(t *testing.T) {
	certs := newStore(t)
	old := rotated(t, certs)
	leaf := certs.Leaf()
	var value []byte
	for _, e := range leaf.Extensions {
		if e.Id.Equal(oidHandOver()) {
			value = e.Value
		}
	}
	with := func(value []byte, of *x509.Certificate) *x509.Certificate {
		return &x509.Certificate{
			RawSubjectPublicKeyInfo: of.RawSubjectPublicKeyInfo,
			Extensions:              []pkix.Extension{{Id: oidHandOver(), Value: value}},
		}
	}
	if !HandedOver(with(value, leaf), old) {
		t.Fatal("the untouched hand-over does not verify")
	}
	if HandedOver(with(value, newStore(t).Leaf()), old) {
		t.Error("a hand-over to another key is taken")
	}
	for i := range value {
		changed := bytes.Clone(value)
		changed[i] ^= 1
		if HandedOver(with(changed, leaf), old) {
			t.Errorf("byte %d changed: still taken", i)
		}
		if HandedOver(with(value[:i], leaf), old) {
			t.Errorf("cut at %d: still taken", i)
		}
	}
	if HandedOver(with(append(bytes.Clone(value), 0), leaf), old) {
		t.Error("a byte too many: still taken")
	}
}

// A power cut in a rotation leaves the old pair or the new one.
func TestRotationCutShort(t *testing.T) {
	for name, leave := range map[string]struct {
		key, cert bool // which of the new files are there, and under which name
		moved     bool
		new       bool
	}{
		"before the certificate": {key: true},
		"before the renames":     {key: true, cert: true, new: true},
		"between the renames":    {cert: true, moved: true, new: true},
	} {
		t.Run(name, func(t *testing.T) {
			old, next := newStore(t), newStore(t)
			copyFile := func(from, to string) {
				data, err := os.ReadFile(from)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(to, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if leave.key {
				copyFile(next.keyPath, old.keyPath+nextSuffix)
			}
			if leave.cert {
				copyFile(next.certPath, old.certPath+nextSuffix)
			}
			if leave.moved {
				copyFile(next.keyPath, old.keyPath)
			}
			want := old.Pin()
			if leave.new {
				want = next.Pin()
			}
			again, err := LoadOrCreate(old.certPath, old.keyPath, nil, nil, nil)
			if err != nil || again.Pin() != want {
				t.Fatalf("after the cut: %v", err)
			}
			for _, path := range []string{old.keyPath, old.certPath} {
				if _, err := os.Stat(path + nextSuffix); err == nil {
					t.Errorf("%s is left", path+nextSuffix)
				}
			}
		})
	}
}

func TestOnlySelfSignedOnesRotate(t *testing.T) {
	dir := t.TempDir()
	ca, key := ecdsaKey(t, elliptic.P256()), ecdsaKey(t, elliptic.P256())
	now := clockFloorTime().AddDate(1, 0, 0)
	authority := &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, NotBefore: now, NotAfter: now.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
	root, err := x509.ParseCertificate(makeCert(t, authority, nil, ca, ca))
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		Subject: pkix.Name{CommonName: "home.example"}, DNSNames: []string{"home.example"}, NotBefore: now, NotAfter: now.AddDate(0, 6, 0),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, keyFile := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	write(t, cert, makeCert(t, leaf, root, key, ca))
	write(t, keyFile, pkcs8(t, key))
	certs, err := LoadOrCreate(cert, keyFile, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := certs.Rotate(nil, nil); !errors.Is(err, ErrNotSelfSigned) {
		t.Errorf("rotating an issued certificate: %v", err)
	}

	// Clients that ask the authorities take it for its name and in its time.
	s := serve(t, ServerOptions{Certificates: certs})
	roots := x509.NewCertPool()
	roots.AddCert(root)
	for name, tc := range map[string]struct {
		roots *x509.CertPool
		name  string
		now   time.Time
		ok    bool
	}{
		"good":              {roots, "home.example", now.AddDate(0, 1, 0), true},
		"another name":      {roots, "other.example", now.AddDate(0, 1, 0), false},
		"expired":           {roots, "home.example", now.AddDate(0, 7, 0), false},
		"another authority": {x509.NewCertPool(), "home.example", now.AddDate(0, 1, 0), false},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Dial(within(t), DialOptions{Address: s.addr, ServerName: tc.name, Trust: TrustAuthorities(tc.roots), Now: func() time.Time { return tc.now }})
			if (err == nil) != tc.ok {
				t.Errorf("got %v", err)
			}
			if err == nil {
				c.Close(CloseNormal, "")
			}
		})
	}
}
