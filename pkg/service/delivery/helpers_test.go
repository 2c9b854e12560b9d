package delivery_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	day       = 24 * time.Hour
	retention = 7 * day
)

// world is what delivery learns of other domains. It is safe for concurrent
// use.
type world struct {
	mu       sync.Mutex
	blocked  map[[2]rpc.IdentityKey]bool
	channels map[rpc.ChannelID][]rpc.IdentityKey
	devices  map[rpc.IdentityKey][]rpc.DeviceID
}

func (w *world) BlockedTx(_ *store.Tx, blocker, blocked rpc.IdentityKey) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.blocked[[2]rpc.IdentityKey{blocker, blocked}], nil
}

func (w *world) BothMembersTx(_ *store.Tx, channel rpc.ChannelID, sender, recipient rpc.IdentityKey) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch members := w.channels[channel]; {
	case !slices.Contains(members, sender):
		return rpc.Errorf(qpcpb.CodeChannelNotFound, "no channel of yours has this id")
	case !slices.Contains(members, recipient):
		return rpc.Errorf(qpcpb.CodeChannelAccessDenied, "the recipient is not in this channel")
	}
	return nil
}

func (w *world) ListTx(_ *store.Tx, identity rpc.IdentityKey) ([]rpc.DeviceID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.devices[identity]), nil
}

// house is a server that delivers.
type house struct {
	*servicetest.House
	*world
	t         testing.TB
	svc       *delivery.Service
	registrar qpcpb.Registrar
	options   delivery.Options
}

// open makes a house with the limits of the protocol, changed by tweak.
func open(t testing.TB, tweak ...func(*delivery.Limits)) *house {
	h := &house{House: servicetest.New(t), t: t, world: &world{
		blocked:  make(map[[2]rpc.IdentityKey]bool),
		channels: make(map[rpc.ChannelID][]rpc.IdentityKey),
		devices:  make(map[rpc.IdentityKey][]rpc.DeviceID),
	}}
	h.registrar = h.Replaceable()
	seed := sha256.Sum256([]byte("server"))
	h.options = delivery.Options{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: h.Wall.Now, Key: ed25519.NewKeyFromSeed(seed[:]),
		Accounts: h.Accounts, Blocks: h.world, Channels: h.world, Devices: h.world, Push: h.Hub,
		Limits: delivery.Limits{Retention: retention, QueueMessages: 1000, QueueBytes: 16 << 20, SendRate: 100, SendBurst: 1000},
	}
	for _, f := range tweak {
		f(&h.options.Limits)
	}
	h.build()
	return h
}

func (h *house) build() {
	h.options.DB = h.DB
	h.svc = delivery.New(h.options)
	qpcpb.RegisterDeliveryServer(h.registrar, h.svc)
}

func (h *house) restart() {
	h.t.Helper()
	h.RestartDB()
	h.build()
}

func (h *house) blocks(blocker, blocked string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.blocked[[2]rpc.IdentityKey{servicetest.Key(blocker), servicetest.Key(blocked)}] = true
}

// channel makes a channel or group; its id is always the same for a name.
func (h *house) channel(name string, members ...string) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	id := channelID(name)
	for _, m := range members {
		h.channels[id] = append(h.channels[id], servicetest.Key(m))
	}
	return id[:]
}

func channelID(name string) rpc.ChannelID {
	hash := sha256.Sum256([]byte("channel " + name))
	return rpc.ChannelID(hash[:16])
}

func (h *house) registers(name string, devices ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range devices {
		h.devices[servicetest.Key(name)] = append(h.devices[servicetest.Key(name)], servicetest.Device(d))
	}
}

func (h *house) revokes(name, device string) {
	h.t.Helper()
	h.mu.Lock()
	key, id := servicetest.Key(name), servicetest.Device(device)
	h.devices[key] = slices.DeleteFunc(h.devices[key], func(d rpc.DeviceID) bool { return d == id })
	h.mu.Unlock()
	h.Write(func(tx *store.Tx) error { return h.svc.ForgetDeviceTx(tx, key, id) })
}

// sweep runs to the end.
func (h *house) sweep() {
	h.t.Helper()
	for range 100 {
		more, err := h.svc.Sweep(h.t.Context())
		if err != nil {
			h.t.Fatal(err)
		}
		if !more {
			return
		}
	}
	h.t.Fatal("the sweep does not end")
}

// checkCounters compares what is remembered of every party with its messages.
func (h *house) checkCounters() {
	h.t.Helper()
	err := h.DB.Read(h.t.Context(), func(tx *store.Tx) error {
		rows, err := tx.Query(`SELECT p.id, count(m.id), coalesce(sum(length(m.payload)), 0) FROM delivery_party p
			LEFT JOIN delivery_queue q ON q.party_id = p.id LEFT JOIN delivery_message m ON m.queue_id = q.id AND m.seq > q.acked_seq GROUP BY p.id`)
		if err != nil {
			return err
		}
		for rows.Next() {
			var party, count, sum int64
			if err := rows.Scan(&party, &count, &sum); err != nil {
				return err
			}
			messages, bytes, known := h.svc.Remembered(party)
			if known && (messages != count || bytes != sum) {
				return fmt.Errorf("a party counts %d messages with %d bytes and has %d with %d", messages, bytes, count, sum)
			}
		}
		var orphans int
		if err := tx.QueryRow(`SELECT count(*) FROM delivery_message WHERE queue_id NOT IN (SELECT id FROM delivery_queue)`).Scan(&orphans); err != nil || orphans != 0 {
			return fmt.Errorf("%d messages belong to no queue (%v)", orphans, err)
		}
		return rows.Err()
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// person is somebody with a connection.
type person struct {
	*servicetest.Client
	qpcpb.DeliveryClient
	h    *house
	t    testing.TB
	name string
	key  []byte
}

// person gives somebody an account and connects them in memory.
func (h *house) person(name string) person {
	h.t.Helper()
	h.Accounts.Add(name)
	c := h.InMemoryAs(rpc.Principal{Identity: servicetest.Key(name), Username: name})
	return person{c, qpcpb.NewDeliveryClient(c), h, h.t, name, servicetest.Bytes(name)}
}

// overQUIC is person over loopback; call Open first.
func (h *house) overQUIC(name string) person {
	h.t.Helper()
	c := h.Connect(name)
	return person{c, qpcpb.NewDeliveryClient(c), h, h.t, name, servicetest.Bytes(name)}
}

// messageID is a message id, always the same for a name.
func messageID(name string) []byte {
	hash := sha256.Sum256([]byte("message " + name))
	return hash[:16]
}

func (p person) enqueue(r *qpcpb.EnqueueRequest) (*qpcpb.EnqueueResponse, error) {
	return p.Enqueue(servicetest.Within(p.t), r)
}

// sends enqueues a text, which must succeed, and checks the proof.
func (p person) sends(to, text string, change ...func(*qpcpb.EnqueueRequest)) *qpcpb.EnqueueResponse {
	p.t.Helper()
	r := &qpcpb.EnqueueRequest{RecipientKey: servicetest.Bytes(to), Payload: []byte(text)}
	for _, f := range change {
		f(r)
	}
	got, err := p.enqueue(r)
	if err != nil {
		p.t.Fatalf("%s to %s: %v", p.name, to, err)
	}
	if !r.Ephemeral && !got.Duplicate {
		p.h.checkProof(r, got.Seq, got.DeliveryProof)
	}
	return got
}

func (h *house) checkProof(r *qpcpb.EnqueueRequest, seq uint64, signed []byte) {
	h.t.Helper()
	d := proof.Delivery{Recipient: [32]byte(r.RecipientKey), Channel: r.ChannelId, Seq: seq, PayloadHash: sha256.Sum256(r.Payload)}
	copy(d.MessageID[:], r.MessageId)
	if !proof.VerifyDelivery(h.options.Key.Public().(ed25519.PublicKey), d, signed) {
		h.t.Errorf("the proof of seq %d does not verify", seq)
	}
}

func in(channel []byte) func(*qpcpb.EnqueueRequest) {
	return func(r *qpcpb.EnqueueRequest) { r.ChannelId = channel }
}

func id(name string) func(*qpcpb.EnqueueRequest) {
	return func(r *qpcpb.EnqueueRequest) { r.MessageId = messageID(name) }
}

func ttl(seconds uint32) func(*qpcpb.EnqueueRequest) {
	return func(r *qpcpb.EnqueueRequest) { r.TtlSecs = seconds }
}

func deviceID(device string) []byte {
	if device == "" {
		return nil
	}
	d := servicetest.Device(device)
	return d[:]
}

// texts writes envelopes as "seq:text seq:text".
func texts(envelopes []*qpcpb.Envelope) string {
	var b strings.Builder
	for i, e := range envelopes {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%d:%s", e.Seq, e.Data)
	}
	return b.String()
}

func (p person) peek(r *qpcpb.PeekRequest) []*qpcpb.Envelope {
	p.t.Helper()
	r.RecipientKey = p.key
	got, err := p.Peek(servicetest.Within(p.t), r)
	if err != nil {
		p.t.Fatalf("peek of %s: %v", p.name, err)
	}
	return got.Payloads
}

func (p person) fetch(r *qpcpb.FetchRequest) []*qpcpb.Envelope {
	p.t.Helper()
	r.RecipientKey = p.key
	got, err := p.Fetch(servicetest.Within(p.t), r)
	if err != nil {
		p.t.Fatalf("fetch of %s: %v", p.name, err)
	}
	return got.Payloads
}

// sees compares what a peek of a device ("" for none) at a channel shows.
func (p person) sees(device string, channel []byte, want string) {
	p.t.Helper()
	if got := texts(p.peek(&qpcpb.PeekRequest{ChannelId: channel, DeviceId: deviceID(device)})); got != want {
		p.t.Errorf("%s on %q sees %q, want %q", p.name, device, got, want)
	}
}

func (p person) acks(device string, channel []byte, upTo uint64) {
	p.t.Helper()
	_, err := p.Ack(servicetest.Within(p.t), &qpcpb.AckRequest{RecipientKey: p.key, ChannelId: channel, SeqUpTo: upTo, DeviceId: deviceID(device)})
	if err != nil {
		p.t.Fatalf("ack of %s: %v", p.name, err)
	}
}

// message decodes an event that must be of a kind.
func message[M proto.Message](t testing.TB, e servicetest.Event, kind qpcpb.Event, m M) M {
	t.Helper()
	if e.Kind != kind {
		t.Fatalf("got event %s, want %s", e.Kind, kind)
	}
	if err := proto.Unmarshal(e.Payload, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// quiet fails the test when an event has come. Events come in order: let one
// come that was caused later first.
func (p person) quiet() {
	p.t.Helper()
	select {
	case e := <-p.Events:
		p.t.Errorf("%s got an unexpected event %s", p.name, e.Kind)
	default:
	}
}
