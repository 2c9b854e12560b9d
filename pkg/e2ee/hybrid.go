package e2ee

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cloudflare/circl/kem/xwing"
	"golang.org/x/crypto/chacha20poly1305"
)

// The hybrid envelope (PROTOCOL 9):
//
//	0      1                    33                        1121        1133
//	+------+--------------------+-------------------------+-----------+-------------------+
//	| 0x01 | X25519 ephemeral   | ML-KEM-768 ciphertext   | nonce     | ciphertext ‖ tag  |
//	|      | 32                 | 1088                    | 12        | len(plaintext)+16 |
//	+------+--------------------+-------------------------+-----------+-------------------+
//
// X-Wing's own ciphertext has the two KEM parts the other way round (ML-KEM
// first). Only the bytes are moved: X-Wing hashes both in its combiner, and this
// package has none of its own.
const (
	hybridVersion      = 0x01
	x25519Size         = 32
	mlkemCiphertext    = 1088
	hybridCiphertext   = x25519Size + mlkemCiphertext
	hybridHeaderSize   = 1 + hybridCiphertext + chacha20poly1305.NonceSize
	xwingEncapsulation = 64 // randomness of one encapsulation

	// HybridPublicKeySize: ML-KEM-768 1184 ‖ X25519 32.
	HybridPublicKeySize = 1216
	// HybridOverhead is what SealHybrid adds to a plaintext.
	HybridOverhead = hybridHeaderSize + chacha20poly1305.Overhead
)

// HybridKey is an X-Wing key pair, which opens hybrid envelopes.
type HybridKey struct {
	private []byte
	public  []byte
}

// NewHybridKey derives the key pair from its 32-byte seed.
func NewHybridKey(seed []byte) (*HybridKey, error) {
	if len(seed) != SeedSize {
		return nil, fmt.Errorf("hybrid key seed of %d bytes, want %d: %w", len(seed), SeedSize, ErrMalformed)
	}
	private, public := xwing.DeriveKeyPairPacked(seed)
	return &HybridKey{private: private, public: public}, nil
}

// Public is the 1,216-byte public key that is uploaded.
func (k *HybridKey) Public() []byte { return append([]byte(nil), k.public...) }

// SealHybrid encrypts plaintext for the owner of publicKey. recipient is that
// owner's identity key, authenticated with the envelope so that it cannot be
// handed to somebody else. random is read for 76 bytes. A public key of another
// length or with a bad encoding is ErrMalformed.
func SealHybrid(random io.Reader, publicKey []byte, recipient IdentityKey, plaintext []byte) ([]byte, error) {
	if len(publicKey) != HybridPublicKeySize {
		return nil, fmt.Errorf("hybrid public key of %d bytes, want %d: %w", len(publicKey), HybridPublicKeySize, ErrMalformed)
	}
	var fresh [xwingEncapsulation + chacha20poly1305.NonceSize]byte
	if _, err := io.ReadFull(random, fresh[:]); err != nil {
		return nil, fmt.Errorf("reading randomness for the hybrid envelope: %w", err)
	}
	secret, kem, err := xwing.Encapsulate(publicKey, fresh[:xwingEncapsulation])
	if err != nil {
		return nil, fmt.Errorf("encapsulating to the hybrid public key: %w: %w", ErrMalformed, err)
	}
	key, err := hybridAEADKey(secret)
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, fmt.Errorf("hybrid envelope cipher: %w", err)
	}
	nonce := fresh[xwingEncapsulation:]
	out := make([]byte, 0, HybridOverhead+len(plaintext))
	out = append(out, hybridVersion)
	out = append(out, kem[mlkemCiphertext:]...)
	out = append(out, kem[:mlkemCiphertext]...)
	out = append(out, nonce...)
	return aead.Seal(out, nonce, plaintext, recipient[:]), nil
}

// SealHybridRepeatably is SealHybrid with randomness drawn from a secret seed:
// the same arguments give the same envelope, so that a sender need not store the
// envelopes of all members of a group to send them once more. The draw depends
// on every argument, so that one seed serves any number of recipients and
// messages, and no two of them share a key or a nonce.
func SealHybridRepeatably(seed [SeedSize]byte, publicKey []byte, recipient IdentityKey, plaintext []byte) ([]byte, error) {
	h := sha256.New()
	for _, part := range [][]byte{publicKey, recipient[:], plaintext} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		h.Write(part)
	}
	fresh, err := hkdf.Key(sha256.New, seed[:], h.Sum(nil), labelRepeatable, xwingEncapsulation+chacha20poly1305.NonceSize)
	if err != nil {
		return nil, fmt.Errorf("deriving a hybrid envelope: %w", err)
	}
	return SealHybrid(bytes.NewReader(fresh), publicKey, recipient, plaintext)
}

// Open decrypts an envelope that was sealed for this key and recipient.
// ErrMalformed: not an envelope of version 1. ErrDecrypt: for another key or
// recipient, or changed on the way.
func (k *HybridKey) Open(recipient IdentityKey, envelope []byte) ([]byte, error) {
	if len(envelope) < HybridOverhead {
		return nil, fmt.Errorf("hybrid envelope of %d bytes, want at least %d: %w", len(envelope), HybridOverhead, ErrMalformed)
	}
	if envelope[0] != hybridVersion {
		return nil, fmt.Errorf("hybrid envelope of version %d, want %d: %w", envelope[0], hybridVersion, ErrMalformed)
	}
	kem := make([]byte, 0, hybridCiphertext)
	kem = append(kem, envelope[1+x25519Size:1+hybridCiphertext]...)
	kem = append(kem, envelope[1:1+x25519Size]...)
	key, err := hybridAEADKey(xwing.Decapsulate(kem, k.private))
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.New(key)
	if err != nil {
		return nil, fmt.Errorf("hybrid envelope cipher: %w", err)
	}
	plaintext, err := aead.Open(nil, envelope[1+hybridCiphertext:hybridHeaderSize], envelope[hybridHeaderSize:], recipient[:])
	if err != nil {
		return nil, fmt.Errorf("opening the hybrid envelope: %w", ErrDecrypt)
	}
	return plaintext, nil
}

func hybridAEADKey(secret []byte) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, labelHybridEnvelope, chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the hybrid envelope key: %w", err)
	}
	return key, nil
}
