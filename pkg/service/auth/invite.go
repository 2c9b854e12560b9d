package auth

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/quicprochat/qpcd/pkg/invite"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// maxInvites bounds the codes that are open at once: more than a household
	// hands out, and a list that can still be read.
	maxInvites = 256
	// maxNote is the most characters of an invite's note: a line of the list.
	maxNote = 100
	// inviteFor and resetFor are how long a code is valid unless its maker says
	// otherwise. A reset is wanted now, by somebody who was just spoken to.
	inviteFor = 7 * 24 * time.Hour
	resetFor  = 24 * time.Hour
	// maxInviteFor bounds it: a code lies about in mail for as long.
	maxInviteFor = 365 * 24 * time.Hour
	// inviteIDDigits are how many hex digits of its hash name an invite: enough
	// to tell 256 apart, and by far too few to find the code.
	inviteIDDigits = 8
)

const (
	insertInvite  = `INSERT INTO auth_invite (code_hash, created_at, valid_until, note, account_id) VALUES (?, ?, ?, ?, (SELECT id FROM auth_account WHERE identity_key = ?))`
	selectInvites = `SELECT i.code_hash, i.note, i.created_at, i.valid_until, coalesce(a.username, '')
		FROM auth_invite i LEFT JOIN auth_account a ON a.id = i.account_id
		WHERE i.valid_until > ? ORDER BY i.created_at, i.code_hash LIMIT ?`
	countInvites = `SELECT count(*) FROM auth_invite WHERE valid_until > ?`
	deleteInvite = `DELETE FROM auth_invite WHERE code_hash = ?`
	deleteResets = `DELETE FROM auth_invite WHERE account_id = (SELECT id FROM auth_account WHERE identity_key = ?)`
	selectReset  = `SELECT a.identity_key, a.username, a.registered_at, a.last_seen_at
		FROM auth_invite i JOIN auth_account a ON a.id = i.account_id WHERE i.code_hash = ? AND i.valid_until > ?`
	selectAnyReset = `SELECT 1 FROM auth_invite WHERE account_id IS NOT NULL AND valid_until > ? LIMIT 1`
	takeInvite     = `DELETE FROM auth_invite WHERE code_hash = ? AND valid_until > ? AND account_id IS NULL`
	sweepInvites   = `DELETE FROM auth_invite WHERE code_hash IN (SELECT code_hash FROM auth_invite WHERE valid_until <= ? LIMIT ?)`
)

// Invite is a one-time code that is neither used nor expired, without the code.
type Invite struct {
	// ID names it: the first hex digits of its hash.
	ID string
	// Note is the owner's.
	Note string
	// CreatedAt and ExpiresAt are for people; what counts is service time.
	CreatedAt, ExpiresAt time.Time
	// Username is the name whose password it resets, "" for an ordinary invite.
	Username string
}

// CreateInvite makes a code that registers one new account; validFor 0 is 7
// days. Its errors are *rpc.Error where the caller can mend them.
func (s *Service) CreateInvite(ctx context.Context, validFor time.Duration, note string) (Invite, string, error) {
	if validFor == 0 {
		validFor = inviteFor
	}
	if utf8.RuneCountInString(note) > maxNote || strings.ContainsFunc(note, notPrinted) {
		return Invite{}, "", rpc.Errorf(qpcpb.CodeInvalidField, "the note has more than %d characters, or some that are no text; shorten it", maxNote)
	}
	return s.makeInvite(ctx, validFor, note, "")
}

// notPrinted reports control characters, which would break a list.
func notPrinted(r rune) bool { return r < ' ' || r == 0x7f }

// ResetPassword makes a code with which a name can be registered anew, with
// another identity key; validFor 0 is a day. Until it is used the account works
// as before, and only the newest code of an account works.
func (s *Service) ResetPassword(ctx context.Context, name string, validFor time.Duration) (Invite, string, error) {
	folded, err := fold(name)
	if err != nil {
		return Invite{}, "", err
	}
	if validFor == 0 {
		validFor = resetFor
	}
	return s.makeInvite(ctx, validFor, "", folded)
}

// makeInvite makes a code, for the account of a folded name when there is one.
func (s *Service) makeInvite(ctx context.Context, validFor time.Duration, note, folded string) (made Invite, code string, err error) {
	if validFor < time.Second || validFor > maxInviteFor {
		return Invite{}, "", rpc.Errorf(qpcpb.CodeInvalidField, "a code can be valid from a second to 365 days")
	}
	if code, err = invite.NewCode(s.options.Rand); err != nil {
		return Invite{}, "", err
	}
	hash := invite.Hash(code)
	err = s.options.DB.Write(ctx, func(tx *store.Tx) (err error) {
		made, err = s.makeInviteTx(tx, hash, validFor, note, folded)
		return err
	})
	switch {
	case errors.Is(err, ErrNoAccount):
		return Invite{}, "", noSuchUser()
	case err != nil:
		return Invite{}, "", fmt.Errorf("storing an invite: %w", err)
	}
	return made, code, nil
}

func noSuchUser() error {
	return rpc.Errorf(qpcpb.CodeUserNotFound, "there is no account of that name")
}

func (s *Service) makeInviteTx(tx *store.Tx, hash [32]byte, validFor time.Duration, note, folded string) (Invite, error) {
	var account any // the identity key, or NULL
	if folded != "" {
		found, err := s.FindByNameTx(tx, folded)
		if err != nil {
			return Invite{}, err
		}
		account = found.Identity
		if _, err := tx.Exec(deleteResets, found.Identity); err != nil {
			return Invite{}, err
		}
	}
	now, service := s.options.Now(), s.options.DB.ServiceTime()
	var open int
	if err := tx.QueryRow(countInvites, service).Scan(&open); err != nil {
		return Invite{}, err
	}
	if open >= maxInvites {
		return Invite{}, rpc.Errorf(qpcpb.CodeQuotaExceeded, "%d codes are open, the most that may be; revoke some", open)
	}
	if _, err := tx.Exec(insertInvite, hash, now.Unix(), service+seconds(validFor), note, account); err != nil {
		return Invite{}, err
	}
	return Invite{
		ID: inviteID(hash), Note: note, Username: folded,
		CreatedAt: time.Unix(now.Unix(), 0), ExpiresAt: time.Unix(now.Unix()+seconds(validFor), 0),
	}, nil
}

func inviteID(hash [32]byte) string { return hex.EncodeToString(hash[:])[:inviteIDDigits] }

// openInvite is an invite with the hash of its code.
type openInvite struct {
	Invite
	hash [32]byte
}

// openInvitesTx returns the codes that are neither used nor expired, the oldest
// first.
func (s *Service) openInvitesTx(tx *store.Tx) (all []openInvite, err error) {
	now, service := s.options.Now().Unix(), s.options.DB.ServiceTime()
	rows, err := tx.Query(selectInvites, service, maxInvites)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var i openInvite
		var created, until int64
		if err := rows.Scan(&i.hash, &i.Note, &created, &until, &i.Username); err != nil {
			return nil, err
		}
		i.ID = inviteID(i.hash)
		i.CreatedAt, i.ExpiresAt = time.Unix(created, 0), time.Unix(now+until-service, 0)
		all = append(all, i)
	}
	return all, rows.Err()
}

// Invites returns the codes that are neither used nor expired, the oldest
// first.
func (s *Service) Invites(ctx context.Context) (all []Invite, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		open, err := s.openInvitesTx(tx)
		for _, i := range open {
			all = append(all, i.Invite)
		}
		return err
	})
	return all, err
}

// RevokeInvite makes a code worthless. Two codes with one id, which chance
// hardly makes, end together.
func (s *Service) RevokeInvite(ctx context.Context, id string) error {
	found := false
	err := s.options.DB.Write(ctx, func(tx *store.Tx) error {
		found = false
		open, err := s.openInvitesTx(tx)
		if err != nil {
			return err
		}
		for _, i := range open {
			if !strings.EqualFold(i.ID, id) {
				continue
			}
			found = true
			if _, err := tx.Exec(deleteInvite, i.hash); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("revoking an invite: %w", err)
	}
	if !found {
		return rpc.Errorf(qpcpb.CodeInviteNotFound, "there is no open code by that id; it may be used or expired")
	}
	return nil
}

// RemoveAccount deletes the account of a name as its holder could. freeName
// lets the name be registered again at once, also that of an account that is
// deleted already.
func (s *Service) RemoveAccount(ctx context.Context, name string, freeName bool) error {
	folded, err := fold(name)
	if err != nil {
		return err
	}
	var identity rpc.IdentityKey
	erased := false
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		erased = false
		account, err := s.FindByNameTx(tx, folded)
		if err == nil {
			identity, erased = account.Identity, true
			err = s.eraseTx(tx, identity)
		}
		if err != nil && !(freeName && errors.Is(err, ErrNoAccount)) {
			return err
		}
		if !freeName {
			return nil
		}
		result, err := tx.Exec(deleteRetired, folded)
		if err == nil && !erased && result.RowsAffected == 0 {
			return ErrNoAccount
		}
		return err
	})
	if errors.Is(err, ErrNoAccount) {
		return noSuchUser()
	}
	if err != nil {
		return rpc.Errorf(qpcpb.CodeAccountDeletionFailed, "the account could not be deleted; nothing was removed").Because(err)
	}
	if erased {
		s.options.Sessions.EndSessions(ctx, identity, func(*rpc.Principal) bool { return true },
			transport.CloseSessionRevoked, "the account was deleted by the server's owner")
	}
	return nil
}

// resetOpen reports whether any name may be registered anew by a code.
func (s *Service) resetOpen(ctx context.Context) (open bool, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		var one int
		err := tx.QueryRow(selectAnyReset, s.options.DB.ServiceTime()).Scan(&one)
		open = err == nil
		if errors.Is(err, store.ErrNoRows) {
			return nil
		}
		return err
	})
	return open, err
}

// admitTx uses up the code that comes with a registration, and returns errInvite
// when there must be one and this is none. An open server takes what it gets.
// When the code was made for an account, that account is gone and its identity
// key returned.
func (s *Service) admitTx(tx *store.Tx, folded string, identity rpc.IdentityKey, code *[32]byte) (superseded *rpc.IdentityKey, err error) {
	service := s.options.DB.ServiceTime()
	if code != nil {
		account, err := scanAccount(tx.QueryRow(selectReset, *code, service))
		if err == nil && account.Username == folded {
			return &account.Identity, s.supersedeTx(tx, account, identity)
		}
		if err != nil && !errors.Is(err, ErrNoAccount) {
			return nil, err
		}
		if s.options.Registration != RegistrationClosed {
			result, err := tx.Exec(takeInvite, *code, service)
			if err != nil || result.RowsAffected > 0 {
				return nil, err
			}
		}
	}
	if s.options.Registration != RegistrationOpen {
		return nil, errInvite
	}
	return nil, nil
}

// supersedeTx erases an account whose name another identity key is about to
// take. The name does not rest, and the codes that reset it go with it.
func (s *Service) supersedeTx(tx *store.Tx, account Account, by rpc.IdentityKey) error {
	if account.Identity == by {
		// Whoever has the code has not shown that this key is theirs.
		return errIdentityTaken
	}
	if s.options.Superseded != nil {
		if err := s.options.Superseded(tx, account.Identity); err != nil {
			return err
		}
	}
	if err := s.options.Erase(tx, account.Identity); err != nil {
		return err
	}
	_, err := tx.Exec(deleteAccount, account.Identity)
	return err
}

// FindByAnyNameTx returns the account of a name as somebody writes it. The error
// is an *rpc.Error when there is none, or when it is no name.
func (s *Service) FindByAnyNameTx(tx *store.Tx, name string) (Account, error) {
	folded, err := fold(name)
	if err != nil {
		return Account{}, err
	}
	account, err := s.FindByNameTx(tx, folded)
	if errors.Is(err, ErrNoAccount) {
		err = noSuchUser()
	}
	return account, err
}

// IsAdmin reports whether an identity is in the owner's admin list.
func (s *Service) IsAdmin(identity rpc.IdentityKey) bool { return s.admins[identity] }
