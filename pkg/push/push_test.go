package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// key is the identity of a name.
func key(name string) (k rpc.IdentityKey) {
	copy(k[:], name)
	return k
}

// house is a hub with a dispatcher before it. A token is "name" or
// "name/session".
type house struct {
	t      *testing.T
	hub    *Hub
	server *rpc.Server
}

func newHouse(t *testing.T, o Options) *house {
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	h := &house{t: t, hub: NewHub(o)}
	h.server = rpc.NewServer(rpc.ServerOptions{
		Log: o.Log,
		ResumeSession: func(_ context.Context, token []byte) (rpc.Principal, error) {
			return principal(string(token)), nil
		},
		Authenticated: h.hub.Authenticated,
		Disconnected:  h.hub.Disconnected,
	})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { h.hub.Run(ctx) })
	t.Cleanup(func() {
		h.server.Close()
		stop()
		running.Wait()
	})
	return h
}

func principal(token string) rpc.Principal {
	name, session, _ := strings.Cut(token, "/")
	p := rpc.Principal{Identity: key(name), Username: name}
	copy(p.Session[:], session)
	return p
}

// client is one connection. Its events wait until somebody reads them.
type client struct {
	*rpc.Client
	t    *testing.T
	conn *rpctest.Conn
	gone sync.WaitGroup
}

func (h *house) connect(token string, o rpctest.Options) *client {
	h.t.Helper()
	conn, server := rpctest.Pipe(o)
	c := &client{Client: rpc.NewClient(conn), t: h.t, conn: conn}
	c.gone.Go(func() { h.server.ServeConn(server) })
	h.t.Cleanup(c.leave)
	if err := c.Resume(h.t.Context(), []byte(token)); err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (c *client) leave() {
	_ = c.conn.Close(transport.CloseNormal, "")
	c.gone.Wait()
}

// event is an event as a test compares it.
type event struct {
	kind    qpcpb.Event
	message proto.Message
}

func (e event) String() string { return fmt.Sprintf("%v{%v}", e.kind, e.message) }

// next reads the next event, or returns false when none comes.
func (c *client) next() (e event, ok bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Millisecond)
	defer cancel()
	stream, err := c.conn.AcceptReceiveStream(ctx)
	if err != nil {
		return e, false
	}
	b, err := io.ReadAll(stream)
	if err != nil || len(b) < 6 {
		c.t.Fatalf("an event of % x: %v", b, err)
	}
	e.kind = qpcpb.Event(int(b[0])<<8 | int(b[1]))
	e.message = map[qpcpb.Event]proto.Message{
		qpcpb.EventMessageAvailable: &qpcpb.MessageAvailable{}, qpcpb.EventKeyPackagesLow: &qpcpb.KeyPackagesLow{},
		qpcpb.EventSessionEnded: &qpcpb.SessionEnded{}, qpcpb.EventDraining: &qpcpb.Draining{},
		qpcpb.EventEphemeral: &qpcpb.Ephemeral{}, qpcpb.EventPresence: &qpcpb.Presence{},
	}[e.kind]
	if err := proto.Unmarshal(b[6:], e.message); err != nil {
		c.t.Fatal(err)
	}
	return e, true
}

// want reads exactly these events and no more.
func (c *client) want(events ...event) {
	c.t.Helper()
	for _, want := range events {
		got, ok := c.next()
		if !ok {
			c.t.Fatalf("no event came where %v is wanted", want)
		}
		if got.kind != want.kind || !proto.Equal(got.message, want.message) {
			c.t.Fatalf("got %v, want %v", got, want)
		}
	}
	if got, ok := c.next(); ok {
		c.t.Fatalf("one event too many: %v", got)
	}
}

func (c *client) wantClosed(code transport.CloseCode) {
	c.t.Helper()
	<-c.conn.Context().Done()
	if got, _, _, ok := transport.CloseError(context.Cause(c.conn.Context())); !ok || got != code {
		c.t.Fatalf("closed with %v, want %v", got, code)
	}
}

func message(seq uint64, size int) Event {
	return Event{qpcpb.EventMessageAvailable, &qpcpb.MessageAvailable{Seq: seq, Envelope: &qpcpb.Envelope{Seq: seq, Data: make([]byte, size)}}}
}

func online(name string, is bool) event {
	k := key(name)
	return event{qpcpb.EventPresence, &qpcpb.Presence{IdentityKey: k[:], Online: is}}
}

func seqs(t *testing.T, c *client) (got []uint64) {
	for {
		e, ok := c.next()
		if !ok {
			return got
		}
		m, is := e.message.(*qpcpb.MessageAvailable)
		if !is {
			t.Fatalf("got %v", e)
		}
		got = append(got, m.Seq)
		if m.Seq == 0 && (m.Envelope != nil || len(m.ChannelId) > 0) {
			t.Errorf("what events collapse into holds %v", m)
		}
	}
}

func TestEventsReachEveryConnectionInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, Options{})
		phone, laptop, bob := h.connect("alice", rpctest.Options{}), h.connect("alice", rpctest.Options{}), h.connect("bob", rpctest.Options{})
		var want []uint64
		for seq := range uint64(200) {
			h.hub.Send(key("alice"), message(seq+1, 10))
			want = append(want, seq+1)
		}
		h.hub.Send(key("nobody"), message(1, 10))
		for _, c := range []*client{phone, laptop} {
			if got := seqs(t, c); !slices.Equal(got, want) {
				t.Errorf("got %v", got)
			}
		}
		bob.want()
		draining := Event{qpcpb.EventDraining, &qpcpb.Draining{Seconds: 8}}
		h.hub.SendAll(draining)
		for _, c := range []*client{phone, laptop, bob} {
			c.want(toEvent(draining))
		}
		if h.hub.Connections() != 3 || !h.hub.Online(key("bob")) || h.hub.Online(key("nobody")) {
			t.Errorf("%d connections", h.hub.Connections())
		}
	})
}

func toEvent(e Event) event { return event{e.Kind, e.Message} }

// What waits for a connection that is slow collapses into one event.
func TestCollapse(t *testing.T) {
	// With credit for one event, the first is under way and the second waits
	// for the credit outside of the queue.
	const ahead = 2
	tests := []struct {
		name string
		size int
		send int
		want []uint64 // 0 is what events collapse into
	}{
		{"as many as may wait", 10, ahead + maxPending, nil},
		{"one more", 10, ahead + maxPending + 1, []uint64{1, 2, 0}},
		{"then it fills again", 10, ahead + maxPending + 3, []uint64{1, 2, 0, 260, 261}},
		{"as many bytes as may wait", MaxEnvelope, ahead + 7, nil},
		{"more bytes", MaxEnvelope, ahead + 8, []uint64{1, 2, 0}},
		{"twice", MaxEnvelope, ahead + 8 + 8, []uint64{1, 2, 0}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, Options{})
				c := h.connect("alice", rpctest.Options{Events: 1, Window: 1 << 20})
				for seq := 1; seq <= test.send; seq++ {
					h.hub.Send(key("alice"), message(uint64(seq), test.size))
					synctest.Wait()
					if events, bytes, _ := h.waiting(t); events > maxPending || bytes > maxPendingBytes {
						t.Fatalf("%d events of %d bytes wait", events, bytes)
					}
				}
				want := test.want
				if want == nil {
					for seq := range uint64(test.send) {
						want = append(want, seq+1)
					}
				}
				if got := seqs(t, c); !slices.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
				if events, bytes, writing := h.waiting(t); events != 0 || bytes != 0 || writing {
					t.Errorf("left: %d events of %d bytes, writing %v", events, bytes, writing)
				}
				h.hub.Send(key("alice"), message(999, 1))
				if got := seqs(t, c); !slices.Equal(got, []uint64{999}) {
					t.Errorf("afterwards got %v", got)
				}
			})
		})
	}
}

// waiting returns what waits for the one connection there is, and whether its
// writer runs.
func (h *house) waiting(t *testing.T) (events, bytes int, writing bool) {
	t.Helper()
	h.hub.mu.RLock()
	defer h.hub.mu.RUnlock()
	for _, peers := range h.hub.byKey {
		for _, s := range peers {
			s.mu.Lock()
			defer s.mu.Unlock()
			return len(s.pending), s.bytes, s.writing
		}
	}
	t.Fatal("nobody is connected")
	return 0, 0, false
}

// An event that is no message survives the collapse that it causes.
func TestCollapseKeepsOtherEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, Options{})
		c := h.connect("alice", rpctest.Options{Events: 1})
		for seq := range uint64(2 + maxPending) {
			h.hub.Send(key("alice"), message(seq+1, 1))
			synctest.Wait()
		}
		low := event{qpcpb.EventKeyPackagesLow, &qpcpb.KeyPackagesLow{Remaining: 3}}
		h.hub.Send(key("alice"), Event{low.kind, low.message})
		c.want(toEvent(message(1, 1)), toEvent(message(2, 1)), toEvent(lookAgain), low)
	})
}

func TestIdleConnectionsCostNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, Options{})
		idle := h.connect("alice", rpctest.Options{})
		stuck := h.connect("bob", rpctest.Options{Events: 1})
		for range 3 {
			h.hub.SendAll(message(1, 1))
		}
		if got := seqs(t, idle); len(got) != 3 {
			t.Errorf("got %v", got)
		}
		synctest.Wait()
		if got := writers(); got != 1 {
			t.Errorf("%d writers run while one connection does not read", got)
		}
		if got := seqs(t, stuck); len(got) != 3 {
			t.Errorf("got %v", got)
		}
		synctest.Wait()
		if got := writers(); got != 0 {
			t.Errorf("%d writers run while nothing waits", got)
		}
	})
}

func writers() int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	return strings.Count(string(stacks), "push.(*subscriber).write(")
}

func TestSlowReaderIsClosed(t *testing.T) {
	for name, o := range map[string]rpctest.Options{"no credit": {Events: 1}, "no window": {Window: 8}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHouse(t, Options{})
				slow, other := h.connect("alice", o), h.connect("alice", rpctest.Options{})
				begun := time.Now()
				for range 3 {
					h.hub.Send(key("alice"), message(1, 100))
				}
				if got := seqs(t, other); len(got) != 3 {
					t.Errorf("a slow connection holds up another: %v", got)
				}
				slow.wantClosed(transport.CloseLimitExceeded)
				if got := time.Since(begun); got < writeTimeout || got > writeTimeout+time.Second {
					t.Errorf("closed after %v", got)
				}
				synctest.Wait()
				if h.hub.Connections() != 1 {
					t.Errorf("%d connections are left", h.hub.Connections())
				}
			})
		})
	}
}

// A client may refuse one event and still gets the next.
func TestOneEventIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, Options{})
		c := h.connect("alice", rpctest.Options{Window: 64})
		h.hub.Send(key("alice"), message(1, 1000))
		h.hub.Send(key("alice"), message(2, 1))
		stream, err := c.conn.AcceptReceiveStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		stream.CancelRead(1)
		if got := seqs(t, c); !slices.Equal(got, []uint64{2}) {
			t.Errorf("got %v", got)
		}
		synctest.Wait()
		if events, bytes, writing := h.waiting(t); events != 0 || bytes != 0 || writing {
			t.Errorf("left: %d events of %d bytes, writing %v", events, bytes, writing)
		}
	})
}

func TestEndSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, Options{})
		bye := event{qpcpb.EventSessionEnded, &qpcpb.SessionEnded{Reason: "by hand"}}
		h.server.Register(qpcpb.MethodLogout, func(ctx context.Context, r proto.Message) (proto.Message, error) {
			caller := rpc.PrincipalOf(ctx)
			h.hub.EndSessions(ctx, caller.Identity, func(p *rpc.Principal) bool {
				return r.(*qpcpb.LogoutRequest).AllSessions || p.Session == caller.Session
			}, transport.CloseSessionRevoked, "by hand")
			time.Sleep(time.Minute / 2) // still before the answer
			return &qpcpb.LogoutResponse{Success: true}, nil
		})
		first, same := h.connect("alice/1", rpctest.Options{}), h.connect("alice/1", rpctest.Options{})
		second, bob := h.connect("alice/2", rpctest.Options{}), h.connect("bob/1", rpctest.Options{})
		logout := func(c *client, all bool) chan error {
			done := make(chan error, 1)
			go func() {
				done <- c.Call(t.Context(), qpcpb.MethodLogout, &qpcpb.LogoutRequest{AllSessions: all}, &qpcpb.LogoutResponse{})
			}()
			return done
		}
		answered := logout(first, false)
		same.want(bye) // told at once
		same.wantClosed(transport.CloseSessionRevoked)
		time.Sleep(10 * time.Second)
		first.want() // not before the answer
		if err := <-answered; err != nil {
			t.Fatal("the answer to the call that ended the session:", err)
		}
		first.want(bye)
		first.wantClosed(transport.CloseSessionRevoked)
		second.want()
		answered = logout(second, true)
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		second.wantClosed(transport.CloseSessionRevoked)
		bob.want()
		if h.hub.Connections() != 1 || !h.hub.Online(key("bob")) {
			t.Errorf("%d connections are left", h.hub.Connections())
		}
	})
}

func TestPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var seen []rpc.IdentityKey
		h := newHouse(t, Options{
			Contacts: func(_ context.Context, of rpc.IdentityKey) ([]rpc.IdentityKey, error) {
				switch of {
				case key("mallory"):
					return nil, errors.New("the disk is on fire")
				case key("carol"):
					return nil, nil
				}
				return []rpc.IdentityKey{key("bob"), key("offline")}, nil
			},
			LastSeen: func(_ context.Context, identity rpc.IdentityKey) {
				mu.Lock()
				defer mu.Unlock()
				seen = append(seen, identity)
			},
		})
		carol := h.connect("carol", rpctest.Options{}) // no contact of alice
		bob := h.connect("bob", rpctest.Options{})
		bob.want(online("bob", true)) // the hub tells whom Contacts names
		phone := h.connect("alice", rpctest.Options{})
		bob.want(online("alice", true))
		laptop := h.connect("alice", rpctest.Options{})
		bob.want()
		phone.leave()
		bob.want()
		laptop.leave()
		bob.want(online("alice", false))
		h.connect("mallory", rpctest.Options{}).leave() // the error is logged and nothing else happens
		// A change that is undone before it is told is not told.
		h.connect("dave", rpctest.Options{}).leave()
		synctest.Wait()
		for e, ok := bob.next(); ok; e, ok = bob.next() {
			if !proto.Equal(e.message, online("dave", false).message) && !proto.Equal(e.message, online("dave", true).message) {
				t.Errorf("got %v", e)
			}
		}
		carol.want()
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(seen, key("alice")) || slices.Contains(seen, key("bob")) {
			t.Errorf("seen last: %v", seen)
		}
	})
}

func TestPresenceDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		h := newHouse(t, Options{Contacts: func(ctx context.Context, _ rpc.IdentityKey) ([]rpc.IdentityKey, error) {
			<-stuck
			return nil, nil
		}})
		for i := range maxPresenceChanges + 50 { // more than may wait: the rest is dropped
			h.connect(fmt.Sprintf("user %d", i), rpctest.Options{})
		}
		close(stuck)
		if got := h.hub.Connections(); got != maxPresenceChanges+50 {
			t.Errorf("%d connections", got)
		}
	})
}

// A connection that logs in as somebody else gets that one's events from then
// on, and only those.
func TestAnotherIdentityLogsIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, Options{Contacts: func(context.Context, rpc.IdentityKey) ([]rpc.IdentityKey, error) {
			return []rpc.IdentityKey{key("watcher")}, nil
		}})
		h.server.Register(qpcpb.MethodOpaqueLoginFinish, func(ctx context.Context, r proto.Message) (proto.Message, error) {
			rpc.PeerOf(ctx).Authenticate(principal(r.(*qpcpb.OpaqueLoginFinishRequest).Username))
			return &qpcpb.OpaqueLoginFinishResponse{}, nil
		})
		watcher := h.connect("watcher", rpctest.Options{})
		c := h.connect("alice", rpctest.Options{})
		watcher.want(online("watcher", true), online("alice", true))
		login := func(token string) {
			request := &qpcpb.OpaqueLoginFinishRequest{Username: token}
			if err := c.Call(t.Context(), qpcpb.MethodOpaqueLoginFinish, request, &qpcpb.OpaqueLoginFinishResponse{}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		login("alice/2") // the same identity: nothing changes for the watcher
		watcher.want()
		login("bob")
		watcher.want(online("alice", false), online("bob", true))
		if h.hub.Online(key("alice")) || !h.hub.Online(key("bob")) || h.hub.Connections() != 2 {
			t.Errorf("alice online %v, %d connections", h.hub.Online(key("alice")), h.hub.Connections())
		}
		h.hub.Send(key("alice"), message(1, 1))
		h.hub.Send(key("bob"), message(2, 1))
		if got := seqs(t, c); !slices.Equal(got, []uint64{2}) {
			t.Errorf("got %v", got)
		}
		c.leave()
		watcher.want(online("bob", false))
		if h.hub.Connections() != 1 {
			t.Errorf("%d connections", h.hub.Connections())
		}
	})
}

// A connection that ends takes what waits for it along.
func TestDisconnectWhileEventsWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, Options{})
		c := h.connect("alice", rpctest.Options{Events: 1})
		for range 10 {
			h.hub.Send(key("alice"), message(1, 1))
		}
		synctest.Wait()
		c.leave()
		synctest.Wait()
		if writers() != 0 || h.hub.Online(key("alice")) {
			t.Errorf("%d writers, online %v", writers(), h.hub.Online(key("alice")))
		}
	})
}
