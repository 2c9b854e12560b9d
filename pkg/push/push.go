// Package push knows who is connected and tells them what happened.
//
// The [Hub] holds every connection that is logged in, by identity and by
// session. Domains hand it events after the commit that made them true; it
// queues them for each connection concerned and writes each event on a stream
// of its own. A queue is bounded in events and bytes: past that, what waits
// collapses into one MessageAvailable without an envelope, which tells the
// client to look for itself. A connection that does not read its events at all
// is closed.
//
// Nothing here is durable, and nothing needs to be: an event only says that
// something can be fetched.
package push

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// maxPending is how many events may wait for one connection (PROTOCOL 8).
	maxPending = 256
	// maxPendingBytes bounds what those events hold: 256 envelopes of 32 KiB
	// would be 8 MiB, too much for a router with dozens of slow phones.
	maxPendingBytes = 256 << 10
	// MaxEnvelope is the largest message that rides inside its event; a
	// larger one is fetched (PROTOCOL 8).
	MaxEnvelope = 32 << 10
	// writeTimeout is how long a connection may leave an event unread.
	writeTimeout = 30 * time.Second
	// maxPresenceChanges bounds the changes of presence that wait to be told;
	// more are dropped, since presence is a hint.
	maxPresenceChanges = 256
)

// Event is one push event: its number and its message.
type Event struct {
	Kind    qpcpb.Event
	Message proto.Message
}

// Options says what a hub is made of.
type Options struct {
	Log *slog.Logger
	// Contacts, when set, returns the identities that may learn whether
	// somebody is online: those who share a channel with them.
	Contacts func(ctx context.Context, of rpc.IdentityKey) ([]rpc.IdentityKey, error)
	// LastSeen, when set, is told when the last connection of an identity has
	// ended.
	LastSeen func(ctx context.Context, identity rpc.IdentityKey)
}

// Hub is the set of connections that are logged in. Its methods are safe for
// concurrent use and do not wait for any peer.
type Hub struct {
	options  Options
	writers  sync.WaitGroup
	presence chan presenceChange

	mu    sync.RWMutex
	byKey map[rpc.IdentityKey]map[*rpc.Peer]*subscriber
}

type presenceChange struct {
	identity rpc.IdentityKey
	online   bool
}

// NewHub returns an empty hub. Run must be running for presence to be told.
func NewHub(options Options) *Hub {
	return &Hub{
		options:  options,
		presence: make(chan presenceChange, maxPresenceChanges),
		byKey:    make(map[rpc.IdentityKey]map[*rpc.Peer]*subscriber),
	}
}

// Run tells contacts of changes of presence until ctx ends, then waits for
// the events under way.
func (h *Hub) Run(ctx context.Context) {
	for {
		select {
		case change := <-h.presence:
			h.tellPresence(ctx, change)
		case <-ctx.Done():
			h.writers.Wait()
			return
		}
	}
}

func (h *Hub) tellPresence(ctx context.Context, change presenceChange) {
	if h.Online(change.identity) != change.online {
		return // it changed again; that change is in the queue too
	}
	if !change.online && h.options.LastSeen != nil {
		h.options.LastSeen(ctx, change.identity)
	}
	if h.options.Contacts == nil {
		return
	}
	contacts, err := h.options.Contacts(ctx, change.identity)
	if err != nil {
		if ctx.Err() == nil {
			h.options.Log.Warn("presence is not told", "error", err)
		}
		return
	}
	event := Event{qpcpb.EventPresence, &qpcpb.Presence{IdentityKey: change.identity[:], Online: change.online}}
	for _, contact := range contacts {
		h.Send(contact, event)
	}
}

// Authenticated takes in a connection that has logged in, or has logged in
// anew as somebody else. It is made for rpc.ServerOptions.Authenticated.
func (h *Hub) Authenticated(p *rpc.Peer, before *rpc.Principal) {
	now := p.Principal()
	if before != nil && before.Identity != now.Identity {
		h.remove(p, before.Identity)
	}
	h.mu.Lock()
	peers := h.byKey[now.Identity]
	if peers == nil {
		peers = make(map[*rpc.Peer]*subscriber, 1)
		h.byKey[now.Identity] = peers
	}
	first := len(peers) == 0
	if peers[p] == nil {
		peers[p] = &subscriber{hub: h, peer: p}
	}
	h.mu.Unlock()
	if first {
		h.changed(now.Identity, true)
	}
}

// Disconnected lets go of a connection that has ended. It is made for
// rpc.ServerOptions.Disconnected.
func (h *Hub) Disconnected(p *rpc.Peer) {
	if principal := p.Principal(); principal != nil {
		h.remove(p, principal.Identity)
	}
}

func (h *Hub) remove(p *rpc.Peer, identity rpc.IdentityKey) {
	h.mu.Lock()
	peers := h.byKey[identity]
	_, was := peers[p]
	delete(peers, p)
	last := was && len(peers) == 0
	if last {
		delete(h.byKey, identity)
	}
	h.mu.Unlock()
	if last {
		h.changed(identity, false)
	}
}

func (h *Hub) changed(identity rpc.IdentityKey, online bool) {
	select {
	case h.presence <- presenceChange{identity, online}:
	default:
	}
}

// Online reports whether an identity has a connection.
func (h *Hub) Online(identity rpc.IdentityKey) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.byKey[identity]) > 0
}

// Connections returns how many connections are logged in.
func (h *Hub) Connections() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	n := 0
	for _, peers := range h.byKey {
		n += len(peers)
	}
	return n
}

// Send queues an event for every connection of an identity.
func (h *Hub) Send(to rpc.IdentityKey, event Event) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, s := range h.byKey[to] {
		s.add(event)
	}
}

// SendAll queues an event for every connection.
func (h *Hub) SendAll(event Event) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, peers := range h.byKey {
		for _, s := range peers {
			s.add(event)
		}
	}
}

// EndSessions tells every connection of an identity whose principal matches
// that its session has ended, and closes it. The connection that the current
// call came on is told and closed after the answer to the call.
func (h *Hub) EndSessions(ctx context.Context, identity rpc.IdentityKey, match func(*rpc.Principal) bool, code transport.CloseCode, reason string) {
	h.mu.RLock()
	var ending []*subscriber
	for peer, s := range h.byKey[identity] {
		if principal := peer.Principal(); principal != nil && match(principal) {
			ending = append(ending, s)
		}
	}
	h.mu.RUnlock()
	for _, s := range ending {
		end := func() {
			s.add(Event{qpcpb.EventSessionEnded, &qpcpb.SessionEnded{Reason: reason}})
			s.peer.CloseSoon(code, reason)
		}
		if s.peer == rpc.PeerOf(ctx) {
			rpc.AfterReply(ctx, end)
		} else {
			end()
		}
	}
}

// subscriber is the queue of one connection. Its writer runs only while
// events wait, so that an idle connection costs no goroutine.
type subscriber struct {
	hub  *Hub
	peer *rpc.Peer

	mu      sync.Mutex
	pending []Event
	bytes   int
	writing bool
}

// lookAgain is what events collapse into.
var lookAgain = Event{qpcpb.EventMessageAvailable, &qpcpb.MessageAvailable{}}

func (s *subscriber) add(event Event) {
	size := proto.Size(event.Message)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) >= maxPending || s.bytes+size > maxPendingBytes && len(s.pending) > 0 {
		clear(s.pending)
		s.pending = append(s.pending[:0], lookAgain)
		s.bytes = 0
		if event.Kind == qpcpb.EventMessageAvailable {
			event.Message = lookAgain.Message
			return
		}
	}
	s.pending = append(s.pending, event)
	s.bytes += size
	if !s.writing {
		s.writing = true
		s.hub.writers.Go(s.write)
	}
}

// next takes the oldest event, or ends the writer.
func (s *subscriber) next() (Event, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pending) == 0 {
		s.pending = nil
		s.writing = false
		return Event{}, false
	}
	event := s.pending[0]
	s.pending[0] = Event{}
	s.pending = s.pending[1:]
	s.bytes = max(0, s.bytes-proto.Size(event.Message))
	return event, true
}

func (s *subscriber) write() {
	for {
		event, ok := s.next()
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(s.peer.Context(), writeTimeout)
		err := s.peer.Push(ctx, event.Kind, event.Message)
		late := err != nil && (ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded)) && s.peer.Context().Err() == nil
		cancel()
		if late {
			s.peer.CloseSoon(transport.CloseLimitExceeded, "events are not read")
		}
		// A client may cancel one event's stream and still want the next.
		if err != nil && (late || s.peer.Context().Err() != nil) {
			s.mu.Lock()
			s.pending = nil
			s.bytes = 0
			s.writing = false
			s.mu.Unlock()
			return
		}
	}
}
