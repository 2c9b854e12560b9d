// Package recovery keeps the bundles from which somebody who has lost their
// devices comes back (methods 750 to 752).
//
// What it promises:
//
//   - A bundle is opaque here. Only a recovery code opens it, and the code
//     never comes to the server.
//   - A bundle is found by its token hash alone, without a session, since who
//     needs it has none. What is stored is a hash of that hash: who steals the
//     database holds the bundles, and still nothing to fetch from a server
//     with.
//   - A hash that somebody else uses as well tells nothing and takes nothing
//     away: each keeps a bundle under it, and the first is the one that is
//     found.
//   - An address may fetch 5 an hour. A code has 80 bits, so that this only
//     keeps the noise down.
//
// An identity has at most 8 bundles. They do not expire; they are replaced,
// deleted by their owner, or go with the account.
//
// State: one table, and the rate of each address in memory, bounded.
package recovery

import (
	"net/netip"
	"time"

	"github.com/quicprochat/qpcd/pkg/limit"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// MaxBundle is the largest bundle, in bytes (PROTOCOL 6).
	MaxBundle = 64 << 10
	// MaxBundles is how many an identity may have: one for each of its 8 codes
	// (PROTOCOL 7.11).
	MaxBundles = 8

	// fetchesPerHour is what one address may fetch (PROTOCOL 7.11), at once or
	// over the hour.
	fetchesPerHour = 5
)

// Accounts tells who exists; auth.Service is one.
type Accounts interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error)
}

// Options says what a Service is made of. All are needed.
type Options struct {
	DB       *store.DB
	Accounts Accounts
	// Now drives the limit of rate; it has a monotonic reading, as time.Now.
	Now func() time.Time
}

// Service answers qpcpb.RecoveryServer. It is safe for concurrent use.
type Service struct {
	options Options
	fetches *limit.Keyed[netip.Addr]
}

// New returns a Service.
func New(o Options) *Service {
	return &Service{options: o, fetches: limit.NewKeyed[netip.Addr](fetchesPerHour/time.Hour.Seconds(), fetchesPerHour, o.Now)}
}

// EraseTx removes every bundle of an identity.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	return deleteOf(tx, identity)
}
