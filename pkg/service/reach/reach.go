// Package reach keeps how a device can be reached otherwise than through its
// queue: the address at which it takes direct connections (endpoints, methods
// 800 and 801), and the one at which it can be woken (push tokens, 710).
//
// What it promises:
//
//   - An endpoint is opaque here, and gone when its time is over. It is told to
//     its publisher and to those who share a channel with them and
//     whom they have not blocked; everybody else is answered as if there were
//     none.
//   - A wake-up is an empty HTTPS POST that says nothing but «now». It goes
//     only to hosts that the owner has listed, never through a proxy, never
//     after a redirect, and never to an address of this machine, link-local,
//     multicast or unspecified, unless that address itself is listed. Addresses
//     are judged when they are dialled, so that a name that changes its mind
//     gains nothing.
//   - A device is woken at most once a minute, and only while its identity has
//     no connection. A wake-up is a hint: one that is lost costs time, never a
//     message.
//
// An endpoint is published until it expires (at most 24 hours), is replaced or
// taken back. A push token stays until it is replaced or taken back, its device
// or account goes, or its host says that it is gone (404, 410).
//
// State: two tables. Whom to wake, and when not before, is in memory, bounded,
// and owned by [Service.Run]; a restart forgets it.
package reach

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// MaxAddress is the largest endpoint, in bytes (PROTOCOL 6).
	MaxAddress = 1 << 10
	// DefaultTTL is how long an endpoint is kept whose publisher does not say,
	// and MaxTTL the longest: addresses at home change daily.
	DefaultTTL = time.Hour
	MaxTTL     = 24 * time.Hour
	// MaxToken is the longest push URL, in bytes: UnifiedPush bounds none, and
	// those seen have some 60 to 250.
	MaxToken = 1 << 10
	// PlatformUnifiedPush is the only platform there is.
	PlatformUnifiedPush = "unifiedpush"

	// sweepRows bounds the rows that one sweep removes.
	sweepRows = 200
)

// Accounts tells who exists; auth.Service is one.
type Accounts interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error)
}

// Devices tells which devices an identity has; device.Service is one.
type Devices interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) (bool, error)
}

// Contacts tells with whom an identity shares a channel;
// group.Service is one.
type Contacts interface {
	ContactsTx(tx *store.Tx, of rpc.IdentityKey) ([]rpc.IdentityKey, error)
}

// Blocks tells who blocks whom; directory.Service is one.
type Blocks interface {
	BlockedTx(tx *store.Tx, blocker, blocked rpc.IdentityKey) (bool, error)
}

// Presence tells who is connected; push.Hub is one.
type Presence interface {
	Online(identity rpc.IdentityKey) bool
}

// Options says what a Service is made of. All are needed but Hosts, RootCAs
// and Resolve.
type Options struct {
	DB       *store.DB
	Log      *slog.Logger
	Accounts Accounts
	Devices  Devices
	Contacts Contacts
	Blocks   Blocks
	Presence Presence
	// Now is the clock, with a monotonic reading as time.Now has.
	Now func() time.Time
	// Hosts may be sent wake-ups: lower-case names and IP addresses, without
	// ports. Without any, push tokens are refused.
	Hosts []string
	// RootCAs judge the certificates of those hosts; nil is the system's.
	RootCAs *x509.CertPool
	// Resolve finds the addresses of a name; nil asks the system.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
}

// Service answers qpcpb.EndpointServer and qpcpb.PushTokenServer, and sends
// wake-ups while Run runs. It is safe for concurrent use.
type Service struct {
	options Options
	hosts   map[string]bool
	client  *http.Client
	every   time.Duration // wakeEvery but in tests
	pending *pending
}

// New returns a Service.
func New(options Options) *Service {
	s := &Service{options: options, hosts: make(map[string]bool, len(options.Hosts)), every: wakeEvery, pending: newPending()}
	for _, host := range options.Hosts {
		s.hosts[host] = true
	}
	s.client = s.newClient()
	return s
}

// ForgetDeviceTx removes the push token of a device.
func (s *Service) ForgetDeviceTx(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) error {
	return deleteToken(tx, identity, device)
}

// EraseTx removes the endpoint and the push tokens of an identity.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	return deleteOf(tx, identity)
}

// Sweep removes a bounded number of endpoints whose time is over, and reports
// whether there may be more.
func (s *Service) Sweep(ctx context.Context) (more bool, err error) {
	err = s.options.DB.Write(ctx, func(tx *store.Tx) (err error) {
		more, err = deleteExpired(tx, s.options.DB.ServiceTime())
		return err
	})
	return more, err
}
