package e2ee

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/thomas-vilte/mls-go/ciphersuite"
	"github.com/thomas-vilte/mls-go/credentials"
	"github.com/thomas-vilte/mls-go/extensions"
	"github.com/thomas-vilte/mls-go/keypackages"
	"github.com/thomas-vilte/mls-go/treesync"
)

// Lifetime is the validity of a key package in Unix seconds, both ends included.
//
// Clients may have no clock (DESIGN 3.7), so this package never rejects a peer by
// time: a router that believes it is 1970 would refuse everybody, one that runs
// late would accept what is over anyway. The server forgets key packages after
// 30 days by its own clock, which is the limit that counts.
type Lifetime struct {
	NotBefore, NotAfter uint64
}

// Unlimited is the lifetime for a client that does not know the time.
var Unlimited = Lifetime{NotBefore: 0, NotAfter: math.MaxUint64}

const (
	// plausibleUnix is 2026-01-01: a clock before it was never set.
	plausibleUnix = 1767225600
	// A total below 84 days is what OpenMLS accepts; it also refuses a package
	// that begins now or later, hence the hour before.
	lifetimeBefore = time.Hour
	lifetimeAfter  = 83 * 24 * time.Hour
)

// NewLifetime is the lifetime for a key package made at now: the 83 days that
// other MLS stacks accept, or Unlimited when the clock was evidently never set.
func NewLifetime(now time.Time) Lifetime {
	if now.Unix() < plausibleUnix {
		return Unlimited
	}
	return Lifetime{uint64(now.Add(-lifetimeBefore).Unix()), uint64(now.Add(lifetimeAfter).Unix())}
}

// Includes reports whether now is inside. A clock that was never set excludes
// nothing.
func (l Lifetime) Includes(now time.Time) bool {
	if now.Unix() < plausibleUnix {
		return true
	}
	return uint64(now.Unix()) >= l.NotBefore && uint64(now.Unix()) <= l.NotAfter
}

// KeyPackageRef names a key package in a Welcome (RFC 9420, section 5.2).
type KeyPackageRef [hashSize]byte

// NewKeyPackage makes a key package for device: the bare TLS KeyPackage that is
// uploaded, its reference, and the private part, a secret blob to be stored until
// JoinGroup has used it. A last-resort package (RFC 9420, section 16.8) is marked
// so and its private part is kept after use. The randomness is that of the
// operating system: mls-go takes no other.
func NewKeyPackage(device *Device, lifetime Lifetime, lastResort bool) (public, private []byte, ref KeyPackageRef, err error) {
	kp, keys, err := generateKeyPackage(device, lifetime, lastResort)
	if err != nil {
		return nil, nil, KeyPackageRef{}, err
	}
	public = kp.Marshal()
	e := encoder{}
	e.u8(stateVersion)
	e.vector(public)
	e.raw(keys.InitKey.Bytes())
	e.raw(keys.EncryptionKey.Bytes())
	return public, e.buf, keyPackageRef(public), nil
}

func generateKeyPackage(device *Device, lifetime Lifetime, lastResort bool) (*keypackages.KeyPackage, *keypackages.KeyPackagePrivateKeys, error) {
	kp, keys, err := keypackages.Generate(&credentials.CredentialWithKey{
		Credential:        credentials.NewBasicCredential(device.credential),
		Ed25519PrivateKey: device.private,
		SignatureKeyBytes: device.private.Public().(ed25519.PublicKey),
	}, suite, keypackages.WithLifetime(lifetime.NotBefore, lifetime.NotAfter))
	if err != nil {
		return nil, nil, fmt.Errorf("making a key package: %w", err)
	}
	if lastResort {
		kp.Extensions = []keypackages.Extension{{Type: extensions.ExtensionTypeLastResort}}
		signature, err := ciphersuite.SignWithLabel(device.signer(), labelMLSKeyPackage, kp.MarshalTBS())
		if err != nil {
			return nil, nil, fmt.Errorf("signing a last-resort key package: %w", err)
		}
		kp.Signature = signature.AsSlice()
	}
	return kp, keys, nil
}

func keyPackageRef(public []byte) KeyPackageRef {
	return KeyPackageRef(ciphersuite.MakeKeyPackageRef(public, suite.HashFunction()).AsSlice())
}

// parsePrivateKeyPackage reads the private part that NewKeyPackage made.
func parsePrivateKeyPackage(private []byte) (*keypackages.KeyPackage, *keypackages.KeyPackagePrivateKeys, error) {
	d := &decoder{rest: private}
	version := d.u8()
	public, initKey, encryptionKey := d.vector(), d.take(x25519Size), d.take(x25519Size)
	if err := d.done(); err != nil || version != stateVersion {
		return nil, nil, fmt.Errorf("private part of a key package: %w", ErrState)
	}
	kp, err := keypackages.UnmarshalKeyPackage(public)
	if err != nil {
		return nil, nil, fmt.Errorf("private part of a key package: %w: %w", ErrState, err)
	}
	keys := &keypackages.KeyPackagePrivateKeys{}
	if keys.InitKey, err = suite.Curve().NewPrivateKey(initKey); err == nil {
		keys.EncryptionKey, err = suite.Curve().NewPrivateKey(encryptionKey)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("private part of a key package: %w: %w", ErrState, err)
	}
	return kp, keys, nil
}

// KeyPackageInfo is what a key package says, signatures and credential checked.
type KeyPackageInfo struct {
	Credential Credential
	Lifetime   Lifetime
	Ref        KeyPackageRef
	LastResort bool
}

// InspectKeyPackage checks a bare TLS KeyPackage (RFC 9420, section 10.1):
// version mls10, suite 0x0001, both signatures, a credential bound to the
// signature key. Its lifetime is reported, not judged; see Lifetime.
func InspectKeyPackage(public []byte) (*KeyPackageInfo, error) {
	_, info, err := checkKeyPackage(public)
	return info, err
}

func checkKeyPackage(public []byte) (*keypackages.KeyPackage, *KeyPackageInfo, error) {
	if len(public) > maxKeyPackageSize {
		return nil, nil, fmt.Errorf("key package of %d bytes: %w", len(public), ErrMalformed)
	}
	var kp *keypackages.KeyPackage
	err := guard(func() (err error) {
		if kp, err = keypackages.UnmarshalKeyPackage(public); err != nil {
			return err
		}
		if err := kp.Validate(); err != nil {
			return err
		}
		if kp.CipherSuite != suite {
			return fmt.Errorf("cipher suite 0x%04x, want 0x%04x", uint16(kp.CipherSuite), uint16(suite))
		}
		// mls-go ignores bytes that are left over and lists that are cut short;
		// what does not come back as it was is not a key package.
		if !bytes.Equal(kp.Marshal(), public) {
			return fmt.Errorf("encoding is not canonical")
		}
		if len(kp.InitKey) != x25519Size || len(kp.LeafNode.EncryptionKey) != x25519Size {
			return fmt.Errorf("HPKE keys are not X25519 keys")
		}
		if err := kp.Verify(suite); err != nil {
			return err
		}
		leaf, err := treesync.UnmarshalLeafNodeData(kp.LeafNode.Marshal())
		if err != nil {
			return err
		}
		return treesync.ValidateLeafNodeSignature(leaf, leaf.Signature, suite)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("key package: %w", libraryError(ErrMalformed, err))
	}
	who, err := leafCredential(kp.LeafNode.Credential, kp.LeafNode.SignatureKeyBytes)
	if err != nil {
		return nil, nil, fmt.Errorf("key package: %w", err)
	}
	info := &KeyPackageInfo{
		Credential: who,
		Lifetime:   Lifetime{kp.LeafNode.Lifetime.NotBefore, kp.LeafNode.Lifetime.NotAfter},
		Ref:        keyPackageRef(public),
		LastResort: isLastResort(kp),
	}
	return kp, info, nil
}

func isLastResort(kp *keypackages.KeyPackage) bool {
	return slices.ContainsFunc(kp.Extensions, func(e keypackages.Extension) bool {
		return e.Type == extensions.ExtensionTypeLastResort
	})
}

// leafCredential checks the credential of a leaf against its signature key.
func leafCredential(c *credentials.Credential, signatureKey []byte) (Credential, error) {
	if c == nil || c.CredentialType != credentials.BasicCredential {
		return Credential{}, fmt.Errorf("not a basic credential: %w", ErrCredential)
	}
	return ParseCredential(c.Identity, signatureKey)
}
