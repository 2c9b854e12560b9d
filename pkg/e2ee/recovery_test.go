package e2ee_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

func TestRecoveryCodesAsPeopleWriteThem(t *testing.T) {
	code := e2ee.RecoveryCode{0x00, 0x44, 0x32, 0x14, 0xc7, 0x42, 0x54, 0xb6, 0x35, 0xff}
	const text = "0123-4567-89AB-CDFZ"
	if code.String() != text {
		t.Fatalf("got %s, want %s", code, text)
	}
	for _, s := range []string{text, "0123456789ABCDFZ", "0123 4567 89ab cdfz", "o123-4567-89ab-cdfz", "OI23-4567-89AB-CDFZ", " 0l23\t4567\n89AB--CDFZ\r\n"} {
		if got, err := e2ee.ParseRecoveryCode(s); err != nil || got != code {
			t.Errorf("%q: %s, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0123", text + "0", text[:18], "0123-4567-89AB-CDF!", "U123-4567-89AB-CDFZ", "0123_4567_89AB_CDFZ", "०123-4567-89AB-CDFZ", text + text} {
		if got, err := e2ee.ParseRecoveryCode(s); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("%q: %s, %v", s, got, err)
		}
	}
	if _, err := e2ee.NewRecoveryCode(empty{}); !errors.Is(err, errEmpty) {
		t.Errorf("a code without randomness: %v", err)
	}
}

func FuzzParseRecoveryCode(f *testing.F) {
	for _, s := range []string{"0123-4567-89AB-CDFZ", "", "----", "oooo iiii llll zzzz", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		code, err := e2ee.ParseRecoveryCode(s)
		if err != nil {
			return
		}
		if again, err := e2ee.ParseRecoveryCode(code.String()); err != nil || again != code || len(code.String()) != 19 {
			t.Errorf("%q is %s, which is %s (%v)", s, code, again, err)
		}
	})
}

func TestRecoveryBundle(t *testing.T) {
	code, err := e2ee.NewRecoveryCode(rand.Reader)
	must(t, err)
	key, err := code.Key("alice")
	must(t, err)
	content := []byte("the seed and more")
	sealed, err := e2ee.SealRecovery(rand.Reader, key, content)
	must(t, err)
	if len(sealed) != len(content)+e2ee.RecoveryOverhead || bytes.Contains(sealed, content) {
		t.Errorf("sealed to %x", sealed)
	}
	opened, err := e2ee.OpenRecovery(key, sealed)
	must(t, err)
	if !bytes.Equal(opened, content) {
		t.Errorf("got %q", opened)
	}
	// No byte of it can be changed, and no other code or name opens it.
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 1
		if _, err := e2ee.OpenRecovery(key, bad); !errors.Is(err, e2ee.ErrDecrypt) && !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	for n := range sealed {
		if _, err := e2ee.OpenRecovery(key, sealed[:n]); err == nil {
			t.Errorf("the first %d bytes open", n)
		}
	}
	other, err := code.Key("bob")
	must(t, err)
	if bytes.Equal(other.TokenHash, key.TokenHash) || bytes.Equal(other.Key, key.Key) || bytes.Equal(key.TokenHash, key.Key) {
		t.Error("two names share a key")
	}
	mixed := e2ee.RecoveryKey{TokenHash: other.TokenHash, Key: key.Key}
	for _, wrong := range []e2ee.RecoveryKey{other, mixed, {TokenHash: key.TokenHash, Key: other.Key}} {
		if _, err := e2ee.OpenRecovery(wrong, sealed); !errors.Is(err, e2ee.ErrDecrypt) {
			t.Errorf("another key: %v", err)
		}
	}
	if _, err := e2ee.OpenRecovery(e2ee.RecoveryKey{}, sealed); !errors.Is(err, e2ee.ErrMalformed) {
		t.Errorf("no key: %v", err)
	}
	if _, err := e2ee.SealRecovery(empty{}, key, content); !errors.Is(err, errEmpty) {
		t.Errorf("sealing without randomness: %v", err)
	}
}

// What is written on paper today opens the bundle in ten years.
func TestRecoveryVectors(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "recovery", "bundle.json"))
	must(t, err)
	var vectors []struct{ Code, Username, TokenHash, Key, Content, Sealed string }
	must(t, json.Unmarshal(text, &vectors))
	if len(vectors) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors {
		code, err := e2ee.ParseRecoveryCode(v.Code)
		must(t, err)
		key, err := code.Key(v.Username)
		must(t, err)
		if hex.EncodeToString(key.TokenHash) != v.TokenHash || hex.EncodeToString(key.Key) != v.Key {
			t.Errorf("%s of %s: token hash %x, key %x", v.Code, v.Username, key.TokenHash, key.Key)
		}
		sealed, err := hex.DecodeString(v.Sealed)
		must(t, err)
		if content, err := e2ee.OpenRecovery(key, sealed); err != nil || hex.EncodeToString(content) != v.Content {
			t.Errorf("%s of %s: content %x, %v", v.Code, v.Username, content, err)
		}
		nonce := bytes.NewReader(sealed[1:25])
		content, err := hex.DecodeString(v.Content)
		must(t, err)
		if again, err := e2ee.SealRecovery(nonce, key, content); err != nil || !bytes.Equal(again, sealed) {
			t.Errorf("%s of %s: sealed %x, %v", v.Code, v.Username, again, err)
		}
	}
}

func newReader(t testing.TB, name string) (e2ee.Reader, *e2ee.HybridKey) {
	t.Helper()
	seed := bytes.Repeat([]byte(name[:1]), e2ee.SeedSize)
	key, err := e2ee.NewHybridKey(seed)
	must(t, err)
	return e2ee.Reader{Identity: newIdentity(t, name).Key(), HybridKey: key.Public()}, key
}

func TestReport(t *testing.T) {
	root, rootKey := newReader(t, "root")
	carol, carolKey := newReader(t, "carol")
	mallory, malloryKey := newReader(t, "mallory")
	for _, content := range []string{"", "he said it again", strings.Repeat("long ", 3000)} {
		report, err := e2ee.SealReport(rand.Reader, []e2ee.Reader{root, carol}, []byte(content))
		must(t, err)
		for reader, key := range map[*e2ee.Reader]*e2ee.HybridKey{&root: rootKey, &carol: carolKey} {
			opened, err := e2ee.OpenReport(key, reader.Identity, report)
			must(t, err)
			if string(opened) != content {
				t.Errorf("opened to %.40q", opened)
			}
		}
		if _, err := e2ee.OpenReport(malloryKey, mallory.Identity, report); !errors.Is(err, e2ee.ErrDecrypt) {
			t.Errorf("somebody else: %v", err)
		}
		if _, err := e2ee.OpenReport(malloryKey, root.Identity, report); !errors.Is(err, e2ee.ErrDecrypt) {
			t.Errorf("somebody else in another's name: %v", err)
		}
		if len(report) > 32<<10 || len(content) > e2ee.ReportCapacity(2, len(report)) {
			t.Errorf("%d bytes became %d", len(content), len(report))
		}
	}
	if short, long := e2ee.ReportCapacity(1, 32<<10), e2ee.ReportCapacity(8, 32<<10); short <= long || long < 16<<10 {
		t.Errorf("room for %d and %d bytes", short, long)
	}
	full := make([]byte, e2ee.ReportCapacity(2, 32<<10))
	report, err := e2ee.SealReport(rand.Reader, []e2ee.Reader{root, carol}, full)
	must(t, err)
	if len(report) > 32<<10 {
		t.Errorf("the largest report has %d bytes", len(report))
	}
	if _, err := e2ee.SealReport(rand.Reader, nil, full); !errors.Is(err, e2ee.ErrMalformed) {
		t.Errorf("a report to nobody: %v", err)
	}
}

// No byte of a report can be changed by who carries it, but in the slot of
// another reader: and that is in the associated data too.
func TestReportTamper(t *testing.T) {
	root, rootKey := newReader(t, "root")
	carol, _ := newReader(t, "carol")
	report, err := e2ee.SealReport(rand.Reader, []e2ee.Reader{carol, root}, []byte("he said it again"))
	must(t, err)
	for i := 0; i < len(report); i += 7 {
		bad := bytes.Clone(report)
		bad[i] ^= 1
		if _, err := e2ee.OpenReport(rootKey, root.Identity, bad); !errors.Is(err, e2ee.ErrDecrypt) && !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	// Neither an envelope of a message nor one of another report will do.
	message, err := e2ee.SealHybrid(rand.Reader, root.HybridKey, root.Identity, make([]byte, 45))
	must(t, err)
	bad := append(append([]byte{1, 1}, root.Identity[:]...), message...)
	bad = append(bad, report[len(report)-(4<<10)-40:]...)
	if _, err := e2ee.OpenReport(rootKey, root.Identity, bad); !errors.Is(err, e2ee.ErrMalformed) {
		t.Errorf("a message as a slot: %v", err)
	}
}

func FuzzOpenReport(f *testing.F) {
	root, key := newReader(f, "root")
	report, err := e2ee.SealReport(rand.Reader, []e2ee.Reader{root}, []byte("x"))
	must(f, err)
	f.Add(report)
	f.Add([]byte{1, 255})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, report []byte) {
		if _, err := e2ee.OpenReport(key, root.Identity, report); err != nil && !errors.Is(err, e2ee.ErrDecrypt) && !errors.Is(err, e2ee.ErrMalformed) {
			t.Error(err)
		}
	})
}
