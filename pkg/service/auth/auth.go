// Package auth owns accounts, sessions and passwords.
//
// It promises:
//
//   - The server never learns a password (OPAQUE, RFC 9807): registration and
//     login run between the client and pkg/opaque, and what is stored tells
//     nothing of the password without the server's secret.
//   - A stranger cannot learn whether a name exists: registration refuses a
//     taken name only at its end, and a login of an unknown name answers like
//     any other, takes as long and fails in the same way.
//   - One identity key for each name and one name for each key. A name belongs
//     to its key until the account is deleted, and to nobody for 30 days after.
//   - An invite registers one account and is gone; only the hash of its code is
//     stored. One that the owner made for an account registers that name anew,
//     with another identity key, also where registration is closed; until then
//     the account works as before.
//   - A session survives a restart; it ends at logout, at a change of password
//     elsewhere, with its device, with the account, or after session_ttl
//     without use. Only the hash of its token is stored.
//
// An account is either there or not; a login is pending between LoginStart and
// LoginFinish, in memory, bound to its connection.
package auth

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/quicprochat/qpcd/pkg/limit"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// tokenLength is the length of a session token, in bytes: 256 random bits
	// cannot be guessed, so that a stored hash needs no salt.
	tokenLength = 32
	// maxSessions bounds the sessions of one account: every device of a large
	// household member, and some forgotten ones. The one that would end first
	// makes room.
	maxSessions = 32
	// touchEvery is how often the use of a session is written down. Once an
	// hour costs the flash 24 pages a day at most, and a session of 30 days
	// ends an hour early at worst.
	touchEvery = time.Hour
	// seenEvery is how often last_seen is written down, for the same reason.
	seenEvery = 10 * time.Minute
	// nameRestsFor keeps a deleted name from being taken over (PROTOCOL 7.1).
	nameRestsFor = 30 * 24 * time.Hour

	// pendingLogins and pendingFor bound the logins between start and finish
	// (PROTOCOL 7.2).
	pendingLogins = 1024
	pendingFor    = 5 * time.Minute

	// registrationsPerHour and registrationBurst bound the registrations that
	// one address may begin, and finish: a family behind one address in one
	// evening, but no squatting of all names and no asking which are taken.
	registrationsPerHour = 60
	registrationBurst    = 30

	// sweepRows bounds the rows of each kind that one sweep removes, so that
	// it never holds up the writer for long.
	sweepRows = 200
)

// Registration says who may register.
type Registration string

// The values of the setting `registration`.
const (
	RegistrationOpen   Registration = "open"
	RegistrationInvite Registration = "invite"
	RegistrationClosed Registration = "closed"
)

// Sessions ends live connections; push.Hub is one.
type Sessions interface {
	EndSessions(ctx context.Context, identity rpc.IdentityKey, match func(*rpc.Principal) bool, code transport.CloseCode, reason string)
}

// Limits are the bounds that an installation may set otherwise.
type Limits struct {
	// RegistrationsPerHour and RegistrationBurst are for each address; 0 is
	// the default (60 and 30).
	RegistrationsPerHour float64
	RegistrationBurst    int
}

// Options says what the service is made of. All fields are needed but
// Admins, Limits, Registered, Superseded and MayLogIn.
type Options struct {
	DB     *store.DB
	Opaque *opaque.Server
	Log    *slog.Logger
	// Now is the wall clock with a monotonic reading, as time.Now.
	Now  func() time.Time
	Rand io.Reader

	Registration         Registration
	RequireIdentityProof bool
	SessionTTL           time.Duration
	Admins               []rpc.IdentityKey
	Sessions             Sessions
	Limits               Limits
	// Erase removes an identity from every other domain, in the transaction
	// that deletes the account.
	Erase func(tx *store.Tx, identity rpc.IdentityKey) error
	// Registered, when set, is told of every new binding of a name to an
	// identity key, in the transaction that makes it.
	Registered func(tx *store.Tx, username string, identity rpc.IdentityKey) error
	// Superseded, when set, is told of an identity key whose name another key
	// takes over by a reset, in the transaction that does it and before the old
	// key is erased.
	Superseded func(tx *store.Tx, identity rpc.IdentityKey) error
	// MayLogIn, when set, returns the answer to an identity that may not log
	// in, as an *rpc.Error, or nil.
	MayLogIn func(tx *store.Tx, identity rpc.IdentityKey) error
	// DeviceSeen notes that a device has logged in or used its session.
	DeviceSeen func(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) error
}

// Service answers the methods of qpcpb.AuthServer.
type Service struct {
	options  Options
	admins   map[rpc.IdentityKey]bool
	pending  *pendingTable
	failures *failureTable
	// The two halves of a registration are bounded apart, since a second half
	// needs no first.
	registrations *limit.Keyed[netip.Addr]
	finishes      *limit.Keyed[netip.Addr]
}

var _ qpcpb.AuthServer = (*Service)(nil)

// New returns the service.
func New(o Options) *Service {
	if o.Limits.RegistrationsPerHour == 0 {
		o.Limits.RegistrationsPerHour = registrationsPerHour
	}
	if o.Limits.RegistrationBurst == 0 {
		o.Limits.RegistrationBurst = registrationBurst
	}
	admins := make(map[rpc.IdentityKey]bool, len(o.Admins))
	for _, key := range o.Admins {
		admins[key] = true
	}
	return &Service{
		options:       o,
		admins:        admins,
		pending:       newPendingTable(o.Now),
		failures:      newFailureTable(o.Now),
		registrations: limit.NewKeyed[netip.Addr](o.Limits.RegistrationsPerHour/3600, o.Limits.RegistrationBurst, o.Now),
		finishes:      limit.NewKeyed[netip.Addr](o.Limits.RegistrationsPerHour/3600, o.Limits.RegistrationBurst, o.Now),
	}
}

// Disconnected forgets what was pending on a connection.
func (s *Service) Disconnected(p *rpc.Peer) { s.pending.forget(p) }
