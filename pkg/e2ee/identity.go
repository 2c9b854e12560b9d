package e2ee

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/thomas-vilte/mls-go/ciphersuite"
)

// Sizes of keys and signatures, in bytes.
const (
	// SeedSize is the size of an identity, device or hybrid key seed.
	SeedSize = 32
	// IdentityKeySize is the size of an Ed25519 public key.
	IdentityKeySize = ed25519.PublicKeySize
	// DeviceIDSize is the size of a device id.
	DeviceIDSize = 16

	// linkedCredentialSize: identity key 32 ‖ device id 16 ‖ signature 64.
	linkedCredentialSize = IdentityKeySize + DeviceIDSize + ed25519.SignatureSize
)

// IdentityKey is the Ed25519 public key that names a user.
type IdentityKey [IdentityKeySize]byte

// String gives the key in hexadecimal.
func (k IdentityKey) String() string { return hex.EncodeToString(k[:]) }

// ParseIdentityKey takes an identity key as it stands on the wire. Another
// length than 32 bytes is ErrMalformed.
func ParseIdentityKey(b []byte) (IdentityKey, error) {
	if len(b) != IdentityKeySize {
		return IdentityKey{}, fmt.Errorf("identity key of %d bytes, want %d: %w", len(b), IdentityKeySize, ErrMalformed)
	}
	return IdentityKey(b), nil
}

// Identity is a user's long-term Ed25519 key pair. It signs the identity proof
// and the credentials of linked devices, and is the MLS signature key of the
// first device.
type Identity struct {
	private ed25519.PrivateKey
	key     IdentityKey
}

// NewIdentity derives the identity from its 32-byte seed (RFC 8032).
func NewIdentity(seed []byte) (*Identity, error) {
	if len(seed) != SeedSize {
		return nil, fmt.Errorf("identity seed of %d bytes, want %d: %w", len(seed), SeedSize, ErrMalformed)
	}
	private := ed25519.NewKeyFromSeed(seed)
	return &Identity{private: private, key: IdentityKey(private.Public().(ed25519.PublicKey))}, nil
}

// Key is the public key.
func (id *Identity) Key() IdentityKey { return id.key }

// IdentityProof signs the binding of a name to this identity, 64 bytes (PROTOCOL
// 7.1; see proof.SignIdentity). username is the folded form; upload is the OPAQUE
// registration upload.
func (id *Identity) IdentityProof(username string, upload []byte) []byte {
	return proof.SignIdentity(id.private, username, upload)
}

// VerifyIdentityProof reports whether identityProof binds username and upload to
// key.
func VerifyIdentityProof(key IdentityKey, username string, upload, identityProof []byte) bool {
	return proof.VerifyIdentity(key[:], username, upload, identityProof)
}

// IssueDevice makes the MLS credential of a linked device:
// identity key 32 ‖ device id 16 ‖ Ed25519 by the identity key over
// "qpc device v1" ‖ device id ‖ device key (PROTOCOL 9). deviceKey is the Ed25519
// public key of the device, which becomes the signature key of its leaf.
func (id *Identity) IssueDevice(deviceID [DeviceIDSize]byte, deviceKey ed25519.PublicKey) ([]byte, error) {
	if len(deviceKey) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("device key of %d bytes, want %d: %w", len(deviceKey), ed25519.PublicKeySize, ErrMalformed)
	}
	if bytes.Equal(deviceKey, id.key[:]) {
		return nil, fmt.Errorf("device key is the identity key, which is the first device's: %w", ErrCredential)
	}
	cred := make([]byte, 0, linkedCredentialSize)
	cred = append(cred, id.key[:]...)
	cred = append(cred, deviceID[:]...)
	return append(cred, ed25519.Sign(id.private, deviceInput(deviceID, deviceKey))...), nil
}

func deviceInput(deviceID [DeviceIDSize]byte, deviceKey []byte) []byte {
	in := append([]byte(labelDevice), deviceID[:]...)
	return append(in, deviceKey...)
}

// Credential says who stands behind a leaf of an MLS group.
type Credential struct {
	// Identity is the user. Users are counted by it, not by leaves.
	Identity IdentityKey
	// SignatureKey is the leaf's MLS signature key, unique in a group.
	SignatureKey [ed25519.PublicKeySize]byte
	// DeviceID is the linked device, all zero for the first device.
	DeviceID [DeviceIDSize]byte
	// Linked is false for the first device, whose signature key is the identity key.
	Linked bool
}

// ParseCredential checks the identity bytes of a BasicCredential against the
// signature key of the leaf it came with. Anything not bound to that key is
// ErrCredential.
func ParseCredential(credential, signatureKey []byte) (Credential, error) {
	if len(signatureKey) != ed25519.PublicKeySize {
		return Credential{}, fmt.Errorf("signature key of %d bytes, want %d: %w", len(signatureKey), ed25519.PublicKeySize, ErrCredential)
	}
	c := Credential{SignatureKey: [ed25519.PublicKeySize]byte(signatureKey)}
	switch len(credential) {
	case IdentityKeySize:
		if !bytes.Equal(credential, signatureKey) {
			return Credential{}, fmt.Errorf("credential names identity %x but the leaf signs with %x: %w", credential, signatureKey, ErrCredential)
		}
		c.Identity = IdentityKey(credential)
	case linkedCredentialSize:
		c.Linked = true
		c.Identity = IdentityKey(credential[:IdentityKeySize])
		c.DeviceID = [DeviceIDSize]byte(credential[IdentityKeySize : IdentityKeySize+DeviceIDSize])
		if c.SignatureKey == [ed25519.PublicKeySize]byte(c.Identity) {
			return Credential{}, fmt.Errorf("linked device signs with the identity key: %w", ErrCredential)
		}
		if !ed25519.Verify(c.Identity[:], deviceInput(c.DeviceID, signatureKey), credential[IdentityKeySize+DeviceIDSize:]) {
			return Credential{}, fmt.Errorf("identity %s did not sign this device: %w", c.Identity, ErrCredential)
		}
	default:
		return Credential{}, fmt.Errorf("credential of %d bytes, want %d or %d: %w", len(credential), IdentityKeySize, linkedCredentialSize, ErrCredential)
	}
	return c, nil
}

// Device is what acts in MLS groups: a signature key pair and its credential.
type Device struct {
	private    ed25519.PrivateKey
	credential []byte
	who        Credential
}

// FirstDevice is the device that signs with the identity key itself.
func (id *Identity) FirstDevice() *Device {
	return &Device{
		private:    id.private,
		credential: bytes.Clone(id.key[:]),
		who:        Credential{Identity: id.key, SignatureKey: id.key},
	}
}

// NewLinkedDevice makes a device from its own 32-byte seed and the credential
// that the identity issued for it (IssueDevice). It need not know the identity's
// seed.
func NewLinkedDevice(deviceSeed, credential []byte) (*Device, error) {
	if len(deviceSeed) != SeedSize {
		return nil, fmt.Errorf("device seed of %d bytes, want %d: %w", len(deviceSeed), SeedSize, ErrMalformed)
	}
	private := ed25519.NewKeyFromSeed(deviceSeed)
	who, err := ParseCredential(credential, private.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("linked device: %w", err)
	}
	if !who.Linked {
		return nil, fmt.Errorf("linked device with the credential of a first device: %w", ErrCredential)
	}
	return &Device{private: private, credential: bytes.Clone(credential), who: who}, nil
}

func (d *Device) signer() *ciphersuite.SignaturePrivateKey {
	return ciphersuite.NewEd25519SignaturePrivateKey(d.private)
}

// Credential is the device's own.
func (d *Device) Credential() Credential { return d.who }
