package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait: far beyond what loopback needs.
const patience = 20 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// house is a whole server on a loopback address.
type house struct {
	t    testing.TB
	dir  string
	s    *Server
	skip atomic.Int64 // how far its clock is ahead
	stop func()       // drains and waits
	done chan error
	log  lines
}

// lines are what the server logged.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// open starts a server on a directory. tweak may change its configuration, and
// built what New has made, before it runs.
func open(t testing.TB, dir string, tweak func(*config.Config), built ...func(*Server)) *house {
	t.Helper()
	return openWith(t, dir, Options{}, tweak, built...)
}

// openWith is open with options of the server of its own.
func openWith(t testing.TB, dir string, o Options, tweak func(*config.Config), built ...func(*Server)) *house {
	t.Helper()
	cfg, _, err := config.Load(config.Sources{
		Args:       []string{"--data-dir", dir, "--registration", "open"},
		DefaultUCI: filepath.Join(dir, "none"),
		Hostname:   func() (string, error) { return "router", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	if tweak != nil {
		tweak(cfg)
	}
	h := &house{t: t, dir: dir, done: make(chan error, 1)}
	o.Log, o.Version = slog.New(slog.NewTextHandler(&h.log, nil)), "test"
	o.Now = func() time.Time { return time.Now().Add(time.Duration(h.skip.Load())) }
	h.s, err = New(t.Context(), cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range built {
		f(h.s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { h.done <- h.s.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-h.done; err != nil {
			t.Error("the server ended with", err)
		}
	})
	t.Cleanup(h.stop)
	return h
}

// sleep moves the clock of the house.
func (h *house) sleep(d time.Duration) { h.skip.Add(int64(d)) }

// client is one connection to the house. Its events wait in a queue.
type client struct {
	*rpc.Client
	t      testing.TB
	events chan event
	gone   sync.WaitGroup
}

type event struct {
	kind    qpcpb.Event
	payload []byte
}

// dial connects over QUIC, from an address or from any.
func (h *house) dial(from string) *client {
	h.t.Helper()
	o := transport.DialOptions{Address: h.s.Addrs()[0].String(), Trust: transport.TrustPin(h.s.Pin())}
	if from != "" {
		o.LocalAddr = netip.MustParseAddr(from)
	}
	conn, err := transport.Dial(within(h.t), o)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.client(conn)
}

// pipe connects in memory, which no limit of the transport bounds.
func (h *house) pipe() *client {
	conn, server := rpctest.Pipe(rpctest.Options{})
	c := h.client(conn)
	c.gone.Go(func() { h.s.calls.ServeConn(server) })
	return c
}

func (h *house) client(conn transport.Conn) *client {
	c := &client{Client: rpc.NewClient(conn), t: h.t, events: make(chan event, 1024)}
	c.gone.Go(func() {
		_ = c.ReceiveEvents(conn.Context(), func(kind qpcpb.Event, payload []byte) { // until the end
			select {
			case c.events <- event{kind, append([]byte{}, payload...)}:
			default:
			}
		})
	})
	h.t.Cleanup(c.leave)
	return c
}

func (c *client) leave() {
	_ = c.Conn().Close(transport.CloseNormal, "")
	c.gone.Wait()
}

// event waits for an event of a kind and skips others.
func (c *client) event(kind qpcpb.Event) []byte {
	c.t.Helper()
	for end := time.After(patience); ; {
		select {
		case e := <-c.events:
			if e.kind == kind {
				return e.payload
			}
		case <-end:
			c.t.Fatalf("no %v came", kind)
		}
	}
}

func (c *client) wantClosed(code transport.CloseCode) {
	c.t.Helper()
	select {
	case <-c.Conn().Context().Done():
	case <-time.After(patience):
		c.t.Fatal("the connection stays open")
	}
	cause := context.Cause(c.Conn().Context())
	if got, _, remote, ok := transport.CloseError(cause); !ok || !remote || got != code {
		c.t.Fatalf("ended with %v, want close code %v", cause, code)
	}
}

// user is somebody with a password and an identity key.
type user struct {
	name, password string
	private        ed25519.PrivateKey
	key            rpc.IdentityKey
	token          []byte
}

// person makes a user, always the same for a name.
func person(name string) *user {
	seed := sha256.Sum256([]byte(name))
	private := ed25519.NewKeyFromSeed(seed[:])
	return &user{name: name, password: "password of " + name, private: private, key: rpc.IdentityKey(private.Public().(ed25519.PublicKey))}
}

// registration runs the client's side up to the last message.
func (c *client) registration(u *user) *qpcpb.OpaqueRegisterFinishRequest {
	c.t.Helper()
	registration, request, err := opaque.NewRegistration(rand.Reader, []byte(u.password))
	if err != nil {
		c.t.Fatal(err)
	}
	start, err := qpcpb.NewAuthClient(c).OpaqueRegisterStart(within(c.t), &qpcpb.OpaqueRegisterStartRequest{Username: u.name, Request: request})
	if err != nil {
		c.t.Fatal(err)
	}
	upload, _, err := registration.Finish(start.Response)
	if err != nil {
		c.t.Fatal(err)
	}
	return &qpcpb.OpaqueRegisterFinishRequest{
		Username: u.name, Upload: upload, IdentityKey: u.key[:], IdentityProof: proof.SignIdentity(u.private, u.name, upload),
	}
}

// login runs the client's side up to the last message.
func (c *client) login(u *user) *qpcpb.OpaqueLoginFinishRequest {
	c.t.Helper()
	login, ke1, err := opaque.NewLogin(rand.Reader, []byte(u.password))
	if err != nil {
		c.t.Fatal(err)
	}
	start, err := qpcpb.NewAuthClient(c).OpaqueLoginStart(within(c.t), &qpcpb.OpaqueLoginStartRequest{Username: u.name, Request: ke1})
	if err != nil {
		c.t.Fatal(err)
	}
	ke3, _, _, _, err := login.Finish(start.Response)
	if err != nil {
		c.t.Fatal(err)
	}
	return &qpcpb.OpaqueLoginFinishRequest{Username: u.name, Finalization: ke3, IdentityKey: u.key[:]}
}

// signUp registers and logs in with OPAQUE.
func (c *client) signUp(u *user) {
	c.t.Helper()
	if _, err := qpcpb.NewAuthClient(c).OpaqueRegisterFinish(within(c.t), c.registration(u)); err != nil {
		c.t.Fatal(err)
	}
	finish, err := qpcpb.NewAuthClient(c).OpaqueLoginFinish(within(c.t), c.login(u))
	if err != nil {
		c.t.Fatal(err)
	}
	u.token = finish.SessionToken
}

// settle gives a user an account and a session without a password, which
// spares a test two runs of Argon2id.
func (h *house) settle(u *user) *user {
	h.t.Helper()
	u.token = []byte(rand.Text())
	hash := sha256.Sum256(u.token)
	err := h.s.db.Write(within(h.t), func(tx *store.Tx) error {
		now := time.Now().Unix()
		made, err := tx.Exec(`INSERT OR IGNORE INTO auth_account (identity_key, username, opaque_record, registered_at, last_seen_at) VALUES (?, ?, zeroblob(192), ?, ?)`,
			u.key, u.name, now, now)
		if err != nil {
			return err
		}
		if made.RowsAffected == 1 {
			if err := h.s.keyLog.BindTx(tx, u.name, u.key); err != nil {
				return err
			}
		}
		_, err = tx.Exec(`INSERT INTO auth_session (token_hash, account_id, valid_until) SELECT ?, id, ? FROM auth_account WHERE identity_key = ?`,
			hash, h.s.db.ServiceTime()+int64(30*24*time.Hour/time.Second), u.key)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return u
}

// resume logs a connection in by the user's token.
func (c *client) resume(u *user) *client {
	c.t.Helper()
	if err := c.Resume(within(c.t), u.token); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// dump returns the contents of every table as text, by table.
func (h *house) dump() (tables map[string]string) {
	h.t.Helper()
	err := h.s.db.Read(within(h.t), func(tx *store.Tx) (err error) {
		tables, err = dumpTx(tx)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return tables
}

// dumpTx is dump of what a transaction sees. What the storage keeps for itself
// is left out, and so are the times when somebody was seen, which are written
// down in the background.
func dumpTx(tx *store.Tx) (map[string]string, error) {
	tables := make(map[string]string)
	names, err := column(tx, `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT IN ('store_meta') AND name NOT LIKE 'sqlite_%'`)
	if err != nil {
		return nil, err
	}
	for _, table := range names {
		// The length and the beginning of a blob tell whether it changed.
		columns, err := column(tx, `SELECT 'quote(length('||name||'))||'':''||quote(substr('||name||', 1, 64))' FROM pragma_table_info('`+table+`') WHERE name <> 'last_seen_at' ORDER BY cid`)
		if err != nil {
			return nil, err
		}
		rows, err := column(tx, `SELECT `+strings.Join(columns, "||','||")+` AS line FROM `+table+` ORDER BY line`)
		if err != nil {
			return nil, err
		}
		tables[table] = strings.Join(rows, "\n")
	}
	return tables, nil
}

// column reads the one column of a query.
func column(tx *store.Tx, query string) (values []string, err error) {
	rows, err := tx.Query(query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		values = append(values, v)
	}
	return values, rows.Err()
}

// changes says what differs between two dumps.
func changes(before, after map[string]string) (tables []string) {
	for table, rows := range after {
		if rows != before[table] {
			tables = append(tables, fmt.Sprintf("%s:\n%.2000s\nwas:\n%.2000s", table, rows, before[table]))
		}
	}
	return tables
}

// answer is a response as it came.
type answer struct {
	status qpcpb.Status
	id     uint32
	code   string
	body   []byte
}

// exchange sends one whole stream and reads its answer.
func (c *client) exchange(stream []byte) (a answer, err error) {
	s, err := c.Conn().OpenStream(within(c.t))
	if err != nil {
		return a, err
	}
	// A server that refuses early makes these fail; its answer counts.
	_ = s.SetWriteDeadline(time.Now().Add(patience))
	_ = s.SetReadDeadline(time.Now().Add(patience))
	_, _ = s.Write(stream)
	_ = s.Close()
	return read(s)
}

// read reads the one answer of a stream.
func read(stream io.Reader) (a answer, err error) {
	b, err := io.ReadAll(stream)
	if err != nil {
		return a, fmt.Errorf("after % x: %w", b, err)
	}
	return parse(b)
}

func wantCode(t testing.TB, err error, code qpcpb.Code) {
	t.Helper()
	var e *rpc.Error
	if !errors.As(err, &e) || e.Code != code || e.Status != code.Status() {
		t.Fatalf("got %v, want %s", err, code.Word())
	}
}
