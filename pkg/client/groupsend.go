package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// A message to a group is encrypted once, and put into a hybrid envelope for
// each member when it goes out. A member who cannot be sent to now, since their
// queue is full, say, holds up nobody: the entry stays in the outbox for them
// alone.
//
// An entry that waits while the group moves on is encrypted again for the
// present epoch, under a new id: the readers know the message by its own id and
// show it once.

const (
	// maxBatch is how many recipients one BatchEnqueue has.
	maxBatch = 256
	// maxBatchBytes bounds its payloads: a frame, less keys and ids.
	maxBatchBytes = frame.MaxPayload - 32<<10
	// maxSlow is how long a member may hold their messages up before they are
	// given up: what the server keeps of others is gone by then too.
	maxSlow = 7 * 24 * time.Hour
	// groupNotReady is how long an entry waits for a group that is not ready for
	// it, if nothing wakes it before.
	groupNotReady = time.Second
)

// slowMember is a member of a group who cannot be sent to for now.
type slowMember struct {
	group  rpc.ChannelID
	member rpc.IdentityKey
}

// groupSealed is an entry that has been encrypted.
type groupSealed struct {
	Epoch   uint64
	Message []byte              // an MLSMessage
	Seed    [e2ee.SeedSize]byte // of the envelopes, so that a repetition is the same bytes
	To      []sealedFor
	Reached int  // how many have it
	Told    bool // the rest are slow, and the sender was told that it is sent
}

// sealedFor is a member who does not have the message yet.
type sealedFor struct {
	Member rpc.IdentityKey
	// Hybrid is a hash of the key of the envelope: with another key it would be
	// other bytes under the same id.
	Hybrid [8]byte
}

func hybridHash(key []byte) (out [8]byte) {
	sum := sha256.Sum256(key)
	copy(out[:], sum[:])
	return out
}

// sendToGroup sends one entry to a group. pause is how long the whole
// conversation must wait, retry how long the entry must for some of its members.
// began is when this round through the outbox began: a member who was slow then
// is passed over by every entry of the round, so that they get all in order.
func (c *Client) sendToGroup(ctx context.Context, l *link, key string, out outgoing, began time.Time) (pause, retry time.Duration, err error) {
	ready, why, err := c.groupReady(ctx, l, key, out)
	if err != nil {
		return 0, 0, err
	}
	if !ready {
		if errors.Is(why, ErrNotInGroup) {
			return 0, 0, c.finish(ctx, key, out, StatusFailed, why.Error())
		}
		if why != nil {
			c.emit(ctx, Event{Kind: EventWaiting, Group: out.Group, Err: why})
		}
		return groupNotReady, 0, nil
	}
	if out.Leave {
		return c.sendLeave(ctx, l, key, out)
	}
	members, err := c.recipients(ctx, out.Group)
	if err != nil {
		return 0, 0, err
	}
	if err := c.refreshHybrids(ctx, l, members); err != nil {
		pause, err := c.groupRefused(ctx, key, out, err)
		return pause, 0, err
	}
	out, ok, err := c.sealForGroup(ctx, key, out)
	if err != nil || !ok {
		return groupNotReady, 0, err
	}
	pause, err = c.post(ctx, l, key, &out, began)
	if err != nil || pause > 0 {
		return pause, 0, err
	}
	return c.posted(ctx, key, out, began)
}

// groupReady reports whether an entry may go out. why says what is wrong where a
// person should know.
func (c *Client) groupReady(ctx context.Context, l *link, key string, out outgoing) (ready bool, why, err error) {
	if !l.caughtUp.Load() {
		return false, nil, nil // what is sent in an epoch long over nobody can read
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.room(ctx, out.Group)
	switch {
	case err != nil:
		return false, nil, err
	case r.State != GroupActive && r.State != GroupLost:
		return false, ErrNotInGroup, nil
	case !r.Created:
		return false, nil, nil
	case out.Leave:
		// A commit of ours that is on its way is settled first.
		known, err := c.box.get(ctx, rotateKey(out.Group), new(storedRotate))
		return !known, nil, err
	case r.State == GroupLost && out.MessageNo == 0:
		return false, ErrNotInGroup, nil // nobody could read it, and nobody misses it
	case r.State == GroupLost:
		return false, ErrGroupLost, nil
	}
	ready = true
	err = list(ctx, c.box, prefixWish, func(k string, w wish) (bool, error) {
		if w.Group == out.Group && k[len(prefixWish):] < key[len(prefixOut):] {
			ready = false // who is to be invited first should read it
		}
		return ready, nil
	})
	return ready, nil, err
}

// recipients returns who gets what is sent to a group now.
func (c *Client) recipients(ctx context.Context, id rpc.ChannelID) ([]rpc.IdentityKey, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recipientsLocked(ctx, id)
}

func (c *Client) recipientsLocked(ctx context.Context, id rpc.ChannelID) ([]rpc.IdentityKey, error) {
	r, err := c.room(ctx, id)
	if err != nil {
		return nil, err
	}
	g, err := c.newest(ctx, id)
	if err != nil || g == nil {
		return nil, err
	}
	return slices.DeleteFunc(fromE2EE(g.mls.Identities()), func(m rpc.IdentityKey) bool {
		return slices.Contains(r.Leaving, m) || m == c.Identity() && !c.otherDevices(g)
	}), nil
}

// sealForGroup encrypts an entry for the present epoch, unless it is, and stores
// the outcome with the key that it used up. ok is false when the group cannot
// take it now.
func (c *Client) sealForGroup(ctx context.Context, key string, out outgoing) (_ outgoing, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, err := c.newest(ctx, out.Group)
	if err != nil || g == nil || !g.mls.Active() {
		return out, false, err
	}
	members, err := c.recipientsLocked(ctx, out.Group)
	if err != nil {
		return out, false, err
	}
	to := members
	if s := out.Sealed; s != nil && s.Told {
		// It is late for these alone; who came meanwhile has later ones already.
		to = nil
		for _, t := range s.To {
			if slices.Contains(members, t.Member) {
				to = append(to, t.Member)
			}
		}
	}
	fresh := make([]sealedFor, 0, len(to))
	for _, m := range to {
		hybrid := c.hybrid.Public()
		if m != c.Identity() {
			p, err := c.contact(ctx, m)
			if err != nil {
				return out, false, err
			}
			if hybrid = p.Hybrid; hybrid == nil {
				continue // nothing is sent without, and one who is added has one
			}
		}
		fresh = append(fresh, sealedFor{m, hybridHash(hybrid)})
	}
	if s := out.Sealed; s != nil && s.Epoch == g.mls.Epoch() && !slices.ContainsFunc(s.To, func(t sealedFor) bool { return !slices.Contains(fresh, t) }) {
		return out, true, nil
	}
	if g.mls.ProposalsWait() {
		c.commits.set() // a commit is made first
		return out, false, nil
	}
	sealed := &groupSealed{Epoch: g.mls.Epoch(), To: fresh}
	if out.Sealed != nil {
		sealed.Told = out.Sealed.Told
		if out.ID, err = e2ee.NewMessageID(c.options.Rand, c.options.Now()); err != nil {
			return out, false, err
		}
	}
	if _, err := io.ReadFull(c.options.Rand, sealed.Seed[:]); err != nil {
		return out, false, fmt.Errorf("encrypting: %w", err)
	}
	if sealed.Message, err = g.mls.Encrypt(out.App); err != nil {
		return out, false, fmt.Errorf("encrypting: %w", err)
	}
	g.sent++
	out.Sealed = sealed
	b := c.box.batch()
	g.save(b, out.Group)
	b.put(key, out)
	if err := b.apply(ctx); err != nil {
		c.forget(out.Group)
		return out, false, err
	}
	return out, true, nil
}

// post enqueues an entry for those who do not have it. It returns how long the
// conversation must wait when the server refuses the call for now.
func (c *Client) post(ctx context.Context, l *link, key string, out *outgoing, began time.Time) (pause time.Duration, err error) {
	s := out.Sealed
	var due []rpc.IdentityKey
	c.mu.Lock()
	for _, t := range s.To {
		if !c.slow[slowMember{out.Group, t.Member}].After(began) {
			due = append(due, t.Member)
		}
	}
	c.mu.Unlock()
	each := len(s.Message) + e2ee.HybridOverhead + 64
	for chunk := range slices.Chunk(due, max(1, min(maxBatch, maxBatchBytes/each))) {
		request := &qpcpb.BatchEnqueueRequest{ChannelId: out.Group[:], MessageId: out.ID[:]}
		for _, m := range chunk {
			payload, err := c.envelopeFor(ctx, s, m)
			if err != nil {
				return 0, err
			}
			request.RecipientKeys = append(request.RecipientKeys, slices.Clone(m[:]))
			request.Payloads = append(request.Payloads, payload)
		}
		calling, cancel := context.WithTimeout(ctx, callTimeout)
		response, err := c.enqueueBatchAt(calling, l.rpc, request)
		cancel()
		unproven := errors.As(err, new(*ErrDeliveryProof))
		if unproven {
			c.emit(ctx, Event{Kind: EventWaiting, Group: out.Group, Err: err})
		}
		if err != nil && (!unproven || response == nil) {
			return c.groupRefused(ctx, key, *out, err)
		}
		c.noteResults(out, chunk, response.Results, unproven)
		c.mu.Lock()
		b := c.box.batch()
		b.put(key, *out)
		err = b.apply(ctx)
		c.mu.Unlock()
		if err != nil {
			return 0, err
		}
	}
	return 0, nil
}

func (c *Client) envelopeFor(ctx context.Context, s *groupSealed, member rpc.IdentityKey) ([]byte, error) {
	hybrid := c.hybrid.Public()
	if member != c.Identity() {
		p, err := c.contact(ctx, member)
		if err != nil {
			return nil, err
		}
		hybrid = p.Hybrid
	}
	return e2ee.SealHybridRepeatably(s.Seed, hybrid, e2ee.IdentityKey(member), s.Message)
}

// noteResults takes out of an entry who has it now, and who never will.
func (c *Client) noteResults(out *outgoing, members []rpc.IdentityKey, results []*qpcpb.EnqueueResult, unproven bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, m := range members {
		switch status := qpcpb.Status(results[i].Status); status {
		case qpcpb.StatusOK:
			out.Sealed.Reached++
		case qpcpb.StatusForbidden, qpcpb.StatusNotFound:
			// They are not in the group any more, or we are not.
			c.lookAfterLocked(out.Group, 0)
		case qpcpb.StatusBadRequest, qpcpb.StatusPayloadTooLarge:
			c.options.Log.Warn("a member's server does not take a message", "status", status)
		default:
			wait := pauseAfterRefusal
			if unproven {
				wait = pauseUnproven
			}
			c.slow[slowMember{out.Group, m}] = c.options.Now().Add(wait)
			continue
		}
		out.Sealed.To = slices.DeleteFunc(out.Sealed.To, func(t sealedFor) bool { return t.Member == m })
	}
}

// posted decides what remains of an entry after a round.
func (c *Client) posted(ctx context.Context, key string, out outgoing, began time.Time) (pause, retry time.Duration, err error) {
	s := out.Sealed
	c.mu.Lock()
	g, err := c.newest(ctx, out.Group)
	if err != nil {
		c.mu.Unlock()
		return 0, 0, err
	}
	// Others were so fast that nobody can read it any more: once more, then.
	tooLate := g != nil && g.mls.Active() && g.mls.Epoch() > s.Epoch+e2ee.PastEpochs && s.Reached > 0
	if tooLate && !s.Told {
		out.Sealed = nil
		if out.ID, err = e2ee.NewMessageID(c.options.Rand, c.options.Now()); err == nil {
			b := c.box.batch()
			b.put(key, out)
			err = b.apply(ctx)
		}
		c.mu.Unlock()
		c.outbox.set()
		return time.Millisecond, 0, err
	}
	c.mu.Unlock()
	age := c.options.Now().Sub(out.Made)
	switch {
	case len(s.To) == 0 && s.Reached == 0 && !s.Told && out.MessageNo != 0 && !c.alone(ctx, out.Group):
		return 0, 0, c.finish(ctx, key, out, StatusFailed, "nobody in the group could be reached")
	case len(s.To) == 0 && !s.Told:
		return 0, 0, c.finish(ctx, key, out, StatusSent, "")
	case len(s.To) == 0, age > maxSlow, age < -maxSlow:
		out.MessageNo = 0 // its status was told
		return 0, 0, c.finish(ctx, key, out, StatusSent, "")
	}
	retry = pauseAfterRefusal
	if s.Told {
		return 0, retry, nil
	}
	s.Told = true
	c.mu.Lock()
	b := c.box.batch()
	b.put(key, out)
	told, err := c.settle(ctx, b, out, StatusSent, "")
	if err == nil {
		err = b.apply(ctx)
	}
	c.mu.Unlock()
	for _, event := range told {
		c.emit(ctx, event)
	}
	return 0, retry, err
}

// alone reports whether a group has no other member.
func (c *Client) alone(ctx context.Context, id rpc.ChannelID) bool {
	members, err := c.recipients(ctx, id)
	return err == nil && len(members) == 0
}

// groupRefused decides what an error of a call means for an entry.
func (c *Client) groupRefused(ctx context.Context, key string, out outgoing, err error) (pause time.Duration, _ error) {
	answer, transient, gone, fatal := refusedFor(err)
	switch {
	case fatal != nil:
		return 0, fatal
	case transient:
		if answer.Status != qpcpb.StatusRateLimited {
			c.emit(ctx, Event{Kind: EventWaiting, Group: out.Group, Err: err})
		}
		return waitAfter(answer), nil
	case gone:
		c.lookAfter(out.Group, 0)
		return groupNotReady, nil
	}
	return 0, c.finish(ctx, key, out, StatusFailed, answer.Message)
}

// sendLeave tells the server that we leave.
func (c *Client) sendLeave(ctx context.Context, l *link, key string, out outgoing) (pause, retry time.Duration, err error) {
	err = c.delist(ctx, l, out.Group, c.Identity())
	if err != nil {
		answer, transient, gone, fatal := refusedFor(err)
		switch {
		case fatal != nil:
			return 0, 0, fatal
		case transient:
			return waitAfter(answer), 0, nil
		case !gone:
			c.options.Log.Warn("the server does not let us leave a group", "error", answer)
		}
	}
	c.mu.Lock()
	events, err := c.depart(ctx, key, out.Group)
	c.mu.Unlock()
	c.tell(ctx, events)
	c.commits.set()
	return 0, 0, err
}

// depart forgets the keys of a group that we have left. The caller holds c.mu.
func (c *Client) depart(ctx context.Context, key string, id rpc.ChannelID) ([]Event, error) {
	r, err := c.room(ctx, id)
	if err != nil {
		return nil, err
	}
	groups, err := c.load(ctx, id)
	if err != nil {
		return nil, err
	}
	b := c.box.batch()
	b.remove(key)
	for _, g := range groups {
		b.remove(groupKey(id, g.n))
		b.remove(chainKey(id, g.n))
	}
	err = list(ctx, c.box, heldPrefix(id), func(k string, _ held) (bool, error) {
		b.remove(k)
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	r.State, r.Quit, r.Leaving, r.Welcome, r.Reseal = GroupLeft, false, nil, nil, false
	b.put(roomKey(id), r)
	events, err := c.putNotice(ctx, b, r, c.Identity(), Notice{Change: MemberLeft, Who: []rpc.IdentityKey{c.Identity()}})
	if err != nil {
		return nil, err
	}
	if err := b.apply(ctx); err != nil {
		return nil, err
	}
	c.forget(id)
	c.fulfilled(key, nil)
	return events, nil
}
