// Package delivery stores messages and forwards them: one queue for each
// (recipient, channel), oldest first.
//
// It promises:
//
//   - Enqueue answers OK after the commit that stored the message. Its sequence
//     number is one above the last of its queue, for ever, and is never used
//     again; readers tolerate gaps.
//   - A repeated Enqueue (same sender, recipient, channel and message id,
//     within the retention time) stores nothing and is answered like the first.
//   - Peek then Ack delivers at least once, Fetch at most once. Each device of
//     the recipient has its own cursor; a message is deleted when every device
//     has acknowledged it, or when its time is over.
//   - A blocked sender cannot tell: the answer is the same, and nothing is
//     stored.
//   - The server learns who sends to whom and when, and never what: payloads
//     are opaque. Who sent a stored message is not stored with it; the receipt
//     that recognises a repetition names the sender, for the retention time.
//   - A message to somebody on another server is answered when it is in that
//     server's outbox, with a number and a proof of this one. One from there is
//     stored like any other.
//
// A message is queued, then acknowledged by some devices, then released, which
// hides it from everybody, and within a minute removed by the sweep. The queue
// of a recipient is bounded in messages and bytes, a sender in rate.
package delivery

import (
	"crypto/ed25519"
	"log/slog"
	"sync"
	"time"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/limit"
	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// MaxPayload is the largest message: a frame less room for the rest of
	// its Envelope (PROTOCOL 7.3).
	MaxPayload = frame.MaxPayload - 1<<10
	// maxPage is how many messages one answer holds at most, and maxPageBytes
	// how large it grows (PROTOCOL 7.5): a frame, less the response around
	// the Envelopes.
	maxPage      = 500
	maxPageBytes = frame.MaxPayload - 1<<9
	// envelopeOverhead is the most that an Envelope adds to its payload:
	// field tags and lengths, seq, channel id and time.
	envelopeOverhead = 64
	// maxRecipients bounds a BatchEnqueue (PROTOCOL 7.3).
	maxRecipients = 256
	// maxBatchStep bounds what a BatchEnqueue stores in one transaction: as
	// much as one Enqueue may, so that it holds up the writer no longer.
	maxBatchStep = MaxPayload
	// maxWait bounds a FetchWait (PROTOCOL 7.5).
	maxWait = 60 * time.Second
	// maxWaiters bounds the FetchWaits of one identity: one for each device
	// that a person has, and some that are about to time out.
	maxWaiters = 32
	// maxReceipts bounds the receipts of all senders together, 24 MB of them:
	// a sender at the rate limit would otherwise leave 60 million in a week.
	// The oldest go first, so that a repetition is recognised for half an hour
	// even while somebody floods.
	maxReceipts = 200_000
	// sweepRows bounds what one sweep removes of each kind, and sweepSlice the
	// messages that it looks at.
	sweepRows  = 500
	sweepSlice = 2000
	// sweepSlices bounds the slices of one go, so that a very long queue does
	// not keep a router reading all the time.
	sweepSlices = 10
)

// Accounts tells who exists; auth.Service is one.
type Accounts interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error)
}

// Blocks tells who blocks whom; directory.Service is one.
type Blocks interface {
	BlockedTx(tx *store.Tx, blocker, blocked rpc.IdentityKey) (bool, error)
}

// Channels tells who is in a channel or group; group.Service is one. The error
// is the answer to the sender.
type Channels interface {
	BothMembersTx(tx *store.Tx, channel rpc.ChannelID, sender, recipient rpc.IdentityKey) error
}

// Devices tells which devices an identity has; device.Service is one.
type Devices interface {
	ListTx(tx *store.Tx, identity rpc.IdentityKey) ([]rpc.DeviceID, error)
}

// Pusher tells connections of events; push.Hub is one.
type Pusher interface {
	Online(identity rpc.IdentityKey) bool
	Send(to rpc.IdentityKey, event push.Event)
}

// Remote carries messages to identities that live on other servers;
// federation.Service is one.
type Remote interface {
	// HomeTx returns the domain that an identity lives on; ok is false for one
	// that lives here or that nobody has met.
	HomeTx(tx *store.Tx, identity rpc.IdentityKey) (domain string, ok bool, err error)
	// RelayTx queues a message for another server. An *rpc.Error says that it
	// is refused and that nothing was written.
	RelayTx(tx *store.Tx, domain string, m Relay) error
	// RelayEphemeral sends a message to a server that is connected, or drops
	// it. It does not wait.
	RelayEphemeral(domain string, m Relay)
}

// Relay is a message on its way to another server.
type Relay struct {
	Sender, Recipient rpc.IdentityKey
	Channel           []byte // 16 bytes, or empty for the inbox
	Payload           []byte
	ID                rpc.MessageID // zeros for none
	ValidFor          time.Duration
	// Must says that the recipient must not miss it, as with PostTx: the home
	// of a group sends it in its own name.
	Must bool
}

// Limits are the bounds that an installation sets.
type Limits struct {
	// Retention is how long a message waits at most.
	Retention time.Duration
	// QueueMessages and QueueBytes bound what waits for one recipient.
	QueueMessages int64
	QueueBytes    int64
	// SendRate and SendBurst bound a sender, in messages a second.
	SendRate  float64
	SendBurst int
}

// Options says what the service is made of. All fields but Remote are
// needed.
type Options struct {
	DB       *store.DB
	Log      *slog.Logger
	Now      func() time.Time
	Key      ed25519.PrivateKey // signs delivery proofs
	Accounts Accounts
	Blocks   Blocks
	Channels Channels
	Devices  Devices
	Push     Pusher
	// Remote may be nil: then everybody lives here.
	Remote Remote
	Limits Limits
}

// Service answers the methods of qpcpb.DeliveryServer.
type Service struct {
	options Options
	senders *limit.Keyed[rpc.IdentityKey]
	waiters waiters
	parties *parties

	sweeping sync.Mutex
	sweptTo  int64 // the id up to which this round has looked
	slices   int   // how many in one go
}

var _ qpcpb.DeliveryServer = (*Service)(nil)

// New returns the service.
func New(o Options) *Service {
	return &Service{
		options: o,
		parties: newParties(),
		senders: limit.NewKeyed[rpc.IdentityKey](o.Limits.SendRate, o.Limits.SendBurst, o.Now),
		waiters: waiters{drained: make(chan struct{}), byKey: make(map[rpc.IdentityKey]map[chan struct{}]struct{})},
	}
}

// Drain ends every FetchWait with what there is.
func (s *Service) Drain() { s.waiters.drain() }

// waiters are the FetchWaits under way.
type waiters struct {
	drained   chan struct{}
	drainOnce sync.Once

	mu    sync.Mutex
	byKey map[rpc.IdentityKey]map[chan struct{}]struct{}
}

func (w *waiters) drain() { w.drainOnce.Do(func() { close(w.drained) }) }

// add registers a waiter, or reports that the identity has too many.
func (w *waiters) add(identity rpc.IdentityKey) (chan struct{}, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	set := w.byKey[identity]
	if len(set) >= maxWaiters {
		return nil, false
	}
	if set == nil {
		set = make(map[chan struct{}]struct{}, 1)
		w.byKey[identity] = set
	}
	woken := make(chan struct{}, 1)
	set[woken] = struct{}{}
	return woken, true
}

func (w *waiters) remove(identity rpc.IdentityKey, woken chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.byKey[identity], woken)
	if len(w.byKey[identity]) == 0 {
		delete(w.byKey, identity)
	}
}

// wake tells all waiters of an identity to look again.
func (w *waiters) wake(identity rpc.IdentityKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for woken := range w.byKey[identity] {
		select {
		case woken <- struct{}{}:
		default:
		}
	}
}

// announce tells the recipient's connections of a stored message, after its
// commit.
func (s *Service) announce(recipient rpc.IdentityKey, envelope *qpcpb.Envelope) {
	s.waiters.wake(recipient)
	if !s.options.Push.Online(recipient) {
		return
	}
	event := &qpcpb.MessageAvailable{ChannelId: envelope.ChannelId, Seq: envelope.Seq}
	if len(envelope.Data) <= push.MaxEnvelope {
		event.Envelope = envelope
	}
	s.options.Push.Send(recipient, push.Event{Kind: qpcpb.EventMessageAvailable, Message: event})
}
