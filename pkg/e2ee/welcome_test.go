package e2ee

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/thomas-vilte/mls-go/ciphersuite"
	"github.com/thomas-vilte/mls-go/extensions"
	"github.com/thomas-vilte/mls-go/framing"
	"github.com/thomas-vilte/mls-go/group"
	"github.com/thomas-vilte/mls-go/keypackages"
	"github.com/thomas-vilte/mls-go/schedule"
)

// forgeWelcome encrypts a GroupInfo with the given extensions for a key package,
// as anybody can who fetched it.
func forgeWelcome(t *testing.T, public []byte, exts []group.Extension) []byte {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	kp, err := keypackages.UnmarshalKeyPackage(public)
	check(err)
	info := &group.Info{
		GroupContext: &group.GroupContext{
			Version: keypackages.MLS10, CipherSuite: suite, GroupID: group.NewGroupID([]byte("x")),
			Epoch: 1, TreeHash: make([]byte, hashSize), ConfirmedTranscriptHash: make([]byte, hashSize),
		},
		Extensions:      exts,
		ConfirmationTag: make([]byte, hashSize),
		Signature:       make([]byte, 64),
	}
	joiner := bytes.Repeat([]byte{5}, hashSize)
	keySchedule := schedule.NewKeySchedule(suite, ciphersuite.ZeroSecretCS(suite))
	keySchedule.SetJoinerSecret(ciphersuite.NewSecretForCS(suite, joiner))
	_, err = keySchedule.ComputePskSecret(nil)
	check(err)
	_, err = keySchedule.ComputeWelcomeSecret()
	check(err)
	key, nonce, err := keySchedule.WelcomeKeyNonce()
	check(err)
	sealed, err := ciphersuite.EncryptWithCipherSuite(key, nonce, info.Marshal(), nil, suite)
	check(err)
	secrets := (&group.Secrets{JoinerSecret: ciphersuite.NewSecret(joiner)}).Marshal()
	ct, err := ciphersuite.EncryptWithLabel(kp.InitKey, labelMLSWelcome, sealed, secrets, suite)
	check(err)
	ref := keyPackageRef(public)
	w := &group.Welcome{CipherSuite: suite, EncryptedGroupInfo: sealed,
		Secrets: []group.EncryptedGroupSecrets{{NewMember: ref[:], EncryptedGroupSecrets: *ct}}}
	return (&framing.MLSMessage{Welcome: w.Marshal()}).Marshal()
}

// Without checkWelcome the first of these makes mls-go allocate 100 GB.
func TestHostileRatchetTrees(t *testing.T) {
	id, err := NewIdentity(bytes.Repeat([]byte{1}, SeedSize))
	if err != nil {
		t.Fatal(err)
	}
	public, private, _, err := NewKeyPackage(id.FirstDevice(), Unlimited, true)
	if err != nil {
		t.Fatal(err)
	}
	tree := func(nodes []byte) []group.Extension {
		length := []byte{0x80 | byte(len(nodes)>>24), byte(len(nodes) >> 16), byte(len(nodes) >> 8), byte(len(nodes))}
		switch {
		case len(nodes) < 1<<6:
			length = length[3:]
		case len(nodes) < 1<<14:
			length = []byte{0x40 | byte(len(nodes)>>8), byte(len(nodes))}
		}
		return []group.Extension{{Type: extensions.ExtensionTypeRatchetTree, Data: append(length, nodes...)}}
	}
	// A leaf that can be read, after as many empty nodes as make it the last.
	leaf := func(nodes int) []byte {
		kp, err := keypackages.UnmarshalKeyPackage(public)
		if err != nil {
			t.Fatal(err)
		}
		return append(append(make([]byte, nodes-1), 1, 1), kp.LeafNode.Marshal()...)
	}
	for name, tc := range map[string]struct {
		exts []group.Extension
		says string
	}{
		"huge leaf count":        {[]group.Extension{{Type: extensions.ExtensionTypeRatchetTree, Data: []byte{0xf0, 0, 0, 0}}}, "impossible length"},
		"leaf count in disguise": {[]group.Extension{{Type: extensions.ExtensionTypeRatchetTree, Data: []byte{0x80, 0xff, 0xff, 0xff}}}, "impossible length"},
		"length not shortest":    {[]group.Extension{{Type: extensions.ExtensionTypeRatchetTree, Data: []byte{0x40, 1, 0}}}, "impossible length"},
		"no tree":                {nil, "0 ratchet trees"},
		"two trees":              {append(tree(leaf(1)), tree(leaf(1))...), "2 ratchet trees"},
		"no nodes":               {tree(nil), "impossible length"},
		"an empty extension":     {tree(nil)[:0], "0 ratchet trees"},
		"a million empty ones":   {tree(make([]byte, 1<<20)), "bytes"},
		"too many leaves":        {tree(leaf(2*maxLeaves + 1)), "leaves, the limit is"},
		"unknown node":           {tree([]byte{1, 9}), "unknown node type"},
		"cut short":              {tree([]byte{1, 2, 32}), "reading parent"},
	} {
		_, err := JoinGroup(id.FirstDevice(), forgeWelcome(t, public, tc.exts), func(KeyPackageRef) []byte { return private })
		if !errors.Is(err, ErrDecrypt) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", name, err, tc.says)
		}
	}
}
