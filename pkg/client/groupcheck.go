package client

import (
	"context"
	"slices"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// What a client compares with the server's list of a group, at each connection
// and whenever something does not fit:
//
//	the server has   this client        so
//	no such group    is in it           it was removed: GroupRemoved
//	a later epoch    has all messages   a commit is missing: GroupLost, and the
//	                                    others are asked to take it in again
//	the same epoch   more members       they have left: the next commit removes them

const (
	// epochCheck is how long the commit may take that a push event tells of.
	epochCheck = 2 * time.Second
	// gapGrace is how long a commit may be missing before it counts as lost.
	// Between two servers it may come after the news of it.
	gapGrace = 30 * time.Second
	// gapLook is how often it is looked for meanwhile.
	gapLook = 500 * time.Millisecond
	// askStep is how long one member has to take us in again before the next is
	// asked.
	askStep = 30 * time.Second
)

// check compares a group with the server's list.
func (c *Client) check(ctx context.Context, l *link, id rpc.ChannelID) (again bool, wait time.Duration, err error) {
	response, err := c.listGroup(ctx, l, id)
	if err != nil {
		answer, transient, gone, fatal := refusedFor(err)
		switch {
		case fatal != nil:
			return false, 0, fatal
		case gone:
			return false, 0, c.gone(ctx, id)
		case transient:
			return c.later(ctx, id, answer)
		}
		c.options.Log.Warn("a group cannot be compared with the server", "error", answer)
		response = nil
	}
	c.mu.Lock()
	g, err := c.newest(ctx, id)
	if err != nil || g == nil || response == nil {
		c.work(id).check = time.Time{}
		c.mu.Unlock()
		return false, 0, err
	}
	if g.mls.Epoch() < response.Epoch {
		c.mu.Unlock()
		return c.behind(ctx, l, id, response.Epoch)
	}
	c.work(id).check = time.Time{}
	var events []Event
	if g.mls.Epoch() == response.Epoch {
		events, err = c.compare(ctx, id, g, response)
	}
	c.mu.Unlock()
	c.tell(ctx, events)
	return err == nil, 0, err
}

// compare takes what a list of the same epoch says. The caller holds c.mu.
func (c *Client) compare(ctx context.Context, id rpc.ChannelID, g *chatGroup, response *qpcpb.ListGroupMembersResponse) ([]Event, error) {
	r, err := c.room(ctx, id)
	if err != nil || r.State != GroupActive {
		return nil, err
	}
	listed, _ := listedIn(response)
	var left []rpc.IdentityKey
	for _, m := range fromE2EE(g.mls.Identities()) {
		if m != c.Identity() && !slices.Contains(listed, m) {
			left = append(left, m)
		}
	}
	before := r
	c.readName(&r, g.mls, response.Metadata)
	b := c.box.batch()
	if r.Revision != before.Revision || r.Name != before.Name {
		b.put(roomKey(id), r)
	}
	var events []Event
	if before.Name != "" && r.Name != before.Name { // the note of who did it is on its way
		if events, err = c.putNotice(ctx, b, r, rpc.IdentityKey{}, Notice{Change: GroupRenamed, Name: r.Name}); err != nil {
			return nil, err
		}
	}
	if len(left) > 0 {
		gone, err := c.hasLeft(ctx, b, &r, left...)
		if err != nil {
			return nil, err
		}
		events = append(events, gone...)
	}
	return events, b.apply(ctx)
}

// behind looks for the commits that lead to the server's epoch. When none of
// them is in the queue any more, our place is lost.
func (c *Client) behind(ctx context.Context, l *link, id rpc.ChannelID, epoch uint64) (again bool, wait time.Duration, err error) {
	var at cursor
	if _, err := c.box.get(ctx, cursorKey(id[:]), &at); err != nil {
		return false, 0, err
	}
	identity, deviceID := c.Identity(), c.DeviceID()
	calling, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	queue, err := qpcpb.NewDeliveryClient(l.rpc).Peek(calling, &qpcpb.PeekRequest{
		RecipientKey: identity[:], ChannelId: id[:], DeviceId: deviceID[:], AfterSeq: at.Seq, Limit: 1,
	})
	if err != nil {
		answer, transient, _, fatal := refusedFor(err)
		switch {
		case fatal != nil:
			return false, 0, fatal
		case transient:
			return c.later(ctx, id, answer)
		}
	}
	c.mu.Lock()
	events, again, wait, err := c.missing(ctx, l, id, epoch, len(queue.GetPayloads()) > 0)
	c.mu.Unlock()
	c.tell(ctx, events)
	return again, wait, err
}

// missing decides what it means that the server is an epoch ahead: waits is
// whether there is anything in the queue still to be read. The caller holds c.mu.
func (c *Client) missing(ctx context.Context, l *link, id rpc.ChannelID, epoch uint64, waits bool) (events []Event, again bool, wait time.Duration, err error) {
	w, now := c.work(id), c.options.Now()
	w.check = now.Add(gapLook)
	w.retryAt = now.Add(tryStep)
	if waits {
		w.gapSince = time.Time{}
		l.arrivals.add(nil)
		return nil, false, tryStep, nil
	}
	r, err := c.room(ctx, id)
	if err != nil {
		return nil, false, 0, err
	}
	g, err := c.newest(ctx, id)
	if err != nil || g == nil {
		return nil, false, 0, err
	}
	known, err := c.box.get(ctx, rotateKey(id), new(storedRotate))
	if err != nil || known || g.mls.Epoch() >= epoch || r.State != GroupActive {
		w.gapSince = time.Time{} // ours may be the missing one
		return nil, false, tryStep, err
	}
	if w.gapSince.IsZero() {
		w.gapSince = now
	}
	if now.Sub(w.gapSince) < c.gapGrace {
		wait = min(gapLook, c.gapGrace)
		w.retryAt = now.Add(wait)
		return nil, false, wait, nil
	}
	r.State, r.Leaving, r.Reseal = GroupLost, nil, false
	b := c.box.batch()
	b.put(roomKey(id), r)
	events, err = c.putNotice(ctx, b, r, rpc.IdentityKey{}, Notice{Change: PlaceLost, Who: []rpc.IdentityKey{c.Identity()}})
	if err == nil {
		err = b.apply(ctx)
	}
	if err != nil {
		return nil, false, 0, err
	}
	c.rooms[id] = &roomWork{}
	return events, true, 0, nil
}

// gone notes that the server does not count us as a member any more.
func (c *Client) gone(ctx context.Context, id rpc.ChannelID) error {
	c.mu.Lock()
	r, err := c.room(ctx, id)
	if err != nil || r.State != GroupActive && r.State != GroupLost {
		c.mu.Unlock()
		return err
	}
	var events []Event
	b := c.box.batch()
	if r.Quit {
		// Our own departure, whose answer was lost: the entry in the outbox ends
		// it.
		c.work(id).check = time.Time{}
	} else {
		r.State = GroupRemoved
		b.put(roomKey(id), r)
		events, err = c.putNotice(ctx, b, r, rpc.IdentityKey{}, Notice{Change: MemberRemoved, Who: []rpc.IdentityKey{c.Identity()}})
	}
	if err == nil {
		err = b.apply(ctx)
	}
	c.mu.Unlock()
	c.tell(ctx, events)
	c.commits.set()
	c.outbox.set()
	return err
}

// askToRejoin asks one member after another to take us in again: the owner
// first, who is there longest.
func (c *Client) askToRejoin(ctx context.Context, l *link, r storedRoom) (again bool, wait time.Duration, err error) {
	c.mu.Lock()
	left := c.work(r.ID).askAt.Sub(c.options.Now())
	c.mu.Unlock()
	if left > 0 || r.Quit {
		return false, max(left, 0), nil
	}
	response, err := c.listGroup(ctx, l, r.ID)
	if err != nil {
		answer, transient, gone, fatal := refusedFor(err)
		switch {
		case fatal != nil:
			return false, 0, fatal
		case gone:
			return false, 0, c.gone(ctx, r.ID)
		case transient:
			return c.later(ctx, r.ID, answer)
		}
	}
	members, owner := listedIn(response)
	members = c.others(append([]rpc.IdentityKey{owner}, members...))
	members = slices.DeleteFunc(members, func(id rpc.IdentityKey) bool { return id == (rpc.IdentityKey{}) })
	c.mu.Lock()
	w := c.work(r.ID)
	w.askAt = c.options.Now().Add(askStep)
	n := w.asked
	w.asked++
	c.mu.Unlock()
	if len(members) == 0 {
		return false, askStep, nil
	}
	_, err = c.enqueue(ctx, members[n%len(members)], &e2ee.Message{
		Type: e2ee.TypeDummy, Note: &e2ee.GroupNote{Kind: e2ee.NoteRejoin, Group: r.ID},
	})
	return false, askStep, err
}

// askedToRejoin takes in again a member who has lost their place. Only who
// stands in the MLS group is: the server's word alone lets nobody in. The caller
// holds c.mu and applies the batch.
func (c *Client) askedToRejoin(ctx context.Context, b *batch, who rpc.IdentityKey, id rpc.ChannelID) error {
	r, g, err := c.usable(ctx, id)
	if err != nil {
		return nil // a group that we cannot help with
	}
	if !slices.Contains(fromE2EE(g.mls.Identities()), who) || slices.Contains(r.Leaving, who) {
		c.options.Log.Warn("somebody who is not in a group asks to be taken in again")
		return nil
	}
	asked := false
	err = list(ctx, c.box, prefixWish, func(_ string, w wish) (bool, error) {
		asked = w.Group == id && w.Kind == wishAdd && slices.Contains(w.Who, who)
		return !asked, nil
	})
	if err != nil || asked {
		return err
	}
	n, err := c.nextNumber(ctx, b)
	if err != nil {
		return err
	}
	b.put(wishKey(n), wish{Group: id, Kind: wishAdd, Who: []rpc.IdentityKey{who}, Renew: []rpc.IdentityKey{who}})
	c.commits.set()
	return nil
}
