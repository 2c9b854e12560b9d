// Package client is the Go SDK of qpc: an account on one server with its
// contacts, conversations and queues, end-to-end encrypted.
//
// It promises:
//
//   - What Send returned for is stored on this machine and is delivered when
//     the server can be reached, in order, once.
//   - What an event told of is stored first, and is told once, however often
//     the program or the server dies.
//   - Nothing leaves the machine unencrypted but names and keys: messages are
//     MLS application messages (RFC 9420) inside a hybrid envelope (pkg/e2ee).
//   - A contact's identity key is trusted on first use, with a proof that it
//     stands under that name in the server's log; another key under the same
//     name is refused until the user accepts it.
//   - A change of a group that was wanted is made once, or refused with a
//     reason, however often the program or the server dies; two members who
//     change a group at once do not fork it; and who has lost their place in one
//     is told, and taken in again by the others.
//
// State and owners: one mutex guards the local state (Store, MLS groups); no
// network call is made under it. Run owns the connection and the goroutines
// that send, receive and acknowledge on it. File system and sockets stay
// outside: the caller gives a Store and a Dial function.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// firstRetry and lastRetry bound the wait before connecting again; each
	// failure doubles it, and a random half is added so that a household does
	// not come back in one instant.
	firstRetry = 250 * time.Millisecond
	lastRetry  = 30 * time.Second
	// dialTimeout bounds one attempt to connect.
	dialTimeout = 15 * time.Second
	// callTimeout bounds a call; the server's own bound is 30 s.
	callTimeout = 40 * time.Second
	// maxEvents bounds the events that wait for the program; a program that
	// does not take them holds up receiving, and nothing is lost.
	maxEvents = 256

	// keyPackageTarget is how many one-time key packages lie on the server:
	// enough for everybody at home to begin a conversation while this client
	// is away.
	keyPackageTarget = 20
	// maxGroupsPerChannel bounds the MLS groups that one channel may have: a
	// peer who lost its state begins anew, and old messages must still open.
	maxGroupsPerChannel = 4
	// welcomeWait is how long a client waits for the other side to begin a
	// conversation that the other side was the first to ask for.
	welcomeWait = 5 * time.Second
)

// DialFunc connects to the account's server.
type DialFunc func(ctx context.Context) (transport.Conn, error)

// Options says what a client is made of.
type Options struct {
	Store Store
	Dial  DialFunc
	Log   *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Rand makes keys and ids.
	Rand io.Reader
	// KDF is how the local password is stretched in new profiles; the zero
	// value is e2ee.DefaultKDF.
	KDF e2ee.KDF
}

// Client is one account on this machine. Its methods are safe for concurrent
// use.
type Client struct {
	options Options
	box     *box
	account account
	self    *e2ee.Identity
	device  *e2ee.Device
	hybrid  *e2ee.HybridKey

	events chan Event
	outbox signal // something waits to be sent
	// commits is set when there may be something to do in a group.
	commits signal
	// gapGrace is how long a commit may be missing; a test sets it shorter.
	gapGrace time.Duration
	// lookups has room for one: names are looked up one after another.
	lookups chan struct{}

	mu          sync.Mutex
	groups      map[rpc.ChannelID][]*chatGroup // newest last
	fresh       map[rpc.IdentityKey]bool       // contacts whose names were looked up since the start
	freshHybrid map[rpc.IdentityKey]bool       // the same for their hybrid keys
	paused      map[Conversation]time.Time     // conversations that cannot be sent to before
	slow        map[slowMember]time.Time       // members of groups, the same
	rooms       map[rpc.ChannelID]*roomWork    // what is to be done in groups
	nothingHeld map[rpc.ChannelID]bool         // channels of which no message waits for a commit
	waiters     map[string]chan error          // who waits for a wish, by its key
	log         *knownLog                      // the server's log, once it was read
	link        *link                          // the connection, or nil
	state       ConnectionState
}

// signal wakes one waiting goroutine, at most once for many calls.
type signal chan struct{}

func (s signal) set() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// ErrOffline is returned by calls that need the server while it cannot be
// reached.
var ErrOffline = errors.New("the server cannot be reached")

// link is a connection that is logged in.
type link struct {
	rpc      *rpc.Client
	acks     signal
	packages chan int // key packages to publish
	arrivals *arrivals
	caughtUp atomic.Bool // everything that waited was processed

	mu      sync.Mutex
	pending map[rpc.ChannelID]uint64 // acknowledgements to send
	inbox   uint64                   // the same for the inbox, 0 for none
}

// Events returns what happens, in order. The channel closes when Run returns.
func (c *Client) Events() <-chan Event { return c.events }

// Username returns the account's name.
func (c *Client) Username() string { return c.account.Username }

// Server returns the account's server as it was given at registration.
func (c *Client) Server() string { return c.account.Server }

// Identity returns the account's identity key.
func (c *Client) Identity() rpc.IdentityKey { return rpc.IdentityKey(c.self.Key()) }

// DeviceID returns this device's id.
func (c *Client) DeviceID() rpc.DeviceID { return c.account.DeviceID }

// Close closes the store. Run must have returned.
func (c *Client) Close() error { return c.options.Store.Close() }

// emit tells the program of an event, waiting until it is taken.
func (c *Client) emit(ctx context.Context, e Event) {
	select {
	case c.events <- e: // also when ctx has just ended: it is told of only here
		return
	default:
	}
	select {
	case c.events <- e:
	case <-ctx.Done():
	}
}

// Run connects and stays connected until ctx ends or the account cannot be
// used: then it returns the reason (ErrLoginRequired, a changed server key).
func (c *Client) Run(ctx context.Context) error {
	defer close(c.events)
	wait := firstRetry
	for {
		began := c.options.Now()
		err := c.connectAndServe(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if fatal(err) {
			return err
		}
		if c.options.Now().Sub(began) > lastRetry {
			wait = firstRetry
		}
		c.setState(ctx, Disconnected, err)
		c.options.Log.Debug("not connected", "error", err, "again in", wait)
		if errors.Is(err, transport.ErrPeerRestarted) {
			wait = firstRetry
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2+1)):
		case <-ctx.Done():
			return nil
		}
		wait = min(2*wait, lastRetry)
	}
}

// fatal reports whether trying again cannot help.
func fatal(err error) bool {
	var changed *transport.ErrPinChanged
	var unknown *transport.ErrUnknownServer
	var untrusted *ErrServerLog
	return errors.Is(err, ErrLoginRequired) || errors.As(err, &untrusted) || errors.As(err, &changed) || errors.As(err, &unknown)
}

// ErrLoginRequired reports a session that has ended: log in again.
var ErrLoginRequired = errors.New("you are logged out; log in again")

// connectAndServe makes one connection and works on it until it ends.
func (c *Client) connectAndServe(ctx context.Context) error {
	c.setState(ctx, Connecting, nil)
	conn, err := c.resume(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(transport.CloseNormal, "")
	l := &link{rpc: rpc.NewClient(conn), acks: make(signal, 1), packages: make(chan int, 1), pending: make(map[rpc.ChannelID]uint64), arrivals: newArrivals()}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(conn.Context(), func() { cancel(context.Cause(conn.Context())) })
	defer stop()

	if err := c.introduce(ctx, l); err != nil {
		return err
	}
	c.mu.Lock()
	c.link = l
	clear(c.paused)
	clear(c.slow)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.link = nil
		c.mu.Unlock()
	}()

	arrivals := l.arrivals
	var work sync.WaitGroup
	defer work.Wait()
	run := func(f func(context.Context) error) {
		work.Go(func() {
			if err := f(ctx); err != nil {
				cancel(err)
			}
		})
	}
	run(func(ctx context.Context) error {
		return l.rpc.ReceiveEvents(ctx, c.eventHandler(ctx, l, arrivals, cancel))
	})
	run(func(ctx context.Context) error { return c.receive(ctx, l, arrivals) })
	run(func(ctx context.Context) error { return c.send(ctx, l) })
	run(func(ctx context.Context) error { return c.tend(ctx, l) })
	run(l.acknowledge(c))
	run(func(ctx context.Context) error { return c.topUp(ctx, l) })
	run(func(ctx context.Context) error { return c.heartbeat(ctx, l) })
	c.outbox.set()
	<-ctx.Done()
	conn.Close(transport.CloseNormal, "")
	return context.Cause(ctx)
}

// dial connects, within a bounded time.
func (c *Client) dial(ctx context.Context) (transport.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := c.options.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	return conn, nil
}

// resume connects and logs in with the stored session.
func (c *Client) resume(ctx context.Context) (transport.Conn, error) {
	var s session
	if known, err := c.box.get(ctx, keySession, &s); err != nil {
		return nil, err
	} else if !known {
		return nil, ErrLoginRequired
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := rpc.NewClient(conn).Resume(ctx, s.Token); err != nil {
		conn.Close(transport.CloseNormal, "")
		if errors.Is(err, rpc.ErrSessionRefused) {
			return nil, ErrLoginRequired
		}
		return nil, err
	}
	return conn, nil
}

// online returns the present link, or ErrOffline.
func (c *Client) online() (*link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		return nil, ErrOffline
	}
	return c.link, nil
}

func (c *Client) setState(ctx context.Context, state ConnectionState, cause error) {
	c.mu.Lock()
	changed := c.state != state
	c.state = state
	c.mu.Unlock()
	if changed {
		c.emit(ctx, Event{Kind: EventConnection, Connection: state, Err: cause})
	}
}
