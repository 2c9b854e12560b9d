package e2ee_test

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/mlkem"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha3"
	"encoding/hex"
	"errors"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

func newHybridKey(t testing.TB) *e2ee.HybridKey {
	t.Helper()
	seed := sha256.Sum256([]byte("hybrid"))
	key, err := e2ee.NewHybridKey(seed[:])
	must(t, err)
	return key
}

func TestHybridRoundTrip(t *testing.T) {
	key, bob := newHybridKey(t), newIdentity(t, "bob").Key()
	for _, size := range []int{0, 1, 300, 1 << 20} {
		plaintext := bytes.Repeat([]byte{'m'}, size)
		envelope, err := e2ee.SealHybrid(rand.Reader, key.Public(), bob, plaintext)
		must(t, err)
		if len(envelope) != size+e2ee.HybridOverhead || envelope[0] != 1 {
			t.Fatalf("%d bytes, version %d", len(envelope), envelope[0])
		}
		back, err := key.Open(bob, envelope)
		must(t, err)
		if !bytes.Equal(back, plaintext) {
			t.Fatal("came back changed")
		}
	}
}

func TestHybridTamper(t *testing.T) {
	key, bob := newHybridKey(t), newIdentity(t, "bob").Key()
	envelope, err := e2ee.SealHybrid(rand.Reader, key.Public(), bob, []byte("hello"))
	must(t, err)
	for i := range envelope {
		bad := bytes.Clone(envelope)
		bad[i] ^= 1
		want := e2ee.ErrDecrypt
		if i == 0 {
			want = e2ee.ErrMalformed
		}
		if _, err := key.Open(bob, bad); !errors.Is(err, want) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	for _, n := range []int{0, 1, e2ee.HybridOverhead - 1} {
		if _, err := key.Open(bob, envelope[:n]); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if _, err := key.Open(bob, append(bytes.Clone(envelope), 0)); !errors.Is(err, e2ee.ErrDecrypt) {
		t.Errorf("one byte more: %v", err)
	}
	if _, err := key.Open(newIdentity(t, "carol").Key(), envelope); !errors.Is(err, e2ee.ErrDecrypt) {
		t.Errorf("another recipient: %v", err)
	}
	if _, err := e2ee.SealHybrid(rand.Reader, key.Public()[1:], bob, nil); !errors.Is(err, e2ee.ErrMalformed) {
		t.Errorf("short public key: %v", err)
	}
	if _, err := e2ee.SealHybrid(rand.Reader, bytes.Repeat([]byte{0xff}, e2ee.HybridPublicKeySize), bob, nil); !errors.Is(err, e2ee.ErrMalformed) {
		t.Errorf("ML-KEM key out of range: %v", err)
	}
	if _, err := e2ee.SealHybrid(empty{}, key.Public(), bob, nil); !errors.Is(err, errEmpty) {
		t.Errorf("no randomness: %v", err)
	}
}

// The first vector of the X-Wing draft, in our order of bytes, opened by another
// implementation: the standard library's ML-KEM and X25519 with the combiner of
// the draft written out.
func TestHybridAgainstDraft(t *testing.T) {
	// The draft takes seeds from SHAKE128 of nothing.
	stream := sha3.NewSHAKE128()
	seed, encapsulation := make([]byte, 32), make([]byte, 64)
	_, _ = stream.Read(seed)
	_, _ = stream.Read(encapsulation)
	const wantSecret = "d2df0522128f09dd8e2c92b1e905c793d8f57a54c3da25861f10bf4ca613e384"

	expanded := sha3.SumSHAKE256(seed, 96)
	pq, err := mlkem.NewDecapsulationKey768(expanded[:64])
	must(t, err)
	classic, err := ecdh.X25519().NewPrivateKey(expanded[64:])
	must(t, err)

	key, err := e2ee.NewHybridKey(seed)
	must(t, err)
	public := append(pq.EncapsulationKey().Bytes(), classic.PublicKey().Bytes()...)
	if !bytes.Equal(key.Public(), public) {
		t.Fatal("the public key is not ML-KEM ‖ X25519")
	}
	bob := newIdentity(t, "bob").Key()
	nonce := bytes.Repeat([]byte{9}, 12)
	envelope, err := e2ee.SealHybrid(bytes.NewReader(append(bytes.Clone(encapsulation), nonce...)), public, bob, []byte("hello"))
	must(t, err)

	ephemeral, ciphertext := envelope[1:33], envelope[33:1121]
	peer, err := ecdh.X25519().NewPublicKey(ephemeral)
	must(t, err)
	classicSecret, err := classic.ECDH(peer)
	must(t, err)
	pqSecret, err := pq.Decapsulate(ciphertext)
	must(t, err)
	h := sha3.New256()
	for _, part := range [][]byte{pqSecret, classicSecret, ephemeral, classic.PublicKey().Bytes(), []byte(`\.//^\`)} {
		_, _ = h.Write(part)
	}
	secret := h.Sum(nil)
	if hex.EncodeToString(secret) != wantSecret {
		t.Fatalf("X-Wing secret %x, the draft says %s", secret, wantSecret)
	}
	if !bytes.Equal(envelope[1121:1133], nonce) {
		t.Fatal("the nonce is not at 1121")
	}
	aeadKey, err := hkdf.Key(sha256.New, secret, nil, "qpc hybrid envelope v1", 32)
	must(t, err)
	aead, err := chacha20poly1305.New(aeadKey)
	must(t, err)
	plaintext, err := aead.Open(nil, nonce, envelope[1133:], bob[:])
	must(t, err)
	if string(plaintext) != "hello" {
		t.Fatalf("%q", plaintext)
	}
}

func FuzzOpenHybrid(f *testing.F) {
	key, bob := newHybridKey(f), newIdentity(f, "bob").Key()
	envelope, err := e2ee.SealHybrid(rand.Reader, key.Public(), bob, []byte("hello"))
	must(f, err)
	f.Add(envelope)
	f.Add(envelope[:e2ee.HybridOverhead])
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, data []byte) {
		if plaintext, err := key.Open(bob, data); err == nil && len(plaintext)+e2ee.HybridOverhead != len(data) {
			t.Fatal("lengths do not add up")
		}
	})
}
