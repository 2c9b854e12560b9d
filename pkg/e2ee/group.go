package e2ee

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/thomas-vilte/mls-go/framing"
	"github.com/thomas-vilte/mls-go/group"
	"github.com/thomas-vilte/mls-go/secrettree"
)

// Group is our view of one MLS group.
//
//	        NewGroup, JoinGroup, LoadGroup
//	                    │
//	  Add, Remove,      ▼      Encrypt, Process(message)
//	  Refresh     ┌─ current ─┐ ◄──────┐
//	       ┌──────┤   epoch   ├────────┘
//	       ▼      └─────┬─────┘
//	staged commit       │ Process(commit of another): the staged one is void
//	  │        │        ▼
//	  │ Merge  └──► next epoch ──► current
//	  │ Discard
//	  └──► current
//
// A commit is staged, stored (Marshal), offered to the server (RotateKeys,
// PROTOCOL 7.7) and then merged or discarded. While it waits the group goes on in
// the current epoch, and a crash loses nothing: after LoadGroup PendingCommit
// gives the same bytes to offer again.
type Group struct {
	device    *Device
	id        []byte
	core      []byte       // state of mls-go at the current epoch
	epochs    []*epochKeys // current first, then at most PastEpochs older ones
	pending   *pendingCommit
	proposals uint8 // how many wait for a commit in the current epoch
	removed   bool
}

// pendingCommit is a staged commit with everything of the epoch it leads to.
type pendingCommit struct {
	commit  []byte // MLSMessage
	welcome []byte // MLSMessage, empty without added members
	core    []byte
	epoch   *epochKeys
}

// EventKind says what Process found.
type EventKind int

const (
	// EventMessage: an application message, in Event.Message.
	EventMessage EventKind = iota + 1
	// EventCommit: the group is in a new epoch. A staged commit of ours, if there
	// was one and Event.Own is false, is void: stage it again.
	EventCommit
	// EventProposal: a proposal was stored. Encrypt refuses until somebody commits
	// it; any member but the one it concerns may call Refresh.
	EventProposal
	// EventRemoved: a commit removed us. The group can only be read from now on.
	EventRemoved
)

// Event is what a message from the group means.
type Event struct {
	Kind EventKind
	// Sender is who signed it: verified against the leaf's signature key, and that
	// key against the identity.
	Sender Credential
	// Epoch is the epoch of the message, for EventCommit the new one.
	Epoch uint64
	// Message is the application message without padding (see DecodeMessage).
	Message []byte
	// Added and Removed are the leaves that a commit changed, or a proposal would.
	Added, Removed []Credential
	// Own is true when our staged commit came back and was merged.
	Own bool
}

// NewGroup starts a group whose only member is device. id is the channel id of a
// direct chat or the group id (1 to 63 bytes).
func NewGroup(device *Device, id []byte) (*Group, error) {
	if len(id) == 0 || len(id) > maxGroupIDSize {
		return nil, fmt.Errorf("group id of %d bytes, want 1 to %d: %w", len(id), maxGroupIDSize, ErrMalformed)
	}
	kp, keys, err := generateKeyPackage(device, Unlimited, false)
	if err != nil {
		return nil, fmt.Errorf("starting a group: %w", err)
	}
	lib, err := group.NewGroup(group.NewGroupID(bytes.Clone(id)), suite, kp, keys)
	if err != nil {
		return nil, fmt.Errorf("starting a group: %w", libraryError(ErrState, err))
	}
	return adopt(device, lib)
}

// adopt makes a Group from a state of mls-go at the start of an epoch.
func adopt(device *Device, lib *group.Group) (*Group, error) {
	keys, err := epochOf(lib)
	if err != nil {
		return nil, err
	}
	if keys.roster[keys.own] != device.who {
		return nil, fmt.Errorf("our leaf names another device: %w", ErrCredential)
	}
	core, err := packLibrary(lib)
	if err != nil {
		return nil, err
	}
	return &Group{
		device: device,
		id:     bytes.Clone(lib.ID().AsSlice()),
		core:   core,
		epochs: []*epochKeys{keys},
	}, nil
}

// epochOf takes the message keys of the epoch that lib has just entered, and
// checks every member's credential.
func epochOf(lib *group.Group) (*epochKeys, error) {
	secrets := lib.EpochSecrets()
	roster, err := rosterOf(lib)
	if err != nil {
		return nil, err
	}
	return &epochKeys{
		number:     lib.Epoch().AsUint64(),
		context:    lib.GroupContext().Marshal(),
		own:        uint32(lib.OwnLeafIndex()),
		roster:     roster,
		senderData: bytes.Clone(secrets.SenderDataSecret.AsSlice()),
		tree: &secrettree.TreeState{
			EncryptionSecret: bytes.Clone(secrets.EncryptionSecret.AsSlice()),
			LeafCount:        lib.SecretTree().LeafCount(),
		},
		read: map[uint32]*[ratchetKinds]readMarks{},
	}, nil
}

// ID is the group id.
func (g *Group) ID() []byte { return bytes.Clone(g.id) }

// Epoch is the number of the current epoch.
func (g *Group) Epoch() uint64 { return g.current().number }

// Active is false once we have been removed.
func (g *Group) Active() bool { return !g.removed }

// Members are the leaves of the current epoch in the order of the tree. A user
// with linked devices has several; see Identities.
func (g *Group) Members() []Credential {
	roster := g.current().roster
	members := make([]Credential, 0, len(roster))
	for _, leaf := range sortedKeys(roster) {
		members = append(members, roster[leaf])
	}
	return members
}

// Identities are the users of the current epoch, each once.
func (g *Group) Identities() []IdentityKey {
	var users []IdentityKey
	for _, m := range g.Members() {
		if !slices.Contains(users, m.Identity) {
			users = append(users, m.Identity)
		}
	}
	return users
}

func (g *Group) current() *epochKeys { return g.epochs[0] }

// Encrypt makes the MLSMessage that carries message to the other members, padded
// (PROTOCOL 9). Store the group and the result together before sending: the key
// is used up, and using it for two messages would betray both. The little
// randomness it needs is that of the operating system: mls-go takes no other.
func (g *Group) Encrypt(message []byte) ([]byte, error) {
	switch {
	case g.removed:
		return nil, fmt.Errorf("encrypting for group %x: %w", g.id, ErrRemoved)
	case g.proposals > 0:
		return nil, fmt.Errorf("encrypting for group %x: %w", g.id, ErrProposalsPending)
	case len(message) > maxPlaintextSize:
		return nil, fmt.Errorf("encrypting %d bytes, the limit is %d: %w", len(message), maxPlaintextSize, ErrMalformed)
	}
	out, err := g.current().seal(g.device, g.id, message)
	if err != nil {
		return nil, fmt.Errorf("encrypting for group %x: %w", g.id, err)
	}
	return out, nil
}

// ProposalsWait reports whether proposals of other programs wait for a commit:
// Encrypt refuses until somebody makes one.
func (g *Group) ProposalsWait() bool { return g.proposals > 0 }

// IsHandshake reports whether a message is a commit or proposal as this package
// makes them.
func IsHandshake(message []byte) bool { return bytes.HasPrefix(message, publicMessageHeader) }

// Process reads an MLSMessage from the group: an application message, a commit or
// a proposal. Store the group and what the event means together. An error leaves
// the group as it was; which of them means what is with the sentinels.
func (g *Group) Process(message []byte) (*Event, error) {
	if g.pending != nil && bytes.Equal(message, g.pending.commit) {
		return g.MergeCommit()
	}
	event, err := g.process(message)
	if err != nil {
		return nil, fmt.Errorf("message for group %x: %w", g.id, err)
	}
	return event, nil
}

func (g *Group) process(message []byte) (*Event, error) {
	private, public, err := parseMessage(message)
	if err != nil {
		return nil, err
	}
	if private != nil {
		return g.processPrivate(private)
	}
	k, err := g.epochFor(public.Content.GroupID, public.Content.Epoch, true)
	if err != nil {
		return nil, err
	}
	leaf := public.Content.Sender.LeafIndex
	if leaf == k.own {
		return nil, ErrOwnMessage
	}
	who, ok := k.roster[leaf]
	if !ok {
		return nil, fmt.Errorf("sender is leaf %d, which is empty: %w", leaf, ErrDecrypt)
	}
	lib, err := unpackLibrary(g.core)
	if err != nil {
		return nil, err
	}
	if err := guard(func() error { return lib.VerifyPublicMessage(public) }); err != nil {
		return nil, libraryError(ErrDecrypt, err)
	}
	return g.handshake(lib, &framing.AuthenticatedContent{
		WireFormat:   framing.WireFormatPublicMessage,
		Content:      public.Content,
		Auth:         public.Auth,
		GroupContext: k.context,
	}, who)
}

func (g *Group) processPrivate(pm *framing.PrivateMessage) (*Event, error) {
	handshake := pm.ContentType != framing.ContentTypeApplication
	k, err := g.epochFor(pm.GroupID, pm.Epoch, handshake)
	if err != nil {
		return nil, err
	}
	ac, who, used, err := k.open(pm)
	if err != nil {
		return nil, err
	}
	if !handshake {
		used()
		data, _ := ac.Content.ApplicationData()
		return &Event{Kind: EventMessage, Sender: who, Epoch: k.number, Message: bytes.Clone(data)}, nil
	}
	lib, err := unpackLibrary(g.core)
	if err != nil {
		return nil, err
	}
	event, err := g.handshake(lib, ac, who)
	if err != nil {
		return nil, err
	}
	used()
	return event, nil
}

// epochFor finds the keys for a message. Handshake messages count only in the
// current epoch.
func (g *Group) epochFor(groupID []byte, epoch uint64, handshake bool) (*epochKeys, error) {
	now := g.current()
	switch {
	case !bytes.Equal(groupID, g.id):
		return nil, fmt.Errorf("group %x: %w", groupID, ErrWrongGroup)
	case g.removed && (handshake || epoch > now.number):
		return nil, ErrRemoved
	case epoch > now.number:
		return nil, fmt.Errorf("epoch %d, we are at %d: %w", epoch, now.number, ErrFutureEpoch)
	case handshake && epoch < now.number:
		return nil, fmt.Errorf("handshake of epoch %d, we are at %d: %w", epoch, now.number, ErrPastEpoch)
	}
	for _, k := range g.epochs {
		if k.number == epoch {
			return k, nil
		}
	}
	return nil, fmt.Errorf("epoch %d, we are at %d: %w", epoch, now.number, ErrPastEpoch)
}

// enter makes the next epoch the current one. A staged commit is void then.
func (g *Group) enter(core []byte, next *epochKeys) *Event {
	before := g.current()
	event := &Event{Kind: EventCommit, Epoch: next.number}
	event.Added = missing(next.roster, before.roster)
	event.Removed = missing(before.roster, next.roster)
	g.epochs = slices.Insert(g.epochs, 0, next)
	if len(g.epochs) > 1+PastEpochs {
		g.epochs = g.epochs[:1+PastEpochs]
	}
	g.core, g.pending, g.proposals = core, nil, 0
	return event
}

// missing lists the leaves of a that b does not have.
func missing(a, b map[uint32]Credential) []Credential {
	var out []Credential
	for _, leaf := range sortedKeys(a) {
		if other, ok := b[leaf]; !ok || other != a[leaf] {
			out = append(out, a[leaf])
		}
	}
	return out
}
