// Package device keeps the devices of an identity (methods 700 to 702). A
// device is a name for 16 random bytes that the client made; other domains
// give it meaning: a cursor over the queues, key packages, sessions.
//
// What it promises:
//
//   - Registering is idempotent: the same id again only renames the device.
//   - Revoking a device, and everything that other domains keep for it, is one
//     transaction: either all of it is gone or none.
//   - When a device is revoked its live connections are told so and closed.
//
// An identity has at most 16 devices. Nothing here expires.
//
// State: one table.
package device

import (
	"context"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// MaxDevices is how many devices an identity may have: every queued
	// message waits for the slowest of them.
	MaxDevices = 16
	// MaxName is the most characters (not bytes) of a device's name.
	MaxName = 64

	// seenEvery is how fine last_seen is: a device that is always online costs
	// one small write in this time.
	seenEvery = 10 * time.Minute
)

// Accounts knows who has an account.
type Accounts interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error)
}

// Sessions ends live sessions; push.Hub does.
type Sessions interface {
	EndSessions(ctx context.Context, identity rpc.IdentityKey, match func(*rpc.Principal) bool, code transport.CloseCode, reason string)
}

// Forget removes what another domain keeps for a device. Its error undoes the
// revocation.
type Forget func(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) error

// Options says what a Service is made of. All but Forget are needed.
type Options struct {
	DB       *store.DB
	Accounts Accounts
	Sessions Sessions
	// Forget run in this order, in the transaction that revokes a device.
	Forget []Forget
	// Now is the wall clock, for what people read.
	Now func() time.Time
}

// Service answers DeviceService. It is safe for concurrent use.
type Service struct{ options Options }

// New returns a Service.
func New(options Options) *Service { return &Service{options: options} }

// ListTx returns the devices of an identity, at most MaxDevices, in the order
// in which they were registered.
func (s *Service) ListTx(tx *store.Tx, identity rpc.IdentityKey) ([]rpc.DeviceID, error) {
	devices, err := readDevices(tx, identity)
	if err != nil {
		return nil, err
	}
	ids := make([]rpc.DeviceID, len(devices))
	for i, d := range devices {
		ids[i] = d.id
	}
	return ids, nil
}

// ExistsTx reports whether an identity has the device.
func (s *Service) ExistsTx(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) (bool, error) {
	_, ok, err := readSeen(tx, identity, device)
	return ok, err
}

// Seen notes that a device is in use now. It writes at most once in ten
// minutes for each device; a device that is not registered is left alone.
func (s *Service) Seen(ctx context.Context, identity rpc.IdentityKey, device rpc.DeviceID) error {
	stale := false
	err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		stale, err = s.staleTx(tx, identity, device)
		return err
	})
	if err != nil || !stale {
		return err
	}
	return s.options.DB.Write(ctx, func(tx *store.Tx) error { return s.SeenTx(tx, identity, device) })
}

// SeenTx is Seen within a write transaction.
func (s *Service) SeenTx(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) error {
	stale, err := s.staleTx(tx, identity, device)
	if err != nil || !stale {
		return err
	}
	return updateSeen(tx, identity, device, s.options.Now().Unix())
}

func (s *Service) staleTx(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) (bool, error) {
	seen, ok, err := readSeen(tx, identity, device)
	return ok && isStale(seen, s.options.Now().Unix()), err
}

// EraseTx removes every device of an identity. What other domains keep for
// them goes with the identity there.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	return deleteOwner(tx, identity)
}
