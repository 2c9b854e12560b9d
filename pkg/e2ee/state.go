package e2ee

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/thomas-vilte/mls-go/group"
	"github.com/thomas-vilte/mls-go/schedule"
	"github.com/thomas-vilte/mls-go/secrettree"
	"github.com/thomas-vilte/mls-go/treesync"
)

// Stored state is two blobs that are made together:
//
//	group  changes with a commit, a proposal or a staged commit; holds the
//	       ratchet tree, so it grows with the group
//	keys   changes with every message; holds the message keys
//
// Marshal joins them. A caller that stores one row per message and has large
// groups may keep them apart (MarshalParts).
const (
	// stateVersion is the first byte of every blob of this package.
	stateVersion = 1
	// bindSize is how much of a hash ties the keys of an epoch to its group part.
	bindSize = 8
)

// Marshal gives the whole state as one secret blob for LoadGroup.
func (g *Group) Marshal() []byte {
	group, keys := g.MarshalParts()
	e := encoder{buf: make([]byte, 0, len(group)+len(keys)+16)}
	e.u8(stateVersion)
	e.vector(group)
	e.vector(keys)
	return e.buf
}

// MarshalParts gives the state in two secret blobs for LoadGroupParts. The first
// is the same bytes as before after every Encrypt and after every Process that
// gave EventMessage, and need not be stored again then.
func (g *Group) MarshalParts() (group, keys []byte) {
	return g.marshalGroup(), g.marshalKeys()
}

// LoadGroup takes back a blob of Marshal. device must be the one that made the
// group. ErrState: the blob is not one of ours or belongs to another device.
func LoadGroup(device *Device, blob []byte) (*Group, error) {
	if len(blob) > maxStateSize {
		return nil, fmt.Errorf("group state of %d bytes: %w", len(blob), ErrState)
	}
	d := &decoder{rest: blob}
	version := d.u8()
	groupPart, keys := d.vector(), d.vector()
	if err := d.done(); err != nil {
		return nil, fmt.Errorf("group state: %w: %w", err, ErrState)
	}
	if version != stateVersion {
		return nil, fmt.Errorf("group state of version %d, want %d: %w", version, stateVersion, ErrState)
	}
	return LoadGroupParts(device, groupPart, keys)
}

// LoadGroupParts takes back the two blobs of MarshalParts. Blobs that do not
// belong together are ErrState.
func LoadGroupParts(device *Device, groupPart, keys []byte) (*Group, error) {
	g := &Group{device: device}
	if err := g.unmarshalGroup(bytes.Clone(groupPart)); err != nil {
		return nil, fmt.Errorf("group state: %w: %w", err, ErrState)
	}
	if err := g.unmarshalKeys(keys); err != nil {
		return nil, fmt.Errorf("message keys: %w: %w", err, ErrState)
	}
	return g, nil
}

func (g *Group) marshalGroup() []byte {
	var e encoder
	e.u8(stateVersion)
	e.vector(g.id)
	e.bool(g.removed)
	e.u8(g.proposals)
	e.vector(g.core)
	e.u32(uint32(len(g.epochs)))
	for _, k := range g.epochs {
		k.marshalStatic(&e)
	}
	e.bool(g.pending != nil)
	if p := g.pending; p != nil {
		e.vector(p.commit)
		e.vector(p.welcome)
		e.vector(p.core)
		p.epoch.marshalStatic(&e)
		p.epoch.marshalKeys(&e)
	}
	return e.buf
}

func (g *Group) unmarshalGroup(blob []byte) error {
	d := &decoder{rest: blob}
	if version := d.u8(); d.err == nil && version != stateVersion {
		return fmt.Errorf("version %d, want %d", version, stateVersion)
	}
	g.id, g.removed, g.proposals, g.core = d.vector(), d.bool(), d.u8(), d.vector()
	for range d.count(1 + PastEpochs) {
		g.epochs = append(g.epochs, unmarshalStatic(d))
	}
	if d.bool() {
		p := &pendingCommit{commit: d.vector(), welcome: d.vector(), core: d.vector()}
		p.epoch = unmarshalStatic(d)
		p.epoch.unmarshalKeys(d)
		g.pending = p
	}
	if err := d.done(); err != nil {
		return err
	}
	if len(g.epochs) == 0 {
		return fmt.Errorf("no epoch")
	}
	if !g.removed && g.epochs[0].roster[g.epochs[0].own] != g.device.who {
		return fmt.Errorf("group belongs to another device")
	}
	return nil
}

func (g *Group) marshalKeys() []byte {
	var e encoder
	e.u8(stateVersion)
	e.u32(uint32(len(g.epochs)))
	for _, k := range g.epochs {
		k.marshalKeys(&e)
	}
	return e.buf
}

func (g *Group) unmarshalKeys(blob []byte) error {
	d := &decoder{rest: blob}
	if version := d.u8(); d.err == nil && version != stateVersion {
		return fmt.Errorf("version %d, want %d", version, stateVersion)
	}
	if n := d.count(1 + PastEpochs); d.err == nil && n != len(g.epochs) {
		return fmt.Errorf("%d epochs, but the group state has %d", n, len(g.epochs))
	}
	for _, k := range g.epochs {
		k.unmarshalKeys(d)
	}
	return d.done()
}

// marshalStatic writes what does not change within an epoch.
func (k *epochKeys) marshalStatic(e *encoder) {
	e.u64(k.number)
	e.vector(k.context)
	e.u32(k.own)
	e.u32(uint32(len(k.roster)))
	for _, leaf := range sortedKeys(k.roster) {
		c := k.roster[leaf]
		e.u32(leaf)
		e.raw(c.Identity[:])
		e.bool(c.Linked)
		if c.Linked {
			e.raw(c.SignatureKey[:])
			e.raw(c.DeviceID[:])
		}
	}
}

func unmarshalStatic(d *decoder) *epochKeys {
	k := &epochKeys{number: d.u64(), context: d.vector(), own: d.u32(), roster: map[uint32]Credential{}}
	for range d.count(MaxMembers) {
		leaf, c := d.u32(), Credential{}
		copy(c.Identity[:], d.take(IdentityKeySize))
		c.SignatureKey = c.Identity
		if c.Linked = d.bool(); c.Linked {
			copy(c.SignatureKey[:], d.take(IdentityKeySize))
			copy(c.DeviceID[:], d.take(DeviceIDSize))
		}
		k.roster[leaf] = c
	}
	return k
}

func (k *epochKeys) marshalKeys(e *encoder) {
	bind := sha256.Sum256(k.context)
	e.raw(bind[:bindSize])
	e.raw(k.senderData)
	e.raw(k.tree.EncryptionSecret)
	e.u32(k.tree.LeafCount)
	e.u32(uint32(len(k.tree.LeafStates)))
	for _, leaf := range sortedKeys(k.tree.LeafStates) {
		s := k.tree.LeafStates[leaf]
		e.u32(leaf)
		e.u64(s.Generation)
		e.u64(s.SequenceNumber)
		e.vector(s.ApplicationSecret)
		e.vector(s.HandshakeSecret)
	}
	e.u32(uint32(len(k.read)))
	for _, leaf := range sortedKeys(k.read) {
		e.u32(leaf)
		for _, m := range k.read[leaf] {
			e.u32(m.next)
			e.u32(uint32(len(m.gaps)))
			for _, g := range m.gaps {
				e.u32(g.from)
				e.u32(g.to)
			}
		}
	}
}

func (k *epochKeys) unmarshalKeys(d *decoder) {
	bind := sha256.Sum256(k.context)
	if got := d.take(bindSize); d.err == nil && !bytes.Equal(got, bind[:bindSize]) {
		d.fail(fmt.Errorf("keys belong to another epoch"))
	}
	k.senderData = slices.Clone(d.take(hashSize))
	k.tree = &secrettree.TreeState{
		EncryptionSecret: slices.Clone(d.take(hashSize)),
		LeafCount:        d.u32(),
		LeafStates:       map[uint32]secrettree.LeafState{},
	}
	if k.tree.LeafCount == 0 || k.tree.LeafCount > maxLeaves {
		d.fail(fmt.Errorf("a secret tree of %d leaves", k.tree.LeafCount))
	}
	for range d.count(maxLeaves) {
		leaf, s := d.u32(), secrettree.LeafState{Generation: d.u64(), SequenceNumber: d.u64()}
		s.ApplicationSecret, s.HandshakeSecret = slices.Clone(d.fixed(hashSize)), slices.Clone(d.fixed(hashSize))
		// What mls-go sends next is at most one step away; a longer one would be a
		// long walk for it.
		if leaf >= k.tree.LeafCount || s.Generation > math.MaxUint32 || s.SequenceNumber > s.Generation+1 {
			d.fail(errors.New("a ratchet stands at an impossible place"))
		}
		k.tree.LeafStates[leaf] = s
	}
	k.read = map[uint32]*[ratchetKinds]readMarks{}
	for range d.count(maxLeaves) {
		leaf, marks := d.u32(), new([ratchetKinds]readMarks)
		for kind := range marks {
			m := &marks[kind]
			m.next = d.u32()
			for range d.count(maxGaps) {
				m.gaps = append(m.gaps, gap{from: d.u32(), to: d.u32()})
			}
		}
		k.read[leaf] = marks
	}
}

// packLibrary turns the state of mls-go into compact bytes, without what this
// package keeps elsewhere or must not keep: the encryption secret, the secret
// tree, the members (the tree names them) and resumption PSKs (not allowed here,
// and mls-go never forgets one).
func packLibrary(lib *group.Group) ([]byte, error) {
	text, err := lib.MarshalState()
	if err != nil {
		return nil, fmt.Errorf("exporting the MLS state: %w", libraryError(ErrState, err))
	}
	var s group.StateData
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("exporting the MLS state: %w", ErrState)
	}
	clear(text)
	var e encoder
	e.u32(s.OwnLeafIndex)
	e.vector(s.RatchetTree)
	e.vector(s.GroupContext)
	e.vector(s.InterimTranscriptHash)
	e.vector(s.ConfirmationTag)
	for _, secret := range coreSecrets(s.EpochSecrets) {
		e.vector(*secret)
	}
	e.vector(s.MyLeafEncryptionKey)
	e.u32(uint32(len(s.PathNodePrivKeys)))
	for _, node := range sortedKeys(s.PathNodePrivKeys) {
		e.u32(uint32(node))
		e.vector(s.PathNodePrivKeys[node])
	}
	e.u32(uint32(len(s.StoredProposals)))
	for _, p := range s.StoredProposals {
		e.u32(p.Sender)
		e.vector(p.Ref)
		e.vector(p.Proposal)
	}
	return e.buf, nil
}

// coreSecrets are the epoch secrets that later commits need.
func coreSecrets(s *schedule.EpochSecretsData) []*[]byte {
	return []*[]byte{
		&s.SenderDataSecret, &s.ExporterSecret, &s.AuthenticationSecret, &s.ConfirmationKey,
		&s.MembershipKey, &s.ExternalSecret, &s.ResumptionSecret, &s.InitSecret,
	}
}

// unpackLibrary is the way back. mls-go checks tree hash and confirmation tag.
func unpackLibrary(core []byte) (*group.Group, error) {
	d := &decoder{rest: core}
	s := group.StateData{
		CipherSuite:      uint16(suite),
		OwnLeafIndex:     d.u32(),
		EpochSecrets:     &schedule.EpochSecretsData{EncryptionSecret: make([]byte, hashSize)},
		Members:          map[uint32]*group.MemberStateData{},
		CachedPsks:       map[string][]byte{},
		PathNodePrivKeys: map[treesync.NodeIndex][]byte{},
	}
	s.RatchetTree, s.GroupContext = d.vector(), d.vector()
	s.InterimTranscriptHash, s.ConfirmationTag = d.vector(), d.vector()
	for _, secret := range coreSecrets(s.EpochSecrets) {
		*secret = d.vector()
	}
	s.MyLeafEncryptionKey = d.vector()
	for range d.count(2 * MaxMembers) {
		node := treesync.NodeIndex(d.u32())
		s.PathNodePrivKeys[node] = d.vector()
	}
	for range d.count(maxProposals) {
		s.StoredProposals = append(s.StoredProposals, &group.StoredProposalStateData{Sender: d.u32(), Ref: d.vector(), Proposal: d.vector()})
	}
	if err := d.done(); err != nil {
		return nil, fmt.Errorf("MLS state: %w: %w", err, ErrState)
	}
	// mls-go allocates by the number of leaves that stands first in the tree,
	// before it looks whether they are there.
	if leaves := (&decoder{rest: s.RatchetTree}).u32(); leaves > maxLeaves {
		return nil, fmt.Errorf("MLS state with a tree of %d leaves: %w", leaves, ErrState)
	}
	var lib *group.Group
	err := guard(func() error {
		context, err := group.UnmarshalGroupContext(s.GroupContext)
		if err != nil {
			return err
		}
		s.GroupID, s.Epoch = context.GroupID.AsSlice(), context.Epoch.AsUint64()
		tree, err := treesync.UnmarshalTree(s.RatchetTree, suite)
		if err != nil {
			return err
		}
		for i := range tree.NumLeaves {
			if leaf := tree.GetLeaf(treesync.LeafIndex(i)); leaf != nil && leaf.State == treesync.NodeStatePresent && leaf.LeafData != nil {
				s.Members[i] = &group.MemberStateData{LeafIndex: i, Credential: leaf.LeafData.Credential.Marshal(), Active: true}
			}
		}
		text, err := json.Marshal(&s)
		if err != nil {
			return err
		}
		defer clear(text)
		lib, err = group.UnmarshalGroupState(text)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("MLS state: %w", libraryError(ErrState, err))
	}
	return lib, nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	return slices.Sorted(maps.Keys(m))
}
