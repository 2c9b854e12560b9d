package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

const (
	// maxTries bounds how often a change is tried that others were faster than
	// each time. Every refusal is somebody else's success, so that eight members
	// who all change the group at once need eight.
	maxTries = 48
	// tryStep bounds the wait after a refusal: the winner's commit is on its way,
	// and those who lost should not come back in one instant.
	tryStep = 60 * time.Millisecond
	// maxAddsPerCommit bounds the members that one commit adds: the Welcome of a
	// group of 256 has about 80 KiB, and each of them gets one.
	maxAddsPerCommit = 16
	// groupRetry is how long a group waits that the server refused for now,
	// unless it says how long.
	groupRetry = 2 * time.Second
	// maxRotateRequest bounds a RotateKeys: a frame, less its other fields.
	maxRotateRequest = frame.MaxPayload - 4<<10
)

// storedRotate is a commit that is being offered to the server: stored before it
// is sent, and sent as it is until there is an answer.
type storedRotate struct {
	Request []byte            // a RotateKeysRequest
	Commit  [sha256.Size]byte // hash of the MLS commit, which the MLS group holds
	Wish    string            `json:",omitempty"` // key of the wish that it is for
	Renewed []rpc.IdentityKey `json:",omitempty"` // who are removed to come anew
}

// heldUp reports whether a group must wait before anything is tried.
func (c *Client) heldUp(id rpc.ChannelID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.work(id).retryAt.After(c.options.Now())
}

// refusedFor sorts the error of a call for a group. transient: the group waits.
// gone: we are no member. Otherwise answer is a refusal for good, or err ends
// the connection.
func refusedFor(err error) (answer *rpc.Error, transient, gone bool, fatal error) {
	if !errors.As(err, &answer) {
		return nil, false, false, err
	}
	switch answer.Status {
	case qpcpb.StatusUnauthorized:
		return nil, false, false, err
	case qpcpb.StatusRateLimited, qpcpb.StatusUnavailable, qpcpb.StatusDeadlineExceeded, qpcpb.StatusInternal:
		return answer, true, false, nil
	}
	switch answer.Code {
	case qpcpb.CodeDiskFull, qpcpb.CodeQueueFull:
		return answer, true, false, nil
	case qpcpb.CodeChannelNotFound:
		return answer, false, true, nil
	}
	return answer, false, false, nil
}

// waitAfter is how long to wait after a refusal for now.
func waitAfter(answer *rpc.Error) time.Duration {
	if answer.RetryAfter > 0 {
		return answer.RetryAfter
	}
	return groupRetry
}

// later holds a group up and tells why.
func (c *Client) later(ctx context.Context, id rpc.ChannelID, answer *rpc.Error) (again bool, wait time.Duration, err error) {
	wait = waitAfter(answer)
	c.holdUp(id, wait)
	if answer.Status != qpcpb.StatusRateLimited {
		c.emit(ctx, Event{Kind: EventGroupWaiting, Group: id, Err: answer})
	}
	return false, wait, nil
}

// announce makes the group at the server.
func (c *Client) announce(ctx context.Context, l *link, r storedRoom) (again bool, wait time.Duration, err error) {
	metadata, _, err := c.sealedName(ctx, r.ID)
	if err != nil {
		return false, 0, err
	}
	_, err = c.updateMetadata(ctx, l, r.ID, metadata)
	if err != nil {
		answer, transient, _, fatal := refusedFor(err)
		switch {
		case fatal != nil:
			return false, 0, fatal
		case transient:
			return c.later(ctx, r.ID, answer)
		}
		return false, 0, errors.Join(c.giveUpAll(ctx, r.ID, answer), c.changeRoom(ctx, r.ID, func(r *storedRoom) { r.State = GroupRemoved }))
	}
	c.outbox.set()
	return true, 0, c.changeRoom(ctx, r.ID, func(r *storedRoom) { r.Created = true })
}

func (c *Client) updateMetadata(ctx context.Context, l *link, id rpc.ChannelID, metadata []byte) (*qpcpb.UpdateGroupMetadataResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return qpcpb.NewGroupClient(l.rpc).UpdateGroupMetadata(ctx, &qpcpb.UpdateGroupMetadataRequest{GroupId: id[:], Metadata: metadata})
}

// sealedName seals the name of a group for its present members.
func (c *Client) sealedName(ctx context.Context, id rpc.ChannelID) (sealed []byte, epoch uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.room(ctx, id)
	if err != nil {
		return nil, 0, err
	}
	g, err := c.newest(ctx, id)
	if err != nil || g == nil || r.Name == "" {
		return nil, 0, err
	}
	plain, err := (&e2ee.Message{Type: e2ee.TypeDummy, Note: &e2ee.GroupNote{Kind: e2ee.NoteInfo, Name: r.Name, Revision: r.Revision}}).Encode()
	if err != nil {
		return nil, 0, err
	}
	sealed, err = g.mls.SealMetadata(c.options.Rand, plain)
	return sealed, g.mls.Epoch(), err
}

// reseal replaces the metadata at the server by what the present members, and
// nobody else, can read.
func (c *Client) reseal(ctx context.Context, l *link, id rpc.ChannelID) (again bool, wait time.Duration, err error) {
	metadata, epoch, err := c.sealedName(ctx, id)
	if err != nil {
		return false, 0, err
	}
	if metadata != nil {
		if _, err = c.updateMetadata(ctx, l, id, metadata); err != nil {
			answer, transient, gone, fatal := refusedFor(err)
			switch {
			case fatal != nil:
				return false, 0, fatal
			case transient:
				return c.later(ctx, id, answer)
			case gone:
				return false, 0, c.gone(ctx, id)
			}
			c.options.Log.Warn("the name of a group is not stored at the server", "error", answer)
		}
	}
	return true, 0, c.changeRoom(ctx, id, func(r *storedRoom) {
		if g, err := c.newest(ctx, id); err == nil && g != nil && (metadata == nil || g.mls.Epoch() == epoch) {
			r.Reseal = false
		}
	})
}

// changeRoom changes the record of a group.
func (c *Client) changeRoom(ctx context.Context, id rpc.ChannelID, change func(*storedRoom)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.room(ctx, id)
	if err != nil {
		return err
	}
	change(&r)
	b := c.box.batch()
	b.put(roomKey(id), r)
	return b.apply(ctx)
}

// giveUp ends a wish that cannot be fulfilled, or with nil one that is.
func (c *Client) giveUp(ctx context.Context, key string, id rpc.ChannelID, why error) error {
	c.mu.Lock()
	b := c.box.batch()
	b.remove(key)
	err := b.apply(ctx)
	told := err == nil && c.fulfilled(key, why)
	c.work(id).tries = 0
	c.mu.Unlock()
	c.outbox.set()
	if err == nil && why != nil && !told {
		c.emit(ctx, Event{Kind: EventGroupWaiting, Group: id, Err: why})
	}
	return err
}

// giveUpAll ends whatever was wanted of a group that this client is not in any
// more.
func (c *Client) giveUpAll(ctx context.Context, id rpc.ChannelID, why error) error {
	if err := c.discard(ctx, id); err != nil {
		return err
	}
	var keys []string
	err := list(ctx, c.box, prefixWish, func(key string, w wish) (bool, error) {
		if w.Group == id {
			keys = append(keys, key)
		}
		return true, nil
	})
	for _, key := range keys {
		err = errors.Join(err, c.giveUp(ctx, key, id, why))
	}
	return err
}

// plan is the commit that a wish asks for now.
type plan struct {
	add    []rpc.IdentityKey // whose key packages are needed
	remove []rpc.IdentityKey // from the MLS group
	renew  []rpc.IdentityKey // of those, who come anew
	delist []rpc.IdentityKey // from the server's list
	done   bool              // what was wanted is there
}

// planFor says what is missing of a wish, given who stands in the MLS group and
// in the server's list.
func planFor(w *wish, leaving, members, listed []rpc.IdentityKey) (p plan) {
	in := func(list []rpc.IdentityKey, id rpc.IdentityKey) bool { return slices.Contains(list, id) }
	for _, id := range leaving {
		if in(members, id) {
			p.remove = append(p.remove, id)
		}
	}
	if w == nil {
		return p
	}
	switch w.Kind {
	case wishAdd:
		for _, id := range w.Who {
			switch {
			case in(p.remove, id): // they come back once they are out
			case !in(members, id) && len(p.add) < maxAddsPerCommit:
				p.add = append(p.add, id)
			case in(members, id) && in(w.Renew, id):
				p.remove, p.renew = append(p.remove, id), append(p.renew, id)
			}
		}
		p.done = len(p.add)+len(p.renew) == 0 && !slices.ContainsFunc(w.Who, func(id rpc.IdentityKey) bool { return !in(members, id) || in(p.remove, id) })
	case wishRemove:
		for _, id := range w.Who {
			if in(members, id) && !in(p.remove, id) {
				p.remove = append(p.remove, id)
			}
			if in(listed, id) {
				p.delist = append(p.delist, id)
			}
		}
		p.done = !slices.ContainsFunc(w.Who, func(id rpc.IdentityKey) bool { return in(members, id) || in(listed, id) })
	}
	return p
}

// draft makes the commit for a wish, or for those who have left, and stores it
// with its request.
func (c *Client) draft(ctx context.Context, l *link, t task) (again bool, wait time.Duration, err error) {
	id := t.room.ID
	earlier, err := c.Group(ctx, id)
	if err != nil {
		return false, 0, err
	}
	response, err := c.listGroup(ctx, l, id)
	if err != nil {
		return c.notPrepared(ctx, t, err)
	}
	listed, owner := listedIn(response)
	c.mu.Lock()
	g, err := c.newest(ctx, id)
	var epoch uint64
	var members []rpc.IdentityKey
	renew := false
	if err == nil && g != nil {
		epoch, members = g.mls.Epoch(), fromE2EE(g.mls.Identities())
		renew = g.mls.ProposalsWait() || g.old(c.options.Now())
	}
	c.mu.Unlock()
	switch {
	case err != nil || g == nil:
		return false, 0, err
	case epoch < response.Epoch:
		return c.behind(ctx, l, id, response.Epoch)
	case epoch > response.Epoch && earlier.Epoch <= response.Epoch:
		return true, 0, nil // a commit has come while the answer was on its way
	case epoch > response.Epoch:
		return c.notPrepared(ctx, t, rpc.Errorf(qpcpb.CodeChannelAccessDenied, "the server has lost changes of this group, perhaps by an old backup; make a new group"))
	}
	p := planFor(t.wish, t.room.Leaving, members, listed)
	switch {
	case t.wish == nil && len(p.remove) == 0 && !renew:
		return true, 0, nil // somebody else has done it
	case p.done && len(p.remove) == 0:
		return true, 0, c.giveUp(ctx, t.key, id, nil)
	case len(p.delist) > 0 && owner != c.Identity():
		return true, 0, c.giveUp(ctx, t.key, id, ErrNotOwner)
	case t.wish != nil && t.wish.Kind == wishRemove && len(p.remove) == 0:
		// They stand in no MLS group of ours: the server's list is all.
		for _, who := range p.delist {
			if err := c.delist(ctx, l, id, who); err != nil {
				return c.notPrepared(ctx, t, err)
			}
		}
		return true, 0, nil
	case len(members) == 1 && len(p.add) == 0:
		if t.wish != nil {
			return true, 0, c.giveUp(ctx, t.key, id, nil) // nobody to renew keys with
		}
		return false, 0, nil
	}
	packages, err := c.packagesFor(ctx, l, t, p.add)
	if err == nil {
		err = c.refreshHybrids(ctx, l, slices.Concat(listed, p.add))
	}
	if err != nil {
		return c.notPrepared(ctx, t, err)
	}
	if err := c.stage(ctx, t, p, epoch, listed, packages); err != nil {
		if errors.Is(err, errMoved) {
			return true, 0, nil
		}
		return c.notPrepared(ctx, t, err)
	}
	return true, 0, nil
}

// errMoved reports a group that has changed while its next commit was prepared.
var errMoved = errors.New("the group has changed meanwhile")

// notPrepared decides what an error on the way to a commit means.
func (c *Client) notPrepared(ctx context.Context, t task, err error) (again bool, wait time.Duration, _ error) {
	id := t.room.ID
	if errors.Is(err, errNoKeys) || errors.Is(err, ErrGroupTooLarge) || errors.Is(err, errHybridGone) || errors.Is(err, e2ee.ErrNotAllowed) {
		if t.wish != nil {
			return true, 0, c.giveUp(ctx, t.key, id, err)
		}
		c.holdUp(id, groupRetry)
		c.emit(ctx, Event{Kind: EventGroupWaiting, Group: id, Err: err})
		return false, groupRetry, nil
	}
	answer, transient, gone, fatal := refusedFor(err)
	switch {
	case fatal != nil:
		return false, 0, fatal
	case transient:
		return c.later(ctx, id, answer)
	case gone:
		return false, 0, c.gone(ctx, id)
	case t.wish != nil:
		return true, 0, c.giveUp(ctx, t.key, id, answer)
	}
	return c.later(ctx, id, answer)
}

// delist takes somebody out of the server's list.
func (c *Client) delist(ctx context.Context, l *link, id rpc.ChannelID, who rpc.IdentityKey) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := qpcpb.NewGroupClient(l.rpc).RemoveMember(ctx, &qpcpb.RemoveMemberRequest{GroupId: id[:], IdentityKey: who[:]})
	return err
}

// offer sends a commit to the server and does what the answer says.
func (c *Client) offer(ctx context.Context, l *link, id rpc.ChannelID, rotate storedRotate) (again bool, wait time.Duration, err error) {
	var request qpcpb.RotateKeysRequest
	if err := proto.Unmarshal(rotate.Request, &request); err != nil {
		return false, 0, fmt.Errorf("reading a stored commit: %w", err)
	}
	calling, cancel := context.WithTimeout(ctx, callTimeout)
	response, err := qpcpb.NewGroupClient(l.rpc).RotateKeys(calling, &request)
	cancel()
	if err != nil {
		answer, transient, gone, fatal := refusedFor(err)
		switch {
		case fatal != nil:
			return false, 0, fatal
		case transient:
			return c.later(ctx, id, answer)
		}
		if err := c.discard(ctx, id); err != nil {
			return false, 0, err
		}
		switch {
		case gone:
			return false, 0, c.gone(ctx, id)
		case answer.Code == qpcpb.CodeInvalidField: // the list of members has changed
			return c.lostRace(ctx, l, id, rotate.Wish)
		case rotate.Wish != "":
			return true, 0, c.giveUp(ctx, rotate.Wish, id, answer)
		}
		return c.later(ctx, id, answer)
	}
	if !response.Accepted {
		if err := c.discard(ctx, id); err != nil {
			return false, 0, err
		}
		return c.lostRace(ctx, l, id, rotate.Wish)
	}
	events, err := c.merge(ctx, id)
	c.tell(ctx, events)
	return true, 0, err
}

// lostRace waits for the winner's commit before the next try.
func (c *Client) lostRace(ctx context.Context, l *link, id rpc.ChannelID, wish string) (again bool, wait time.Duration, err error) {
	l.arrivals.add(nil) // the winner's commit lies in the queue
	c.mu.Lock()
	w := c.work(id)
	w.tries++
	tries := w.tries
	c.mu.Unlock()
	if tries > maxTries && wish != "" {
		return true, 0, c.giveUp(ctx, wish, id, ErrGroupBusy)
	}
	wait = tryStep/4 + rand.N(tryStep)
	c.holdUp(id, wait)
	return false, wait, nil
}

// discard forgets a commit that was refused.
func (c *Client) discard(ctx context.Context, id rpc.ChannelID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, err := c.newest(ctx, id)
	if err != nil {
		return err
	}
	b := c.box.batch()
	b.remove(rotateKey(id))
	if g != nil {
		if _, _, waits := g.mls.PendingCommit(); waits { // the winner's commit may have voided it
			if err := g.mls.DiscardCommit(); err != nil {
				return err
			}
			g.save(b, id)
		}
	}
	if err := b.apply(ctx); err != nil {
		c.forget(id)
		return err
	}
	return nil
}

// merge enters the epoch of the commit that the server has accepted.
func (c *Client) merge(ctx context.Context, id rpc.ChannelID) (events []Event, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var rotate storedRotate
	if known, err := c.box.get(ctx, rotateKey(id), &rotate); err != nil || !known {
		return nil, err // its echo came first
	}
	r, err := c.room(ctx, id)
	if err != nil {
		return nil, err
	}
	g, err := c.newest(ctx, id)
	if err != nil || g == nil {
		return nil, err
	}
	b := c.box.batch()
	commit, _, waits := g.mls.PendingCommit()
	if waits && sha256.Sum256(commit) == rotate.Commit {
		before := fromE2EE(g.mls.Identities())
		event, err := g.mls.MergeCommit()
		if err != nil {
			return nil, err
		}
		if events, err = c.entered(ctx, b, &r, g, before, event); err != nil {
			c.forget(id)
			return nil, err
		}
	} else {
		// The server has accepted two commits for one epoch. Ours is void; what
		// was wanted is tried again.
		c.options.Log.Error("the server has accepted another commit beside ours", "group", id)
		b.remove(rotateKey(id))
	}
	if err := b.apply(ctx); err != nil {
		c.forget(id)
		return nil, err
	}
	c.work(id).tries = 0
	late, err := c.openHeld(ctx, id)
	return append(events, late...), err
}

// entered does what belongs to a new epoch, however it came. before are the
// members until then. The caller holds c.mu and applies the batch.
func (c *Client) entered(ctx context.Context, b *batch, r *storedRoom, g *chatGroup, before []rpc.IdentityKey, event *e2ee.Event) (events []Event, err error) {
	after := fromE2EE(g.mls.Identities())
	without := func(a, b []rpc.IdentityKey) (out []rpc.IdentityKey) {
		for _, id := range a {
			if !slices.Contains(b, id) {
				out = append(out, id)
			}
		}
		return out
	}
	added, gone := without(after, before), without(before, after)
	removed := without(gone, r.Leaving) // who left was told of already
	r.Leaving = without(r.Leaving, gone)
	g.made, g.sent = c.options.Now(), 0
	g.save(b, r.ID)
	by := rpc.IdentityKey(event.Sender.Identity)
	for _, n := range []Notice{{Change: MemberAdded, Who: added}, {Change: MemberRemoved, Who: removed}} {
		if len(n.Who) == 0 {
			continue
		}
		told, err := c.putNotice(ctx, b, *r, by, n)
		if err != nil {
			return nil, err
		}
		events = append(events, told...)
	}
	if event.Own {
		var rotate storedRotate
		if known, err := c.box.get(ctx, rotateKey(r.ID), &rotate); err != nil {
			return nil, err
		} else if known {
			b.remove(rotateKey(r.ID))
			if err := c.granted(ctx, b, rotate); err != nil {
				return nil, err
			}
		}
		r.Reseal = r.Reseal || len(added)+len(gone) > 0
		if len(added) > 0 && r.Name != "" {
			if err := c.putNote(ctx, b, r.ID, e2ee.GroupNote{Kind: e2ee.NoteInfo, Name: r.Name, Revision: r.Revision}); err != nil {
				return nil, err
			}
		}
	}
	b.put(roomKey(r.ID), *r)
	w := c.work(r.ID)
	w.gapSince, w.leaveAt = time.Time{}, time.Time{}
	c.commits.set()
	c.outbox.set()
	return events, nil
}

// granted notes in a wish what its commit has done.
func (c *Client) granted(ctx context.Context, b *batch, rotate storedRotate) error {
	if rotate.Wish == "" {
		return nil
	}
	var w wish
	if known, err := c.box.get(ctx, rotate.Wish, &w); err != nil || !known {
		return err
	}
	if w.Kind == wishRotate {
		b.remove(rotate.Wish)
		c.fulfilled(rotate.Wish, nil)
		return nil
	}
	w.Renew = slices.DeleteFunc(w.Renew, func(id rpc.IdentityKey) bool { return slices.Contains(rotate.Renewed, id) })
	b.put(rotate.Wish, w)
	return nil
}
