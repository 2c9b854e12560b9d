//go:build !js

package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFirstUseThenThatKeyOnly(t *testing.T) {
	one := newStore(t)
	s := serve(t, ServerOptions{Certificates: one})
	known := memory{}
	o := DialOptions{Address: s.addr, Trust: TrustFirstUse(known)}
	mustDial(t, o)
	if known[s.addr] != one.Pin() {
		t.Fatalf("remembered %v", known)
	}
	mustDial(t, o)

	s.Close()
	two := newStore(t)
	s = serve(t, ServerOptions{Certificates: two, Addresses: []string{s.addr}})
	_, err := Dial(within(t), o)
	changed, ok := errors.AsType[*ErrPinChanged](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	if want := (ErrPinChanged{s.addr, one.Pin(), two.Pin()}); *changed != want {
		t.Errorf("got %+v", *changed)
	}
	for _, part := range []string{"HAS CHANGED", s.addr, one.Pin().String(), two.Pin().String(), strings.Join(two.Pin().Words(), " "), "qpcd fingerprint", "forget the old key"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the message lacks %q", part)
		}
	}
	if known[s.addr] != one.Pin() {
		t.Error("the known key was replaced")
	}
	if s.Stats().Accepted != 0 {
		t.Error("the server got a connection")
	}
}

// flaky is a store that fails.
type flaky struct {
	memory
	lookup, remember error
}

func (f flaky) Lookup(s string) (Pin, bool, error) {
	if f.lookup != nil {
		return Pin{}, false, f.lookup
	}
	return f.memory.Lookup(s)
}
func (f flaky) Remember(string, Pin) error     { return f.remember }
func (f flaky) Replace(string, Pin, Pin) error { return f.remember }

func TestStoreFailuresRefuse(t *testing.T) {
	s := serve(t, ServerOptions{})
	full := errors.New("disk full")
	for _, store := range []flaky{{memory: memory{}, lookup: full}, {memory: memory{}, remember: full}} {
		if _, err := Dial(within(t), DialOptions{Address: s.addr, Trust: TrustFirstUse(store)}); !errors.Is(err, full) {
			t.Errorf("got %v", err)
		}
	}
}

func TestAskBeforeTrust(t *testing.T) {
	store := newStore(t)
	s := serve(t, ServerOptions{Certificates: store})
	known := memory{}
	o := DialOptions{Address: s.addr, Trust: TrustKnown(known)}
	_, err := Dial(within(t), o)
	unknown, ok := errors.AsType[*ErrUnknownServer](err)
	if !ok || unknown.Presented != store.Pin() || unknown.Server != s.addr || len(known) != 0 {
		t.Fatalf("got %v, remembered %v", err, known)
	}
	known.Remember(unknown.Server, unknown.Presented)
	roundTrip(t, mustDial(t, o), []byte("x"))
}

func TestTrustCertificate(t *testing.T) {
	now := clockFloorTime().AddDate(1, 0, 0)
	caKey, otherKey, leafKey := ecdsaKey(t, elliptic.P256()), ecdsaKey(t, elliptic.P256()), ecdsaKey(t, elliptic.P256())
	authority := func(key *ecdsa.PrivateKey) []byte {
		return makeCert(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "home CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
			NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(9, 0, 0),
		}, nil, key, key)
	}
	ca, err := x509.ParseCertificate(authority(caKey))
	if err != nil {
		t.Fatal(err)
	}
	leaf := makeCert(t, &x509.Certificate{
		DNSNames: []string{"chat.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore: now.AddDate(0, -1, 0), NotAfter: now.AddDate(0, 1, 0),
	}, ca, leafKey, caKey)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "c"), leaf)
	write(t, filepath.Join(dir, "k"), pkcs8(t, leafKey))
	store, err := LoadOrCreate(filepath.Join(dir, "c"), filepath.Join(dir, "k"), nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, ServerOptions{Certificates: store})

	for name, tc := range map[string]struct {
		file []byte
		name string
		now  time.Time
		want string
	}{
		"that certificate":    {leaf, "", now, ""},
		"that, PEM":           {pemOf("CERTIFICATE", leaf), "any.name", now.AddDate(50, 0, 0), ""},
		"that, 1970":          {leaf, "", time.Unix(1, 0), ""},
		"its authority":       {ca.Raw, "chat.example", now, ""},
		"wrong name":          {ca.Raw, "evil.example", now, "evil.example"},
		"host as name":        {ca.Raw, "", now, `as "127.0.0.1"`},
		"too late":            {ca.Raw, "chat.example", now.AddDate(1, 0, 0), "expired"},
		"no clock":            {ca.Raw, "chat.example", time.Unix(1, 0), "clock says 1970-01-01"},
		"another authority":   {authority(otherKey), "chat.example", now, "verify server"},
		"another certificate": {signed(t, otherKey), "chat.example", now, "HAS CHANGED"},
		"renewed, same key":   {signed(t, leafKey), "chat.example", now, "with the same key"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "trusted")
			write(t, path, tc.file)
			trust, err := TrustCertificateFile(path)
			if err != nil {
				t.Fatal(err)
			}
			c, err := Dial(within(t), DialOptions{Address: s.addr, ServerName: tc.name, Trust: trust, Now: func() time.Time { return tc.now }})
			if tc.want == "" {
				roundTrip(t, must(t)(c, err), []byte("x"))
				return
			}
			if err == nil {
				c.Close(CloseNormal, "")
				t.Fatal("trusted")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q, want %q", err, tc.want)
			}
		})
	}

	for name, file := range map[string][]byte{"none": nil, "two": append(pemOf("CERTIFICATE", leaf), pemOf("CERTIFICATE", ca.Raw)...), "key": pkcs8(t, leafKey)} {
		if _, err := TrustCertificate(file); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := TrustCertificateFile(filepath.Join(dir, "none")); err == nil {
		t.Error("a missing file is trusted")
	}
}

func TestPinForms(t *testing.T) {
	pin := newStore(t).Pin()
	hexes := pin.String()
	var colons []string
	for i := 0; i < len(hexes); i += 2 {
		colons = append(colons, strings.ToUpper(hexes[i:i+2]))
	}
	for _, s := range []string{hexes, strings.ToUpper(hexes), strings.Join(colons, ":"), strings.Join(colons, " "), pin.Base64URL()} {
		if got, err := ParsePin(s); err != nil || got != pin {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", hexes[1:], hexes + "00", "g" + hexes[1:], pin.Base64URL() + "=", strings.Repeat("!", 43), strings.Repeat("é", 32)} {
		if _, err := ParsePin(s); err == nil {
			t.Errorf("%q was read", s)
		}
	}
}

// TestPinWords has vectors of BIP-39 (github.com/trezor/python-mnemonic).
func TestPinWords(t *testing.T) {
	for in, want := range map[string]string{
		"00000000000000000000000000000000": "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about",
		"7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f7f": "legal winner thank year wave sausage worth useful legal winner thank yellow",
		"80808080808080808080808080808080": "letter advice cage absurd amount doctor acoustic avoid letter advice cage above",
		"ffffffffffffffffffffffffffffffff": "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong",
		"9e885d952ad362caeb4efe34a8e91bd2": "ozone drill grab fiber curtain grace pudding thank cruise elder eight picnic",
	} {
		b, _ := hex.DecodeString(in)
		pin := Pin{31: 0xAA} // the second half has no part in it
		copy(pin[:], b)
		if got := strings.Join(pin.Words(), " "); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"Chat.Example":       "chat.example:5001",
		"chat.example.":      "chat.example:5001",
		"chat.example:443":   "chat.example:443",
		"bücher.example:1":   "bücher.example:1",
		"192.0.2.1":          "192.0.2.1:5001",
		"192.0.2.1:65535":    "192.0.2.1:65535",
		"::1":                "[::1]:5001",
		"[::1]":              "[::1]:5001",
		"[2001:DB8::1]:443":  "[2001:db8::1]:443",
		"[fe80::1%eth0]:443": "[fe80::1%eth0]:443",
		"fe80::1%br-lan":     "[fe80::1%br-lan]:5001",
		"::ffff:192.0.2.1":   "192.0.2.1:5001",
	} {
		got, err := ParseAddress(in)
		if err != nil || got.String() != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", ":", ":5001", "host:", "host:0", "host:65536", "host:-1", "host:x", "host:1:2", "[]", "[]:1", "[host]:1", "[host]", "[::1", "::1]:5",
		"a b", "user@host", "http://host", "host/path", "a\x00b", "a\nb", "\xff", ".", "a..", "a..b", ".a", strings.Repeat("a", 254),
	} {
		if got, err := ParseAddress(in); err == nil {
			t.Errorf("%q was read as %v", in, got)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"host", "host:1", "[::1%x]:2", "::1", "[a]", "1.2.3.4:5", "é:9", ":"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		again, err := ParseAddress(a.String())
		if err != nil || again != a || a.Port == 0 || a.Host == "" {
			t.Fatalf("%q became %+v, and then %+v, %v", s, a, again, err)
		}
	})
}

func FuzzParsePin(f *testing.F) {
	var pin Pin
	for _, s := range []string{"", pin.String(), pin.Base64URL(), "aa:bb", "__--"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePin(s)
		if err != nil {
			return
		}
		for _, form := range []string{p.String(), p.Base64URL()} {
			if again, err := ParsePin(form); err != nil || again != p {
				t.Fatalf("%q became %v, %v", form, again, err)
			}
		}
	})
}

func FuzzFiles(f *testing.F) {
	key := ecdsaKey(f, elliptic.P256())
	cert := signed(f, key)
	f.Add(cert)
	f.Add(pemOf("CERTIFICATE", cert))
	f.Add(pkcs8(f, key))
	f.Add(pemOf("PRIVATE KEY", pkcs8(f, key)))
	f.Add([]byte("-----BEGIN "))
	f.Fuzz(func(t *testing.T, data []byte) {
		if certs, err := parseCertificates(data); err == nil && len(certs) == 0 {
			t.Fatal("no certificate and no error")
		}
		if k, err := parsePrivateKey(data); err == nil && k.Public() == nil {
			t.Fatal("no key and no error")
		}
		TrustCertificate(data)
	})
}
