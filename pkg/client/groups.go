package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// chatGroup is one MLS group of a channel. A channel has more than one when
// both sides began it in the same moment, or when one lost its state and began
// anew: messages go out in the newest, and open in whichever they belong to.
type chatGroup struct {
	n     uint64
	peer  rpc.IdentityKey
	mls   *e2ee.Group
	saved []byte // the group part that is stored
}

// storedGroup is a group's tree and epoch, and whose conversation it is.
type storedGroup struct {
	Peer rpc.IdentityKey
	MLS  []byte
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
		var chain []byte
		if _, err := c.box.get(ctx, chainKey(channel, n), &chain); err != nil {
			return false, err
		}
		mls, err := e2ee.LoadGroupParts(c.device, stored.MLS, chain)
		if err != nil {
			return false, fmt.Errorf("reading %s: %w", key, err)
		}
		groups = append(groups, &chatGroup{n: n, peer: stored.Peer, mls: mls, saved: stored.MLS})
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
	group, chain := g.mls.MarshalParts()
	if string(group) != string(g.saved) {
		b.put(groupKey(channel, g.n), storedGroup{Peer: g.peer, MLS: group})
		g.saved = group
	}
	b.put(chainKey(channel, g.n), chain)
}

// adopt adds a new group to a channel, letting go of the oldest past the
// bound. The caller holds c.mu and applies the batch.
func (c *Client) adopt(ctx context.Context, b *batch, channel rpc.ChannelID, peer rpc.IdentityKey, mls *e2ee.Group) error {
	groups, err := c.load(ctx, channel)
	if err != nil {
		return err
	}
	g := &chatGroup{n: 1, peer: peer, mls: mls}
	if len(groups) > 0 {
		g.n = groups[len(groups)-1].n + 1
	}
	g.save(b, channel)
	groups = append(groups, g)
	if len(groups) > maxGroupsPerChannel {
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
		return nil, nil, err
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
