package client

import (
	"context"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// Keys of the local store. Values are sealed, but for the header of the vault
// and the public part of the profile.
//
//	profile                          who and where, in the open
//	vault                            the header that the password opens
//	vault/next                       the same for a new password, while it is changed
//	account                          seeds and ids
//	session                          the token
//	recovery                         what the recovery bundles are renewed with
//	counter                          the last number given to an outgoing entry or a message
//	shown                            what the user has seen
//	log                              the server's signing key and the head of its log
//	contact/<identity>               a peer
//	name/<name>                      whose name it is
//	channel/<channel>                whose conversation it is
//	package/<reference>              the private part of a key package
//	group/<channel>/<n>              an MLS group's tree and epoch
//	chain/<channel>/<n>              the message keys that go with it
//	cursor/<channel>                 the last seq that was processed; "inbox" for the inbox
//	out/<n>                          what waits to be sent
//	upload/<message id>              a file that is being sent
//	message/<identity>/<n>           a conversation's messages, in order
//	id/<identity>/<message id>       where the message with this id stands
//	room/<group>                     a group: its name, and how this client stands in it
//	rotate/<group>                   a commit that is being offered to the server
//	wish/<n>                         a change of a group that the user wants
//	held/<channel>/<n>               a message that cannot be opened yet
//
// The history of a group stands below message/<group> and id/<group>, as that of
// a peer below their identity: the ids have other lengths.
const (
	keyProfile   = "profile"
	keyVault     = "vault"
	keyNextVault = "vault/next"
	keyAccount   = "account"
	keySession   = "session"
	keyRecovery  = "recovery"
	keyCounter   = "counter"
	keyShown     = "shown"
	keyServerLog = "log"

	prefixContact = "contact/"
	prefixName    = "name/"
	prefixPackage = "package/"
	prefixOut     = "out/"
	prefixRoom    = "room/"
	prefixWish    = "wish/"
	prefixHeld    = "held/"
)

func contactKey(id rpc.IdentityKey) string { return prefixContact + id.String() }
func nameKey(name string) string           { return prefixName + name }
func channelKey(id rpc.ChannelID) string   { return "channel/" + id.String() }
func packageKey(ref e2ee.KeyPackageRef) string {
	return prefixPackage + hex.EncodeToString(ref[:])
}
func groupPrefix(id rpc.ChannelID) string        { return "group/" + id.String() + "/" }
func groupKey(id rpc.ChannelID, n uint64) string { return fmt.Sprintf("group/%s/%016x", id, n) }
func chainKey(id rpc.ChannelID, n uint64) string { return fmt.Sprintf("chain/%s/%016x", id, n) }
func outKey(n uint64) string                     { return fmt.Sprintf("%s%016x", prefixOut, n) }
func messagePrefix(id rpc.IdentityKey) string    { return "message/" + id.String() + "/" }
func messageKey(id rpc.IdentityKey, n uint64) string {
	return fmt.Sprintf("%s%016x", messagePrefix(id), n)
}
func messageIDKey(id rpc.IdentityKey, m e2ee.MessageID) string {
	return "id/" + id.String() + "/" + hex.EncodeToString(m[:])
}

func roomKey(id rpc.ChannelID) string    { return prefixRoom + id.String() }
func rotateKey(id rpc.ChannelID) string  { return "rotate/" + id.String() }
func wishKey(n uint64) string            { return fmt.Sprintf("%s%016x", prefixWish, n) }
func heldPrefix(id rpc.ChannelID) string { return prefixHeld + id.String() + "/" }
func heldKey(id rpc.ChannelID, n uint64) string {
	return fmt.Sprintf("%s%016x", heldPrefix(id), n)
}

func cursorKey(channel []byte) string {
	if len(channel) == 0 {
		return "cursor/inbox"
	}
	return "cursor/" + hex.EncodeToString(channel)
}

// Profile is what can be known of a profile without its password.
type Profile struct {
	Server   string
	Username string
	Identity rpc.IdentityKey
}

// account holds what makes this client who it is.
type account struct {
	Server       string
	Username     string // folded
	IdentitySeed []byte
	HybridSeed   []byte
	DeviceID     rpc.DeviceID
	DeviceName   string
	// Registered is set once the server has confirmed the registration.
	Registered bool
	// Introduced is set once device, hybrid key and key packages are there.
	Introduced bool
}

type session struct{ Token []byte }

// contact is a peer.
type contact struct {
	Identity rpc.IdentityKey
	Name     string // folded; empty until it was looked up
	Channel  rpc.ChannelID
	// HasChannel is set once the server has named the channel; Asked before
	// the first request for it, so that a lost answer is noticed.
	HasChannel, Asked bool
	// Starter is set when it is on this side to begin the MLS group.
	Starter bool
	// Hybrid is the last hybrid key seen. Once there was one, nothing is sent
	// without (PROTOCOL 9).
	Hybrid []byte
	// Anew is set when the hybrid key is another than before: the peer came
	// back with a recovery code, and can read a new MLS group only.
	Anew bool
	// Welcome waits to reach the peer's inbox, under WelcomeID.
	Welcome   []byte
	WelcomeID e2ee.MessageID
	Verified  bool
}

// outgoing is an entry of the outbox. It is encrypted when its turn comes, and
// from then on only ever sent as it is, so that a repetition is the same bytes
// under the same id.
type outgoing struct {
	Peer      rpc.IdentityKey
	ID        e2ee.MessageID
	App       []byte // the application message, until it is encrypted
	Payload   []byte // what is enqueued, from then on
	MessageNo uint64 // the conversation's message that this is, 0 for none

	// Group is set, and Peer is not, in an entry for a group.
	Group rpc.ChannelID `json:",omitzero"`
	Leave bool          `json:",omitempty"` // we leave, once members were told
	Made  time.Time     `json:",omitzero"`
	// Sealed is set from the first attempt on. App stays, for a message that
	// waits while the group moves on is encrypted again.
	Sealed *groupSealed `json:",omitempty"`
}

func (o outgoing) conversation() Conversation { return Conversation{Peer: o.Peer, Group: o.Group} }

// Status is what has become of an outgoing message.
type Status string

// An outgoing message's way: it is queued on this machine, sent once the
// server has stored it, read once the peer says so; or it has failed for good.
const (
	StatusQueued   Status = "queued"
	StatusSent     Status = "sent"
	StatusRead     Status = "read"
	StatusFailed   Status = "failed"
	StatusReceived Status = "received"
)

// Message is one message of a conversation, as it is stored and shown.
type Message struct {
	No   uint64          // its place on this machine
	Peer rpc.IdentityKey // whose conversation it belongs to; in a group, who sent it
	// Group is the group it belongs to, zero in a conversation of two.
	Group rpc.ChannelID `json:",omitzero"`
	// Epoch is the group's epoch in which it was sent.
	Epoch uint64 `json:",omitempty"`
	// Notice is set, and the message is of no type, where members came or went.
	Notice *Notice `json:",omitempty"`
	Mine   bool
	ID     e2ee.MessageID
	Type   e2ee.MessageType
	Ref    e2ee.MessageID `json:",omitzero"`
	Text   string         `json:",omitempty"`
	Emoji  string         `json:",omitempty"`
	Name   string         `json:",omitempty"` // of a file
	Size   uint64         `json:",omitempty"`
	File   *FileRef       `json:",omitempty"` // what to fetch it by
	Part   e2ee.Part      `json:",omitempty"`
	SentAt time.Time      // by the sender's clock
	Stored time.Time      // received here, or stored by the server
	Status Status
	// Problem says why a message failed or could not be read.
	Problem string `json:",omitempty"`
}

// numbered is what numbers were given out.
type counter struct{ Last uint64 }

// nextNumber returns a number above all before it, and the change that makes
// it final. The caller holds c.mu and applies the batch before it lets go.
func (c *Client) nextNumber(ctx context.Context, b *batch) (uint64, error) {
	var n counter
	for i := len(b.changes) - 1; i >= 0; i-- {
		if b.changes[i].Key == keyCounter {
			if err := c.box.open(keyCounter, b.changes[i].Value, &n); err != nil {
				return 0, err
			}
			n.Last++
			b.put(keyCounter, n)
			return n.Last, nil
		}
	}
	if _, err := c.box.get(ctx, keyCounter, &n); err != nil {
		return 0, err
	}
	n.Last++
	b.put(keyCounter, n)
	return n.Last, nil
}

// ConnectionState says whether the server is reached.
type ConnectionState string

// The states of the connection.
const (
	Disconnected ConnectionState = "disconnected"
	Connecting   ConnectionState = "connecting"
	Connected    ConnectionState = "connected"
)

// EventKind says what an event tells.
type EventKind int

// The kinds of events.
const (
	// EventConnection: the connection's state changed; Err may say why.
	EventConnection EventKind = iota + 1
	// EventMessage: a message arrived, and is stored.
	EventMessage
	// EventStatus: the status of an outgoing message changed.
	EventStatus
	// EventTyping: the peer began or stopped typing.
	EventTyping
	// EventPresence: the peer came or went.
	EventPresence
	// EventCaughtUp: everything that waited at the server has been told.
	EventCaughtUp
	// EventWaiting: messages to the peer cannot go out yet; Err says why.
	EventWaiting
	// EventDistrust: the server's log of names does not add up; Err says how.
	EventDistrust
	// EventGroup: a message arrived in a group, or its members or its name
	// changed (Message.Notice says how). It is stored. Group and GroupName say
	// which group; Peer is who did it.
	EventGroup
	// EventGroupWaiting: a change of a group cannot be made yet, or has failed;
	// Err says why.
	EventGroupWaiting
)

// Event is something that happened. Which fields count depends on Kind.
type Event struct {
	Kind       EventKind
	Connection ConnectionState
	Peer       rpc.IdentityKey
	PeerName   string // empty when the peer's name is not known
	Message    Message
	Group      rpc.ChannelID
	GroupName  string
	On         bool // typing, online
	Err        error
}
