package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// Account is what other domains may know of an account.
type Account struct {
	Identity     rpc.IdentityKey
	Username     string
	RegisteredAt time.Time
	LastSeenAt   time.Time
}

// ErrNoAccount reports a name or a key that has no account.
var ErrNoAccount = errors.New("no such account")

const (
	selectRecord = `SELECT opaque_record FROM auth_account WHERE username = ?`
	selectByName = `SELECT identity_key, username, registered_at, last_seen_at FROM auth_account WHERE username = ?`
	selectByKey  = `SELECT identity_key, username, registered_at, last_seen_at FROM auth_account WHERE identity_key = ?`
	selectExists = `SELECT 1 FROM auth_account WHERE identity_key = ?`
	selectPage   = `SELECT identity_key, username, registered_at, last_seen_at FROM auth_account
		WHERE username > ? AND username >= ? AND username < ? ORDER BY username LIMIT ?`
	countAccounts = `SELECT count(*) FROM auth_account`
	insertAccount = `INSERT INTO auth_account (identity_key, username, opaque_record, registered_at, last_seen_at) VALUES (?, ?, ?, ?, ?)`
	updateRecord  = `UPDATE auth_account SET opaque_record = ? WHERE identity_key = ?`
	updateSeen    = `UPDATE auth_account SET last_seen_at = ? WHERE identity_key = ? AND last_seen_at NOT BETWEEN ? AND ?`
	deleteAccount = `DELETE FROM auth_account WHERE identity_key = ?`

	selectRetired = `SELECT 1 FROM auth_retired_name WHERE username = ? AND taken_until > ?`
	upsertRetired = `INSERT INTO auth_retired_name (username, taken_until) VALUES (?, ?)
		ON CONFLICT (username) DO UPDATE SET taken_until = excluded.taken_until`
	deleteRetired = `DELETE FROM auth_retired_name WHERE username = ?`
	sweepRetired  = `DELETE FROM auth_retired_name WHERE username IN (SELECT username FROM auth_retired_name WHERE taken_until <= ? LIMIT ?)`

	selectSession = `SELECT a.identity_key, a.username, s.device_id, s.valid_until
		FROM auth_session s JOIN auth_account a ON a.id = s.account_id WHERE s.token_hash = ? AND s.valid_until > ?`
	insertSession = `INSERT INTO auth_session (token_hash, account_id, device_id, valid_until)
		SELECT ?, id, ?, ? FROM auth_account WHERE identity_key = ?`
	touchSession  = `UPDATE auth_session SET valid_until = ? WHERE token_hash = ?`
	deleteSession = `DELETE FROM auth_session WHERE token_hash = ?`
	// The sessions of an account but one (which may be none).
	deleteOtherSessions = `DELETE FROM auth_session WHERE account_id = (SELECT id FROM auth_account WHERE identity_key = ?) AND token_hash <> ?`
	deleteDevice        = `DELETE FROM auth_session WHERE account_id = (SELECT id FROM auth_account WHERE identity_key = ?) AND device_id = ?`
	selectLive          = `SELECT 1 FROM auth_session WHERE token_hash = ? AND valid_until > ?`
	// The sessions past the newest few, beside the one just made: of those
	// made in the same second any may go, but not that one.
	selectSurplus = `SELECT token_hash FROM auth_session
		WHERE account_id = (SELECT id FROM auth_account WHERE identity_key = ?) AND token_hash <> ?
		ORDER BY valid_until DESC LIMIT -1 OFFSET ?`
	sweepSessions = `DELETE FROM auth_session WHERE token_hash IN (SELECT token_hash FROM auth_session WHERE valid_until <= ? LIMIT ?)`
)

func seconds(d time.Duration) int64 { return int64(d / time.Second) }

func scanAccount(row *store.Row) (Account, error) {
	var a Account
	var registered, seen int64
	err := row.Scan(&a.Identity, &a.Username, &registered, &seen)
	if errors.Is(err, store.ErrNoRows) {
		return a, ErrNoAccount
	}
	a.RegisteredAt, a.LastSeenAt = time.Unix(registered, 0), time.Unix(seen, 0)
	return a, err
}

// FindByNameTx returns the account of a folded name, or ErrNoAccount.
func (s *Service) FindByNameTx(tx *store.Tx, folded string) (Account, error) {
	return scanAccount(tx.QueryRow(selectByName, folded))
}

// FindByKeyTx returns the account of an identity key, or ErrNoAccount.
func (s *Service) FindByKeyTx(tx *store.Tx, identity rpc.IdentityKey) (Account, error) {
	return scanAccount(tx.QueryRow(selectByKey, identity))
}

// ExistsTx reports whether an identity key has an account.
func (s *Service) ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error) {
	var one int
	err := tx.QueryRow(selectExists, identity).Scan(&one)
	if errors.Is(err, store.ErrNoRows) {
		return false, nil
	}
	return err == nil, err
}

// afterEveryName sorts behind all names with a prefix.
const afterEveryName = "\U0010ffff"

// ListTx returns up to limit accounts with a prefix, by name, from the first
// one above after.
func (s *Service) ListTx(tx *store.Tx, prefix, after string, limit int) ([]Account, error) {
	rows, err := tx.Query(selectPage, after, prefix, prefix+afterEveryName, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var accounts []Account
	for rows.Next() {
		var a Account
		var registered, seen int64
		if err := rows.Scan(&a.Identity, &a.Username, &registered, &seen); err != nil {
			return nil, err
		}
		a.RegisteredAt, a.LastSeenAt = time.Unix(registered, 0), time.Unix(seen, 0)
		accounts = append(accounts, a)
	}
	return accounts, rows.Err()
}

// CountTx returns the number of accounts.
func (s *Service) CountTx(tx *store.Tx) (int, error) {
	var n int
	err := tx.QueryRow(countAccounts).Scan(&n)
	return n, err
}

// record returns the OPAQUE record of a name, or nil when there is none.
func (s *Service) record(ctx context.Context, folded string) (record []byte, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		err := tx.QueryRow(selectRecord, folded).Scan(&record)
		if errors.Is(err, store.ErrNoRows) {
			return nil
		}
		return err
	})
	return record, err
}

// How a transaction of this package refuses.
var (
	errNameTaken     = errors.New("the name is taken")
	errIdentityTaken = errors.New("the identity key has an account")
	errInvite        = errors.New("the invite is used up, expired or unknown")
	errStale         = errors.New("the password was changed after the login began")
)

// registerTx makes an account, using up the code that came with it, if any. It
// returns the identity key that had the name before, when the code was made to
// replace it.
func (s *Service) registerTx(tx *store.Tx, folded string, identity rpc.IdentityKey, record []byte, code *[32]byte) (superseded *rpc.IdentityKey, err error) {
	now, service := s.options.Now().Unix(), s.options.DB.ServiceTime()
	// The code comes first: who has none learns nothing about names. What
	// fails below gives it back with the transaction.
	if superseded, err = s.admitTx(tx, folded, identity, code); err != nil {
		return nil, err
	}
	var one int
	switch err := tx.QueryRow(selectRetired, folded, service).Scan(&one); {
	case err == nil:
		return nil, errNameTaken
	case !errors.Is(err, store.ErrNoRows):
		return nil, err
	}
	if _, err := s.FindByNameTx(tx, folded); err == nil {
		return nil, errNameTaken
	} else if !errors.Is(err, ErrNoAccount) {
		return nil, err
	}
	if known, err := s.ExistsTx(tx, identity); err != nil {
		return nil, err
	} else if known {
		return nil, errIdentityTaken
	}
	if _, err := tx.Exec(deleteRetired, folded); err != nil {
		return nil, err
	}
	if _, err := tx.Exec(insertAccount, identity, folded, record, now, now); err != nil {
		return nil, err
	}
	if s.options.Registered != nil {
		err = s.options.Registered(tx, folded, identity)
	}
	return superseded, err
}

// loginTx makes a session for the account of p, whose OPAQUE record must
// still be the one that the login was made with. It returns the sessions that
// made room.
func (s *Service) loginTx(tx *store.Tx, p rpc.Principal, record [32]byte) (surplus [][32]byte, err error) {
	account, err := s.FindByNameTx(tx, p.Username)
	if err != nil {
		return nil, err
	}
	if account.Identity != p.Identity {
		return nil, ErrNoAccount
	}
	var present []byte
	if err := tx.QueryRow(selectRecord, p.Username).Scan(&present); err != nil {
		return nil, err
	}
	if sha256.Sum256(present) != record {
		return nil, errStale
	}
	if s.options.MayLogIn != nil {
		if err := s.options.MayLogIn(tx, p.Identity); err != nil {
			return nil, err
		}
	}
	var device any
	if p.HasDevice {
		device = p.Device[:]
	}
	until := s.options.DB.ServiceTime() + seconds(s.options.SessionTTL)
	if _, err := tx.Exec(insertSession, p.Session, device, until, p.Identity); err != nil {
		return nil, err
	}
	if surplus, err = s.trimSessionsTx(tx, p); err != nil {
		return nil, err
	}
	return surplus, s.deviceSeenTx(tx, p)
}

// trimSessionsTx deletes the sessions past maxSessions, and returns them.
func (s *Service) trimSessionsTx(tx *store.Tx, p rpc.Principal) (surplus [][32]byte, err error) {
	rows, err := tx.Query(selectSurplus, p.Identity, p.Session, maxSessions-1)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var session [32]byte
		if err := rows.Scan(&session); err != nil {
			return nil, err
		}
		surplus = append(surplus, session)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	for _, session := range surplus {
		if _, err := tx.Exec(deleteSession, session); err != nil {
			return nil, err
		}
	}
	return surplus, nil
}

// changePasswordTx replaces the OPAQUE record of a session's account and ends
// its other sessions. A session that has ended meanwhile changes nothing: the
// password may have been changed to be rid of it.
func (s *Service) changePasswordTx(tx *store.Tx, p *rpc.Principal, record []byte) error {
	var one int
	err := tx.QueryRow(selectLive, p.Session, s.options.DB.ServiceTime()).Scan(&one)
	if errors.Is(err, store.ErrNoRows) {
		return ErrNoSession
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec(updateRecord, record, p.Identity); err != nil {
		return err
	}
	_, err = tx.Exec(deleteOtherSessions, p.Identity, p.Session)
	return err
}

func (s *Service) deviceSeenTx(tx *store.Tx, p rpc.Principal) error {
	if !p.HasDevice {
		return nil
	}
	return s.options.DeviceSeen(tx, p.Identity, p.Device)
}

// ResumeSession returns the principal of a session token and notes its use. It
// is made for rpc.ServerOptions.ResumeSession. Looking the token up by its
// hash compares nothing secret in variable time.
func (s *Service) ResumeSession(ctx context.Context, token []byte) (rpc.Principal, error) {
	p := rpc.Principal{Session: hashToken(token)}
	var until int64
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		var device []byte
		err := tx.QueryRow(selectSession, p.Session, s.options.DB.ServiceTime()).Scan(&p.Identity, &p.Username, &device, &until)
		p.HasDevice = copy(p.Device[:], device) > 0
		return err
	})
	if errors.Is(err, store.ErrNoRows) {
		return p, ErrNoSession
	}
	if err != nil {
		return p, err
	}
	p.Admin = s.admins[p.Identity]
	s.touch(ctx, p, until)
	return p, nil
}

// touch writes down that a session is in use. A session still works when that
// fails, as on a full disk.
func (s *Service) touch(ctx context.Context, p rpc.Principal, until int64) {
	fresh := s.options.DB.ServiceTime() + seconds(s.options.SessionTTL)
	if fresh-until < seconds(touchEvery) {
		return
	}
	err := s.options.DB.Write(ctx, func(tx *store.Tx) error {
		if _, err := tx.Exec(touchSession, fresh, p.Session); err != nil {
			return err
		}
		return s.deviceSeenTx(tx, p)
	})
	if err != nil && ctx.Err() == nil && !store.IsUnwritable(err) {
		s.options.Log.Warn("the use of a session is not written down", "error", err)
	}
}

// Seen writes down that an identity was here, at most every ten minutes. It is
// made for push.Options.LastSeen.
func (s *Service) Seen(ctx context.Context, identity rpc.IdentityKey) {
	now := s.options.Now().Unix()
	err := s.options.DB.Write(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(updateSeen, now, identity, now-seconds(seenEvery), now)
		return err
	})
	if err != nil && ctx.Err() == nil && !store.IsUnwritable(err) {
		s.options.Log.Warn("the presence of a user is not written down", "error", err)
	}
}

// EndSessionsTx deletes every session of an identity, and ends its live
// connections once the transaction is committed.
func (s *Service) EndSessionsTx(ctx context.Context, tx *store.Tx, identity rpc.IdentityKey, code transport.CloseCode, reason string) error {
	if _, err := tx.Exec(deleteOtherSessions, identity, [32]byte{}); err != nil {
		return err
	}
	tx.AfterCommit(func() {
		s.options.Sessions.EndSessions(ctx, identity, func(*rpc.Principal) bool { return true }, code, reason)
	})
	return nil
}

// ForgetDeviceTx ends the sessions of a device.
func (s *Service) ForgetDeviceTx(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) error {
	_, err := tx.Exec(deleteDevice, identity, device)
	return err
}

// eraseTx deletes an account and lets its name rest.
func (s *Service) eraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	account, err := s.FindByKeyTx(tx, identity)
	if err != nil {
		return err
	}
	if err := s.options.Erase(tx, identity); err != nil {
		return err
	}
	if _, err := tx.Exec(deleteAccount, identity); err != nil { // sessions go with it
		return err
	}
	_, err = tx.Exec(upsertRetired, account.Username, s.options.DB.ServiceTime()+seconds(nameRestsFor))
	return err
}

// Sweep removes a bounded number of sessions, invites and resting names whose
// time is over, and reports whether there may be more.
func (s *Service) Sweep(ctx context.Context) (more bool, err error) {
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		for _, statement := range []string{sweepSessions, sweepInvites, sweepRetired} {
			result, err := tx.Exec(statement, s.options.DB.ServiceTime(), sweepRows)
			if err != nil {
				return err
			}
			more = more || result.RowsAffected == sweepRows
		}
		return nil
	})
	return more, err
}
