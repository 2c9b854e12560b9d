// Package group keeps who shares a conversation: channels, which are pairs
// (method 400), and groups of up to 256 members (methods 410 to 413).
//
// What it promises of channels:
//
//   - There is one channel for each unordered pair of identities, with one id
//     that both get. For two identities of this server the id is random and
//     tells nothing of the pair; with one of another server it is derived from
//     both keys, so that both servers have the same without talking.
//   - Of all calls on this server that ask for a channel, exactly one is told
//     that it is new; that caller starts the MLS group. When both sides of a
//     pair on two servers ask at once, each may be told so.
//   - Whoever is not in a channel or group cannot tell it from one that does
//     not exist. (The id of a group that exists cannot be taken again; who
//     knows it to try has been told it.)
//
// And of groups:
//
//   - RotateKeys is the commit lock that MLS needs (RFC 9420, section 14): of
//     all commits that are offered for an epoch exactly one is accepted. In one
//     transaction it is queued for everybody, members join and leave, and the
//     epoch rises. Nothing else advances the epoch.
//   - Whoever repeats an accepted RotateKeys because its answer was lost gets
//     that answer again, for 64 epochs, and nothing is queued again.
//   - A group with members has one owner. When the owner leaves, the
//     longest-standing member owns; when the last member leaves, the group goes.
//
// Blocking does not show here: a channel can be made with somebody who has
// blocked the caller, and such a one can be added to a group, as delivery then
// accepts what the caller sends and drops it (PROTOCOL 7.3). Commits and
// Welcomes pass blocks, since a member who misses one is out of the
// conversation with everybody.
//
// An identity is in at most 4,096 channels and 256 groups. Nothing here
// expires; a channel goes with either of its accounts, and an account that is
// deleted leaves its groups.
//
// A group lives on one server, its home, which holds the lock. Other servers
// with members in it keep a copy: the home sends them its whole state at each
// change (remote.go), they answer 412 from it and pass 410, 411 and 413 on.
//
//	unknown ──UpdateGroupMetadata──► epoch 0 ──RotateKeys──► epoch 1 ──► …
//	              (caller owns)         │                       │
//	                                    └──the last one leaves──┴──► unknown
//
// State: four tables, and in memory the buckets of the rate of RotateKeys.
package group

import (
	"context"
	"io"
	"time"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/limit"
	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// MaxChannels is how many channels an identity may be in. It bounds the
	// work of telling presence, and what strangers can make the server keep
	// about somebody: about 600 KiB.
	MaxChannels = 4096
	// MaxGroups is how many groups an identity may be in, beside its channels.
	// It bounds what one identity can make the server keep, 4 MiB of metadata
	// and 2 MiB of commits remembered, and the work of erasing it.
	MaxGroups = 256
	// MaxMembers is how many members a group may have (PROTOCOL 7.7).
	MaxMembers = 256
	// MaxMetadata is the largest metadata of a group, in bytes (PROTOCOL 7.7).
	MaxMetadata = 16 << 10

	// maxPayload is the largest commit or Welcome: its Envelope must fit a
	// frame (PROTOCOL 7.3).
	maxPayload = frame.MaxPayload - 1<<10
	// maxPosted bounds what one commit for all members writes in its one
	// transaction, which holds up all others: for 256 members a commit of
	// 32 KiB, which is more than MLS makes for them. A frame bounds the commits
	// that come one for each member.
	maxPosted = 8 << 20
	// maxRepeats is for how many epochs a commit is remembered, so that its
	// repetition is recognised: a client repeats within minutes.
	maxRepeats = 64
	// rotatePerSecond and rotateBurst bound how often one identity calls
	// RotateKeys. Commits pass blocks and fill queues beyond their limits, so
	// that they must not serve to flood; and somebody who adds 60 people one by
	// one is not held up.
	rotatePerSecond, rotateBurst = 1, 60
	// maxAddress bounds user@domain in what another server says, in bytes: 32
	// characters of four bytes, and a domain name.
	maxAddress = 32*4 + 1 + 253
)

// Accounts knows who has an account.
type Accounts interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error)
}

// Names tells what the accounts of this server are called.
type Names interface {
	// UsernameTx returns the username of an account; ok is false when there is
	// none.
	UsernameTx(tx *store.Tx, identity rpc.IdentityKey) (username string, ok bool, err error)
}

// Devices tells which devices an identity has; device.Service is one.
type Devices interface {
	ListTx(tx *store.Tx, identity rpc.IdentityKey) ([]rpc.DeviceID, error)
}

// Posting is a commit or a Welcome on its way into a queue.
type Posting struct {
	Sender, Recipient rpc.IdentityKey
	Channel           rpc.ChannelID
	InChannel         bool // false: into the inbox
	Payload           []byte
}

// Poster queues messages that their recipients must not miss, here or on the
// way to another server; delivery.Service is one, by an adapter.
type Poster interface {
	// PostTx queues a message. An *rpc.Error says that there is no room for it
	// and that it is dropped; any other error fails the transaction.
	PostTx(tx *store.Tx, p Posting) error
}

// Pusher tells the live connections of an identity; push.Hub is one.
type Pusher interface {
	Send(to rpc.IdentityKey, event push.Event)
}

// Options says what a Service is made of. All but Remote are needed.
type Options struct {
	DB       *store.DB
	Accounts Accounts
	Names    Names
	Devices  Devices
	Post     Poster
	Push     Pusher
	// Remote may be nil: then everybody lives here.
	Remote Remote
	// Domain is this server's own, in lower case; it stands in the addresses
	// of the members that other servers are told of.
	Domain string
	// Now is the clock that people read; time.Now but in tests.
	Now func() time.Time
	// Random makes channel ids; crypto/rand.Reader but in tests.
	Random io.Reader
}

// Service answers ChannelService and GroupService. It is safe for concurrent
// use.
type Service struct {
	options   Options
	rotations *limit.Keyed[rpc.IdentityKey]
}

// New returns a Service.
func New(options Options) *Service {
	return &Service{
		options:   options,
		rotations: limit.NewKeyed[rpc.IdentityKey](rotatePerSecond, rotateBurst, options.Now),
	}
}

// MembersTx returns the two members of a channel, or none when there is no
// such channel.
func (s *Service) MembersTx(tx *store.Tx, channel rpc.ChannelID) ([]rpc.IdentityKey, error) {
	return readMembers(tx, channel)
}

// BothMembersTx checks that sender may write to recipient in a channel or
// group. It returns CHANNEL_NOT_FOUND when there is none or the sender is not
// in it, and CHANNEL_ACCESS_DENIED when the recipient is not.
func (s *Service) BothMembersTx(tx *store.Tx, channel rpc.ChannelID, sender, recipient rpc.IdentityKey) error {
	pair, err := readMembers(tx, channel)
	if err != nil {
		return err
	}
	hasSender, hasRecipient := contains(pair, sender), contains(pair, recipient)
	if len(pair) == 0 {
		if hasSender, hasRecipient, err = areMembers(tx, channel, sender, recipient); err != nil {
			return err
		}
	}
	switch {
	case !hasSender:
		return rpc.Errorf(qpcpb.CodeChannelNotFound, "no channel or group of yours has this id; create a channel with the recipient")
	case !hasRecipient:
		return rpc.Errorf(qpcpb.CodeChannelAccessDenied, "the recipient is not in this channel or group; create a channel with them")
	}
	return nil
}

// ContactsTx returns those who share a channel with an identity, at most
// MaxChannels of them. Those who only share a group are not among them: anybody
// can put somebody into a group with 254 others, and each of them would learn
// when that one comes and goes.
func (s *Service) ContactsTx(tx *store.Tx, identity rpc.IdentityKey) ([]rpc.IdentityKey, error) {
	return readContacts(tx, identity, MaxChannels)
}

// Contacts is ContactsTx in a transaction of its own; it fits
// push.Options.Contacts.
func (s *Service) Contacts(ctx context.Context, identity rpc.IdentityKey) (contacts []rpc.IdentityKey, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		contacts, err = s.ContactsTx(tx, identity)
		return err
	})
	return contacts, err
}

// EraseTx removes every channel of an identity, for its peers too, and takes
// the identity out of its groups as if it had left them.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	if err := deleteOf(tx, identity); err != nil {
		return err
	}
	groups, err := readGroupsOf(tx, identity)
	if err != nil {
		return err
	}
	for _, id := range groups {
		if err := s.leaveTx(tx, id, identity); err != nil {
			return err
		}
	}
	return forgetCommitsOf(tx, identity)
}

// leaveTx takes an identity of this server out of a group, a copy too, whose
// home it tells.
func (s *Service) leaveTx(tx *store.Tx, id rpc.ChannelID, identity rpc.IdentityKey) error {
	before, err := readRoster(tx, id)
	if err != nil || before == nil {
		return err
	}
	if before.home == "" {
		return s.replaceTx(tx, before, before.without(identity))
	}
	if err := leaveCopy(tx, before, identity); err != nil || s.options.Remote == nil {
		return err
	}
	return s.options.Remote.LeaveTx(tx, before.home, id, identity)
}

// leaveCopy takes an identity out of a copy, whose version is its home's to
// change. A copy without members who live here goes.
func leaveCopy(tx *store.Tx, before *roster, identity rpc.IdentityKey) error {
	after := before.without(identity)
	after.version = before.version
	if after.local() == 0 {
		after.members = nil
	}
	return saveRoster(tx, before, after)
}
