// Package keys hands out what others need to begin an encrypted conversation
// with somebody who is offline: MLS key packages (RFC 9420, section 10) and
// hybrid public keys (PROTOCOL 7.6).
//
// What it promises:
//
//   - A one-time key package is given out once. It leaves the database in the
//     transaction whose commit precedes the answer; when the answer is lost, so
//     is the package, and nobody else gets it.
//   - The oldest goes out first. When a device has none left, its last-resort
//     package is given out and kept.
//   - Only its owner stores anything for an identity, and only while the
//     account exists.
//   - Storing the same one-time package twice stores it once, so that a call
//     may be repeated when its answer was lost.
//   - Whoever has fewer than ten left is told, on its live connections.
//
// A package is stored for 30 days of service time and then swept; it is not
// given out any more from that moment, whether it has been swept or not. What
// a package holds beyond its first four bytes is not looked at: the server
// could not tell a good one, and clients verify.
//
// Keys of somebody who lives on another server come from there, checked for
// their form. Of their key packages there is one for all devices, and which
// device it is of is not told.
//
// State: two tables, and in memory the buckets of the fetch limit.
package keys

import (
	"context"
	"time"

	"github.com/quicprochat/qpcd/pkg/limit"
	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// MaxPackage is the largest key package, in bytes (PROTOCOL 7.6).
	MaxPackage = 16 << 10
	// MaxOneTime is how many one-time packages an identity may have stored,
	// over all its devices (PROTOCOL 7.6).
	MaxOneTime = 100
	// MaxDevices is for how many devices an identity may have packages stored:
	// the 16 that it may register and the one without an id. Device ids are
	// not checked here, so without it last-resort packages would be unbounded,
	// and so would the answer to FetchKeyPackages.
	MaxDevices = 17
	// HybridKeySize is the length of a hybrid public key: ML-KEM-768 1184
	// bytes, then X25519 32 bytes.
	HybridKeySize = 1216
	// MaxHybridKeys is how many identities one FetchHybridKeys may name: a
	// whole group.
	MaxHybridKeys = 256

	// lifetime is how long a package is given out, in service time.
	lifetime = 30 * 24 * time.Hour
	// lowPackages is the number of one-time packages below which their owner
	// is told (PROTOCOL 8, event 2).
	lowPackages = 10
	// fetchesPerMinute is how often one caller may take of one identity, so
	// that nobody empties another's stock.
	fetchesPerMinute = 10
	// hybridEntry is about what one HybridKey takes in an answer, in bytes.
	hybridEntry = HybridKeySize + 32 + 16
	// sweepRows bounds one Sweep: at most 4 MiB of packages, usually 100 KiB.
	sweepRows = 256
)

// Pusher tells the live connections of an identity; push.Hub is one.
type Pusher interface {
	Send(to rpc.IdentityKey, event push.Event)
}

// Accounts knows who has an account.
type Accounts interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error)
}

// Remote asks other servers for the keys of those who live there;
// federation.Service is one. Its errors are answers to the caller.
type Remote interface {
	// HomeTx returns the domain that an identity lives on; ok is false for one
	// that lives here or that nobody has met.
	HomeTx(tx *store.Tx, identity rpc.IdentityKey) (domain string, ok bool, err error)
	// KeyPackageOf takes a key package; it is empty when there is none.
	KeyPackageOf(ctx context.Context, domain string, identity rpc.IdentityKey) ([]byte, error)
	// HybridKeyOf returns a hybrid key; it is empty when there is none.
	HybridKeyOf(ctx context.Context, domain string, identity rpc.IdentityKey) ([]byte, error)
}

// Options says what a Service is made of. All but Remote are needed.
type Options struct {
	DB       *store.DB
	Accounts Accounts
	Push     Pusher
	// Remote may be nil: then everybody lives here.
	Remote Remote
	// Now is a monotonic clock, as time.Now is; it times the fetch limit.
	Now func() time.Time
}

// Service answers KeyService. It is safe for concurrent use.
type Service struct {
	options Options
	fetches *limit.Keyed[fetch]
}

// fetch is what is limited: how often caller takes packages of owner.
type fetch struct{ caller, owner rpc.IdentityKey }

// New returns a Service.
func New(options Options) *Service {
	return &Service{
		options: options,
		fetches: limit.NewKeyed[fetch](fetchesPerMinute/60.0, fetchesPerMinute, options.Now),
	}
}

// Sweep removes a bounded number of packages whose time is over, and reports
// whether there may be more.
func (s *Service) Sweep(ctx context.Context) (more bool, err error) {
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		n, err := deleteExpired(tx, s.options.DB.ServiceTime(), sweepRows)
		more = n == sweepRows
		return err
	})
	return more, err
}

// EraseTx removes every key of an identity.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	return deleteOwner(tx, identity)
}

// ForgetDeviceTx removes the packages of one device of an identity.
func (s *Service) ForgetDeviceTx(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) error {
	return deleteDevice(tx, identity, device)
}
