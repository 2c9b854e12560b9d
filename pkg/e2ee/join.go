package e2ee

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"github.com/thomas-vilte/mls-go/ciphersuite"
	"github.com/thomas-vilte/mls-go/extensions"
	"github.com/thomas-vilte/mls-go/framing"
	"github.com/thomas-vilte/mls-go/group"
	"github.com/thomas-vilte/mls-go/keypackages"
	"github.com/thomas-vilte/mls-go/schedule"
	"github.com/thomas-vilte/mls-go/treesync"
)

// Joined is the outcome of JoinGroup.
type Joined struct {
	Group *Group
	// KeyPackage is the reference of the key package that was used. Delete its
	// private part in the transaction that stores the group, unless LastResort.
	KeyPackage KeyPackageRef
	// LastResort is true when the key package may be used again.
	LastResort bool
	// Inviter made the commit that added us.
	Inviter Credential
}

// JoinGroup reads a Welcome (an MLSMessage). privatePart gives the private blob
// of a key package of ours, nil for one that is not ours. ErrKeyPackageUnknown:
// no key package named in it is ours.
//
// A Welcome for a group id that is known already is normal: a peer that lost its
// state starts the group afresh. Which of the two lives on is the caller's choice.
func JoinGroup(device *Device, welcome []byte, privatePart func(KeyPackageRef) []byte) (*Joined, error) {
	joined, err := joinGroup(device, welcome, privatePart)
	if err != nil {
		return nil, fmt.Errorf("joining a group: %w", err)
	}
	return joined, nil
}

func joinGroup(device *Device, message []byte, privatePart func(KeyPackageRef) []byte) (*Joined, error) {
	welcome, err := parseWelcome(message)
	if err != nil {
		return nil, err
	}
	for i, secrets := range welcome.Secrets {
		if len(secrets.NewMember) != hashSize || i >= MaxMembers {
			continue
		}
		ref := KeyPackageRef(secrets.NewMember)
		private := privatePart(ref)
		if private == nil {
			continue
		}
		kp, keys, err := parsePrivateKeyPackage(private)
		if err != nil {
			return nil, err
		}
		if keyPackageRef(kp.Raw) != ref {
			return nil, fmt.Errorf("private part of another key package than %x: %w", ref, ErrState)
		}
		var lib *group.Group
		err = guard(func() (err error) {
			if err := checkWelcome(welcome, &secrets.EncryptedGroupSecrets, keys); err != nil {
				return err
			}
			lib, err = group.JoinFromWelcome(welcome, kp, keys, nil)
			return err
		})
		if err != nil {
			return nil, libraryError(ErrDecrypt, err)
		}
		joined, err := finishJoin(device, lib, welcome, ref)
		if err != nil {
			return nil, err
		}
		joined.LastResort = isLastResort(kp)
		return joined, nil
	}
	return nil, ErrKeyPackageUnknown
}

// finishJoin checks what mls-go leaves to its caller.
func finishJoin(device *Device, lib *group.Group, welcome *group.Welcome, ref KeyPackageRef) (*Joined, error) {
	if n := len(lib.ID().AsSlice()); n == 0 || n > maxGroupIDSize {
		return nil, fmt.Errorf("group id of %d bytes: %w", n, ErrMalformed)
	}
	if len(lib.GroupContext().Extensions) > 0 {
		// Required capabilities and external senders are not used here.
		return nil, fmt.Errorf("group with extensions: %w", ErrNotAllowed)
	}
	g, err := adopt(device, lib)
	if err != nil {
		return nil, err
	}
	// What cannot be read back is found now and not after it was stored; it also
	// verifies the tree hash once more.
	if _, err := unpackLibrary(g.core); err != nil {
		return nil, fmt.Errorf("welcome leads to a state that does not hold: %w: %w", ErrMalformed, err)
	}
	inviter, ok := g.current().roster[uint32(welcome.GroupInfo.Signer)]
	if !ok {
		return nil, fmt.Errorf("welcome signed by an empty leaf: %w", ErrCredential)
	}
	return &Joined{Group: g, KeyPackage: ref, Inviter: inviter}, nil
}

// parseWelcome reads a Welcome and refuses what mls-go would let pass.
func parseWelcome(message []byte) (*group.Welcome, error) {
	if len(message) > MaxMessageSize {
		return nil, fmt.Errorf("welcome of %d bytes: %w", len(message), ErrMalformed)
	}
	var welcome *group.Welcome
	err := guard(func() error {
		m, err := framing.UnmarshalMLSMessage(message)
		if err != nil {
			return err
		}
		if m.WireFormat() != framing.WireFormatWelcome {
			return fmt.Errorf("wire format %d", m.WireFormat())
		}
		if welcome, err = group.UnmarshalWelcome(m.Welcome); err != nil {
			return err
		}
		// mls-go ignores bytes that are left over and lists that are cut short.
		if !bytes.Equal(welcome.Marshal(), m.Welcome) {
			return errors.New("encoding is not canonical")
		}
		if welcome.CipherSuite != suite {
			return fmt.Errorf("cipher suite 0x%04x, want 0x%04x", uint16(welcome.CipherSuite), uint16(suite))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("welcome: %w", libraryError(ErrMalformed, err))
	}
	return welcome, nil
}

// checkWelcome looks into the GroupInfo before mls-go joins. When the ratchet
// tree in it does not have the form of RFC 9420, mls-go tries a form of its own
// that begins with a number of leaves, and allocates that many: whoever has a key
// package of ours could end the program with one short Welcome. Without a tree it
// verifies neither tree nor signature. Both are refused here. Every step is a
// call of mls-go, in the order of RFC 9420, section 12.4.3.1.
func checkWelcome(welcome *group.Welcome, sealed *ciphersuite.HPKECiphertext, keys *keypackages.KeyPackagePrivateKeys) error {
	secretsBytes, err := ciphersuite.DecryptWithLabel(keys.InitKey.Bytes(), labelMLSWelcome, welcome.EncryptedGroupInfo, sealed, suite)
	if err != nil {
		return err
	}
	secrets, err := group.UnmarshalGroupSecrets(secretsBytes)
	if err != nil {
		return err
	}
	if len(secrets.Psks) > 0 {
		return fmt.Errorf("welcome asks for a pre-shared key: %w", ErrNotAllowed)
	}
	keySchedule := schedule.NewKeySchedule(suite, ciphersuite.ZeroSecretCS(suite))
	keySchedule.SetJoinerSecret(ciphersuite.NewSecretForCS(suite, secrets.JoinerSecret.AsSlice()))
	if _, err := keySchedule.ComputePskSecret(nil); err != nil {
		return err
	}
	if _, err := keySchedule.ComputeWelcomeSecret(); err != nil {
		return err
	}
	key, nonce, err := keySchedule.WelcomeKeyNonce()
	if err != nil {
		return err
	}
	infoBytes, err := ciphersuite.DecryptWithCipherSuite(key, nonce, welcome.EncryptedGroupInfo, nil, suite)
	if err != nil {
		return err
	}
	info, err := group.UnmarshalGroupInfo(infoBytes)
	if err != nil {
		return err
	}
	trees := 0
	for _, ext := range info.Extensions {
		if ext.Type != extensions.ExtensionTypeRatchetTree {
			continue
		}
		trees++
		if err := checkTree(ext.Data); err != nil {
			return fmt.Errorf("ratchet tree: %w", err)
		}
	}
	if trees != 1 {
		return fmt.Errorf("%d ratchet trees in the welcome, want 1", trees)
	}
	return nil
}

// checkTree makes sure that mls-go will read a ratchet_tree extension in the form
// of RFC 9420: a vector (section 2.1.2) that is not empty and fills the extension.
// It is at most maxTreeSize long, as an empty node is one byte here and over a
// hundred in memory.
func checkTree(data []byte) error {
	if len(data) == 0 || len(data) > maxTreeSize {
		return fmt.Errorf("%d bytes", len(data))
	}
	header := 1 << (data[0] >> 6) // 1, 2 or 4 bytes; 8 is not allowed
	size := int(data[0] & 0x3f)
	for _, b := range data[1:min(header, len(data))] {
		size = size<<8 | int(b)
	}
	shortest := [...]int{1: 1, 2: 1 << 6, 4: 1 << 14, 8: math.MaxInt}
	if header+size != len(data) || size < shortest[header] {
		return errors.New("impossible length")
	}
	tree, err := treesync.UnmarshalTreeFromExtension(data, suite)
	if err != nil {
		return err
	}
	if tree.NumLeaves > maxLeaves {
		return fmt.Errorf("%d leaves, the limit is %d", tree.NumLeaves, maxLeaves)
	}
	return nil
}
