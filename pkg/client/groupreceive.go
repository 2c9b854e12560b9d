package client

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

const (
	// maxHeld bounds the messages of one channel that wait for a commit or a
	// Welcome, and maxHeldSize each of them.
	maxHeld     = 64
	maxHeldSize = 64 << 10
)

// held is a message that cannot be opened yet.
type held struct {
	Message []byte // an MLSMessage
	Since   time.Time
}

// listing is what the server says of the channel to which a Welcome belongs.
type listing struct {
	id       rpc.ChannelID
	isGroup  bool
	response *qpcpb.ListGroupMembersResponse // nil when we are not in the group
	channel  rpc.ChannelID                   // of the two, when it is a conversation of two
}

// whatIsWelcomed asks the server what a Welcome in the inbox is to, unless that
// is known. An error means that the connection is of no more use.
func (c *Client) whatIsWelcomed(ctx context.Context, l *link, envelope *qpcpb.Envelope) (*listing, error) {
	var at cursor
	if _, err := c.box.get(ctx, cursorKey(nil), &at); err != nil || envelope.Seq <= at.Seq {
		return nil, err
	}
	welcome, err := c.unwrap(envelope.Data)
	if err != nil {
		return nil, nil // openInbox says so
	}
	c.mu.Lock()
	joined, err := e2ee.JoinGroup(c.device, welcome, c.privatePart(ctx))
	c.mu.Unlock()
	if err != nil || len(joined.Group.ID()) != len(rpc.ChannelID{}) {
		return nil, nil
	}
	id := rpc.ChannelID(joined.Group.ID())
	r, err := c.room(ctx, id)
	if err != nil {
		return nil, err
	}
	if r.State == "" {
		if known, err := c.box.get(ctx, channelKey(id), new(rpc.IdentityKey)); err != nil || known {
			return nil, err
		}
	}
	of := &listing{id: id, isGroup: r.State != ""}
	of.response, err = c.listGroup(ctx, l, id)
	var answer *rpc.Error
	switch {
	case err == nil:
		of.isGroup = true
		return of, nil
	case !errors.As(err, &answer):
		return nil, err
	case answer.Status != qpcpb.StatusNotFound && answer.Status != qpcpb.StatusUnimplemented:
		return nil, err
	case of.isGroup:
		return of, nil
	}
	// Not a group, or one that we are out of again. A conversation of two has the
	// one channel that the server names.
	peer := rpc.IdentityKey(joined.Inviter.Identity)
	if !isPair(joined.Group.Identities(), c.self.Key(), joined.Inviter.Identity) {
		return of, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	response, err := qpcpb.NewChannelClient(l.rpc).CreateChannel(ctx, &qpcpb.CreateChannelRequest{PeerKey: peer[:]})
	if errors.As(err, &answer) && answer.Status != qpcpb.StatusUnavailable && answer.Status != qpcpb.StatusRateLimited {
		c.options.Log.Warn("a welcome is to no conversation", "error", answer)
		return of, nil
	}
	if err != nil {
		return nil, err
	}
	of.channel, _, err = rpc.ParseChannelID("channel_id", response.ChannelId)
	return of, err
}

// joinRoom takes a Welcome to a group. Only a member by the server's word may
// have sent it. A group in which all is well is not left for another one of the
// same id: that takes a commit that removes us first, which only a member can
// make. The caller holds c.mu and applies the batch.
func (c *Client) joinRoom(ctx context.Context, b *batch, joined *e2ee.Joined, welcome []byte, of *listing) ([]Event, error) {
	if of.response == nil {
		c.options.Log.Info("a welcome is to a group that we are not in any more")
		return nil, nil
	}
	members, _ := listedIn(of.response)
	inviter := rpc.IdentityKey(joined.Inviter.Identity)
	epoch := joined.Group.Epoch()
	if !slices.Contains(members, inviter) || !slices.Contains(members, c.Identity()) || epoch > of.response.Epoch {
		c.options.Log.Warn("a welcome to a group is not by a member")
		return nil, nil
	}
	r, err := c.room(ctx, of.id)
	if err != nil {
		return nil, err
	}
	g, err := c.newest(ctx, of.id)
	if err != nil {
		return nil, err
	}
	if g != nil && epoch <= g.mls.Epoch() && (g.mls.Active() || r.State == GroupRemoved) {
		return nil, nil // it is over already
	}
	if r.State == GroupActive && g != nil && g.mls.Active() {
		r.Welcome = welcome
		b.put(roomKey(of.id), r)
		return nil, nil
	}
	if !joined.LastResort {
		b.remove(packageKey(joined.KeyPackage))
	}
	r = storedRoom{ID: of.id, Name: r.Name, Revision: r.Revision, State: GroupActive, Created: true}
	if err := c.adopt(ctx, b, of.id, rpc.IdentityKey{}, joined.Group); err != nil {
		return nil, err
	}
	c.readName(&r, joined.Group, of.response.Metadata)
	b.put(roomKey(of.id), r)
	c.rooms[of.id] = &roomWork{}
	c.lookAfterLocked(of.id, epochCheck)
	delete(c.paused, InGroup(of.id))
	c.outbox.set()
	return c.putNotice(ctx, b, r, inviter, Notice{Change: MemberJoined, Who: []rpc.IdentityKey{c.Identity()}})
}

// useWelcome tries a Welcome again that had come before its time.
func (c *Client) useWelcome(ctx context.Context, l *link, r storedRoom) (again bool, wait time.Duration, err error) {
	of := &listing{id: r.ID, isGroup: true}
	if of.response, err = c.listGroup(ctx, l, r.ID); err != nil {
		answer, transient, _, fatal := refusedFor(err)
		switch {
		case fatal != nil:
			return false, 0, fatal
		case transient:
			return c.later(ctx, r.ID, answer)
		}
	}
	c.mu.Lock()
	b := c.box.batch()
	welcome := r.Welcome
	r.Welcome = nil
	b.put(roomKey(r.ID), r)
	var events []Event
	joined, err := e2ee.JoinGroup(c.device, welcome, c.privatePart(ctx))
	if err == nil {
		events, err = c.joinRoom(ctx, b, joined, welcome, of)
	} else {
		c.options.Log.Warn("a welcome cannot be used", "error", err)
		err = nil
	}
	if err == nil {
		err = b.apply(ctx)
	}
	if err != nil {
		c.forget(r.ID)
	} else {
		var late []Event
		late, err = c.openHeld(ctx, r.ID)
		events = append(events, late...)
	}
	c.mu.Unlock()
	c.tell(ctx, events)
	return true, 0, err
}

// readName takes the name of a group from its metadata, when they were sealed in
// this epoch and are newer than what is known.
func (c *Client) readName(r *storedRoom, g *e2ee.Group, metadata []byte) {
	plain, err := g.OpenMetadata(metadata)
	if err != nil {
		return // the name comes with the next message of whoever knows it
	}
	if m, err := e2ee.DecodeMessage(plain); err == nil && m.Note != nil && m.Note.Kind == e2ee.NoteInfo {
		takeName(r, m.Note)
	}
}

// takeName takes a name that is newer than what is known, which may be the same
// name once more. Of two of one revision all clients take the same.
func takeName(r *storedRoom, n *e2ee.GroupNote) (newer bool) {
	if n.Revision < r.Revision || n.Revision == r.Revision && n.Name <= r.Name {
		return false
	}
	r.Name, r.Revision = n.Name, n.Revision
	return true
}

// openRoomMessage opens an envelope of a group.
func (c *Client) openRoomMessage(ctx context.Context, b *batch, r storedRoom, envelope *qpcpb.Envelope) ([]Event, error) {
	plain, err := c.unwrap(envelope.Data)
	if err != nil {
		if r.State == GroupActive && len(envelope.Data) > 1 {
			c.options.Log.Warn("a message of a group cannot be read", "error", err)
		}
		return nil, nil
	}
	events, wait, err := c.openForRoom(ctx, b, r, plain)
	if err == nil && wait {
		err = c.hold(ctx, b, r.ID, plain)
		c.lookAfterLocked(r.ID, epochCheck)
	}
	return events, err
}

// openForRoom opens a message of a group and adds what it means to the batch.
// wait is set, and nothing has changed, when it belongs to an epoch that has not
// come. The caller holds c.mu.
func (c *Client) openForRoom(ctx context.Context, b *batch, r storedRoom, plain []byte) (events []Event, wait bool, err error) {
	newest, err := c.newest(ctx, r.ID)
	if err != nil {
		return nil, false, err
	}
	var before []rpc.IdentityKey
	if newest != nil {
		before = fromE2EE(newest.mls.Identities())
	}
	g, event, err := c.process(ctx, r.ID, plain)
	switch {
	case err == nil:
	case errors.Is(err, errLocalState):
		return nil, false, err
	case errors.Is(err, e2ee.ErrReplayed), errors.Is(err, e2ee.ErrOwnMessage), errors.Is(err, e2ee.ErrRemoved):
		return nil, false, nil
	case errors.Is(err, e2ee.ErrFutureEpoch), errors.Is(err, errNoGroup):
		return nil, true, nil
	case e2ee.IsHandshake(plain):
		// What it would have changed is missed when the next commit comes, and
		// check finds that out; a repetition is nothing.
		if !errors.Is(err, e2ee.ErrPastEpoch) {
			c.options.Log.Warn("a commit of a group cannot be used", "error", err)
			c.lookAfterLocked(r.ID, epochCheck)
		}
		return nil, false, nil
	case r.State != GroupActive:
		return nil, false, nil
	default:
		c.options.Log.Warn("a message of a group cannot be read", "error", err)
		events, err := c.addMessage(ctx, b, Message{Group: r.ID, Stored: c.options.Now(), Status: StatusReceived,
			Problem: "this message could not be decrypted on this device"})
		return events, false, err
	}
	g.save(b, r.ID)
	switch event.Kind {
	case e2ee.EventMessage:
		events, err = c.understandInRoom(ctx, b, r, event)
	case e2ee.EventCommit:
		if g == newest {
			events, err = c.entered(ctx, b, &r, g, before, event)
		}
	case e2ee.EventRemoved:
		if g == newest && r.State == GroupActive && !r.Quit {
			r.State = GroupRemoved
			b.put(roomKey(r.ID), r)
			events, err = c.putNotice(ctx, b, r, rpc.IdentityKey(event.Sender.Identity), Notice{Change: MemberRemoved, Who: []rpc.IdentityKey{c.Identity()}})
			c.commits.set()
		}
	case e2ee.EventProposal:
		c.commits.set()
	}
	return events, false, err
}

// understandInRoom acts on an application message of a member.
func (c *Client) understandInRoom(ctx context.Context, b *batch, r storedRoom, event *e2ee.Event) ([]Event, error) {
	from := rpc.IdentityKey(event.Sender.Identity)
	in := Message{Peer: from, Group: r.ID, Epoch: event.Epoch, Mine: from == c.Identity()}
	m, err := e2ee.DecodeMessage(event.Message)
	if err != nil {
		in.Stored, in.Status, in.Problem = c.options.Now(), StatusReceived, "this message is malformed"
		return c.addMessage(ctx, b, in)
	}
	switch m.Type {
	case e2ee.TypeDummy:
		if m.Note == nil {
			return nil, nil
		}
		return c.noted(ctx, b, r, from, m.Note)
	case e2ee.TypeTyping, e2ee.TypeReadReceipt:
		return nil, nil
	}
	received := c.received(in, m)
	received.Mine = in.Mine
	return c.addMessage(ctx, b, received)
}

// noted acts on what the program of a member says.
func (c *Client) noted(ctx context.Context, b *batch, r storedRoom, from rpc.IdentityKey, n *e2ee.GroupNote) ([]Event, error) {
	switch n.Kind {
	case e2ee.NoteInfo:
		old := r.Name
		if !takeName(&r, n) {
			return nil, nil
		}
		b.put(roomKey(r.ID), r)
		if old == "" || old == r.Name {
			return nil, nil // the first name is news to us alone
		}
		return c.putNotice(ctx, b, r, from, Notice{Change: GroupRenamed, Name: r.Name})
	case e2ee.NoteLeave:
		g, err := c.newest(ctx, r.ID)
		if err != nil || g == nil || from == c.Identity() || !slices.Contains(fromE2EE(g.mls.Identities()), from) {
			return nil, err
		}
		return c.hasLeft(ctx, b, &r, from)
	}
	return nil, nil
}

// hasLeft notes members who have left, until a commit removes them. The caller
// holds c.mu and applies the batch.
func (c *Client) hasLeft(ctx context.Context, b *batch, r *storedRoom, who ...rpc.IdentityKey) (events []Event, err error) {
	for _, id := range who {
		if slices.Contains(r.Leaving, id) {
			continue
		}
		r.Leaving = append(r.Leaving, id)
		told, err := c.putNotice(ctx, b, *r, id, Notice{Change: MemberLeft, Who: []rpc.IdentityKey{id}})
		if err != nil {
			return nil, err
		}
		events = append(events, told...)
	}
	b.put(roomKey(r.ID), *r)
	c.work(r.ID).leaveAt = time.Time{}
	c.commits.set()
	return events, nil
}

// hold keeps a message until it can be opened. The caller holds c.mu.
func (c *Client) hold(ctx context.Context, b *batch, channel rpc.ChannelID, message []byte) error {
	count := 0
	err := list(ctx, c.box, heldPrefix(channel), func(string, held) (bool, error) { count++; return true, nil })
	if err != nil {
		return err
	}
	if count >= maxHeld || len(message) > maxHeldSize {
		c.options.Log.Warn("a message that cannot be opened yet is dropped", "waiting", count, "bytes", len(message))
		return nil
	}
	n, err := c.nextNumber(ctx, b)
	if err != nil {
		return err
	}
	b.put(heldKey(channel, n), held{Message: message, Since: c.options.Now()})
	delete(c.nothingHeld, channel)
	return nil
}

// openHeld opens what had to wait and can be opened now. The caller holds c.mu.
func (c *Client) openHeld(ctx context.Context, channel rpc.ChannelID) (events []Event, err error) {
	if channel == (rpc.ChannelID{}) || c.nothingHeld[channel] {
		return nil, nil
	}
	for progress := true; progress; {
		progress = false
		var keys []string
		waiting := make(map[string]held)
		err := list(ctx, c.box, heldPrefix(channel), func(key string, h held) (bool, error) {
			keys = append(keys, key)
			waiting[key] = h
			return true, nil
		})
		if err != nil {
			return events, err
		}
		if len(keys) == 0 {
			c.nothingHeld[channel] = true
		}
		for _, key := range keys {
			b := c.box.batch()
			b.remove(key)
			told, wait, err := c.openOne(ctx, b, channel, waiting[key].Message)
			if err != nil {
				c.forget(channel)
				return events, err
			}
			if wait {
				continue
			}
			if err := b.apply(ctx); err != nil {
				c.forget(channel)
				return events, err
			}
			events = append(events, told...)
			progress = true
		}
	}
	return events, nil
}

// openOne opens one message that had to wait.
func (c *Client) openOne(ctx context.Context, b *batch, channel rpc.ChannelID, message []byte) (events []Event, wait bool, err error) {
	r, err := c.room(ctx, channel)
	if err != nil {
		return nil, false, err
	}
	if r.State != "" {
		return c.openForRoom(ctx, b, r, message)
	}
	var peer rpc.IdentityKey
	if known, err := c.box.get(ctx, channelKey(channel), &peer); err != nil || !known {
		return nil, true, err
	}
	events, err = c.openPlain(ctx, b, channel, peer, true, message)
	return events, false, err
}

// dropHeld lets go of what nothing ever came for.
func (c *Client) dropHeld(ctx context.Context) error {
	now := c.options.Now()
	var old []Change
	err := list(ctx, c.box, prefixHeld, func(key string, h held) (bool, error) {
		if age := now.Sub(h.Since); age > groupKeptFor || age < -groupKeptFor {
			old = append(old, Change{Key: key})
		}
		return true, nil
	})
	if err != nil || len(old) == 0 {
		return err
	}
	return c.box.store.Apply(ctx, old...)
}
