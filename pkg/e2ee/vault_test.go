package e2ee_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

// cheap is a KDF that costs nothing, for tests only.
func cheap() e2ee.KDF { return e2ee.KDF{MemoryKiB: 8, Passes: 1, Lanes: 1} }

func newVault(t testing.TB, password string) (*e2ee.Vault, []byte) {
	t.Helper()
	v, header, err := e2ee.NewVault(rand.Reader, []byte(password), cheap())
	must(t, err)
	return v, header
}

func TestVaultOpensAgain(t *testing.T) {
	v, header := newVault(t, "correct horse")
	for _, value := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte("long "), 10_000)} {
		sealed, err := v.Seal(rand.Reader, "account", value)
		must(t, err)
		if len(sealed) != len(value)+e2ee.VaultOverhead {
			t.Errorf("%d bytes became %d", len(value), len(sealed))
		}
		again, err := e2ee.OpenVault(header, []byte("correct horse"))
		must(t, err)
		opened, err := again.Open("account", sealed)
		must(t, err)
		if !bytes.Equal(opened, value) {
			t.Errorf("%d bytes came back as %d", len(value), len(opened))
		}
		if len(value) > 8 && bytes.Contains(sealed, value[:8]) {
			t.Error("the value lies in the open")
		}
	}
	first, err := v.Seal(rand.Reader, "account", []byte("same"))
	must(t, err)
	second, err := v.Seal(rand.Reader, "account", []byte("same"))
	must(t, err)
	if bytes.Equal(first, second) {
		t.Error("one value sealed twice gives the same bytes")
	}
	if _, err := v.Seal(empty{}, "account", nil); !errors.Is(err, errEmpty) {
		t.Errorf("sealing without randomness: %v", err)
	}
}

func TestVaultWrongPassword(t *testing.T) {
	_, header := newVault(t, "correct horse")
	for _, password := range []string{"", "correct hors", "correct horse ", "Correct horse"} {
		if _, err := e2ee.OpenVault(header, []byte(password)); !errors.Is(err, e2ee.ErrPassword) {
			t.Errorf("%q: %v", password, err)
		}
	}
	_, other := newVault(t, "correct horse")
	if bytes.Equal(header[1:17], other[1:17]) {
		t.Error("two vaults share a salt")
	}
}

// No byte of the header can be changed, and none that asks for more memory or
// time than the bounds is tried at all. (The dearest of these asks for 64 MiB.)
func TestVaultTamperHeader(t *testing.T) {
	_, header := newVault(t, "correct horse")
	const memoryAt, passesAt, lanesAt = 1 + 16, 1 + 16 + 4, 1 + 16 + 8
	for i := range header {
		bad := bytes.Clone(header)
		bad[i] ^= 1
		_, err := e2ee.OpenVault(bad, []byte("correct horse"))
		if !errors.Is(err, e2ee.ErrPassword) && !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("header with byte %d changed: %v", i, err)
		}
	}
	for name, tc := range map[string]struct {
		at    int
		value uint32
		want  error
	}{
		"more memory":      {memoryAt, 16, e2ee.ErrPassword},
		"no memory":        {memoryAt, 0, e2ee.ErrMalformed},
		"too much memory":  {memoryAt, 1<<20 + 1, e2ee.ErrMalformed},
		"most memory":      {memoryAt, 1<<32 - 1, e2ee.ErrMalformed},
		"more passes":      {passesAt, 2, e2ee.ErrPassword},
		"no passes":        {passesAt, 0, e2ee.ErrMalformed},
		"too many passes":  {passesAt, 65, e2ee.ErrMalformed},
		"passes of a year": {passesAt, 1<<32 - 1, e2ee.ErrMalformed},
	} {
		bad := bytes.Clone(header)
		binary.BigEndian.PutUint32(bad[tc.at:], tc.value)
		if _, err := e2ee.OpenVault(bad, []byte("correct horse")); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	lanes := bytes.Clone(header)
	lanes[lanesAt] = 0
	if _, err := e2ee.OpenVault(lanes, []byte("correct horse")); !errors.Is(err, e2ee.ErrMalformed) {
		t.Errorf("no lanes: %v", err)
	}
	for n := range header {
		if _, err := e2ee.OpenVault(header[:n], []byte("correct horse")); !errors.Is(err, e2ee.ErrMalformed) {
			t.Fatalf("header cut to %d: %v", n, err)
		}
	}
	if _, err := e2ee.OpenVault(append(bytes.Clone(header), 0), []byte("correct horse")); !errors.Is(err, e2ee.ErrMalformed) {
		t.Errorf("header with a byte more: %v", err)
	}
}

func TestVaultTamperValues(t *testing.T) {
	v, _ := newVault(t, "correct horse")
	sealed, err := v.Seal(rand.Reader, "group/1", []byte("a group"))
	must(t, err)
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := v.Open("group/1", bad); !errors.Is(err, e2ee.ErrDecrypt) {
			t.Errorf("value with byte %d changed: %v", i, err)
		}
	}
	for n := range sealed {
		if _, err := v.Open("group/1", sealed[:n]); !errors.Is(err, e2ee.ErrDecrypt) && !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("value cut to %d: %v", n, err)
		}
	}
	for _, name := range []string{"group/2", "group/", "", "group/1 "} {
		if _, err := v.Open(name, sealed); !errors.Is(err, e2ee.ErrDecrypt) {
			t.Errorf("opened under the name %q: %v", name, err)
		}
	}
	other, _ := newVault(t, "correct horse")
	if _, err := other.Open("group/1", sealed); !errors.Is(err, e2ee.ErrDecrypt) {
		t.Errorf("opened by another vault: %v", err)
	}
}

func TestVaultRewrap(t *testing.T) {
	v, old := newVault(t, "old password")
	sealed, err := v.Seal(rand.Reader, "account", []byte("kept"))
	must(t, err)
	header, err := v.Rewrap(rand.Reader, []byte("new password"), cheap())
	must(t, err)
	again, err := e2ee.OpenVault(header, []byte("new password"))
	must(t, err)
	if opened, err := again.Open("account", sealed); err != nil || string(opened) != "kept" {
		t.Errorf("after a change of password: %q, %v", opened, err)
	}
	if _, err := e2ee.OpenVault(header, []byte("old password")); !errors.Is(err, e2ee.ErrPassword) {
		t.Errorf("the old password on the new header: %v", err)
	}
	if _, err := e2ee.OpenVault(old, []byte("new password")); !errors.Is(err, e2ee.ErrPassword) {
		t.Errorf("the new password on the old header: %v", err)
	}
}

func TestVaultRefusesParameters(t *testing.T) {
	for name, kdf := range map[string]e2ee.KDF{
		"none":            {},
		"no memory":       {Passes: 1, Lanes: 1},
		"too much memory": {MemoryKiB: 1<<20 + 1, Passes: 1, Lanes: 1},
		"no passes":       {MemoryKiB: 8, Lanes: 1},
		"too many passes": {MemoryKiB: 8, Passes: 65, Lanes: 1},
		"no lanes":        {MemoryKiB: 8, Passes: 1},
	} {
		if _, _, err := e2ee.NewVault(rand.Reader, []byte("x"), kdf); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if kdf := e2ee.DefaultKDF(); kdf != (e2ee.KDF{MemoryKiB: 64 << 10, Passes: 3, Lanes: 4}) {
		t.Errorf("RFC 9106's second option became %+v", kdf)
	}
	for n := range 3 {
		short := io.LimitReader(rand.Reader, []int64{0, 32, 48}[n])
		if _, _, err := e2ee.NewVault(short, []byte("x"), cheap()); err == nil {
			t.Errorf("a vault without randomness (%d)", n)
		}
	}
}

func FuzzOpenVault(f *testing.F) {
	_, header := newVault(f, "correct horse")
	f.Add(header, []byte("correct horse"))
	f.Add(header[:20], []byte(""))
	f.Add([]byte{1}, []byte("x"))
	f.Fuzz(func(t *testing.T, header, password []byte) {
		if len(header) > 25 {
			// What the bounds allow is more than a fuzz run should take.
			header = bytes.Clone(header)
			binary.BigEndian.PutUint32(header[17:], binary.BigEndian.Uint32(header[17:])%64)
			binary.BigEndian.PutUint32(header[21:], binary.BigEndian.Uint32(header[21:])%3)
		}
		v, err := e2ee.OpenVault(header, password)
		if err == nil {
			_, _ = v.Open("x", header)
		} else if !errors.Is(err, e2ee.ErrPassword) && !errors.Is(err, e2ee.ErrMalformed) {
			t.Fatal(err)
		}
	})
}
