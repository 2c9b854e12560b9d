package e2ee

import (
	"bytes"
	"fmt"

	"github.com/thomas-vilte/mls-go/framing"
	"github.com/thomas-vilte/mls-go/group"
	"github.com/thomas-vilte/mls-go/keypackages"
	"github.com/thomas-vilte/mls-go/treesync"
)

// handshake handles a proposal or commit whose signature is verified. lib is a
// copy of the state that it may spoil.
func (g *Group) handshake(lib *group.Group, ac *framing.AuthenticatedContent, who Credential) (*Event, error) {
	switch body := ac.Content.Body.(type) {
	case framing.ProposalBody:
		return g.receiveProposal(lib, ac, body.Data, who)
	case framing.CommitBody:
		return g.receiveCommit(lib, ac, body.Data, who)
	}
	return nil, fmt.Errorf("neither proposal nor commit: %w", ErrMalformed)
}

func (g *Group) receiveProposal(lib *group.Group, ac *framing.AuthenticatedContent, data []byte, who Credential) (*Event, error) {
	if g.proposals >= maxProposals {
		return nil, fmt.Errorf("%d proposals wait already: %w", g.proposals, ErrNotAllowed)
	}
	event := &Event{Kind: EventProposal, Sender: who, Epoch: g.current().number}
	var proposal *group.Proposal
	err := guard(func() (err error) {
		proposal, err = group.UnmarshalProposal(data)
		return err
	})
	if err != nil {
		return nil, libraryError(ErrMalformed, err)
	}
	sender := ac.Content.Sender.LeafIndex
	if err := g.checkProposal(proposal, sender, event); err != nil {
		return nil, err
	}
	var core []byte
	err = guard(func() (err error) {
		lib.StoreProposal(proposal, group.LeafNodeIndex(sender), ac.Marshal())
		core, err = packLibrary(lib)
		return err
	})
	if err != nil {
		return nil, libraryError(ErrMalformed, err)
	}
	g.core = core
	g.proposals++
	return event, nil
}

// checkProposal says whether a proposal may be stored or committed, and notes in
// event (which may be nil) whom it concerns. Only Add, Update and Remove are used
// here. The others reach beyond the group (ReInit, PSK, ExternalInit) or could let
// outsiders in (GroupContextExtensions with external senders).
func (g *Group) checkProposal(p *group.Proposal, sender uint32, event *Event) error {
	k := g.current()
	if event == nil {
		event = &Event{}
	}
	switch {
	case p.Type == group.ProposalTypeRemove && p.Remove != nil:
		who, ok := k.roster[uint32(p.Remove.Removed)]
		if !ok {
			return fmt.Errorf("removal of empty leaf %d: %w", p.Remove.Removed, ErrMalformed)
		}
		event.Removed = append(event.Removed, who)
	case p.Type == group.ProposalTypeAdd && p.Add != nil && p.Add.KeyPackage != nil:
		_, info, err := checkKeyPackage(p.Add.KeyPackage.Marshal())
		if err != nil {
			return err
		}
		event.Added = append(event.Added, info.Credential)
	case p.Type == group.ProposalTypeUpdate && p.Update != nil && p.Update.LeafNode != nil:
		who, err := g.checkUpdate(p.Update.LeafNode, sender)
		if err != nil {
			return err
		}
		if who != k.roster[sender] {
			return fmt.Errorf("update of leaf %d changes its credential: %w", sender, ErrCredential)
		}
	default:
		return fmt.Errorf("proposal of type %d: %w", p.Type, ErrNotAllowed)
	}
	return nil
}

// checkUpdate checks the leaf of an Update proposal (RFC 9420, section 7.3).
func (g *Group) checkUpdate(leaf *keypackages.LeafNode, sender uint32) (Credential, error) {
	const sourceUpdate = 2
	if leaf.LeafNodeSource != sourceUpdate {
		return Credential{}, fmt.Errorf("update with leaf node source %d: %w", leaf.LeafNodeSource, ErrMalformed)
	}
	err := guard(func() error {
		data, err := treesync.UnmarshalLeafNodeData(leaf.Marshal())
		if err != nil {
			return err
		}
		return data.VerifyWithContext(suite, g.id, sender)
	})
	if err != nil {
		return Credential{}, libraryError(ErrMalformed, err)
	}
	return leafCredential(leaf.Credential, leaf.SignatureKeyBytes)
}

func (g *Group) receiveCommit(lib *group.Group, ac *framing.AuthenticatedContent, data []byte, who Credential) (*Event, error) {
	sender := ac.Content.Sender.LeafIndex
	removesUs, err := g.checkCommit(lib, data, sender)
	if err != nil {
		return nil, err
	}
	if removesUs {
		// The new epoch's secrets are not for us, so its confirmation tag cannot be
		// checked; the signature of a member has been.
		g.removed, g.pending, g.proposals = true, nil, 0
		return &Event{Kind: EventRemoved, Sender: who, Epoch: g.current().number + 1, Removed: []Credential{g.device.who}}, nil
	}
	before := leafBytes(lib)
	err = guard(func() error {
		return lib.ProcessReceivedCommit(ac, treesync.LeafIndex(sender), lib.MyLeafEncryptionKey())
	})
	if err != nil {
		return nil, libraryError(ErrDecrypt, err)
	}
	if err := checkNewLeaves(lib, before); err != nil {
		return nil, err
	}
	next, err := epochOf(lib)
	if err != nil {
		return nil, err
	}
	if next.roster[sender] != who {
		return nil, fmt.Errorf("commit of leaf %d changes its credential: %w", sender, ErrCredential)
	}
	if next.roster[next.own] != g.device.who {
		return nil, fmt.Errorf("commit changes our leaf: %w", ErrCredential)
	}
	core, err := packLibrary(lib)
	if err != nil {
		return nil, err
	}
	event := g.enter(core, next)
	event.Sender = who
	return event, nil
}

// checkCommit applies RFC 9420, section 12.2, where mls-go is lenient, and our
// own rules. It reports whether the commit removes us.
func (g *Group) checkCommit(lib *group.Group, data []byte, sender uint32) (removesUs bool, err error) {
	var commit *group.Commit
	err = guard(func() (err error) {
		commit, err = group.UnmarshalCommit(data)
		return err
	})
	if err != nil {
		return false, libraryError(ErrMalformed, err)
	}
	if len(commit.Proposals) > MaxMembers {
		return false, fmt.Errorf("commit of %d proposals: %w", len(commit.Proposals), ErrMalformed)
	}
	stored := lib.StoredProposals()
	for _, entry := range commit.Proposals {
		proposal, from := entry.Proposal, sender
		if proposal == nil {
			for _, s := range stored {
				if bytes.Equal(s.Ref, entry.ProposalRef) {
					proposal, from = s.Proposal, uint32(s.Sender)
				}
			}
			if proposal == nil {
				return false, ErrProposalUnknown
			}
		}
		if err := g.checkProposal(proposal, from, nil); err != nil {
			return false, err
		}
		switch proposal.Type {
		case group.ProposalTypeUpdate:
			if from == sender {
				return false, fmt.Errorf("commit of leaf %d updates itself by proposal: %w", sender, ErrMalformed)
			}
		case group.ProposalTypeRemove:
			if uint32(proposal.Remove.Removed) == sender {
				return false, fmt.Errorf("commit of leaf %d removes itself: %w", sender, ErrMalformed)
			}
			removesUs = removesUs || uint32(proposal.Remove.Removed) == g.current().own
		}
	}
	return removesUs, nil
}

// rosterOf checks the credential of every leaf and lists them.
func rosterOf(lib *group.Group) (map[uint32]Credential, error) {
	size := lib.SecretTree().LeafCount()
	if size > maxLeaves {
		return nil, fmt.Errorf("tree of %d leaves: %w", size, ErrNotAllowed)
	}
	roster := map[uint32]Credential{}
	signatureKeys := map[[IdentityKeySize]byte]bool{}
	encryptionKeys := map[string]bool{}
	for i := range size {
		leaf := presentLeaf(lib, i)
		if leaf == nil {
			continue
		}
		who, err := leafCredential(leaf.Credential, leaf.SigKeyBytes())
		if err != nil {
			return nil, fmt.Errorf("leaf %d: %w", i, err)
		}
		// RFC 9420, section 7.3: both keys are unique in the tree.
		if signatureKeys[who.SignatureKey] || encryptionKeys[string(leaf.EncryptionKey)] {
			return nil, fmt.Errorf("leaf %d shares a key with another: %w", i, ErrCredential)
		}
		signatureKeys[who.SignatureKey], encryptionKeys[string(leaf.EncryptionKey)] = true, true
		roster[i] = who
	}
	if len(roster) > MaxMembers {
		return nil, fmt.Errorf("%d members, the limit is %d: %w", len(roster), MaxMembers, ErrNotAllowed)
	}
	return roster, nil
}

func presentLeaf(lib *group.Group, index uint32) *treesync.LeafNodeData {
	node := lib.GetTreeLeaf(group.LeafNodeIndex(index))
	if node == nil || node.State != treesync.NodeStatePresent {
		return nil
	}
	return node.LeafData
}

// leafBytes keeps the leaves as they are, for checkNewLeaves.
func leafBytes(lib *group.Group) map[uint32][]byte {
	leaves := map[uint32][]byte{}
	for i := range lib.SecretTree().LeafCount() {
		if leaf := presentLeaf(lib, i); leaf != nil {
			leaves[i] = leaf.Marshal()
		}
	}
	return leaves
}

// checkNewLeaves verifies the signature of every leaf that a commit brought.
func checkNewLeaves(lib *group.Group, before map[uint32][]byte) error {
	return guard(func() error {
		id := lib.ID().AsSlice()
		for i := range lib.SecretTree().LeafCount() {
			leaf := presentLeaf(lib, i)
			if leaf == nil || bytes.Equal(leaf.Marshal(), before[i]) {
				continue
			}
			if err := leaf.VerifyWithContext(suite, id, i); err != nil {
				return fmt.Errorf("leaf %d: %w", i, libraryError(ErrCredential, err))
			}
		}
		return nil
	})
}
