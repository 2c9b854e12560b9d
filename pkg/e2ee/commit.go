package e2ee

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/thomas-vilte/mls-go/framing"
	"github.com/thomas-vilte/mls-go/group"
	"github.com/thomas-vilte/mls-go/keypackages"
)

// Add stages a commit that adds the owners of key packages, and commits every
// proposal that waits. commit goes to the members, welcome to each added one.
// The randomness is that of the operating system, as mls-go takes no other.
func (g *Group) Add(keyPackages [][]byte) (commit, welcome []byte, err error) {
	if len(keyPackages) == 0 {
		return nil, nil, fmt.Errorf("adding nobody: %w", ErrMalformed)
	}
	added, err := g.newcomers(keyPackages)
	if err != nil {
		return nil, nil, err
	}
	return g.stage(added, nil)
}

// newcomers checks key packages against each other and against the members.
func (g *Group) newcomers(keyPackages [][]byte) ([]*keypackages.KeyPackage, error) {
	if len(keyPackages) > MaxMembers {
		return nil, fmt.Errorf("adding %d key packages: %w", len(keyPackages), ErrMalformed)
	}
	added := make([]*keypackages.KeyPackage, len(keyPackages))
	devices := map[[IdentityKeySize]byte]bool{}
	for _, m := range g.current().roster {
		devices[m.SignatureKey] = true
	}
	for i, public := range keyPackages {
		kp, info, err := checkKeyPackage(public)
		if err != nil {
			return nil, fmt.Errorf("adding member %d: %w", i, err)
		}
		if devices[info.Credential.SignatureKey] {
			return nil, fmt.Errorf("adding %s: %w", info.Credential.Identity, ErrAlreadyMember)
		}
		devices[info.Credential.SignatureKey] = true
		added[i] = kp
	}
	if len(devices) > MaxMembers {
		return nil, fmt.Errorf("%d members, the limit is %d: %w", len(devices), MaxMembers, ErrNotAllowed)
	}
	return added, nil
}

// Change stages one commit that adds the owners of key packages and removes
// every device of the given users, and commits every proposal that waits. With
// neither it only renews our keys, like Refresh. The errors are those of Add,
// Remove and Refresh. mls-go does not add a device that the same commit removes:
// who is to come anew is removed first, and added by the next commit.
func (g *Group) Change(keyPackages [][]byte, users []IdentityKey) (commit, welcome []byte, err error) {
	added, err := g.newcomers(keyPackages)
	if err != nil {
		return nil, nil, err
	}
	removed, err := g.leavesOf(users)
	if err != nil {
		return nil, nil, err
	}
	if len(added) == 0 && len(g.current().roster) < 2 {
		return nil, nil, fmt.Errorf("refreshing group %x: %w", g.id, ErrAlone)
	}
	return g.stage(added, removed)
}

// leavesOf lists every leaf of the given users.
func (g *Group) leavesOf(users []IdentityKey) ([]uint32, error) {
	var leaves []uint32
	for _, user := range users {
		if user == g.device.who.Identity {
			return nil, fmt.Errorf("removing ourselves: %w", ErrNotAllowed)
		}
		found := g.leaves(func(c Credential) bool { return c.Identity == user })
		if len(found) == 0 {
			return nil, fmt.Errorf("removing %s: %w", user, ErrNotMember)
		}
		leaves = append(leaves, found...)
	}
	slices.Sort(leaves)
	return slices.Compact(leaves), nil
}

// Remove stages a commit that removes every device of the given users, and
// commits every proposal that waits. ErrNotMember when one of them is not here;
// ErrNotAllowed for ourselves (see ProposeSelfRemove, RemoveDevice).
func (g *Group) Remove(users ...IdentityKey) ([]byte, error) {
	leaves, err := g.leavesOf(users)
	if err != nil {
		return nil, err
	}
	return g.stageRemoval(leaves)
}

// RemoveDevice stages a commit that removes one leaf, named by its signature key.
func (g *Group) RemoveDevice(signatureKey []byte) ([]byte, error) {
	if bytes.Equal(signatureKey, g.device.who.SignatureKey[:]) {
		return nil, fmt.Errorf("removing ourselves: %w", ErrNotAllowed)
	}
	leaves := g.leaves(func(c Credential) bool { return bytes.Equal(c.SignatureKey[:], signatureKey) })
	if len(leaves) == 0 {
		return nil, fmt.Errorf("removing a device: %w", ErrNotMember)
	}
	return g.stageRemoval(leaves)
}

func (g *Group) stageRemoval(leaves []uint32) ([]byte, error) {
	if len(leaves) == 0 {
		return nil, fmt.Errorf("removing nobody: %w", ErrMalformed)
	}
	slices.Sort(leaves)
	commit, _, err := g.stage(nil, slices.Compact(leaves))
	return commit, err
}

// Refresh stages a commit that renews our keys and commits every proposal that
// waits. It is an empty commit when none does (RFC 9420, section 12.4): mls-go's
// SelfUpdate commits an Update proposal of the committer, which section 12.2
// forbids. ErrAlone without another member.
func (g *Group) Refresh() ([]byte, error) {
	if len(g.current().roster) < 2 {
		return nil, fmt.Errorf("refreshing group %x: %w", g.id, ErrAlone)
	}
	commit, _, err := g.stage(nil, nil)
	return commit, err
}

// PendingCommit gives the staged commit and its Welcome (empty without added
// members), as Add, Remove or Refresh gave them.
func (g *Group) PendingCommit() (commit, welcome []byte, ok bool) {
	if g.pending == nil {
		return nil, nil, false
	}
	return bytes.Clone(g.pending.commit), bytes.Clone(g.pending.welcome), true
}

// MergeCommit enters the epoch of the staged commit: the server accepted it.
func (g *Group) MergeCommit() (*Event, error) {
	if g.pending == nil {
		return nil, ErrNoCommitPending
	}
	event := g.enter(g.pending.core, g.pending.epoch)
	event.Sender, event.Own = g.device.who, true
	return event, nil
}

// DiscardCommit forgets the staged commit: the server refused it. Process the
// winner's commit and stage again.
func (g *Group) DiscardCommit() error {
	if g.pending == nil {
		return ErrNoCommitPending
	}
	g.pending = nil
	return nil
}

// ProposeSelfRemove makes the proposal by which we leave: no member can commit
// its own removal (RFC 9420, section 12.2; mls-go's LeaveGroup does), so another
// one must. Until then Encrypt gives ErrProposalsPending.
func (g *Group) ProposeSelfRemove() ([]byte, error) {
	switch {
	case g.removed:
		return nil, fmt.Errorf("leaving group %x: %w", g.id, ErrRemoved)
	case g.proposals >= maxProposals:
		return nil, fmt.Errorf("leaving group %x: %w", g.id, ErrProposalsPending)
	}
	lib, err := unpackLibrary(g.core)
	if err != nil {
		return nil, fmt.Errorf("leaving group %x: %w", g.id, err)
	}
	// It goes out as a PublicMessage, with what mls-go offers for it, and is taken
	// in again as others will take it in, so that a commit can refer to it.
	var message, core []byte
	err = guard(func() (err error) {
		proposal := group.NewRemoveProposal(lib.OwnLeafIndex())
		if message, err = lib.SignProposalAsPublicMessage(proposal, g.device.signer()); err != nil {
			return err
		}
		m, err := framing.UnmarshalMLSMessage(message)
		if err != nil {
			return err
		}
		if err := lib.ProcessPublicMessage(m.PublicMessage); err != nil {
			return err
		}
		core, err = packLibrary(lib)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("leaving group %x: %w", g.id, libraryError(ErrState, err))
	}
	g.core = core
	g.proposals++
	return message, nil
}

// stage makes a commit on a copy of the state, enters the next epoch there and
// keeps the result aside. It is a PublicMessage: mls-go takes quadratic time on a
// malformed private one and cannot read a padded one, and nobody but the members
// sees it, in its hybrid envelope.
func (g *Group) stage(added []*keypackages.KeyPackage, removed []uint32) (commit, welcome []byte, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("committing to group %x: %w", g.id, err)
		}
	}()
	switch {
	case g.removed:
		return nil, nil, ErrRemoved
	case g.pending != nil:
		return nil, nil, ErrCommitPending
	}
	lib, err := unpackLibrary(g.core)
	if err != nil {
		return nil, nil, err
	}
	var staged *group.StagedCommit
	signer := g.device.signer()
	err = guard(func() (err error) {
		dropUncommittable(lib, removed)
		for _, kp := range added {
			if _, err := lib.AddMember(kp); err != nil {
				return err
			}
		}
		for _, leaf := range removed {
			if _, err := lib.RemoveMember(group.LeafNodeIndex(leaf)); err != nil {
				return err
			}
		}
		staged, err = lib.CommitWithFormat(signer, signer.PublicKey(), nil, framing.WireFormatPublicMessage)
		return err
	})
	if err != nil {
		return nil, nil, libraryError(ErrNotAllowed, err)
	}
	var newcomers []*keypackages.KeyPackage
	for _, p := range staged.Proposals() {
		if p.Type == group.ProposalTypeAdd {
			newcomers = append(newcomers, p.Add.KeyPackage)
		}
	}
	var sealed *group.Welcome
	err = guard(func() (err error) {
		if err := lib.MergeCommit(staged); err != nil || len(newcomers) == 0 {
			return err
		}
		sealed, err = lib.CreateWelcomeWithOpts(newcomers, signer,
			group.WithJoinerSecret(staged.JoinerSecret()),
			group.WithPSKSecret(staged.RawPskSecret()),
			group.WithStagedCommit(staged),
			// No external commits here, so no key for them either.
			group.WithGroupInfoOptions(group.WithRatchetTree(true), group.WithExternalPub(false)))
		return err
	})
	if err != nil {
		return nil, nil, libraryError(ErrNotAllowed, err)
	}
	next, err := epochOf(lib)
	if err != nil {
		return nil, nil, err
	}
	core, err := packLibrary(lib)
	if err != nil {
		return nil, nil, err
	}
	if sealed != nil {
		welcome = (&framing.MLSMessage{Welcome: sealed.Marshal()}).Marshal()
	}
	content := staged.AuthenticatedContent()
	commit = framing.NewMLSMessagePublic(&framing.PublicMessage{
		Content: content.Content, Auth: content.Auth, MembershipTag: staged.MembershipTag(),
	}).Marshal()
	if len(commit) > maxHandshakeSize {
		return nil, nil, fmt.Errorf("commit of %d bytes, the limit is %d, change fewer members at once: %w", len(commit), maxHandshakeSize, ErrNotAllowed)
	}
	g.pending = &pendingCommit{commit: commit, welcome: welcome, core: core, epoch: next}
	return bytes.Clone(commit), bytes.Clone(welcome), nil
}

// dropUncommittable takes out of a copy of the state those stored proposals that
// we may not commit or that contradict others (RFC 9420, section 12.2): our own,
// ones about our leaf, a second one about the same leaf, updates of leaves that
// are removed. Their senders propose again in the next epoch.
func dropUncommittable(lib *group.Group, removed []uint32) {
	own := lib.OwnLeafIndex()
	gone := map[group.LeafNodeIndex]bool{}
	for _, leaf := range removed {
		gone[group.LeafNodeIndex(leaf)] = true
	}
	stored := lib.StoredProposals()
	drop := func(ref []byte) { lib.RevokeProposal(ref) }
	for _, s := range stored {
		if s.Proposal.Type != group.ProposalTypeRemove {
			continue
		}
		target := s.Proposal.Remove.Removed
		if s.Sender == own || target == own || gone[target] {
			drop(s.Ref)
			continue
		}
		gone[target] = true
	}
	updated := map[group.LeafNodeIndex]bool{}
	joined := map[string]bool{}
	for _, s := range stored {
		switch s.Proposal.Type {
		case group.ProposalTypeUpdate:
			if s.Sender == own || gone[s.Sender] || updated[s.Sender] {
				drop(s.Ref)
			}
			updated[s.Sender] = true
		case group.ProposalTypeAdd:
			key := string(s.Proposal.Add.KeyPackage.LeafNode.SignatureKeyBytes)
			if joined[key] || s.Sender == own {
				drop(s.Ref)
			}
			joined[key] = true
		}
	}
}

func (g *Group) leaves(match func(Credential) bool) []uint32 {
	var out []uint32
	for leaf, c := range g.current().roster {
		if match(c) {
			out = append(out, leaf)
		}
	}
	return out
}
