package client_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/client/localstore"
	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/server"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test; nothing waits that long when all is
// well.
const patience = 30 * time.Second

// house is a server that can be stopped and started again in its place.
type house struct {
	t    *testing.T
	args []string
	addr netip.AddrPort

	stop context.CancelFunc
	done chan error
}

func newHouse(t *testing.T, args ...string) *house {
	h := &house{t: t, args: append([]string{"--data-dir", filepath.Join(t.TempDir(), "server")}, args...)}
	h.start()
	t.Cleanup(h.close)
	return h
}

func (h *house) start() {
	h.t.Helper()
	listen := "127.0.0.1:0"
	if h.addr.IsValid() {
		listen = h.addr.String()
	}
	cfg, _, err := config.Load(config.Sources{Args: append([]string{"--listen", listen}, h.args...)})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s, err := server.New(ctx, cfg, server.Options{Log: slog.New(slog.DiscardHandler), Version: "test"})
	if err != nil {
		h.t.Fatal(err)
	}
	if h.stop, h.done = stop, make(chan error, 1); !h.addr.IsValid() {
		h.addr = s.Addrs()[0] // clients read it while the server comes back
	}
	go func() { h.done <- s.Run(ctx) }()
}

func (h *house) close() {
	if h.stop == nil {
		return
	}
	h.stop()
	h.stop = nil
	if err := <-h.done; err != nil {
		h.t.Errorf("the server stopped with: %v", err)
	}
}

// person is an account on a machine of its own, which a test can switch on and
// off.
type person struct {
	*client.Client
	t     *testing.T
	house *house
	name  string
	path  string
	pins  *pins
	liar  *liar // stands between this machine and the server, or nil

	stop   context.CancelFunc
	done   chan error
	mu     sync.Mutex
	events []client.Event
	more   chan struct{}
}

type pins struct {
	mu    sync.Mutex
	known map[string]transport.Pin
}

func (p *pins) Lookup(server string) (transport.Pin, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pin, ok := p.known[server]
	return pin, ok, nil
}

func (p *pins) Remember(server string, pin transport.Pin) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[server] = pin
	return nil
}

func (p *pins) Replace(server string, _, next transport.Pin) error { return p.Remember(server, next) }

func (p *person) options() client.Options {
	store, err := localstore.Open(p.t.Context(), p.path, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return client.Options{
		Store: store, Log: slog.New(slog.DiscardHandler), Rand: rand.Reader,
		KDF: e2ee.KDF{MemoryKiB: 64, Passes: 1, Lanes: 1},
		Dial: func(ctx context.Context) (transport.Conn, error) {
			conn, err := transport.Dial(ctx, transport.DialOptions{Address: p.house.addr.String(), Trust: transport.TrustFirstUse(p.pins)})
			if err == nil && p.liar != nil {
				conn = p.liar.between(conn)
			}
			return conn, err
		},
	}
}

func password(name string) []byte { return []byte("password of " + name) }

// register makes an account and leaves it switched off.
func (h *house) register(name string) *person {
	h.t.Helper()
	p := &person{t: h.t, house: h, name: name, path: filepath.Join(h.t.TempDir(), name, "profile.db"),
		pins: &pins{known: map[string]transport.Pin{}}, more: make(chan struct{}, 1)}
	c, err := client.Register(h.t.Context(), p.options(), client.Registration{Server: "home", Username: name, Password: password(name)})
	if err != nil {
		h.t.Fatalf("registering %s: %v", name, err)
	}
	if err := c.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(p.off)
	return p
}

// on switches the machine on.
func (p *person) on() *person {
	p.t.Helper()
	c, err := client.Open(p.t.Context(), p.options(), password(p.name))
	if err != nil {
		p.t.Fatalf("opening the profile of %s: %v", p.name, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p.Client, p.stop, p.done = c, stop, make(chan error, 1)
	go func() {
		for e := range c.Events() {
			p.mu.Lock()
			p.events = append(p.events, e)
			p.mu.Unlock()
			select {
			case p.more <- struct{}{}:
			default:
			}
		}
	}()
	go func() { p.done <- c.Run(ctx) }()
	return p
}

// off switches it off without a goodbye.
func (p *person) off() {
	if p.stop == nil {
		return
	}
	p.stop()
	p.stop = nil
	if err := <-p.done; err != nil {
		p.t.Errorf("%s ended with: %v", p.name, err)
	}
	if err := p.Close(); err != nil {
		p.t.Error(err)
	}
	p.Client = nil
}

// until waits for an event that matches, and forgets all up to it.
func (p *person) until(what string, match func(client.Event) bool) client.Event {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		for i, e := range p.events {
			if match(e) {
				p.events = p.events[i+1:]
				p.mu.Unlock()
				return e
			}
		}
		p.mu.Unlock()
		select {
		case <-p.more:
		case <-deadline:
			p.mu.Lock()
			defer p.mu.Unlock()
			p.t.Fatalf("%s waits in vain for %s; there was %+v", p.name, what, p.events)
		}
	}
}

func (p *person) contact(peer *person) client.Contact {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		c, err := p.FindContact(p.t.Context(), peer.name)
		if err == nil {
			return c
		}
		if !errors.Is(err, client.ErrOffline) || time.Now().After(deadline) {
			p.t.Fatalf("%s does not find %s: %v", p.name, peer.name, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (p *person) says(peer *person, text string) client.Message {
	p.t.Helper()
	m, err := p.Send(p.t.Context(), p.contact(peer).Identity, text, e2ee.PartWhole)
	if err != nil {
		p.t.Fatalf("%s cannot say %q: %v", p.name, text, err)
	}
	return m
}

func (p *person) reads(peer *person, text string) client.Message {
	p.t.Helper()
	e := p.until(fmt.Sprintf("a message (%q)", text), func(e client.Event) bool { return e.Kind == client.EventMessage })
	if e.Message.Text != text || e.PeerName != peer.name {
		p.t.Fatalf("%s reads %q (%s) from %q, want %q from %q", p.name, e.Message.Text, e.Message.Problem, e.PeerName, text, peer.name)
	}
	return e.Message
}

func (p *person) learns(status client.Status, m client.Message) {
	p.t.Helper()
	p.until("status "+string(status), func(e client.Event) bool {
		return e.Kind == client.EventStatus && e.Message.No == m.No && e.Message.Status == status
	})
}

// history returns the texts of a conversation, with "me: " before one's own.
func (p *person) history(peer *person) []string {
	p.t.Helper()
	var texts []string
	err := p.History(p.t.Context(), p.contact(peer).Identity, 0, func(m client.Message) bool {
		text := m.Text + m.Problem
		if m.Mine {
			text = "me: " + text
		}
		texts = append(texts, text)
		return true
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return texts
}

func TestTwoPeopleChat(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	hello := alice.says(bob, "hello bob")
	alice.learns(client.StatusSent, hello)
	got := bob.reads(alice, "hello bob")
	if err := bob.MarkRead(t.Context(), got); err != nil {
		t.Fatal(err)
	}
	alice.learns(client.StatusRead, hello)
	bob.says(alice, "hello alice")
	alice.reads(bob, "hello alice")
	for i := range 20 {
		alice.says(bob, fmt.Sprintf("line %d", i))
	}
	for i := range 20 {
		bob.reads(alice, fmt.Sprintf("line %d", i))
	}
	if a, b := alice.SafetyNumber(bob.Identity()), bob.SafetyNumber(alice.Identity()); a != b || len(a) != 60 {
		t.Errorf("safety numbers %q and %q", a, b)
	}
}

func TestMessagesWaitForWhoIsAway(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob")
	var last client.Message
	for i := range 10 {
		last = alice.says(bob, fmt.Sprintf("line %d", i))
	}
	alice.learns(client.StatusSent, last)
	alice.off()
	h.close()
	h.start()
	bob.on()
	for i := range 10 {
		bob.reads(alice, fmt.Sprintf("line %d", i))
	}
	bob.off()
	bob.on()
	bob.until("the end of the queue", func(e client.Event) bool { return e.Kind == client.EventCaughtUp })
	if got := bob.history(alice); len(got) != 10 {
		t.Errorf("bob has %d messages: %q", len(got), got)
	}
}

func TestWrittenWhileOffline(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	alice.says(bob, "first")
	bob.reads(alice, "first")
	h.close()
	alice.until("the loss of the connection", func(e client.Event) bool {
		return e.Kind == client.EventConnection && e.Connection == client.Disconnected
	})
	alice.says(bob, "second")
	alice.off()
	alice.on()
	alice.says(bob, "third")
	h.start()
	bob.reads(alice, "second")
	bob.reads(alice, "third")
}

// Both begin in the same moment: each makes a group, and every message still
// opens.
func TestBothBeginAtOnce(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	a, b := alice.contact(bob), bob.contact(alice)
	var both sync.WaitGroup
	both.Go(func() { alice.Send(t.Context(), a.Identity, "from alice", e2ee.PartWhole) })
	both.Go(func() { bob.Send(t.Context(), b.Identity, "from bob", e2ee.PartWhole) })
	both.Wait()
	alice.reads(bob, "from bob")
	bob.reads(alice, "from alice")
	alice.says(bob, "again")
	bob.reads(alice, "again")
	bob.says(alice, "and again")
	alice.reads(bob, "and again")
}

func TestTyping(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	alice.says(bob, "hi")
	bob.reads(alice, "hi")
	for _, on := range []bool{true, false} {
		if err := bob.Typing(t.Context(), bob.contact(alice).Identity, on); err != nil {
			t.Fatal(err)
		}
		bob.says(alice, "after typing")
		e := alice.until("typing", func(e client.Event) bool { return e.Kind == client.EventTyping || e.Kind == client.EventMessage })
		if e.Kind == client.EventTyping && e.On != on {
			t.Errorf("typing %v, want %v", e.On, on)
		}
	}
}

func TestLoginLogoutPassword(t *testing.T) {
	h := newHouse(t)
	alice := h.register("alice")
	open := func(with string) (*client.Client, error) {
		o := alice.options()
		c, err := client.Open(t.Context(), o, []byte(with))
		if err != nil {
			o.Store.Close()
		}
		return c, err
	}
	old := string(password("alice"))
	if _, err := open("wrong"); !errors.Is(err, e2ee.ErrPassword) {
		t.Errorf("a wrong password: %v", err)
	}
	c, err := open(old)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.ChangePassword(t.Context(), []byte("new")); err != nil {
		t.Fatal(err)
	}
	if err := c.Logout(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := c.Call(t.Context(), func(context.Context, *rpc.Client) error { return nil }); !errors.Is(err, client.ErrLoginRequired) {
		t.Errorf("a call after logout: %v", err)
	}
	c.Close()
	if _, err := open(old); !errors.Is(err, e2ee.ErrPassword) {
		t.Errorf("the old password: %v", err)
	}
	if c, err = open("new"); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Login(t.Context(), []byte(old)); rpc.CodeOf(err) != qpcpb.CodeBadCredentials {
		t.Errorf("logging in with the old password: %v", err)
	}
	if err := c.Login(t.Context(), []byte("new")); err != nil {
		t.Errorf("logging in with the new password: %v", err)
	}
	if err := c.DeleteAccount(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Login(t.Context(), []byte("new")); rpc.CodeOf(err) != qpcpb.CodeBadCredentials {
		t.Errorf("logging in to a deleted account: %v", err)
	}
}

func TestTakenName(t *testing.T) {
	h := newHouse(t)
	h.register("alice")
	other := &person{t: t, house: h, name: "alice", path: filepath.Join(t.TempDir(), "p.db"), pins: &pins{known: map[string]transport.Pin{}}}
	o := other.options()
	defer o.Store.Close()
	_, err := client.Register(t.Context(), o, client.Registration{Server: "home", Username: "Alice", Password: []byte("x")})
	if rpc.CodeOf(err) != qpcpb.CodeNameTaken {
		t.Errorf("registering a taken name: %v", err)
	}
}

// Nothing readable lies in the local file: not a message, not a name of a
// contact's text, not a key.
func TestLocalFileIsSealed(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	const secret = "a very recognisable sentence"
	alice.learns(client.StatusSent, alice.says(bob, secret))
	bob.reads(alice, secret)
	alice.off()
	bob.off()
	for _, p := range []*person{alice, bob} {
		if found := grep(t, filepath.Dir(p.path), secret); found != "" {
			t.Errorf("%s holds the message in the open", found)
		}
	}
	h.close()
	if found := grep(t, strings.TrimSuffix(h.args[1], "/"), secret); found != "" {
		t.Errorf("the server's %s holds the message in the open", found)
	}
}

// Keys are renewed after so many messages, and nobody notices.
func TestKeysAreRenewed(t *testing.T) {
	h := newHouse(t, "--send-burst", "2000")
	alice, bob := h.register("alice").on(), h.register("bob").on()
	const lines = 1100 // two renewals
	to := alice.contact(bob).Identity
	for i := range lines {
		if _, err := alice.Send(t.Context(), to, fmt.Sprintf("line %d", i), e2ee.PartWhole); err != nil {
			t.Fatal(err)
		}
	}
	for i := range lines {
		bob.reads(alice, fmt.Sprintf("line %d", i))
	}
	alice.off()
	alice.on()
	bob.says(alice, "still there?")
	alice.reads(bob, "still there?")
	for _, p := range []*person{alice, bob} {
		p.off()
		store, err := localstore.Open(t.Context(), p.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		groups, err := store.List(t.Context(), "group/", "", 100)
		if err != nil || len(groups) != 3 {
			t.Errorf("%s has %d groups, %v, want 3", p.name, len(groups), err)
		}
		store.Close()
	}
}
