package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// chatGroup is one MLS group of a channel. A channel has more than one when
// both sides began it in the same moment, or when one lost its state and began
// anew: messages go out in the newest, and open in whichever they belong to.
//
// Direct messages have no commits: no server orders them for two. Keys are
// renewed by beginning a new group every so often instead, which gives forward
// secrecy and healing at that pace.
type chatGroup struct {
	n     uint64
	peer  rpc.IdentityKey
	made  time.Time
	sent  uint64 // messages of ours
	mls   *e2ee.Group
	saved []byte // the group part that is stored
}

// storedGroup is a group's tree and epoch, and whose conversation it is.
type storedGroup struct {
	Peer rpc.IdentityKey
	Made time.Time
	MLS  []byte
}

// storedChain is what changes with every message of a group.
type storedChain struct {
	Keys []byte
	Sent uint64
}

const (
	// renewAfterMessages and renewAfterTime are when a side that has something
	// to send begins a new group: a key package of the peer, and 2 KiB, each
	// time. A group could carry 131,072 messages of one sender at the most.
	renewAfterMessages = 500
	renewAfterTime     = 7 * 24 * time.Hour
	// groupKeptFor is how long a group is kept after the next one began: the
	// server's retention time, in which a late message may still come, and a
	// day.
	groupKeptFor = 8 * 24 * time.Hour
)

// old reports whether it is time to begin a new group. A clock that went back
// counts for nothing.
func (g *chatGroup) old(now time.Time) bool {
	return g.sent >= renewAfterMessages || now.Sub(g.made) > renewAfterTime
}

// load returns the groups of a channel, newest last. The caller holds c.mu.
func (c *Client) load(ctx context.Context, channel rpc.ChannelID) ([]*chatGroup, error) {
	if groups, ok := c.groups[channel]; ok {
		return groups, nil
	}
	groups := []*chatGroup{}
	err := list(ctx, c.box, groupPrefix(channel), func(key string, stored storedGroup) (bool, error) {
		var n uint64
		if _, err := fmt.Sscanf(key[len(groupPrefix(channel)):], "%x", &n); err != nil {
			return false, fmt.Errorf("reading %s: %w", key, err)
		}
		var chain storedChain
		if _, err := c.box.get(ctx, chainKey(channel, n), &chain); err != nil {
			return false, err
		}
		mls, err := e2ee.LoadGroupParts(c.device, stored.MLS, chain.Keys)
		if err != nil {
			return false, fmt.Errorf("reading %s: %w", key, err)
		}
		groups = append(groups, &chatGroup{n: n, peer: stored.Peer, made: stored.Made, sent: chain.Sent, mls: mls, saved: stored.MLS})
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	c.groups[channel] = groups
	return groups, nil
}

// forget makes the next load read a channel's groups from the store again,
// after an operation whose outcome was not stored. The caller holds c.mu.
func (c *Client) forget(channel rpc.ChannelID) { delete(c.groups, channel) }

// save adds a group's state to a batch.
func (g *chatGroup) save(b *batch, channel rpc.ChannelID) {
	group, keys := g.mls.MarshalParts()
	if string(group) != string(g.saved) {
		b.put(groupKey(channel, g.n), storedGroup{Peer: g.peer, Made: g.made, MLS: group})
		g.saved = group
	}
	b.put(chainKey(channel, g.n), storedChain{Keys: keys, Sent: g.sent})
}

// adopt adds a new group to a channel, letting go of those whose time is over
// and of the oldest past the bound. The caller holds c.mu and applies the batch.
func (c *Client) adopt(ctx context.Context, b *batch, channel rpc.ChannelID, peer rpc.IdentityKey, mls *e2ee.Group) error {
	groups, err := c.load(ctx, channel)
	if err != nil {
		return err
	}
	now := c.options.Now()
	g := &chatGroup{n: 1, peer: peer, made: now, mls: mls}
	if len(groups) > 0 {
		g.n = groups[len(groups)-1].n + 1
	}
	g.save(b, channel)
	groups = append(groups, g)
	for len(groups) > maxGroupsPerChannel || len(groups) > 1 && now.Sub(groups[1].made) > groupKeptFor {
		b.remove(groupKey(channel, groups[0].n))
		b.remove(chainKey(channel, groups[0].n))
		groups = groups[1:]
	}
	c.groups[channel] = groups
	return nil
}

// current returns the group in which messages to a peer go out, or nil. The
// caller holds c.mu.
func (c *Client) current(ctx context.Context, channel rpc.ChannelID, peer rpc.IdentityKey) (*chatGroup, error) {
	groups, err := c.load(ctx, channel)
	if err != nil {
		return nil, err
	}
	for i := len(groups) - 1; i >= 0; i-- {
		if groups[i].peer == peer && groups[i].mls.Active() {
			return groups[i], nil
		}
	}
	return nil, nil
}

// process opens a message with whichever group of the channel it belongs to.
// The caller holds c.mu.
func (c *Client) process(ctx context.Context, channel rpc.ChannelID, message []byte) (*chatGroup, *e2ee.Event, error) {
	groups, err := c.load(ctx, channel)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errLocalState, err)
	}
	var problem error
	for i := len(groups) - 1; i >= 0; i-- {
		event, err := groups[i].mls.Process(message)
		if err == nil {
			return groups[i], event, nil
		}
		if errors.Is(err, e2ee.ErrReplayed) || problem == nil {
			problem = err
		}
	}
	if problem == nil {
		problem = errNoGroup
	}
	return nil, nil, problem
}

// errLocalState reports keys of ours that cannot be read: the message may be
// fine, and must wait until they can.
var errLocalState = errors.New("the keys of this conversation cannot be read")

// errNoGroup reports a message of a conversation that never began here.
var errNoGroup = errors.New("the conversation was never begun on this device")

// privatePart finds the private part of a key package. The caller holds c.mu.
func (c *Client) privatePart(ctx context.Context) func(e2ee.KeyPackageRef) []byte {
	return func(ref e2ee.KeyPackageRef) []byte {
		var stored storedPackage
		if known, err := c.box.get(ctx, packageKey(ref), &stored); err != nil || !known {
			return nil
		}
		return stored.Private
	}
}
