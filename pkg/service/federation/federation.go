// Package federation exchanges messages, names, keys and the state of groups
// with other servers (PROTOCOL 7.12; methods 900-905 and 1200-1203, both
// directions; decision 0007 says why it is as it is).
//
// What it promises:
//
//   - What has been taken for another server is sent until that server has
//     acknowledged it, has refused it for good, or its time is over; over
//     restarts of both. It arrives once: each message has an id by which a
//     repetition is recognised.
//   - Within a queue (one recipient, one channel) the order is kept, and the
//     state of a group arrives before the commit that follows it.
//   - A peer speaks for the users of the one domain that its certificate is
//     pinned for, and for groups whose home it is. It cannot relay for a third
//     server, speak for a user who lives here or is known to live elsewhere, or
//     read a queue.
//   - A name of another server is answered only with a proof that it stands in
//     that server's transparency log, which has only grown since it was last
//     seen.
//   - A peer that is away, slow or hostile holds up nobody else.
//
// A message on its way waits in the outbox, is sent, and its row goes with the
// acknowledgement. What a peer refuses for now (a full queue, a channel that it
// does not know yet) waits for longer and longer, and with it only what goes to
// the same recipient and channel. A peer that does not answer is tried again
// after 1 second to 5 minutes, and at once when it connects to us.
//
// Ephemeral messages go over a connection that is there, or are dropped.
//
// State: four tables; in memory the peers, a connection to each, and the buckets
// of their rates. Each peer has two goroutines, which [Service.Run] owns.
package federation

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/quicprochat/qpcd/pkg/limit"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// MaxPeers bounds the servers that one federates with: each costs
	// connections, goroutines, and room for what waits for it.
	MaxPeers = 32
	// MaxQueued and MaxQueuedBytes bound what waits for one peer; the next
	// message for it is refused. They are four times what may wait for one user
	// here, since several may live there.
	MaxQueued      = 4096
	MaxQueuedBytes = 64 << 20
	// maxOfSender and maxOfSenderBytes are the part of it that one sender may
	// take, so that nobody keeps the others out.
	maxOfSender      = MaxQueued / 4
	maxOfSenderBytes = MaxQueuedBytes / 4
	// MaxIdentities bounds the identities that are known of one peer, 3 MB of
	// them: a hostile one can make up any number.
	MaxIdentities = 20_000
	// MaxRelayBatch bounds one RelayBatchEnqueue, as BatchEnqueue is.
	MaxRelayBatch = 256

	// waveRows and waveBytes bound what is read and sent before the next look
	// into the outbox: 8 MiB of memory with all peers. A larger message goes
	// alone, and largeAtOnce of those at a time over all peers.
	waveRows    = 64
	waveBytes   = 256 << 10
	largeAtOnce = 2
	// lanesAtOnce bounds the calls to one peer that are under way in a wave.
	lanesAtOnce = 4
	// pageRows is how many rows one look for the next wave reads, where some
	// wait for longer and are passed over.
	pageRows = 256

	// relayTimeout bounds one call of the outbox: 4 MiB over a slow line.
	relayTimeout = 60 * time.Second
	// askTimeout bounds a question that a user waits for: well below the 30
	// seconds of the user's own call.
	askTimeout = 15 * time.Second
	// ephemeralTimeout bounds what is worth nothing a moment later.
	ephemeralTimeout = 5 * time.Second
	// ephemeralQueue is how many ephemeral messages wait for one peer.
	ephemeralQueue = 64
	// redialAfter is how long a question is answered by the failure of the one
	// before, so that many users of a peer that is away cost one attempt.
	redialAfter = 2 * time.Second
	// idleAfter ends a connection that is not used: keeping it costs a packet
	// every 20 seconds on both sides.
	idleAfter = 3 * time.Minute

	// noteContact is how exactly the time of the last contact is stored, so that
	// connecting costs no write.
	noteContact = time.Hour

	// minWait and maxWait bound the pause after a failure. The upper one is how
	// long a peer that is back may have to wait for us when it has nothing to
	// tell us itself.
	minWait = time.Second
	maxWait = 5 * time.Minute

	// relaysPerSecond and relayBurst bound what one peer may store here:
	// several users' worth of the 100 a second that one user may send.
	relaysPerSecond, relayBurst = 500, 5000
	// asksPerSecond and askBurst bound its questions.
	asksPerSecond, askBurst = 100, 1000
	// usersAsksPerSecond and usersAskBurst bound the questions to all peers that
	// one user of this server causes, so that nobody uses up what peers grant
	// us: the burst is the members of two full groups.
	usersAsksPerSecond, usersAskBurst = 10, 512
	// packagesPerMinute is how often one peer may take a key package of one
	// identity, as one caller may here (PROTOCOL 7.6).
	packagesPerMinute = 10

	// sweepRows bounds what one sweep removes.
	sweepRows = 500
)

// Accounts knows who lives here.
type Accounts interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error)
	// UsernameTx returns the name of an account; ok is false when there is none.
	UsernameTx(tx *store.Tx, identity rpc.IdentityKey) (username string, ok bool, err error)
	// IdentityTx returns the key of the account of a folded name.
	IdentityTx(tx *store.Tx, folded string) (identity rpc.IdentityKey, ok bool, err error)
}

// Message is a message between a user of this server and one of another.
type Message struct {
	// Sender is who has sent it; zeros where FromHome is set.
	Sender rpc.IdentityKey
	// FromHome says that the home of a group has sent it: a commit in the
	// channel of the group, or a Welcome in an inbox.
	FromHome  bool
	Recipient rpc.IdentityKey
	Channel   []byte // 16 bytes, or empty for the inbox
	Payload   []byte
	ID        rpc.MessageID // zeros for none, in RelayTx only
	ValidFor  time.Duration // 0 is as long as possible, in Mailbox only
}

// Mailbox stores what comes for users of this server; delivery.Service is one,
// by an adapter.
type Mailbox interface {
	// ReceiveTx stores a message whose domain names the server that it comes
	// from. A repetition is answered like the first. An *rpc.Error says that it
	// is refused and nothing was written.
	ReceiveTx(tx *store.Tx, domain string, m Message) (seq uint64, duplicate bool, err error)
	// ReceiveEphemeral hands a message to the recipient's live connections.
	ReceiveEphemeral(ctx context.Context, m Message) error
}

// Groups keeps channels and groups; group.Service is one.
type Groups interface {
	// HomeTx returns the domain of the server that a group lives on; ok is
	// false when it lives here or is not known.
	HomeTx(tx *store.Tx, group rpc.ChannelID) (home string, ok bool, err error)
	OpenChannelTx(tx *store.Tx, id rpc.ChannelID, sender, recipient rpc.IdentityKey) error
	ApplyStateTx(tx *store.Tx, home string, state *qpcpb.GroupState) error
	RotateKeysFor(ctx context.Context, member rpc.IdentityKey, request *qpcpb.RotateKeysRequest) (*qpcpb.RotateKeysResponse, error)
	UpdateGroupMetadataFor(ctx context.Context, member rpc.IdentityKey, request *qpcpb.UpdateGroupMetadataRequest) (*qpcpb.UpdateGroupMetadataResponse, error)
	RemoveMemberFor(ctx context.Context, member rpc.IdentityKey, request *qpcpb.RemoveMemberRequest) (*qpcpb.RemoveMemberResponse, error)
}

// Keys hands out what users of this server have published; keys.Service is one.
// Both return nothing for an identity without.
type Keys interface {
	KeyPackageFor(ctx context.Context, owner rpc.IdentityKey) ([]byte, error)
	HybridKeyFor(ctx context.Context, owner rpc.IdentityKey) ([]byte, error)
}

// Log is this server's transparency log; transparency.Service is one.
type Log interface {
	InclusionProofTx(tx *store.Tx, username string, identity rpc.IdentityKey) ([]byte, error)
	ProveConsistency(ctx context.Context, request *qpcpb.ProveConsistencyRequest) (*qpcpb.ProveConsistencyResponse, error)
}

// Dial connects to a peer by [transport.FederationALPN], with this server's
// certificate, and trusts what trust says.
type Dial func(ctx context.Context, address string, trust transport.Trust) (transport.Conn, error)

// ConfiguredPeer is a peer of the configuration file.
type ConfiguredPeer struct {
	Domain  string // lower case, not this server's own
	Address string // host:port
	Pin     transport.Pin
	// Where says where it stands, for whoever tries to change it elsewhere.
	Where string
}

// Options says what a Service is made of. All but Peers are needed.
type Options struct {
	DB  *store.DB
	Log *slog.Logger
	// Now is a clock with a monotonic reading, as time.Now is.
	Now  func() time.Time
	Rand io.Reader
	// Domain is this server's own, in lower case.
	Domain string
	// ServerKey is the Ed25519 key that signs this server's log.
	ServerKey []byte
	Peers     []ConfiguredPeer
	Dial      Dial
	// Status is the word that FederationHealth answers.
	Status   func() string
	Accounts Accounts
	Mailbox  Mailbox
	Groups   Groups
	Keys     Keys
	KeyLog   Log
}

// Service federates. It is safe for concurrent use.
type Service struct {
	options  Options
	relays   *limit.Keyed[string]
	asks     *limit.Keyed[string]
	users    *limit.Keyed[rpc.IdentityKey]
	packages *limit.Keyed[packageFetch]
	large    *semaphore.Weighted
	loads    loads
	counters counters

	mu      sync.Mutex
	peers   map[string]*peer // by domain
	running context.Context  // of Run; nil before
	ended   bool
	work    sync.WaitGroup
}

// packageFetch is what is limited of key packages.
type packageFetch struct {
	domain string
	owner  rpc.IdentityKey
}

var _ qpcpb.FederationServer = (*Service)(nil)

// Stats count since the start.
type Stats struct {
	Sent      uint64 // messages and states that peers have acknowledged
	Repeated  uint64 // of these: had arrived before
	Refused   uint64 // dropped because the peer refuses them for good
	Expired   uint64 // dropped because their time was over
	Received  uint64 // messages taken from peers
	Discarded uint64 // of these: had come before
}

type counters struct{ sent, repeated, refused, expired, received, discarded atomic.Uint64 }

// Stats returns the counters.
func (s *Service) Stats() Stats {
	c := &s.counters
	return Stats{
		Sent: c.sent.Load(), Repeated: c.repeated.Load(), Refused: c.refused.Load(), Expired: c.expired.Load(),
		Received: c.received.Load(), Discarded: c.discarded.Load(),
	}
}

// New returns a Service. Call Load before anything else.
func New(o Options) *Service {
	return &Service{
		options:  o,
		relays:   limit.NewKeyed[string](relaysPerSecond, relayBurst, o.Now),
		asks:     limit.NewKeyed[string](asksPerSecond, askBurst, o.Now),
		users:    limit.NewKeyed[rpc.IdentityKey](usersAsksPerSecond, usersAskBurst, o.Now),
		packages: limit.NewKeyed[packageFetch](packagesPerMinute/60.0, packagesPerMinute, o.Now),
		large:    semaphore.NewWeighted(largeAtOnce),
		loads:    loads{known: make(map[loadOf]load)},
		peers:    make(map[string]*peer),
	}
}

// Run sends what waits for peers until ctx ends. It returns when nothing is
// under way any more.
func (s *Service) Run(ctx context.Context) {
	s.mu.Lock()
	s.running = ctx
	for _, p := range s.peers {
		s.startLocked(p)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.ended = true
	for _, p := range s.peers {
		p.end()
	}
	s.mu.Unlock()
	s.work.Wait()
}

// startLocked runs the goroutines of a peer, once Run runs. The caller holds
// s.mu.
func (s *Service) startLocked(p *peer) {
	if s.running == nil || s.ended {
		return
	}
	ctx, stop := context.WithCancel(s.running)
	p.stop = stop
	s.work.Go(func() { p.send(ctx) })
	s.work.Go(func() { p.sendEphemeral(ctx) })
}

// Sweep removes a bounded number of messages whose time is over, and reports
// whether there may be more.
func (s *Service) Sweep(ctx context.Context) (more bool, err error) {
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		n, err := dropExpired(tx, s.options.DB.ServiceTime(), sweepRows)
		if n > 0 {
			s.loads.forget()
			tx.AfterCommit(func() { s.counters.expired.Add(uint64(n)) })
		}
		more = n == sweepRows
		return err
	})
	return more, err
}
