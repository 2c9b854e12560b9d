package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

const (
	// pauseAfterRefusal is how long a contact waits whose messages the server
	// refused for now, unless it says how long.
	pauseAfterRefusal = 5 * time.Second
	// pauseWithoutKeys is how long a contact waits who has no key packages:
	// they must come online once.
	pauseWithoutKeys = 15 * time.Second
	// pauseUnproven is how long a contact waits whose message the server has
	// answered without a good delivery proof: a person must look.
	pauseUnproven = 30 * time.Second
	// typingTimeout bounds a typing notice on its way; it is never stored.
	typingTimeout = 5 * time.Second
	// MaxChunk is the largest piece of a long text that goes into one message,
	// so that the padded message, in its envelope, still rides inside its push
	// event (32 KiB).
	MaxChunk = 15 << 10
)

// Send stores a text for a peer and returns it; it goes out as soon as it can,
// after everything stored before it. Part is PartWhole but for the pieces of a
// long text. See SendTo for groups and for messages of other types.
func (c *Client) Send(ctx context.Context, peer rpc.IdentityKey, text string, part e2ee.Part) (Message, error) {
	return c.SendTo(ctx, WithPeer(peer), &e2ee.Message{Type: e2ee.TypeChat, Text: text, Part: part})
}

// SendTo stores a message of any type for a conversation and returns it as the
// conversation shows it; it goes out as soon as it can, after everything stored
// for the conversation before it. It sets the time of sending, and an id where
// there is none.
func (c *Client) SendTo(ctx context.Context, to Conversation, m *e2ee.Message) (Message, error) {
	if m.ID == (e2ee.MessageID{}) {
		id, err := e2ee.NewMessageID(c.options.Rand, c.options.Now())
		if err != nil {
			return Message{}, err
		}
		m.ID = id
	}
	return c.enqueueTo(ctx, to, m)
}

// MarkRead tells a peer that their message was read.
func (c *Client) MarkRead(ctx context.Context, m Message) error {
	// In a group everybody would tell everybody, so nobody does.
	if m.Mine || m.ID == (e2ee.MessageID{}) || m.Group != (rpc.ChannelID{}) {
		return nil
	}
	_, err := c.enqueue(ctx, m.Peer, &e2ee.Message{Type: e2ee.TypeReadReceipt, Ref: m.ID})
	return err
}

// enqueue is enqueueTo for a peer.
func (c *Client) enqueue(ctx context.Context, peer rpc.IdentityKey, m *e2ee.Message) (Message, error) {
	return c.enqueueTo(ctx, WithPeer(peer), m)
}

// enqueueTo stores an application message in the outbox and, when it is one that
// people see, in the conversation.
func (c *Client) enqueueTo(ctx context.Context, to Conversation, m *e2ee.Message) (Message, error) {
	now := c.options.Now()
	m.SentAtMS = uint64(max(now.UnixMilli(), 0))
	app, err := m.Encode()
	if err != nil {
		return Message{}, err
	}
	envelopeID, err := e2ee.NewMessageID(c.options.Rand, now)
	if err != nil {
		return Message{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if to.IsGroup() {
		if r, err := c.room(ctx, to.Group); err != nil {
			return Message{}, err
		} else if r.State != GroupActive && r.State != GroupLost || r.Quit {
			return Message{}, ErrNotInGroup
		}
	}
	b := c.box.batch()
	shown := Message{Peer: to.Peer, Group: to.Group, Mine: true, ID: m.ID, Type: m.Type, Ref: m.Ref, Text: m.Text, Part: m.Part, SentAt: now, Status: StatusQueued}
	if to.IsGroup() {
		shown.Peer = c.Identity()
	}
	out := outgoing{Peer: to.Peer, Group: to.Group, ID: envelopeID, App: app, Made: now}
	if m.Type == e2ee.TypeFileRef {
		shown.Name, shown.Size, shown.File = m.Name, m.Size, fileOf(m)
	}
	if m.Type == e2ee.TypeChat || m.Type == e2ee.TypeFileRef {
		if shown.No, err = c.nextNumber(ctx, b); err != nil {
			return Message{}, err
		}
		out.MessageNo = shown.No
		b.put(shown.key(), shown)
		b.put(shown.idKey(), shown.No)
	}
	n, err := c.nextNumber(ctx, b)
	if err != nil {
		return Message{}, err
	}
	b.put(outKey(n), out)
	if err := b.apply(ctx); err != nil {
		return Message{}, err
	}
	c.outbox.set()
	return shown, nil
}

// Typing tells a peer, if they are there, that this user types or has stopped.
// It is a hint: nothing is stored, and failing is no matter.
func (c *Client) Typing(ctx context.Context, peer rpc.IdentityKey, on bool) error {
	l, err := c.online()
	if err != nil {
		return err
	}
	p, err := c.contact(ctx, peer)
	if err != nil || !p.HasChannel || p.Hybrid == nil {
		return err
	}
	app, err := (&e2ee.Message{Type: e2ee.TypeTyping, On: on}).Encode()
	if err != nil {
		return err
	}
	c.mu.Lock()
	payload, err := c.encrypt(ctx, p, app, nil)
	c.mu.Unlock()
	if err != nil || payload == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, typingTimeout)
	defer cancel()
	_, err = qpcpb.NewDeliveryClient(l.rpc).Enqueue(ctx, &qpcpb.EnqueueRequest{
		RecipientKey: peer[:], ChannelId: p.Channel[:], Payload: payload, Ephemeral: true,
	})
	return err
}

// Unsent returns how many entries wait to be sent.
func (c *Client) Unsent(ctx context.Context) (int, error) {
	n := 0
	err := list(ctx, c.box, prefixOut, func(string, outgoing) (bool, error) { n++; return true, nil })
	return n, err
}

// send empties the outbox again and again, until the connection ends.
func (c *Client) send(ctx context.Context, l *link) error {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-c.outbox:
		case <-retry.C:
		case <-ctx.Done():
			return nil
		}
		wait, err := c.sendAll(ctx, l)
		if err != nil {
			return err
		}
		if wait > 0 {
			retry.Reset(wait)
		}
	}
}

// sendAll sends what waits, in order, contact by contact: one who cannot be
// sent to holds up nobody else. It returns how long to wait for those.
func (c *Client) sendAll(ctx context.Context, l *link) (wait time.Duration, err error) {
	began := c.options.Now()
	err = list(ctx, c.box, prefixOut, func(key string, out outgoing) (bool, error) {
		now := c.options.Now()
		c.mu.Lock()
		until := c.paused[out.conversation()]
		c.mu.Unlock()
		if pause := until.Sub(now); pause > 0 {
			wait = shorter(wait, pause)
			return true, nil
		}
		send := c.sendOne
		if out.Group != (rpc.ChannelID{}) {
			send = func(ctx context.Context, l *link, key string, out outgoing) (time.Duration, error) {
				pause, retry, err := c.sendToGroup(ctx, l, key, out, began)
				wait = shorter(wait, retry)
				return pause, err
			}
		}
		pause, err := send(ctx, l, key, out)
		if err != nil {
			return false, err
		}
		if pause > 0 {
			c.mu.Lock()
			c.paused[out.conversation()] = now.Add(pause)
			c.mu.Unlock()
			wait = shorter(wait, pause)
		}
		return true, nil
	})
	return wait, err
}

// shorter returns the shorter of two waits, of which 0 is none.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return max(a, b)
	}
	return min(a, b)
}

// sendOne sends one entry. It returns how long the contact must wait when it
// cannot go out now, and an error when the connection is of no more use.
func (c *Client) sendOne(ctx context.Context, l *link, key string, out outgoing) (pause time.Duration, err error) {
	p, err := c.contact(ctx, out.Peer)
	if err != nil {
		return 0, err
	}
	if out.Payload == nil {
		if p, pause, err = c.ready(ctx, l, p); err != nil || pause > 0 {
			return c.refused(ctx, key, out, pause, err)
		}
		c.mu.Lock()
		out.Payload, err = c.encrypt(ctx, p, out.App, func(b *batch, payload []byte) {
			sealed := out
			sealed.App, sealed.Payload = nil, payload
			b.put(key, sealed)
		})
		c.mu.Unlock()
		if err != nil {
			return 0, err
		}
		if out.Payload == nil {
			return time.Second, nil // the group went away meanwhile
		}
	}
	_, err = c.call(ctx, l, &qpcpb.EnqueueRequest{
		RecipientKey: out.Peer[:], ChannelId: p.Channel[:], Payload: out.Payload, MessageId: out.ID[:],
	})
	if err != nil {
		return c.refused(ctx, key, out, 0, err)
	}
	return 0, c.finish(ctx, key, out, StatusSent, "")
}

// call makes an Enqueue. Without a delivery proof it has failed.
func (c *Client) call(ctx context.Context, l *link, request *qpcpb.EnqueueRequest) (*qpcpb.EnqueueResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.enqueueAt(ctx, l.rpc, request)
}

// finish removes an entry from the outbox and tells what became of it.
func (c *Client) finish(ctx context.Context, key string, out outgoing, status Status, problem string) error {
	c.mu.Lock()
	b := c.box.batch()
	b.remove(key)
	told, err := c.settle(ctx, b, out, status, problem)
	if err == nil {
		err = b.apply(ctx)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	for _, event := range told {
		c.emit(ctx, event)
	}
	return nil
}

// settle notes what became of the message of an entry. The caller holds c.mu and
// applies the batch.
func (c *Client) settle(ctx context.Context, b *batch, out outgoing, status Status, problem string) ([]Event, error) {
	if out.MessageNo == 0 {
		return nil, nil
	}
	var m Message
	key := out.conversation().messageKey(out.MessageNo)
	known, err := c.box.get(ctx, key, &m)
	if err != nil || !known || m.Status == StatusRead { // a quick reader may be first
		return nil, err
	}
	m.Status, m.Stored, m.Problem = status, c.options.Now(), problem
	if out.Sealed != nil {
		m.Epoch = out.Sealed.Epoch
	}
	b.put(key, m)
	return []Event{{Kind: EventStatus, Peer: out.Peer, Group: out.Group, Message: m}}, nil
}

// refused decides what an error means for an entry: wait, give it up, or give
// up the connection.
func (c *Client) refused(ctx context.Context, key string, out outgoing, pause time.Duration, err error) (time.Duration, error) {
	if err == nil {
		return pause, nil
	}
	var answer *rpc.Error
	if errors.Is(err, errHybridGone) || errors.Is(err, errNoKeys) {
		c.emit(ctx, Event{Kind: EventWaiting, Peer: out.Peer, PeerName: c.nameOf(ctx, out.Peer), Err: err})
		return pauseWithoutKeys, nil
	}
	if errors.As(err, new(*ErrDeliveryProof)) {
		c.emit(ctx, Event{Kind: EventWaiting, Peer: out.Peer, PeerName: c.nameOf(ctx, out.Peer), Err: err})
		return pauseUnproven, nil
	}
	if !errors.As(err, &answer) {
		return 0, err
	}
	switch answer.Status {
	case qpcpb.StatusRateLimited, qpcpb.StatusResourceExhausted, qpcpb.StatusUnavailable, qpcpb.StatusDeadlineExceeded, qpcpb.StatusInternal:
		c.emit(ctx, Event{Kind: EventWaiting, Peer: out.Peer, PeerName: c.nameOf(ctx, out.Peer), Err: err})
		if answer.RetryAfter > 0 {
			return answer.RetryAfter, nil
		}
		return pauseAfterRefusal, nil
	case qpcpb.StatusUnauthorized:
		return 0, err
	}
	return 0, c.finish(ctx, key, out, StatusFailed, answer.Message)
}

var (
	// errNoKeys reports a peer who has published no key packages.
	errNoKeys = errors.New("they have not published any keys yet; the message goes out when they have been online")
	// errHybridGone reports a server that no longer gives a peer's hybrid key.
	errHybridGone = errors.New("the server no longer gives their hybrid key; nothing is sent without it")
)

// encrypt makes the payload of an application message and stores it together
// with the key state that it used up; stored, when set, adds what belongs with
// it. It returns nil when there is no group. The caller holds c.mu.
func (c *Client) encrypt(ctx context.Context, p contact, app []byte, stored func(*batch, []byte)) ([]byte, error) {
	group, err := c.current(ctx, p.Channel, p.Identity)
	if err != nil || group == nil {
		return nil, err
	}
	message, err := group.mls.Encrypt(app)
	if err != nil {
		return nil, fmt.Errorf("encrypting: %w", err)
	}
	payload, err := c.wrap(p, message)
	if err != nil {
		c.forget(p.Channel)
		return nil, err
	}
	group.sent++
	b := c.box.batch()
	group.save(b, p.Channel)
	if stored != nil {
		stored(b, payload)
	}
	if err := b.apply(ctx); err != nil {
		c.forget(p.Channel)
		return nil, err
	}
	return payload, nil
}

// wrap puts a message into the hybrid envelope for a peer.
func (c *Client) wrap(p contact, message []byte) ([]byte, error) {
	return e2ee.SealHybrid(c.options.Rand, p.Hybrid, e2ee.IdentityKey(p.Identity), message)
}

// ready makes sure that there is a conversation to encrypt for: channel, keys,
// MLS group, and the Welcome delivered. It returns how long to wait when the
// other side is to begin it.
func (c *Client) ready(ctx context.Context, l *link, p contact) (contact, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var err error
	if !p.HasChannel {
		if p, err = c.openChannel(ctx, l, p); err != nil {
			return p, 0, err
		}
	}
	if p, err = c.refreshHybrid(ctx, l, p); err != nil {
		return p, 0, err
	}
	c.mu.Lock()
	group, err := c.current(ctx, p.Channel, p.Identity)
	c.mu.Unlock()
	if err != nil {
		return p, 0, err
	}
	if group == nil {
		if !p.Starter {
			// The peer asked first and begins; if nothing comes, this side does.
			p, err = c.update(ctx, p.Identity, func(p *contact) { p.Starter = true })
			return p, welcomeWait, err
		}
		if p, err = c.begin(ctx, l, p); err != nil {
			return p, 0, err
		}
	} else if p.Anew {
		if p, err = c.begin(ctx, l, p); err != nil {
			return p, 0, err
		}
	} else if group.old(c.options.Now()) {
		// Without a key package of theirs the old group must do.
		if renewed, err := c.begin(ctx, l, p); err == nil {
			p = renewed
		} else if !errors.Is(err, errNoKeys) {
			return p, 0, err
		}
	}
	if p.Welcome != nil {
		_, err := c.call(ctx, l, &qpcpb.EnqueueRequest{RecipientKey: p.Identity[:], Payload: p.Welcome, MessageId: p.WelcomeID[:]})
		if err != nil {
			return p, 0, err
		}
		if p, err = c.update(ctx, p.Identity, func(p *contact) { p.Welcome = nil }); err != nil {
			return p, 0, err
		}
	}
	return p, 0, nil
}

// openChannel asks the server for the channel of the pair.
func (c *Client) openChannel(ctx context.Context, l *link, p contact) (contact, error) {
	lost := p.Asked // an earlier answer, perhaps with was_new, never came
	p, err := c.update(ctx, p.Identity, func(p *contact) { p.Asked = true })
	if err != nil {
		return p, err
	}
	response, err := qpcpb.NewChannelClient(l.rpc).CreateChannel(ctx, &qpcpb.CreateChannelRequest{PeerKey: p.Identity[:]})
	if err != nil {
		return p, err
	}
	channel, ok, err := rpc.ParseChannelID("channel_id", response.ChannelId)
	if err != nil || !ok {
		return p, fmt.Errorf("%w: it named no channel", rpc.ErrProtocol)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, err = c.contact(ctx, p.Identity); err != nil {
		return p, err
	}
	p.Channel, p.HasChannel, p.Starter = channel, true, response.WasNew || lost
	b := c.box.batch()
	b.put(contactKey(p.Identity), p)
	b.put(channelKey(channel), p.Identity)
	return p, b.apply(ctx)
}

// refreshHybrid looks up the peer's hybrid key, once in the life of the
// program.
func (c *Client) refreshHybrid(ctx context.Context, l *link, p contact) (contact, error) {
	c.mu.Lock()
	fresh := p.Hybrid != nil && c.freshHybrid[p.Identity]
	c.mu.Unlock()
	if fresh {
		return p, nil
	}
	response, err := qpcpb.NewKeyClient(l.rpc).FetchHybridKey(ctx, &qpcpb.FetchHybridKeyRequest{IdentityKey: p.Identity[:]})
	if err != nil {
		return p, err
	}
	switch {
	case len(response.HybridPublicKey) == 0 && p.Hybrid != nil:
		return p, errHybridGone
	case len(response.HybridPublicKey) == 0:
		return p, errNoKeys
	}
	p, err = c.update(ctx, p.Identity, func(p *contact) {
		p.Anew = p.Anew || p.Hybrid != nil && !bytes.Equal(p.Hybrid, response.HybridPublicKey)
		p.Hybrid = response.HybridPublicKey
	})
	if err == nil {
		c.mu.Lock()
		c.freshHybrid[p.Identity] = true
		c.mu.Unlock()
	}
	return p, err
}

// takeKeyPackages takes one key package of each device of a peer, and checks
// that they are theirs. errNoKeys: there is none.
func (c *Client) takeKeyPackages(ctx context.Context, l *link, peer rpc.IdentityKey) ([][]byte, error) {
	response, err := qpcpb.NewKeyClient(l.rpc).FetchKeyPackages(ctx, &qpcpb.FetchKeyPackagesRequest{IdentityKey: peer[:]})
	if err != nil {
		return nil, err
	}
	var packages [][]byte
	devices := make(map[[e2ee.IdentityKeySize]byte]bool)
	for _, entry := range response.Packages {
		info, err := e2ee.InspectKeyPackage(entry.Package)
		switch {
		case err != nil || rpc.IdentityKey(info.Credential.Identity) != peer:
			c.options.Log.Warn("the server gave a key package that is not the peer's", "error", err)
			continue
		case info.Credential.Linked && len(entry.DeviceId) > 0 && string(entry.DeviceId) != string(info.Credential.DeviceID[:]):
			c.options.Log.Warn("the server gave a key package of one device for another")
			continue
		case devices[info.Credential.SignatureKey]:
			continue // MLS takes a device once
		}
		devices[info.Credential.SignatureKey] = true
		packages = append(packages, entry.Package)
	}
	if len(packages) == 0 {
		return nil, errNoKeys
	}
	return packages, nil
}

// begin makes the MLS group of a conversation and the Welcome for the peer.
func (c *Client) begin(ctx context.Context, l *link, p contact) (contact, error) {
	packages, err := c.takeKeyPackages(ctx, l, p.Identity)
	if err != nil {
		return p, err
	}
	mls, err := e2ee.NewGroup(c.device, p.Channel[:])
	if err != nil {
		return p, fmt.Errorf("beginning a conversation: %w", err)
	}
	// There is nobody yet to whom the commit would go; the Welcome says all.
	_, welcome, err := mls.Add(packages)
	if err != nil {
		return p, fmt.Errorf("beginning a conversation: %w", err)
	}
	if _, err := mls.MergeCommit(); err != nil {
		return p, fmt.Errorf("beginning a conversation: %w", err)
	}
	payload, err := c.wrap(p, welcome)
	if err != nil {
		return p, err
	}
	id, err := e2ee.NewMessageID(c.options.Rand, c.options.Now())
	if err != nil {
		return p, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, err = c.contact(ctx, p.Identity); err != nil {
		return p, err
	}
	p.Welcome, p.WelcomeID, p.Anew = payload, id, false
	b := c.box.batch()
	b.put(contactKey(p.Identity), p)
	if err := c.adopt(ctx, b, p.Channel, p.Identity, mls); err != nil {
		return p, err
	}
	if err := b.apply(ctx); err != nil {
		c.forget(p.Channel)
		return p, err
	}
	return p, nil
}
