// Package moderation keeps reports for the admins (methods 420, 423 and 1040)
// and bans (421, 422 and 424).
//
// What it promises:
//
//   - A report is opaque here: the client encrypts it to the admins, and only
//     who reports, when and how much is known. Where no admin has an account
//     nobody could read one, so none is stored and the client is told.
//   - A ban takes effect when BanUser is answered: the sessions of the banned
//     identity are gone, its connections are told and closed, and it cannot log
//     in until the ban ends. Nobody else notices.
//   - An admin is never banned, nor does one ban oneself by mistake.
//
// A report lives for 90 days; nobody removes it sooner. A ban is in force,
// replaced by a later one, ended by UnbanUser, or expired, which is counted in
// service time and so stands off every clock. Both go with the account: an
// owner who deletes an account ends its ban as well, since without the key
// there is nothing left to keep out.
//
// State: two tables. Accounts and sessions belong to another domain and come by
// [Accounts].
package moderation

import (
	"context"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// MaxReport is the largest report, in bytes: the longest message in one
	// piece, some context, and the keys sealed to eight admins.
	MaxReport = 32 << 10
	// MaxReportsOfOne is how many reports of one reporter are kept, so that
	// one member of a household cannot fill the place of all.
	MaxReportsOfOne = 20
	// MaxReports bounds the reports in all: 16 MiB of a router's flash.
	MaxReports = 500
	// MaxPage is the most reports in one answer, at 32 KiB each below the
	// largest frame. It is also what limit 0 means.
	MaxPage = 100
	// MaxReportKeys is how many identities a report is encrypted to: each
	// takes 1.2 KiB of it.
	MaxReportKeys = 8
	// MaxReason is the most characters (not bytes) of a ban's reason.
	MaxReason = 200
	// MaxBans bounds the bans, so that all of them fit one answer.
	MaxBans = 2000
	// MaxBan is the longest ban that has an end.
	MaxBan = 100 * 365 * 24 * time.Hour

	// reportsKeptFor is long enough for an owner who is away for a summer.
	reportsKeptFor = 90 * 24 * time.Hour
	// sweepRows bounds the rows of each kind that one sweep removes.
	sweepRows = 200
	// reportEntry is what a report takes in an answer beside its content, in
	// bytes.
	reportEntry = 32 + 16 + 32
)

// Accounts tells who exists, and ends sessions; auth.Service does.
type Accounts interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error)
	// EndSessionsTx deletes every session of an identity and ends its live
	// connections once the transaction is committed.
	EndSessionsTx(ctx context.Context, tx *store.Tx, identity rpc.IdentityKey, code transport.CloseCode, reason string) error
}

// Options says what a Service is made of. All but Admins are needed.
type Options struct {
	DB       *store.DB
	Accounts Accounts
	// Admins are the identities of the setting admin. Reports are for the
	// first MaxReportKeys of them that have an account.
	Admins []rpc.IdentityKey
	// Now is the wall clock, for what people read.
	Now func() time.Time
}

// Service answers qpcpb.ModerationServer. It is safe for concurrent use.
type Service struct{ options Options }

// New returns a Service.
func New(options Options) *Service { return &Service{options: options} }

// Ban is a ban in force.
type Ban struct {
	Identity rpc.IdentityKey
	Reason   string
	BannedAt time.Time
	// ExpiresAt is when the ban ends by the present wall clock; zero for
	// never.
	ExpiresAt time.Time
}

// BannedTx returns the ban of an identity that is in force.
func (s *Service) BannedTx(tx *store.Tx, identity rpc.IdentityKey) (ban Ban, ok bool, err error) {
	r, ok, err := readBan(tx, identity, s.options.DB.ServiceTime())
	if err != nil || !ok {
		return Ban{}, false, err
	}
	return s.ban(r), true, nil
}

// MayLogInTx returns USER_BANNED for an identity that is banned, or nil. It is
// made for auth.Options.MayLogIn, which asks after the password was proved, so
// that only the banned learn of it.
func (s *Service) MayLogInTx(tx *store.Tx, identity rpc.IdentityKey) error {
	ban, banned, err := s.BannedTx(tx, identity)
	if err != nil || !banned {
		return err
	}
	return bannedError(ban)
}

// EraseTx removes the reports and the ban of an identity.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	return deleteOf(tx, identity)
}

// Sweep removes a bounded number of reports and bans whose time is over, and
// reports whether there may be more.
func (s *Service) Sweep(ctx context.Context) (more bool, err error) {
	err = s.options.DB.Write(ctx, func(tx *store.Tx) (err error) {
		more, err = deleteExpired(tx, s.options.DB.ServiceTime())
		return err
	})
	return more, err
}
