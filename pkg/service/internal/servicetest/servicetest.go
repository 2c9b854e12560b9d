// Package servicetest is the ground on which the domains are tested: a real
// database file, a real hub and a real server on loopback QUIC, so that a test
// comes in by the front door as a client does. Sessions are made up: a client
// connects as whoever the test says.
//
// Nothing outside of tests imports it.
package servicetest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// patience bounds every wait: far beyond what loopback needs, so that it
	// ends a test only when what is waited for never comes.
	patience = 10 * time.Second
	// maxEvents is the room for events that a test has not looked at yet.
	maxEvents = 64
	// applicationID is any number but zero.
	applicationID = 0x74657374
)

// Clock is a clock that moves only when told to. It is safe for concurrent
// use.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// Now returns the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock, backwards too.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// House is a server without services. Register them on Server, then call Open.
type House struct {
	DB     *store.DB
	Hub    *push.Hub
	Server *rpc.Server
	// Wall is the clock that people read; Service drives DB.ServiceTime. They
	// move independently of each other.
	Wall, Service *Clock
	Accounts      *Accounts
	// ResumeSession, when set, is asked for tokens that the house has not
	// made itself.
	ResumeSession func(ctx context.Context, token []byte) (rpc.Principal, error)
	// Disconnected, when set, is told of connections that have ended.
	Disconnected func(p *rpc.Peer)

	t        testing.TB
	pin      transport.Pin
	listener *transport.Listener

	mu       sync.Mutex
	sessions map[string]rpc.Principal
}

// New builds a house with an empty database. It is torn down with the test.
func New(t testing.TB) *House {
	t.Helper()
	h := &House{
		Wall:     &Clock{now: time.Now()},
		Service:  &Clock{now: time.Now()},
		Accounts: &Accounts{keys: make(map[rpc.IdentityKey]bool)},
		t:        t,
		sessions: make(map[string]rpc.Principal),
	}
	h.openDB(filepath.Join(t.TempDir(), "test.db"))
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	h.Hub = push.NewHub(push.Options{Log: log})
	h.Server = rpc.NewServer(rpc.ServerOptions{
		Log:           log,
		ResumeSession: h.resume,
		Authenticated: h.Hub.Authenticated,
		Disconnected: func(p *rpc.Peer) {
			h.Hub.Disconnected(p)
			if h.Disconnected != nil {
				h.Disconnected(p)
			}
		},
	})
	t.Cleanup(h.Server.Close)
	return h
}

// openDB opens the database; it is closed with the test.
func (h *House) openDB(path string) {
	h.t.Helper()
	db, err := store.Open(h.t.Context(), store.Options{
		Path:          path,
		Migrations:    store.ServerMigrations(),
		ApplicationID: applicationID,
		Now:           h.Service.Now,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.DB = db
	h.t.Cleanup(func() {
		if err := db.Close(); err != nil {
			h.t.Error("closing the database:", err)
		}
	})
}

// Replaceable is a registrar whose services can be registered again while
// connections are served, as RestartDB needs it. Make it once for a house.
func (h *House) Replaceable() qpcpb.Registrar {
	return &replaceable{server: h.Server, handlers: make(map[qpcpb.MethodID]qpcpb.Handler)}
}

type replaceable struct {
	server   *rpc.Server
	mu       sync.Mutex
	handlers map[qpcpb.MethodID]qpcpb.Handler
}

// Register implements qpcpb.Registrar.
func (r *replaceable) Register(method qpcpb.MethodID, handler qpcpb.Handler) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, known := r.handlers[method]
	r.handlers[method] = handler
	if known {
		return
	}
	r.server.Register(method, func(ctx context.Context, request proto.Message) (proto.Message, error) {
		r.mu.Lock()
		present := r.handlers[method]
		r.mu.Unlock()
		return present(ctx, request)
	})
}

// RestartDB closes the database and opens it again, as a restart of the server
// does. Services hold the old one: build them anew and register them with a
// Replaceable. Connections stay.
func (h *House) RestartDB() {
	h.t.Helper()
	if err := h.DB.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.openDB(h.DB.Path())
}

func (h *House) resume(ctx context.Context, token []byte) (rpc.Principal, error) {
	h.mu.Lock()
	principal, ok := h.sessions[string(token)]
	h.mu.Unlock()
	if !ok && h.ResumeSession != nil {
		return h.ResumeSession(ctx, token)
	}
	if !ok {
		return rpc.Principal{}, rpc.ErrSessionRefused
	}
	return principal, nil
}

// Open starts to serve connections.
func (h *House) Open() {
	h.t.Helper()
	dir := h.t.TempDir()
	certificates, err := transport.LoadOrCreate(filepath.Join(dir, "cert.der"), filepath.Join(dir, "key.der"),
		transport.DefaultNames("router", nil), nil, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	h.pin = certificates.Pin()
	h.listener, err = transport.Listen(h.t.Context(), transport.ServerOptions{
		Addresses:    []string{"127.0.0.1:0"},
		Certificates: certificates,
		Secret:       transport.Secret{1},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { h.Hub.Run(ctx) })
	running.Go(func() {
		for {
			conn, err := h.listener.Accept(ctx)
			if err != nil {
				return
			}
			running.Go(func() { h.Server.ServeConn(conn) })
		}
	})
	h.t.Cleanup(func() {
		stop()
		h.listener.Close()
		running.Wait()
		h.Server.Close() // after the last call, which may still end connections
	})
}

// Event is a push event as it arrived.
type Event struct {
	Kind    qpcpb.Event
	Payload []byte
}

// Client is one connection to the house.
type Client struct {
	*rpc.Client
	Events chan Event // what came and has not been looked at
	t      testing.TB
}

// keep keeps an event that arrived; what nobody looks at falls away.
func (c *Client) keep(kind qpcpb.Event, payload []byte) {
	select {
	case c.Events <- Event{kind, append([]byte{}, payload...)}:
	default:
	}
}

// Stranger connects without a session.
func (h *House) Stranger() *Client { return h.StrangerFrom(netip.Addr{}) }

// StrangerFrom connects from an address of this machine: Linux answers to all
// of 127.0.0.0/8.
func (h *House) StrangerFrom(source netip.Addr) *Client {
	h.t.Helper()
	conn, err := transport.Dial(Within(h.t), transport.DialOptions{
		Address:   h.listener.Addrs()[0].String(),
		Trust:     transport.TrustPin(h.pin),
		LocalAddr: source,
	})
	if err != nil {
		h.t.Fatal(err)
	}
	c := &Client{Client: rpc.NewClient(conn), Events: make(chan Event, maxEvents), t: h.t}
	var receiving sync.WaitGroup
	receiving.Go(func() {
		// The error is the end of the connection.
		_ = c.ReceiveEvents(conn.Context(), c.keep)
	})
	h.t.Cleanup(func() {
		_ = conn.Close(transport.CloseNormal, "") // it may have ended already
		receiving.Wait()
	})
	return c
}

// ConnectAs connects and resumes a session of the principal.
func (h *House) ConnectAs(principal rpc.Principal) *Client {
	h.t.Helper()
	token := rand.Text()
	h.mu.Lock()
	h.sessions[token] = principal
	h.mu.Unlock()
	c := h.Stranger()
	if err := c.Resume(Within(h.t), []byte(token)); err != nil {
		h.t.Fatal(err)
	}
	return c
}

// Connect gives name an account if it has none, and connects as it.
func (h *House) Connect(name string) *Client {
	h.t.Helper()
	h.Accounts.Add(name)
	return h.ConnectAs(rpc.Principal{Identity: Key(name), Username: name})
}

// Event waits for the next event.
func (c *Client) Event() Event {
	c.t.Helper()
	select {
	case e := <-c.Events:
		return e
	case <-time.After(patience):
		c.t.Fatal("no event came")
		return Event{}
	}
}

// Count returns how many rows a table has.
func (h *House) Count(table string) int {
	h.t.Helper()
	n := 0
	err := h.DB.Read(h.t.Context(), func(tx *store.Tx) error {
		return tx.QueryRow("SELECT count(*) FROM " + table).Scan(&n)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// Write runs f in a write transaction that must succeed.
func (h *House) Write(f func(tx *store.Tx) error) {
	h.t.Helper()
	if err := h.DB.Write(h.t.Context(), f); err != nil {
		h.t.Fatal(err)
	}
}

// Key returns the identity key of a name: always the same, nothing secret.
func Key(name string) rpc.IdentityKey { return sha256.Sum256([]byte("identity " + name)) }

// Bytes returns the identity key of a name as it stands in a request.
func Bytes(name string) []byte {
	key := Key(name)
	return key[:]
}

// Device returns a device id, always the same for a name.
func Device(name string) rpc.DeviceID {
	hash := sha256.Sum256([]byte("device " + name))
	return rpc.DeviceID(hash[:16])
}

// Within returns a context that bounds one step of a test.
func Within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// WantCode fails the test unless err is an answer with that code and the
// status that belongs to it. CodeUnspecified stands for success.
func WantCode(t testing.TB, err error, code qpcpb.Code) {
	t.Helper()
	if code == qpcpb.CodeUnspecified {
		if err != nil {
			t.Fatal("unexpected error:", err)
		}
		return
	}
	var answer *rpc.Error
	if !errors.As(err, &answer) {
		t.Fatalf("got %v, want %s", err, code.Word())
	}
	if answer.Code != code || answer.Status != code.Status() {
		t.Fatalf("got %s (%s), want %s (%s)", answer.Word, answer.Status, code.Word(), code.Status())
	}
	if answer.Message == "" {
		t.Fatalf("%s comes without a sentence", answer.Word)
	}
}

// Accounts knows which identities exist. It is safe for concurrent use.
type Accounts struct {
	mu   sync.Mutex
	keys map[rpc.IdentityKey]bool
}

// Add makes the account of a name.
func (a *Accounts) Add(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys[Key(name)] = true
}

// Remove takes the account of a name away.
func (a *Accounts) Remove(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.keys, Key(name))
}

// ExistsTx reports whether an identity has an account.
func (a *Accounts) ExistsTx(_ *store.Tx, identity rpc.IdentityKey) (bool, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keys[identity], nil
}
