//go:build !js

package transport

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"

	"github.com/quicprochat/qpcd/pkg/limit"
)

// Limits bound what strangers can make a server hold. A field that is zero has
// its default.
type Limits struct {
	// Connections bounds connections in all, unfinished ones included
	// (DefaultMaxConnections).
	Connections int
	// ConnectionsPerSource bounds those of one IPv4 address or IPv6 /64
	// (DefaultMaxConnectionsPerSource).
	ConnectionsPerSource int
	// PendingHandshakes bounds unfinished handshakes, and connections that
	// found no room in the queue of Accept (DefaultMaxPendingHandshakes).
	PendingHandshakes int
	// HandshakesPerSecond and HandshakeBurst are the token bucket of
	// handshakes begun without proof of address
	// (DefaultHandshakesPerSecond, DefaultHandshakeBurst).
	HandshakesPerSecond float64
	HandshakeBurst      int
	// WindowBudget bounds the growth of all receive windows together, in
	// bytes (DefaultWindowBudget).
	WindowBudget int64
}

func (l Limits) withDefaults() Limits {
	l.Connections = orDefault(l.Connections, DefaultMaxConnections)
	l.ConnectionsPerSource = orDefault(l.ConnectionsPerSource, DefaultMaxConnectionsPerSource)
	l.PendingHandshakes = orDefault(l.PendingHandshakes, DefaultMaxPendingHandshakes)
	l.HandshakesPerSecond = orDefault(l.HandshakesPerSecond, DefaultHandshakesPerSecond)
	l.HandshakeBurst = orDefault(l.HandshakeBurst, DefaultHandshakeBurst)
	l.WindowBudget = orDefault(l.WindowBudget, DefaultWindowBudget)
	return l
}

func orDefault[T int | int64 | float64](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// Stats are a listener's counters.
type Stats struct {
	Connections int    // now, unfinished ones included
	Pending     int    // of these: handshake unfinished, or no room in the queue of Accept
	Accepted    uint64 // handed out by Accept since the start
	Refused     uint64 // refused at a limit or while draining, since the start
	Retries     uint64 // asked to prove their address, since the start
}

var (
	errFull     = errors.New("too many connections")
	errSource   = errors.New("too many connections from this address")
	errPending  = errors.New("too many unfinished handshakes")
	errPeers    = errors.New("too many connections of other servers")
	errDraining = errors.New("server shutting down")
)

// admission counts connections from their first packet to their end. Its maps
// hold an entry per connection, so they are bounded by Limits.Connections.
//
// An address that is not validated may be forged. So that nobody uses up
// another's share, only half of a source's share, and half of the pending
// handshakes, are given without a proof of address (Retry).
//
// Clients and other servers have budgets of their own, so that neither can keep
// the other out. Which of the two a connection is, is known only when its
// handshake is complete: until then it is admitted if either budget has room.
type admission struct {
	limits   Limits
	peers    Peers         // nil: none
	unproven *rate.Limiter // handshakes begun without proof of address
	accepted atomic.Uint64
	refused  atomic.Uint64
	retries  atomic.Uint64

	mu         sync.Mutex
	draining   bool
	pending    int
	windowLeft int64 // of Limits.WindowBudget
	slots      map[*slot]struct{}
	sources    map[netip.Addr]int // of all that are not peers
	clients    map[netip.Addr]int // of those that are known to be clients
	ofClients  int                // in all
	ofPeers    int
}

func newAdmission(limits Limits, peers Peers) *admission {
	return &admission{
		limits:     limits,
		peers:      peers,
		unproven:   rate.NewLimiter(rate.Limit(limits.HandshakesPerSecond), limits.HandshakeBurst),
		windowLeft: limits.WindowBudget,
		slots:      map[*slot]struct{}{},
		sources:    map[netip.Addr]int{},
		clients:    map[netip.Addr]int{},
	}
}

// reserve is how many connections of other servers there may be.
func (a *admission) reserve() int {
	if a.peers == nil {
		return 0
	}
	return a.peers.Count() * connectionsPerPeer
}

// wantsProof decides whether a first packet without a token is answered by
// Retry. Where it will be refused anyway, it is not.
func (a *admission) wantsProof(addr netip.Addr) bool {
	reserve := a.reserve()
	a.mu.Lock()
	hopeless := a.draining || len(a.slots)-a.ofPeers >= a.limits.Connections+reserve
	busy := 2*a.pending >= a.limits.PendingHandshakes ||
		2*a.sources[limit.Source(addr)] >= a.limits.ConnectionsPerSource
	a.mu.Unlock()
	if hopeless || !busy && a.unproven.Allow() {
		return false
	}
	a.retries.Add(1)
	return true
}

// admit takes a connection in or refuses it. It is called for the first packet,
// before any state exists.
func (a *admission) admit(addr netip.Addr) (*slot, error) {
	s := &slot{admission: a, source: limit.Source(addr), pending: true}
	reserve := a.reserve()
	a.mu.Lock()
	defer a.mu.Unlock()
	var err error
	switch {
	case a.draining:
		err = errDraining
	case len(a.slots)-a.ofPeers >= a.limits.Connections+reserve:
		err = errFull
	case a.sources[s.source] >= a.limits.ConnectionsPerSource+reserve:
		err = errSource
	case a.pending >= a.limits.PendingHandshakes:
		err = errPending
	}
	if err != nil {
		a.refused.Add(1)
		return nil, err
	}
	a.slots[s] = struct{}{}
	a.sources[s.source]++
	a.pending++
	return s, nil
}

func (a *admission) drain() {
	a.mu.Lock()
	a.draining = true
	a.mu.Unlock()
}

func (a *admission) stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	return Stats{
		Connections: len(a.slots),
		Pending:     a.pending,
		Accepted:    a.accepted.Load(),
		Refused:     a.refused.Load(),
		Retries:     a.retries.Load(),
	}
}

// live lists the connections that exist.
func (a *admission) live() []ender {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]ender, 0, len(a.slots))
	for s := range a.slots {
		if s.end != nil {
			out = append(out, s.end)
		}
	}
	return out
}

// An ender is the part of a connection that ends it.
type ender interface {
	Close(code CloseCode, reason string) error
}

// A slot is one connection's place.
type slot struct {
	admission *admission
	source    netip.Addr

	// guarded by admission.mu
	grown   int64 // window budget taken
	pending bool
	gone    bool
	side    slotSide
	end     ender // nil until the connection exists
}

// slotSide is whose budget a slot counts for.
type slotSide int

const (
	sideUnknown slotSide = iota // the handshake is under way
	sideClient
	sidePeer
)

// assign says which budget the connection counts for, or refuses it when that
// one is used up.
func (s *slot) assign(peer bool) error {
	a := s.admission
	reserve := a.reserve()
	a.mu.Lock()
	defer a.mu.Unlock()
	var err error
	switch {
	case s.gone || s.side != sideUnknown:
		return nil
	case peer && a.ofPeers >= reserve:
		err = errPeers
	case peer:
		s.side = sidePeer
		a.ofPeers++
		a.forget(a.sources, s.source)
	case a.ofClients >= a.limits.Connections:
		err = errFull
	case a.clients[s.source] >= a.limits.ConnectionsPerSource:
		err = errSource
	default:
		s.side = sideClient
		a.ofClients++
		a.clients[s.source]++
	}
	if err != nil {
		a.refused.Add(1)
	}
	return err
}

// forget takes one from a count.
func (a *admission) forget(counts map[netip.Addr]int, source netip.Addr) {
	if counts[source]--; counts[source] == 0 {
		delete(counts, source)
	}
}

// begun records the connection, to be closed with the listener.
func (s *slot) begun(e ender) {
	s.admission.mu.Lock()
	s.end = e
	s.admission.mu.Unlock()
}

// settled says that the connection is established and in its reader's hands.
func (s *slot) settled() {
	s.admission.mu.Lock()
	s.settle()
	s.admission.mu.Unlock()
}

func (s *slot) settle() {
	if s.pending {
		s.pending = false
		s.admission.pending--
	}
}

// release gives the place back when the connection has ended.
func (s *slot) release() {
	a := s.admission
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.gone {
		return
	}
	s.gone = true
	s.settle()
	delete(a.slots, s)
	switch s.side {
	case sidePeer:
		a.ofPeers--
	case sideClient:
		a.ofClients--
		a.forget(a.clients, s.source)
		fallthrough
	default:
		a.forget(a.sources, s.source)
	}
	a.windowLeft += s.grown
}

// grow takes from the window budget, or refuses: the connection then keeps its
// present window, which is slower and never wrong.
func (s *slot) grow(bytes uint64) bool {
	n := int64(min(bytes, serverConnWindowMax))
	a := s.admission
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.gone || n > a.windowLeft {
		return false
	}
	a.windowLeft -= n
	s.grown += n
	return true
}
