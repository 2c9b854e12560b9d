package federation_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/service/federation"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// town is a server of which only the federation is real. What its mailboxes
// hold outlives a restart, as a database does.
type town struct {
	t      *testing.T
	domain string
	other  *town
	db     *store.DB
	users  map[rpc.IdentityKey]string

	mu       sync.Mutex
	boxes    map[string][]string // by recipient and channel
	receipts map[string]uint64
	full     map[rpc.IdentityKey]int // how often it still refuses; -1 until it is read
	down     bool                    // nobody can connect
	loseNext int                     // answers that do not leave

	service *federation.Service
	calls   *rpc.Server
	conns   []transport.Conn // of the other's
	running sync.WaitGroup
	stop    context.CancelFunc
}

func key(name string) rpc.IdentityKey { return sha256.Sum256([]byte(name)) }

func newTown(t *testing.T, domain string, users ...string) *town {
	w := &town{
		t: t, domain: domain, users: make(map[rpc.IdentityKey]string),
		boxes: make(map[string][]string), receipts: make(map[string]uint64), full: make(map[rpc.IdentityKey]int),
	}
	for _, u := range users {
		w.users[key(u)] = u
	}
	db, err := store.Open(context.Background(), store.Options{
		Path: filepath.Join(t.TempDir(), domain+".db"), Migrations: store.ServerMigrations(), ApplicationID: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.db = db
	return w
}

// start runs the federation, anew after a stop.
func (w *town) start() {
	w.service = federation.New(federation.Options{
		DB: w.db, Log: slog.New(slog.DiscardHandler), Now: time.Now, Rand: rand.Reader, Domain: w.domain, ServerKey: make([]byte, 32),
		Peers:    []federation.ConfiguredPeer{{Domain: w.other.domain, Address: "there", Where: "the test"}},
		Dial:     w.dial,
		Status:   func() string { return "ok" },
		Accounts: accounts{w}, Mailbox: mailbox{w}, Groups: groups{}, Keys: nil, KeyLog: nil,
	})
	if err := w.service.Load(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	w.calls = rpc.NewServer(rpc.ServerOptions{Log: slog.New(slog.DiscardHandler)})
	qpcpb.RegisterFederationServer(forgetful{w}, w.service)
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	service := w.service
	w.running.Go(func() { service.Run(ctx) })
}

// halt stops it, and with it every connection from the other town.
func (w *town) halt() {
	w.stop()
	w.sever()
	w.running.Wait()
	w.calls.Close()
}

// sever ends the connections that the other town has to this one.
func (w *town) sever() {
	w.mu.Lock()
	conns := w.conns
	w.conns = nil
	w.mu.Unlock()
	for _, c := range conns {
		_ = c.Close(transport.CloseNormal, "severed")
	}
}

func (w *town) setDown(down bool) {
	w.mu.Lock()
	w.down = down
	w.mu.Unlock()
	if down {
		w.sever()
	}
}

// dial connects to the other town.
func (w *town) dial(context.Context, string, transport.Trust) (transport.Conn, error) {
	o := w.other
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.down {
		return nil, errors.New("nobody answers")
	}
	near, far := rpctest.Pipe(rpctest.Options{})
	o.conns = append(o.conns, far)
	calls := o.calls
	o.running.Go(func() { calls.ServePeer(far, w.domain) })
	return near, nil
}

// forgetful loses answers: the call has run, and the connection ends.
type forgetful struct{ *town }

func (f forgetful) Register(method qpcpb.MethodID, h qpcpb.Handler) {
	f.calls.Register(method, func(ctx context.Context, r proto.Message) (proto.Message, error) {
		answer, err := h(ctx, r)
		f.mu.Lock()
		lose := f.loseNext > 0 && method != qpcpb.MethodFederationHealth
		if lose {
			f.loseNext--
		}
		f.mu.Unlock()
		if lose {
			f.sever()
		}
		return answer, err
	})
}

type accounts struct{ *town }

func (a accounts) ExistsTx(_ *store.Tx, identity rpc.IdentityKey) (bool, error) {
	return a.users[identity] != "", nil
}

func (a accounts) UsernameTx(_ *store.Tx, identity rpc.IdentityKey) (string, bool, error) {
	return a.users[identity], a.users[identity] != "", nil
}

func (a accounts) IdentityTx(*store.Tx, string) (rpc.IdentityKey, bool, error) {
	return rpc.IdentityKey{}, false, nil
}

type groups struct{ federation.Groups }

func (groups) OpenChannelTx(*store.Tx, rpc.ChannelID, rpc.IdentityKey, rpc.IdentityKey) error {
	return nil
}

type mailbox struct{ *town }

func (m mailbox) ReceiveTx(tx *store.Tx, _ string, msg federation.Message) (uint64, bool, error) {
	box := string(msg.Recipient[:]) + string(msg.Channel)
	receipt := box + string(msg.Sender[:]) + string(msg.ID[:])
	m.mu.Lock()
	defer m.mu.Unlock()
	if seq, ok := m.receipts[receipt]; ok {
		return seq, true, nil
	}
	if n := m.full[msg.Recipient]; n != 0 {
		m.full[msg.Recipient] = max(n-1, -1)
		return 0, false, rpc.Errorf(qpcpb.CodeQueueFull, "full")
	}
	// Undone when the transaction fails, as rows are.
	before := m.boxes[box]
	m.boxes[box] = append(slices.Clone(before), string(msg.Payload))
	seq := uint64(len(m.boxes[box]))
	m.receipts[receipt] = seq
	tx.AfterRollback(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.boxes[box] = before
		delete(m.receipts, receipt)
	})
	return seq, false, nil
}

func (mailbox) ReceiveEphemeral(context.Context, federation.Message) error { return nil }

// sends puts a message into the outbox.
func (w *town) sends(from, to string, channel []byte, text string) error {
	return w.db.Write(context.Background(), func(tx *store.Tx) error {
		return w.service.RelayTx(tx, w.other.domain, federation.Message{
			Sender: key(from), Recipient: key(to), Channel: channel, Payload: []byte(text), ValidFor: 7 * 24 * time.Hour,
		}, false)
	})
}

func (w *town) queued() uint64 {
	list, err := w.service.ListPeers(context.Background(), &qpcpb.ListPeersRequest{})
	if err != nil {
		w.t.Error(err)
		return 0
	}
	return list.Peers[0].QueuedMessages
}

// pair runs f with two towns in a bubble, where time is free.
func pair(t *testing.T, f func(t *testing.T, a, b *town)) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newTown(t, "a.example", "alice", "anna"), newTown(t, "b.example", "bob", "bea", "ben")
		a.other, b.other = b, a
		a.start()
		b.start()
		f(t, a, b)
		a.halt()
		b.halt()
		for _, w := range []*town{a, b} {
			if err := w.db.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// action is one thing that happens.
type action struct {
	what     string
	from, to string
	channel  byte // 0: the inbox
	n        int
}

// Whatever is lost, restarted or full on the way: what has been taken arrives,
// once, and in the order of each sender's messages in each conversation.
func TestExactlyOnce(t *testing.T) {
	// A tenth of rapid's default keeps the package quick; -rapid.checks asks
	// for more.
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "rapid.checks" })
	if !asked {
		if err := flag.Set("rapid.checks", "10"); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		actions := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) action {
			return action{
				what: rapid.SampledFrom([]string{
					"send", "send", "send", "send", "send", "lose", "sever", "restart a", "restart b", "down", "up", "full", "read", "wait", "call",
				}).Draw(t, "what"),
				from:    rapid.SampledFrom([]string{"alice", "anna"}).Draw(t, "from"),
				to:      rapid.SampledFrom([]string{"bob", "bea", "ben"}).Draw(t, "to"),
				channel: rapid.ByteRange(0, 2).Draw(t, "channel"),
				n:       rapid.IntRange(1, 9).Draw(t, "n"),
			}
		}), 5, 40).Draw(rt, "actions")
		var failure string
		pair(t, func(t *testing.T, a, b *town) { failure = play(a, b, actions) })
		if failure != "" {
			rt.Fatal(failure)
		}
	})
}

// play carries the actions out, heals everything, and says what is wrong.
func play(a, b *town, actions []action) (failure string) {
	want := make(map[string][]string)
	count := 0
	for _, do := range actions {
		switch do.what {
		case "send":
			for range do.n {
				var channel []byte
				if do.channel > 0 {
					channel = slices.Repeat([]byte{do.channel}, 16)
				}
				text := fmt.Sprintf("%d from %s", count, do.from)
				count++
				if err := a.sends(do.from, do.to, channel, text); err != nil {
					return err.Error()
				}
				k := key(do.to)
				box := string(k[:]) + string(channel)
				want[box] = append(want[box], text)
			}
		case "lose":
			b.mu.Lock()
			b.loseNext += do.n % 3
			b.mu.Unlock()
		case "sever":
			b.sever()
		case "restart a":
			a.halt()
			a.start()
		case "restart b":
			b.halt()
			b.start()
		case "down", "up":
			b.setDown(do.what == "down")
		case "full", "read":
			b.mu.Lock()
			b.full[key(do.to)] = 0
			if do.what == "full" {
				b.full[key(do.to)] = do.n
				if do.n%2 == 0 {
					b.full[key(do.to)] = -1
				}
			}
			b.mu.Unlock()
		case "wait":
			time.Sleep(time.Duration(do.n) * time.Second)
		case "call":
			synctest.Wait()
		}
	}
	b.setDown(false)
	b.mu.Lock()
	clear(b.full)
	b.mu.Unlock()
	for end := time.Now().Add(time.Hour); a.queued() > 0; time.Sleep(20 * time.Second) {
		if time.Now().After(end) {
			return fmt.Sprintf("after an hour %d messages wait", a.queued())
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for box, texts := range want {
		if !slices.Equal(b.boxes[box], texts) {
			return fmt.Sprintf("a queue of %d messages has\n%s\nwant\n%s", len(texts), strings.Join(b.boxes[box], "\n"), strings.Join(texts, "\n"))
		}
	}
	if len(b.boxes) != len(want) {
		return fmt.Sprintf("%d queues, want %d", len(b.boxes), len(want))
	}
	return ""
}

func TestMessagesExpire(t *testing.T) {
	pair(t, func(t *testing.T, a, b *town) {
		b.setDown(true)
		if err := a.sends("alice", "bob", nil, "too old"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(8 * 24 * time.Hour)
		if err := a.sends("alice", "bob", nil, "young"); err != nil {
			t.Fatal(err)
		}
		b.setDown(false)
		time.Sleep(10 * time.Minute)
		k := key("bob")
		b.mu.Lock()
		if got := b.boxes[string(k[:])]; !slices.Equal(got, []string{"young"}) {
			t.Errorf("bob has %q", got)
		}
		b.mu.Unlock()
		if more, err := a.service.Sweep(context.Background()); more || err != nil || a.queued() != 0 || a.service.Stats().Expired != 1 {
			t.Errorf("swept: %v, %v; %d wait, %+v", more, err, a.queued(), a.service.Stats())
		}
	})
}

// Nobody fills the outbox alone, and all together not without end.
func TestTheOutboxIsBounded(t *testing.T) {
	pair(t, func(t *testing.T, a, b *town) {
		b.setDown(true)
		fill := func(from string) (n int) {
			err := a.db.Write(context.Background(), func(tx *store.Tx) error {
				for {
					err := a.service.RelayTx(tx, b.domain, federation.Message{Sender: key(from), Recipient: key("bob"), Payload: []byte("x"), ValidFor: time.Hour}, false)
					if rpc.CodeOf(err) == qpcpb.CodeQueueFull {
						return nil
					}
					if err != nil {
						return err
					}
					n++
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		sum := 0
		for _, from := range []string{"alice", "anna", "arno", "astrid"} {
			n := fill(from)
			if sum += n; n != federation.MaxQueued/4 {
				t.Errorf("%s: %d messages", from, n)
			}
		}
		if n := fill("axel"); sum != federation.MaxQueued || n != 0 {
			t.Errorf("%d in all, and axel %d", sum, n)
		}
		commits := 0
		err := a.db.Write(context.Background(), func(tx *store.Tx) error {
			for ; ; commits++ {
				err := a.service.RelayTx(tx, b.domain, federation.Message{FromHome: true, Recipient: key("bob"), Payload: []byte("commit"), ValidFor: time.Hour}, true)
				if rpc.CodeOf(err) == qpcpb.CodeQueueFull {
					return nil
				}
				if err != nil {
					return err
				}
			}
		})
		if err != nil || commits != federation.MaxQueued {
			t.Errorf("%d of what nobody may miss, %v", commits, err)
		}
		err = a.db.Write(context.Background(), func(tx *store.Tx) error { return a.service.EraseTx(tx, key("alice")) })
		if err != nil {
			t.Fatal(err)
		}
		if got := a.queued(); got != 2*federation.MaxQueued-federation.MaxQueued/4 {
			t.Errorf("%d wait", got)
		}
	})
}
