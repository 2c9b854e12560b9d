package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// arrivals are what the server pushed and nobody has looked at: envelopes, and
// whether the queues must be read.
type arrivals struct {
	ready signal

	mu        sync.Mutex
	envelopes []*qpcpb.Envelope
	look      bool
}

// maxArrivals bounds the envelopes that wait; past it the queue is read
// instead, where they still are.
const maxArrivals = 256

func newArrivals() *arrivals {
	a := &arrivals{ready: make(signal, 1), look: true} // what waited before is read first
	a.ready.set()
	return a
}

func (a *arrivals) add(envelope *qpcpb.Envelope) {
	a.mu.Lock()
	if envelope == nil || a.look || len(a.envelopes) >= maxArrivals {
		a.look, a.envelopes = true, nil
	} else {
		a.envelopes = append(a.envelopes, envelope)
	}
	a.mu.Unlock()
	a.ready.set()
}

func (a *arrivals) take() (envelopes []*qpcpb.Envelope, look bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	envelopes, look = a.envelopes, a.look
	a.envelopes, a.look = nil, false
	return envelopes, look
}

// eventHandler acts on push events. It must not wait for the network.
func (c *Client) eventHandler(ctx context.Context, l *link, a *arrivals, end context.CancelCauseFunc) func(qpcpb.Event, []byte) {
	return func(event qpcpb.Event, payload []byte) {
		switch event {
		case qpcpb.EventMessageAvailable:
			var m qpcpb.MessageAvailable
			if proto.Unmarshal(payload, &m) == nil {
				a.add(m.Envelope)
			}
		case qpcpb.EventEphemeral:
			var m qpcpb.Ephemeral
			if proto.Unmarshal(payload, &m) == nil {
				c.receiveEphemeral(ctx, &m)
			}
		case qpcpb.EventGroupEpoch:
			var m qpcpb.GroupEpoch
			if proto.Unmarshal(payload, &m) == nil && len(m.GroupId) == len(rpc.ChannelID{}) {
				// The commit is in the queue, and this client's own it knows.
				c.lookAfter(rpc.ChannelID(m.GroupId), epochCheck)
			}
		case qpcpb.EventPresence:
			var m qpcpb.Presence
			if proto.Unmarshal(payload, &m) == nil && len(m.IdentityKey) == len(rpc.IdentityKey{}) {
				peer := rpc.IdentityKey(m.IdentityKey)
				c.mu.Lock()
				delete(c.freshHybrid, peer) // they may have come back with new keys
				c.mu.Unlock()
				p, err := c.contact(ctx, peer)
				if err == nil {
					c.emit(ctx, Event{Kind: EventPresence, Peer: peer, PeerName: p.Name, On: m.Online})
				}
			}
		case qpcpb.EventSessionEnded:
			// Another session may have ended this one; the next resumption
			// tells whether the account is still logged in.
			end(transport.ErrPeerRestarted)
		case qpcpb.EventKeyPackagesLow:
			var m qpcpb.KeyPackagesLow
			if proto.Unmarshal(payload, &m) == nil && m.Remaining < keyPackageTarget {
				select {
				case l.packages <- keyPackageTarget - int(m.Remaining):
				default: // as many are being made already
				}
			}
		}
	}
}

// topUp publishes key packages when the server says that they run low.
func (c *Client) topUp(ctx context.Context, l *link) error {
	for {
		select {
		case count := <-l.packages:
			if err := c.publishKeyPackages(ctx, l, count, false); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// receive takes what arrives on a connection, until it ends.
func (c *Client) receive(ctx context.Context, l *link, a *arrivals) error {
	for first := true; ; {
		select {
		case <-a.ready:
		case <-ctx.Done():
			return nil
		}
		envelopes, look := a.take()
		for _, envelope := range envelopes {
			if next, err := c.isNext(ctx, envelope); err != nil {
				return err
			} else if !next {
				look = true // something came before it, or it came before something
				break
			}
			if err := c.take(ctx, l, envelope); err != nil {
				return err
			}
		}
		if !look {
			continue
		}
		if err := c.catchUp(ctx, l); err != nil {
			return err
		}
		if first {
			first = false
			l.caughtUp.Store(true)
			c.commits.set()
			c.setState(ctx, Connected, nil)
			c.emit(ctx, Event{Kind: EventCaughtUp})
			c.outbox.set()
		}
	}
}

// catchUp reads every queue to its end.
func (c *Client) catchUp(ctx context.Context, l *link) error {
	identity, deviceID := c.Identity(), c.DeviceID()
	delivery := qpcpb.NewDeliveryClient(l.rpc)
	for {
		response, err := delivery.Peek(ctx, &qpcpb.PeekRequest{RecipientKey: identity[:], DeviceId: deviceID[:], AllChannels: true})
		if rpc.CodeOf(err) == qpcpb.CodeDeviceNotFound {
			return c.reintroduce(ctx)
		}
		if err != nil {
			return fmt.Errorf("reading the queues: %w", err)
		}
		if len(response.Payloads) == 0 {
			return nil
		}
		for _, envelope := range response.Payloads {
			if err := c.take(ctx, l, envelope); err != nil {
				return err
			}
		}
		if err := l.flush(ctx, c); err != nil {
			return err
		}
	}
}

// reintroduce makes the next connection register the device again: the server
// has lost it.
func (c *Client) reintroduce(ctx context.Context) error {
	c.account.Introduced = false
	if err := c.saveAccount(ctx); err != nil {
		return err
	}
	return errors.New("the server does not know this device any more")
}

type cursor struct{ Seq uint64 }

// isNext reports whether an envelope is the one that follows what was
// processed of its queue.
func (c *Client) isNext(ctx context.Context, envelope *qpcpb.Envelope) (bool, error) {
	var at cursor
	_, err := c.box.get(ctx, cursorKey(envelope.ChannelId), &at)
	return envelope.Seq == at.Seq+1, err
}

// take processes one envelope, tells the program, and leaves the
// acknowledgement to be sent.
func (c *Client) take(ctx context.Context, l *link, envelope *qpcpb.Envelope) error {
	var of *listing
	if len(envelope.ChannelId) == 0 {
		var err error
		if of, err = c.whatIsWelcomed(ctx, l, envelope); err != nil {
			return err
		}
	}
	events, err := c.processEnvelope(ctx, envelope, of)
	if err != nil {
		c.tell(ctx, events) // what is stored is told
		return err
	}
	l.ack(envelope.ChannelId, envelope.Seq)
	c.meet(ctx, l, events)
	c.tell(ctx, events)
	return nil
}

// tell gives events to the program, with the names that belong to them.
func (c *Client) tell(ctx context.Context, events []Event) {
	for _, event := range events {
		if event.PeerName == "" && event.Peer != (rpc.IdentityKey{}) && event.Peer != c.Identity() {
			event.PeerName = c.nameOf(ctx, event.Peer)
		}
		c.emit(ctx, event)
	}
}

// processEnvelope opens an envelope and stores what it holds, the state of the keys
// and the cursor at once. An envelope that was processed before changes
// nothing.
// of is what whatIsWelcomed found.
func (c *Client) processEnvelope(ctx context.Context, envelope *qpcpb.Envelope, of *listing) (events []Event, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := cursorKey(envelope.ChannelId)
	var at cursor
	if _, err := c.box.get(ctx, key, &at); err != nil || envelope.Seq <= at.Seq {
		return nil, err
	}
	var channel rpc.ChannelID
	copy(channel[:], envelope.ChannelId)
	// What came before and can be opened comes first: opening it may have been
	// cut off after the commit that it waited for.
	earlier, err := c.openHeld(ctx, channel)
	if err != nil {
		return earlier, err
	}
	b := c.box.batch()
	b.put(key, cursor{Seq: envelope.Seq})
	if len(envelope.ChannelId) == 0 {
		events, err = c.openInbox(ctx, b, envelope, of)
	} else {
		events, err = c.openMessage(ctx, b, channel, envelope)
	}
	if err == nil {
		err = b.apply(ctx)
	}
	if err != nil {
		// Keys were used up here that were not stored as used: read all again,
		// or the message would count as read when it comes once more.
		clear(c.groups)
		return earlier, err
	}
	events = append(earlier, events...)
	if of != nil {
		channel = of.id
	}
	// What waited for a commit or a Welcome may open now.
	late, err := c.openHeld(ctx, channel)
	return append(events, late...), err
}

// unwrap takes the hybrid envelope off a payload.
func (c *Client) unwrap(payload []byte) ([]byte, error) {
	return c.hybrid.Open(c.self.Key(), payload)
}

// openInbox joins the group of a Welcome. Whatever else lies in the inbox is
// dropped: nobody can be told of a message that says nothing.
func (c *Client) openInbox(ctx context.Context, b *batch, envelope *qpcpb.Envelope, of *listing) ([]Event, error) {
	welcome, err := c.unwrap(envelope.Data)
	if err != nil {
		c.options.Log.Warn("a welcome cannot be opened", "error", err)
		return nil, nil
	}
	joined, err := e2ee.JoinGroup(c.device, welcome, c.privatePart(ctx))
	if err != nil {
		c.options.Log.Warn("a welcome cannot be used", "error", err)
		return nil, nil
	}
	if of != nil && of.isGroup {
		return c.joinRoom(ctx, b, joined, welcome, of)
	}
	peer := rpc.IdentityKey(joined.Inviter.Identity)
	if len(joined.Group.ID()) != len(rpc.ChannelID{}) || !isPair(joined.Group.Identities(), c.self.Key(), joined.Inviter.Identity) {
		c.options.Log.Warn("a welcome is not to a conversation of two")
		return nil, nil
	}
	channel := rpc.ChannelID(joined.Group.ID())
	p, err := c.contact(ctx, peer)
	if err != nil {
		return nil, err
	}
	var owner rpc.IdentityKey
	if known, err := c.box.get(ctx, channelKey(channel), &owner); err != nil {
		return nil, err
	} else if known && owner != peer || p.HasChannel && p.Channel != channel || !known && (of == nil || of.channel != channel) {
		c.options.Log.Warn("a welcome is to somebody else's conversation")
		return nil, nil
	}
	p.Channel, p.HasChannel = channel, true
	b.put(contactKey(peer), p)
	b.put(channelKey(channel), peer)
	if !joined.LastResort {
		b.remove(packageKey(joined.KeyPackage))
	}
	delete(c.paused, WithPeer(peer))
	c.outbox.set()
	return nil, c.adopt(ctx, b, channel, peer, joined.Group)
}

// isPair reports whether the members are exactly two people.
func isPair(members []e2ee.IdentityKey, a, b e2ee.IdentityKey) bool {
	return a != b && len(members) == 2 &&
		(members[0] == a && members[1] == b || members[0] == b && members[1] == a)
}

// openMessage decrypts a message of a channel and adds what it means to the
// batch.
func (c *Client) openMessage(ctx context.Context, b *batch, channel rpc.ChannelID, envelope *qpcpb.Envelope) ([]Event, error) {
	var peer rpc.IdentityKey
	known, err := c.box.get(ctx, channelKey(channel), &peer)
	if err != nil {
		return nil, err
	}
	if !known {
		if r, err := c.room(ctx, channel); err != nil {
			return nil, err
		} else if r.State != "" {
			return c.openRoomMessage(ctx, b, r, envelope)
		}
	}
	plain, err := c.unwrap(envelope.Data)
	if err == nil {
		return c.openPlain(ctx, b, channel, peer, known, plain)
	}
	return c.unreadable(ctx, b, peer, known, err)
}

// openPlain opens a message of a conversation of two. known is whether its peer
// is.
func (c *Client) openPlain(ctx context.Context, b *batch, channel rpc.ChannelID, peer rpc.IdentityKey, known bool, plain []byte) ([]Event, error) {
	group, event, err := c.process(ctx, channel, plain)
	switch {
	case errors.Is(err, e2ee.ErrReplayed), errors.Is(err, e2ee.ErrOwnMessage):
		return nil, nil
	case errors.Is(err, errLocalState):
		return nil, err
	case !known && errors.Is(err, errNoGroup):
		return nil, c.hold(ctx, b, channel, plain) // its Welcome may be on the way
	case err != nil:
		return c.unreadable(ctx, b, peer, known, err)
	}
	group.save(b, channel)
	if event.Kind != e2ee.EventMessage || rpc.IdentityKey(event.Sender.Identity) != group.peer {
		return nil, nil
	}
	message, err := e2ee.DecodeMessage(event.Message)
	if err != nil {
		return c.addMessage(ctx, b, Message{Peer: group.peer, Stored: c.options.Now(), Status: StatusReceived,
			Problem: "this message is malformed"})
	}
	return c.understand(ctx, b, group.peer, message)
}

// unreadable tells of a message that cannot be opened.
func (c *Client) unreadable(ctx context.Context, b *batch, peer rpc.IdentityKey, known bool, err error) ([]Event, error) {
	c.options.Log.Warn("a message cannot be read", "error", err)
	if !known {
		return nil, nil
	}
	return c.addMessage(ctx, b, Message{Peer: peer, Stored: c.options.Now(), Status: StatusReceived,
		Problem: "this message could not be decrypted on this device"})
}

// understand acts on an application message from a peer.
func (c *Client) understand(ctx context.Context, b *batch, peer rpc.IdentityKey, m *e2ee.Message) ([]Event, error) {
	switch m.Type {
	case e2ee.TypeDummy:
		if m.Note != nil && m.Note.Kind == e2ee.NoteRejoin {
			return nil, c.askedToRejoin(ctx, b, peer, rpc.ChannelID(m.Note.Group))
		}
		return nil, nil
	case e2ee.TypeTyping:
		return nil, nil
	case e2ee.TypeReadReceipt:
		return c.setStatus(ctx, b, peer, m.Ref, StatusRead)
	}
	return c.addMessage(ctx, b, c.received(Message{Peer: peer}, m))
}

// received fills in a message from what came.
func (c *Client) received(in Message, m *e2ee.Message) Message {
	received := Message{
		Peer: in.Peer, Group: in.Group, Epoch: in.Epoch, ID: m.ID, Type: m.Type, Ref: m.Ref, Text: m.Text, Emoji: m.Emoji, Name: m.Name, Size: m.Size, Part: m.Part,
		Stored: c.options.Now(), Status: StatusReceived,
	}
	received.File = fileOf(m)
	if m.SentAtMS != 0 {
		received.SentAt = time.UnixMilli(int64(m.SentAtMS))
	}
	if !m.Supported() {
		received.Problem = "unsupported message: a newer version of qpc can show it"
	}
	return received
}

// addMessage stores a received message, unless one with its id is there.
func (c *Client) addMessage(ctx context.Context, b *batch, m Message) ([]Event, error) {
	if m.ID != (e2ee.MessageID{}) {
		var at uint64
		if known, err := c.box.get(ctx, m.idKey(), &at); err != nil || known {
			return nil, err
		}
	}
	n, err := c.nextNumber(ctx, b)
	if err != nil {
		return nil, err
	}
	m.No = n
	b.put(m.key(), m)
	if m.ID != (e2ee.MessageID{}) {
		b.put(m.idKey(), n)
	}
	if m.Group != (rpc.ChannelID{}) {
		r, err := c.room(ctx, m.Group)
		return []Event{{Kind: EventGroup, Peer: m.Peer, Group: m.Group, GroupName: r.Name, Message: m}}, err
	}
	p, err := c.contact(ctx, m.Peer)
	return []Event{{Kind: EventMessage, Peer: m.Peer, PeerName: p.Name, Message: m}}, err
}

// setStatus changes the status of a message of ours.
func (c *Client) setStatus(ctx context.Context, b *batch, peer rpc.IdentityKey, id e2ee.MessageID, status Status) ([]Event, error) {
	var at uint64
	if known, err := c.box.get(ctx, messageIDKey(peer, id), &at); err != nil || !known {
		return nil, err
	}
	var m Message
	if known, err := c.box.get(ctx, messageKey(peer, at), &m); err != nil || !known || !m.Mine || m.Status == status {
		return nil, err
	}
	m.Status = status
	b.put(messageKey(peer, at), m)
	return []Event{{Kind: EventStatus, Peer: peer, Message: m}}, nil
}

// receiveEphemeral tells of typing. What cannot be read is dropped.
func (c *Client) receiveEphemeral(ctx context.Context, m *qpcpb.Ephemeral) {
	if len(m.ChannelId) != len(rpc.ChannelID{}) {
		return
	}
	channel := rpc.ChannelID(m.ChannelId)
	plain, err := c.unwrap(m.Payload)
	if err != nil {
		return
	}
	c.mu.Lock()
	group, event, err := c.process(ctx, channel, plain)
	if err == nil {
		b := c.box.batch()
		group.save(b, channel)
		if err = b.apply(ctx); err != nil {
			c.forget(channel)
		}
	}
	c.mu.Unlock()
	if err != nil || event.Kind != e2ee.EventMessage || rpc.IdentityKey(event.Sender.Identity) != group.peer {
		return
	}
	message, err := e2ee.DecodeMessage(event.Message)
	if err != nil || message.Type != e2ee.TypeTyping {
		return
	}
	p, err := c.contact(ctx, group.peer)
	if err == nil {
		c.emit(ctx, Event{Kind: EventTyping, Peer: group.peer, PeerName: p.Name, On: message.On})
	}
}

// ack leaves an acknowledgement to be sent.
func (l *link) ack(channel []byte, seq uint64) {
	l.mu.Lock()
	if len(channel) == 0 {
		l.inbox = max(l.inbox, seq)
	} else {
		id := rpc.ChannelID(channel)
		l.pending[id] = max(l.pending[id], seq)
	}
	l.mu.Unlock()
	l.acks.set()
}

// flush sends the acknowledgements that wait.
func (l *link) flush(ctx context.Context, c *Client) error {
	l.mu.Lock()
	pending, inbox := l.pending, l.inbox
	l.pending, l.inbox = make(map[rpc.ChannelID]uint64), 0
	l.mu.Unlock()
	identity, deviceID := c.Identity(), c.DeviceID()
	send := func(channel []byte, seq uint64) error {
		_, err := qpcpb.NewDeliveryClient(l.rpc).Ack(ctx, &qpcpb.AckRequest{
			RecipientKey: identity[:], ChannelId: channel, SeqUpTo: seq, DeviceId: deviceID[:],
		})
		return err
	}
	if inbox != 0 {
		if err := send(nil, inbox); err != nil {
			return fmt.Errorf("acknowledging: %w", err)
		}
	}
	for channel, seq := range pending {
		if err := send(channel[:], seq); err != nil {
			return fmt.Errorf("acknowledging: %w", err)
		}
	}
	return nil
}

// acknowledge sends acknowledgements as they come, many in one.
func (l *link) acknowledge(c *Client) func(context.Context) error {
	return func(ctx context.Context) error {
		for {
			select {
			case <-l.acks:
			case <-ctx.Done():
				return nil
			}
			if err := l.flush(ctx, c); err != nil {
				return err
			}
		}
	}
}
