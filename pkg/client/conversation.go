package client

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// Conversation is whom one talks with: a peer, or a group. Exactly one of the
// two is set.
type Conversation struct {
	Peer  rpc.IdentityKey
	Group rpc.ChannelID
}

// WithPeer returns the conversation of two.
func WithPeer(peer rpc.IdentityKey) Conversation { return Conversation{Peer: peer} }

// InGroup returns the conversation of a group.
func InGroup(id rpc.ChannelID) Conversation { return Conversation{Group: id} }

// IsGroup reports whether it is a group's.
func (t Conversation) IsGroup() bool { return t.Group != (rpc.ChannelID{}) }

// Key returns the identity key or group id in hexadecimal, by which Shown names
// a conversation.
func (t Conversation) Key() string {
	if t.IsGroup() {
		return t.Group.String()
	}
	return t.Peer.String()
}

func (t Conversation) messagePrefix() string { return "message/" + t.Key() + "/" }

func (t Conversation) messageKey(n uint64) string {
	return fmt.Sprintf("%s%016x", t.messagePrefix(), n)
}

// Conversation returns where the message belongs.
func (m Message) Conversation() Conversation {
	if m.Group != (rpc.ChannelID{}) {
		return InGroup(m.Group)
	}
	return WithPeer(m.Peer)
}

// key is where the message is stored.
func (m Message) key() string { return m.Conversation().messageKey(m.No) }

// idKey is where it stands at which number a message with this id is stored. In
// a group an id is its sender's: another member cannot take it first.
func (m Message) idKey() string {
	if m.Group == (rpc.ChannelID{}) {
		return messageIDKey(m.Peer, m.ID)
	}
	return "id/" + m.Group.String() + "/" + m.Peer.String() + "/" + hex.EncodeToString(m.ID[:])
}

// HistoryOf gives the messages of a conversation to visit, oldest first, from
// the first one after a number (0 for all), until visit returns false.
func (c *Client) HistoryOf(ctx context.Context, of Conversation, after uint64, visit func(Message) bool) error {
	return listAfter(ctx, c.box, of.messagePrefix(), of.messageKey(after), func(_ string, m Message) (bool, error) {
		return visit(m), nil
	})
}

// toE2EE and fromE2EE turn identity keys into those of pkg/e2ee and back.
func toE2EE(keys []rpc.IdentityKey) []e2ee.IdentityKey {
	out := make([]e2ee.IdentityKey, len(keys))
	for i, k := range keys {
		out[i] = e2ee.IdentityKey(k)
	}
	return out
}

func fromE2EE(keys []e2ee.IdentityKey) []rpc.IdentityKey {
	out := make([]rpc.IdentityKey, len(keys))
	for i, k := range keys {
		out[i] = rpc.IdentityKey(k)
	}
	return out
}
