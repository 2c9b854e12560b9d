//go:build !js

package transport

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func pkcs8(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func signed(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := selfSign(key, []string{"localhost"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func ecdsaKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestFirstStartMakesAPair(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "server-cert.der"), filepath.Join(dir, "server-key.der")
	lan := []net.Addr{
		&net.IPNet{IP: net.IPv4(192, 168, 1, 1), Mask: net.CIDRMask(24, 32)},
		&net.IPNet{IP: net.ParseIP("fe80::1"), Mask: net.CIDRMask(64, 128)},
		&net.IPNet{IP: net.ParseIP("fd00::1"), Mask: net.CIDRMask(64, 128)},
	}
	s, err := LoadOrCreate(cert, key, DefaultNames("OpenWrt", lan), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{cert: 0o644, key: 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("left behind: %v", entries)
	}
	leaf := s.Leaf()
	for _, name := range []string{"localhost", "127.0.0.1", "::1", "openwrt", "openwrt.lan", "openwrt.local", "192.168.1.1", "fd00::1"} {
		if err := leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	if len(leaf.IPAddresses) != 4 {
		t.Errorf("addresses: %v", leaf.IPAddresses)
	}
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		t.Error("wrong usage")
	}
	if pub, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || pub.Curve != elliptic.P256() {
		t.Errorf("key %T", leaf.PublicKey)
	}
	if !s.Created() || len(s.Warnings()) != 0 {
		t.Errorf("created %v, warnings %q", s.Created(), s.Warnings())
	}

	again, err := LoadOrCreate(cert, key, nil, nil, nil)
	if err != nil || again.Pin() != s.Pin() || again.Created() {
		t.Errorf("second start: %v", err)
	}
}

func TestCertificateHoldsAtAnyTime(t *testing.T) {
	store := newStore(t)
	leaf := store.Leaf()
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	s := serve(t, ServerOptions{Certificates: store})
	trust, err := TrustCertificate(leaf.Raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, now := range []time.Time{
		time.Unix(0, 0), time.Unix(40, 0), clockFloorTime(), time.Date(2039, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "router.lan", CurrentTime: now}); err != nil {
			t.Errorf("at %v: %v", now, err)
		}
		o := DialOptions{Address: s.addr, Trust: trust, Now: func() time.Time { return now }}
		roundTrip(t, mustDial(t, o), []byte("x"))
	}
}

func clockFloorTime() time.Time { return time.Unix(clockFloor, 0) }

func TestServerWithoutAClock(t *testing.T) {
	var now atomic.Pointer[time.Time]
	set := func(at time.Time) { now.Store(&at) }
	set(time.Unix(12, 0))
	s := serve(t, ServerOptions{Now: func() time.Time { return *now.Load() }})
	trust := TrustFirstUse(memory{})
	roundTrip(t, mustDial(t, DialOptions{Address: s.addr, Trust: trust}), []byte("in 1970"))
	set(clockFloorTime().AddDate(1, 0, 0))
	roundTrip(t, mustDial(t, DialOptions{Address: s.addr, Trust: trust}), []byte("after the jump"))
}

func TestFilesAsTheyCome(t *testing.T) {
	p256, p384 := ecdsaKey(t, elliptic.P256()), ecdsaKey(t, elliptic.P384())
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	rsa2048 := rsaKey(t, 2048)
	sec1, _ := x509.MarshalECPrivateKey(p256)
	cert := signed(t, p256)
	whole := pemOf("CERTIFICATE", cert)
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}, Bytes: sec1})
	params := pemOf("EC PARAMETERS", []byte{6, 8})

	for name, tc := range map[string]struct {
		cert, key []byte
		want      string // part of the error; empty: loads
	}{
		"DER":                {cert, pkcs8(t, p256), ""},
		"PEM":                {whole, pemOf("PRIVATE KEY", pkcs8(t, p256)), ""},
		"PEM and DER":        {whole, pkcs8(t, p256), ""},
		"DER and PEM":        {cert, pemOf("PRIVATE KEY", pkcs8(t, p256)), ""},
		"SEC 1 DER":          {cert, sec1, ""},
		"SEC 1 PEM, openssl": {whole, append(params, pemOf("EC PRIVATE KEY", sec1)...), ""},
		"PEM with text":      {append([]byte("subject=/CN=x\n"), whole...), sec1, ""},
		"PEM chain":          {slices.Concat(whole, pemOf("CERTIFICATE", signed(t, p384))), sec1, ""},
		"DER chain":          {slices.Concat(cert, signed(t, p384)), sec1, ""},
		"P-384":              {signed(t, p384), pkcs8(t, p384), ""},
		"Ed25519":            {signed(t, ed), pkcs8(t, ed), ""},
		"RSA":                {signed(t, rsa2048), pkcs8(t, rsa2048), ""},
		"PKCS #1":            {signed(t, rsa2048), pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsa2048)), ""},

		"another's key":     {cert, pkcs8(t, p384), "does not belong"},
		"chain upside down": {slices.Concat(signed(t, p384), cert), sec1, "does not belong"},
		"swapped":           {sec1, cert, "neither a DER nor a PEM certificate"},
		"key is a cert":     {whole, whole, "no whole PEM block of a private key"},
		"empty cert":        {nil, sec1, "is empty"},
		"empty key":         {cert, nil, "no PKCS #8"},
		"cut cert":          {cert[:len(cert)-1], sec1, "neither"},
		"cut PEM":           {whole[:len(whole)-10], sec1, "no whole PEM block"},
		"garbage in PEM":    {pemOf("CERTIFICATE", []byte("no")), sec1, "PEM certificate 1"},
		"cut key":           {cert, sec1[:20], "no PKCS #8"},
		"encrypted key":     {whole, encrypted, "is encrypted"},
		"encrypted PKCS #8": {whole, pemOf("ENCRYPTED PRIVATE KEY", sec1), "is encrypted"},
		"P-224":             {cert, pkcs8(t, ecdsaKey(t, elliptic.P224())), "P-224"},
		"RSA 1024":          {cert, pkcs8(t, rsaKey(t, 1024)), "1024 bits"},
		"too large":         {bytes.Repeat(whole, 1000), sec1, "larger than 256 KiB"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			certPath, keyPath := filepath.Join(dir, "c"), filepath.Join(dir, "k")
			write(t, certPath, tc.cert)
			write(t, keyPath, tc.key)
			store, err := LoadOrCreate(certPath, keyPath, nil, nil, nil)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), dir) {
					t.Errorf("got %v, want %q and the path", err, tc.want)
				}
				if !bytes.Equal(read(t, certPath), tc.cert) || !bytes.Equal(read(t, keyPath), tc.key) {
					t.Error("a refused file was changed")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s := serve(t, ServerOptions{Certificates: store})
			roundTrip(t, mustDial(t, DialOptions{Address: s.addr, Trust: TrustPin(store.Pin())}), []byte("x"))
		})
	}
}

func TestHalfAPair(t *testing.T) {
	t.Run("certificate without key", func(t *testing.T) {
		dir := t.TempDir()
		cert, key := filepath.Join(dir, "c"), filepath.Join(dir, "k")
		content := signed(t, ecdsaKey(t, elliptic.P256()))
		write(t, cert, content)
		_, err := LoadOrCreate(cert, key, nil, nil, nil)
		if err == nil || !strings.Contains(err.Error(), "lost its private key") {
			t.Errorf("got %v", err)
		}
		if !bytes.Equal(read(t, cert), content) {
			t.Error("the certificate was overwritten")
		}
		if _, err := os.Stat(key); err == nil {
			t.Error("a key was made")
		}
	})
	t.Run("key without certificate", func(t *testing.T) {
		dir := t.TempDir()
		cert, key := filepath.Join(dir, "c"), filepath.Join(dir, "k")
		k := ecdsaKey(t, elliptic.P256())
		write(t, key, pkcs8(t, k))
		s, err := LoadOrCreate(cert, key, []string{"localhost"}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !s.Created() || !k.PublicKey.Equal(s.Leaf().PublicKey) || !bytes.Equal(read(t, key), pkcs8(t, k)) {
			t.Error("the key was not kept")
		}
	})
	t.Run("bad key without certificate", func(t *testing.T) {
		dir := t.TempDir()
		cert, key := filepath.Join(dir, "c"), filepath.Join(dir, "k")
		write(t, key, []byte("half"))
		if _, err := LoadOrCreate(cert, key, nil, nil, nil); err == nil {
			t.Error("no error")
		}
		if _, err := os.Stat(cert); err == nil {
			t.Error("a certificate was made")
		}
	})
	t.Run("a crash left a temporary file", func(t *testing.T) {
		dir := t.TempDir()
		cert, key := filepath.Join(dir, "c"), filepath.Join(dir, "k")
		if err := os.WriteFile(key+".new", []byte("half"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadOrCreate(cert, key, nil, nil, nil); err != nil {
			t.Fatal(err)
		}
		if info, _ := os.Stat(key); info.Mode().Perm() != 0o600 {
			t.Errorf("key mode %v", info.Mode())
		}
	})
	t.Run("no such directory", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "none")
		_, err := LoadOrCreate(filepath.Join(dir, "c"), filepath.Join(dir, "k"), nil, nil, nil)
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("bad name", func(t *testing.T) {
		dir := t.TempDir()
		_, err := LoadOrCreate(filepath.Join(dir, "c"), filepath.Join(dir, "k"), []string{"a b"}, nil, nil)
		if err == nil || !strings.Contains(err.Error(), `"a b"`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no randomness", func(t *testing.T) {
		dir := t.TempDir()
		_, err := LoadOrCreate(filepath.Join(dir, "c"), filepath.Join(dir, "k"), nil, nil, strings.NewReader("short"))
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v", err)
		}
	})
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	store, err := LoadOrCreate(cert, key, []string{"localhost"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	old := store.Pin()
	s := serve(t, ServerOptions{Certificates: store})
	live := mustDial(t, DialOptions{Address: s.addr, Trust: TrustPin(old)})

	if changed, err := store.Reload(); changed || err != nil {
		t.Errorf("nothing new: %v, %v", changed, err)
	}
	write(t, cert, []byte("broken"))
	if changed, err := store.Reload(); changed || err == nil || !strings.Contains(err.Error(), "the certificate in use stays") {
		t.Errorf("broken: %v, %v", changed, err)
	}
	mustDial(t, DialOptions{Address: s.addr, Trust: TrustPin(old)})

	k := ecdsaKey(t, elliptic.P256())
	write(t, cert, pemOf("CERTIFICATE", signed(t, k)))
	if _, err := store.Reload(); err == nil {
		t.Error("the new certificate was taken with the old key")
	}
	write(t, key, pemOf("PRIVATE KEY", pkcs8(t, k)))
	if changed, err := store.Reload(); !changed || err != nil {
		t.Errorf("new pair: %v, %v", changed, err)
	}
	if store.Pin() == old {
		t.Fatal("the pin did not change")
	}
	mustDial(t, DialOptions{Address: s.addr, Trust: TrustPin(store.Pin())})
	roundTrip(t, live, []byte("live connections go on"))
}

func TestWarnings(t *testing.T) {
	from := clockFloorTime().AddDate(0, 6, 0)
	until := from.AddDate(0, 3, 0)
	for name, tc := range map[string]struct {
		now  time.Time
		mode os.FileMode
		ca   bool
		want string
	}{
		"fine":           {from.AddDate(0, 1, 0), 0o600, false, ""},
		"nearly over":    {until.AddDate(0, 0, -29), 0o600, false, "expires on"},
		"a month left":   {until.AddDate(0, 0, -31), 0o600, false, ""},
		"expired":        {until.AddDate(0, 0, 1), 0o600, false, "expired on"},
		"early":          {from.AddDate(0, 0, -1), 0o600, false, "is not valid before"},
		"no clock":       {time.Unix(5, 0), 0o600, false, ""},
		"key for all":    {from.AddDate(0, 1, 0), 0o644, false, "chmod 600"},
		"an authority's": {from.AddDate(0, 1, 0), 0o600, true, "rustls"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cert, key := filepath.Join(dir, "c"), filepath.Join(dir, "k")
			k := ecdsaKey(t, elliptic.P256())
			write(t, cert, makeCert(t, &x509.Certificate{NotBefore: from, NotAfter: until, IsCA: tc.ca, BasicConstraintsValid: true}, nil, k, k))
			write(t, key, pkcs8(t, k))
			if err := os.Chmod(key, tc.mode); err != nil {
				t.Fatal(err)
			}
			s, err := LoadOrCreate(cert, key, nil, func() time.Time { return tc.now }, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := s.Warnings()
			if tc.want == "" && len(got) != 0 || tc.want != "" && (len(got) != 1 || !strings.Contains(got[0], tc.want)) {
				t.Errorf("got %q", got)
			}
		})
	}
}

func makeCert(t testing.TB, template, parent *x509.Certificate, key, signer crypto.Signer) []byte {
	t.Helper()
	template.SerialNumber = big.NewInt(1)
	if template.Subject.CommonName == "" {
		template.Subject = pkix.Name{CommonName: "x"}
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestDefaultNames(t *testing.T) {
	base := []string{"localhost", "127.0.0.1", "::1"}
	for host, want := range map[string][]string{
		"":                  base,
		"localhost":         base,
		"(none)":            base,
		"bad_name":          base,
		"Router":            append(base[:3:3], "router", "router.lan", "router.local"),
		"router.home.arpa.": append(base[:3:3], "router.home.arpa", "router", "router.lan", "router.local"),
	} {
		if got := DefaultNames(host, nil); !slices.Equal(got, want) {
			t.Errorf("%q: %v", host, got)
		}
	}
	var many []net.Addr
	for i := range 300 {
		many = append(many, &net.IPNet{IP: net.IPv4(10, 0, byte(i>>8), byte(i)), Mask: net.CIDRMask(8, 32)})
	}
	if n := len(DefaultNames("router", many)); n != maxNames {
		t.Errorf("%d names", n)
	}
}

func TestDerivedKeysDiffer(t *testing.T) {
	one := Secret{1}
	seen := map[[32]byte]bool{one: true}
	for _, info := range []string{infoStatelessReset, infoAddressToken, infoSessionTicket} {
		k, err := one.derive(info)
		if err != nil || seen[k] {
			t.Errorf("%s: %v", info, err)
		}
		seen[k] = true
	}
}
