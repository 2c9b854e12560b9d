package client

import (
	"context"
	"slices"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
)

const (
	// leaveStep is how much longer each member waits, in the order of the tree,
	// before it commits the removal of one who has left: mostly the first does it
	// and nobody else tries. maxLeaveWait bounds it.
	leaveStep    = 3 * time.Second
	maxLeaveWait = time.Minute
	// maxSteps bounds what is done for one group before the next has its turn.
	maxSteps = 16
)

// roomWork is what is to be done for a group, and what is known of it while the
// program runs.
type roomWork struct {
	check    time.Time // when to compare with the server; zero is never
	retryAt  time.Time // nothing is tried before
	leaveAt  time.Time // when it is on us to remove who has left
	tries    int
	gapSince time.Time // since when a commit is missing
	askAt    time.Time // when to ask the next member to be taken in again
	asked    int
}

// work returns the work of a group. The caller holds c.mu.
func (c *Client) work(id rpc.ChannelID) *roomWork {
	w := c.rooms[id]
	if w == nil {
		w = &roomWork{}
		c.rooms[id] = w
	}
	return w
}

// lookAfter has a group compared with what the server says, after a while.
func (c *Client) lookAfter(id rpc.ChannelID, after time.Duration) {
	c.mu.Lock()
	c.lookAfterLocked(id, after)
	c.mu.Unlock()
}

func (c *Client) lookAfterLocked(id rpc.ChannelID, after time.Duration) {
	w, at := c.work(id), c.options.Now().Add(after)
	if w.check.IsZero() || at.Before(w.check) {
		w.check = at
	}
	c.commits.set()
}

// holdUp keeps a group from being tried again too soon.
func (c *Client) holdUp(id rpc.ChannelID, wait time.Duration) {
	c.mu.Lock()
	c.work(id).retryAt = c.options.Now().Add(wait)
	c.mu.Unlock()
}

// tend does what is to be done in the groups, until the connection ends.
func (c *Client) tend(ctx context.Context, l *link) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for first := true; ; {
		select {
		case <-c.commits:
		case <-timer.C:
		case <-ctx.Done():
			return nil
		}
		if !l.caughtUp.Load() {
			continue // what others did meanwhile comes first
		}
		wait, err := c.tendAll(ctx, l, first)
		if err != nil {
			return err
		}
		first = false
		if wait > 0 {
			timer.Reset(wait)
		}
	}
}

func (c *Client) tendAll(ctx context.Context, l *link, first bool) (wait time.Duration, err error) {
	if first {
		if err := c.dropHeld(ctx); err != nil {
			return 0, err
		}
	}
	var ids []rpc.ChannelID
	err = list(ctx, c.box, prefixRoom, func(_ string, r storedRoom) (bool, error) {
		ids = append(ids, r.ID)
		return true, nil
	})
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		if first {
			c.mu.Lock()
			c.rooms[id] = &roomWork{check: c.options.Now()}
			late, err := c.openHeld(ctx, id)
			c.mu.Unlock()
			if err != nil {
				return 0, err
			}
			c.tell(ctx, late)
		}
		pause, err := c.tendRoom(ctx, l, id)
		if err != nil {
			return 0, err
		}
		wait = shorter(wait, pause)
	}
	return wait, nil
}

func (c *Client) tendRoom(ctx context.Context, l *link, id rpc.ChannelID) (wait time.Duration, err error) {
	for range maxSteps {
		again, wait, err := c.step(ctx, l, id)
		if err != nil || !again {
			return wait, err
		}
	}
	return tryStep, nil
}

// task is what step found to do.
type task struct {
	room   storedRoom
	rotate *storedRotate
	wish   *wish
	key    string // of the wish
	due    bool   // a commit is to be made even without a wish
	check  bool
	wait   time.Duration
}

// look finds out what is to be done for a group now.
func (c *Client) look(ctx context.Context, id rpc.ChannelID) (t task, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.room, err = c.room(ctx, id); err != nil {
		return t, err
	}
	var rotate storedRotate
	if known, err := c.box.get(ctx, rotateKey(id), &rotate); err != nil {
		return t, err
	} else if known {
		t.rotate = &rotate
	}
	err = list(ctx, c.box, prefixWish, func(key string, w wish) (bool, error) {
		if w.Group == id {
			t.wish, t.key = &w, key
		}
		return t.wish == nil, nil
	})
	if err != nil || t.room.State != GroupActive && t.room.State != GroupLost {
		return t, err
	}
	now, w := c.options.Now(), c.work(id)
	if t.wait = w.retryAt.Sub(now); t.wait > 0 {
		return t, nil
	}
	t.wait = 0
	g, err := c.newest(ctx, id)
	if err != nil || g == nil {
		return t, err
	}
	if t.room.State == GroupActive && !t.room.Quit {
		t.due = g.mls.ProposalsWait() || g.old(now) && len(g.mls.Identities()) > 1
		switch {
		case len(t.room.Leaving) == 0:
			w.leaveAt = time.Time{}
		case w.leaveAt.IsZero():
			w.leaveAt = now.Add(c.leaveWait(t.room, g))
		}
		if !w.leaveAt.IsZero() {
			if left := w.leaveAt.Sub(now); left <= 0 {
				t.due = true
			} else {
				t.wait = shorter(t.wait, left)
			}
		}
	}
	if !w.check.IsZero() {
		if left := w.check.Sub(now); left <= 0 {
			t.check = true
		} else {
			t.wait = shorter(t.wait, left)
		}
	}
	if t.room.State == GroupLost {
		t.wait = shorter(t.wait, max(w.askAt.Sub(now), time.Millisecond))
	}
	return t, nil
}

// leaveWait is how long this member leaves the removal of one who has left to
// those before it in the tree.
func (c *Client) leaveWait(r storedRoom, g *chatGroup) time.Duration {
	rank := 0
	for _, m := range fromE2EE(g.mls.Identities()) {
		if m == c.Identity() {
			break
		}
		if !slices.Contains(r.Leaving, m) {
			rank++
		}
	}
	return min(time.Duration(rank)*leaveStep, maxLeaveWait)
}

// step does one thing for a group. again says that there may be more to do at
// once, wait how long to wait otherwise; an error means that the connection is
// of no more use.
func (c *Client) step(ctx context.Context, l *link, id rpc.ChannelID) (again bool, wait time.Duration, err error) {
	t, err := c.look(ctx, id)
	if err != nil {
		return false, 0, err
	}
	switch r := t.room; {
	case r.State != GroupActive && r.State != GroupLost:
		if r.State == GroupRemoved && r.Welcome != nil {
			return c.useWelcome(ctx, l, r)
		}
		return false, 0, c.giveUpAll(ctx, id, ErrNotInGroup)
	case t.rotate == nil && t.room.Quit && t.wish != nil:
		return false, 0, c.giveUpAll(ctx, id, ErrNotInGroup)
	case c.heldUp(id):
		return false, t.wait, nil
	case !r.Created:
		return c.announce(ctx, l, r)
	case t.rotate != nil:
		return c.offer(ctx, l, id, *t.rotate)
	case r.State == GroupLost:
		if t.wish != nil {
			return true, 0, c.giveUp(ctx, t.key, id, ErrGroupLost)
		}
		return c.askToRejoin(ctx, l, r)
	case t.wish != nil || t.due:
		return c.draft(ctx, l, t)
	case r.Reseal && !r.Quit:
		return c.reseal(ctx, l, id)
	case t.check:
		return c.check(ctx, l, id)
	}
	return false, t.wait, nil
}
