package e2ee

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/thomas-vilte/mls-go/ciphersuite"
	"github.com/thomas-vilte/mls-go/framing"
	"github.com/thomas-vilte/mls-go/group"
	"github.com/thomas-vilte/mls-go/keypackages"
	"github.com/thomas-vilte/mls-go/secrettree"
)

type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(text []byte) error {
	var s string
	if err := json.Unmarshal(text, &s); err != nil {
		return err
	}
	b, err := hex.DecodeString(s)
	*h = b
	return err
}

func readVectors(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "rfc9420", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

func TestSecretTreeVectors(t *testing.T) {
	var vectors []struct {
		EncryptionSecret hexBytes `json:"encryption_secret"`
		Leaves           [][]struct {
			Generation       uint32   `json:"generation"`
			ApplicationKey   hexBytes `json:"application_key"`
			ApplicationNonce hexBytes `json:"application_nonce"`
			HandshakeKey     hexBytes `json:"handshake_key"`
			HandshakeNonce   hexBytes `json:"handshake_nonce"`
		} `json:"leaves"`
	}
	readVectors(t, "secret-tree.json", &vectors)
	if len(vectors) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors {
		tree, err := secrettree.NewTree(ciphersuite.NewSecret(v.EncryptionSecret), uint32(len(v.Leaves)), suite)
		if err != nil {
			t.Fatal(err)
		}
		for leaf, generations := range v.Leaves {
			for _, want := range generations {
				// As between two messages here: the state is stored and restored.
				if tree, err = secrettree.UnmarshalFull(tree.MarshalFull(), suite); err != nil {
					t.Fatal(err)
				}
				secret, err := tree.LeafForIndex(uint32(leaf))
				if err != nil {
					t.Fatal(err)
				}
				for name, pair := range map[string]struct {
					derive func(uint32) ([]byte, error)
					want   []byte
				}{
					"application key":   {secret.ApplicationKey, want.ApplicationKey},
					"application nonce": {secret.ApplicationNonce, want.ApplicationNonce},
					"handshake key":     {secret.HandshakeKey, want.HandshakeKey},
					"handshake nonce":   {secret.HandshakeNonce, want.HandshakeNonce},
				} {
					got, err := pair.derive(want.Generation)
					if err != nil || !bytes.Equal(got, pair.want) {
						t.Errorf("leaf %d, generation %d: %s is %x, %v", leaf, want.Generation, name, got, err)
					}
				}
			}
		}
	}
}

func TestMessageProtectionVectors(t *testing.T) {
	var vectors []struct {
		GroupID                 hexBytes `json:"group_id"`
		Epoch                   uint64   `json:"epoch"`
		TreeHash                hexBytes `json:"tree_hash"`
		ConfirmedTranscriptHash hexBytes `json:"confirmed_transcript_hash"`
		SignaturePriv           hexBytes `json:"signature_priv"`
		SignaturePub            hexBytes `json:"signature_pub"`
		EncryptionSecret        hexBytes `json:"encryption_secret"`
		SenderDataSecret        hexBytes `json:"sender_data_secret"`
		MembershipKey           hexBytes `json:"membership_key"`
		Proposal                hexBytes `json:"proposal"`
		ProposalPriv            hexBytes `json:"proposal_priv"`
		ProposalPub             hexBytes `json:"proposal_pub"`
		Commit                  hexBytes `json:"commit"`
		CommitPriv              hexBytes `json:"commit_priv"`
		CommitPub               hexBytes `json:"commit_pub"`
		Application             hexBytes `json:"application"`
		ApplicationPriv         hexBytes `json:"application_priv"`
	}
	readVectors(t, "message-protection.json", &vectors)
	if len(vectors) == 0 {
		t.Fatal("no vectors")
	}
	for _, v := range vectors {
		context := (&group.GroupContext{
			Version: keypackages.MLS10, CipherSuite: suite, GroupID: group.NewGroupID(v.GroupID),
			Epoch: group.NewGroupEpoch(v.Epoch), TreeHash: v.TreeHash,
			ConfirmedTranscriptHash: v.ConfirmedTranscriptHash, Extensions: []group.Extension{},
		}).Marshal()
		// In the vectors two members share a tree and leaf 1 sends.
		keys := func(own uint32) *epochKeys {
			return &epochKeys{
				number: v.Epoch, context: context, own: own, senderData: v.SenderDataSecret,
				tree:   &secrettree.TreeState{EncryptionSecret: v.EncryptionSecret, LeafCount: 2},
				read:   map[uint32]*[ratchetKinds]readMarks{},
				roster: map[uint32]Credential{1: {SignatureKey: [32]byte(v.SignaturePub)}},
			}
		}
		body := func(t *testing.T, content framing.FramedContentBody) []byte {
			t.Helper()
			switch b := content.(type) {
			case framing.ApplicationData:
				return b.Data
			case framing.ProposalBody:
				return b.Data
			case framing.CommitBody:
				return b.Data
			}
			return nil
		}
		for name, pair := range map[string][2]hexBytes{
			"application": {v.ApplicationPriv, v.Application},
			"proposal":    {v.ProposalPriv, v.Proposal},
			"commit":      {v.CommitPriv, v.Commit},
		} {
			private, _, err := parseMessage(pair[0])
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			// Each vector was made from a fresh tree: two of them use generation 0.
			receiver := keys(0)
			ac, _, used, err := receiver.open(private)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !bytes.Equal(body(t, ac.Content.Body), pair[1]) {
				t.Errorf("%s decrypts to %x", name, body(t, ac.Content.Body))
			}
			used()
			if _, _, _, err := receiver.open(private); !errors.Is(err, ErrReplayed) {
				t.Errorf("%s again: %v", name, err)
			}
		}
		for name, pair := range map[string][2]hexBytes{
			"proposal": {v.ProposalPub, v.Proposal},
			"commit":   {v.CommitPub, v.Commit},
		} {
			_, public, err := parseMessage(pair[0])
			if err != nil {
				t.Fatalf("public %s: %v", name, err)
			}
			if err := public.VerifyMembershipTagWithContext(suite, ciphersuite.NewSecret(v.MembershipKey), context); err != nil {
				t.Errorf("public %s: %v", name, err)
			}
			if !bytes.Equal(body(t, public.Content.Body), pair[1]) {
				t.Errorf("public %s is %x", name, body(t, public.Content.Body))
			}
		}
		// The way out and back: what leaf 1 seals, leaf 0 opens.
		seed := v.SignaturePriv[:SeedSize]
		id, err := NewIdentity(seed)
		if err != nil {
			t.Fatal(err)
		}
		sender, receiver := keys(1), keys(0)
		message, err := sender.seal(id.FirstDevice(), v.GroupID, v.Application)
		if err != nil {
			t.Fatal(err)
		}
		private, _, err := parseMessage(message)
		if err != nil {
			t.Fatal(err)
		}
		if opened, _, _, err := receiver.open(private); err != nil || !bytes.Equal(body(t, opened.Content.Body), v.Application) {
			t.Errorf("own message: %v", err)
		}
	}
}
