// Package transparency keeps the log in which every binding of a name to an
// identity key stands, and the end of every revoked key (PROTOCOL 7.9; methods
// 510, 511, 520, 1010, 1011, and the proofs in 500). Whoever watches it sees a
// key that was slipped under somebody's name.
//
// What it promises:
//
//   - A leaf is in the log by the commit that makes the binding or the
//     revocation, and it is never changed or removed.
//   - Each new head is signed once, in that same transaction, and only when the
//     one before it is what the stored nodes hash to: a damaged database makes
//     registrations fail, and never a signature that contradicts an earlier
//     one.
//   - A proof and the checkpoint that it is made against come from one
//     transaction.
//   - A revoked key neither registers nor logs in again, not even after its
//     account was deleted. Its sessions and its published keys end with it.
//   - An account that is deleted leaves its leaves, which are hashes, and
//     nothing else.
//
// An append reads and writes a number of rows logarithmic in the size of the
// log, and so does a proof: the hash of a complete subtree is stored when its
// last leaf comes. The log takes about 90 bytes a leaf and has no limit of its
// own; accounts and revocations bound it.
//
// State: five tables, and nothing in memory.
package transparency

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

const (
	// MaxLeaves is the most leaves in one answer of AuditKeyTransparency
	// (PROTOCOL 7.9): 34 KB, since strangers may ask.
	MaxLeaves = 1000

	// leafEntry is what one leaf hash takes in an answer, in bytes.
	leafEntry = 34
	// backfillRows is how many accounts one transaction of Backfill looks at:
	// a signature each, a few milliseconds on a router in all.
	backfillRows = 50
	// verifyRows is how many leaves or rows Verify reads in one transaction,
	// so that it holds up no checkpoint of the storage for long.
	verifyRows = 4096
	// maxProblems bounds what Verify lists; the first ones tell enough.
	maxProblems = 20
)

// Binding is a name and the identity key that it stands for.
type Binding struct {
	Username string // folded
	Identity rpc.IdentityKey
}

// Accounts lists the accounts of the server.
type Accounts interface {
	// CountTx returns how many there are.
	CountTx(tx *store.Tx) (int, error)
	// BindingsTx returns up to limit of them, by name, from the first one above
	// after.
	BindingsTx(tx *store.Tx, after string, limit int) ([]Binding, error)
}

// Options says what a Service is made of. All are needed.
type Options struct {
	DB  *store.DB
	Log *slog.Logger
	// Now is the wall clock.
	Now func() time.Time
	// ServerName names the log: its origin is "<server name>/qpc".
	ServerName string
	// Key signs checkpoints: the server's Ed25519 key.
	Key      ed25519.PrivateKey
	Accounts Accounts
	// Revoked is told of a key that is revoked, in the same transaction: it
	// ends sessions and removes published keys.
	Revoked func(tx *store.Tx, identity rpc.IdentityKey) error
}

// Service answers TransparencyService. It is safe for concurrent use.
type Service struct {
	options Options
	signer  *tlog.Signer
}

// New returns a Service, or an error when the server's name cannot name a log.
// Call Backfill before it serves.
func New(options Options) (*Service, error) {
	signer, err := tlog.NewSigner(tlog.Origin(options.ServerName), options.Key)
	if err != nil {
		return nil, fmt.Errorf("the transparency log: %w", err)
	}
	return &Service{options: options, signer: signer}, nil
}

// BindTx writes the binding of a name to an identity key into the log. A
// revoked key is KEY_REVOKED.
func (s *Service) BindTx(tx *store.Tx, username string, identity rpc.IdentityKey) error {
	if err := s.MayUseTx(tx, identity); err != nil {
		return err
	}
	return s.bindTx(tx, Binding{username, identity})
}

// MayUseTx returns KEY_REVOKED for a revoked key, or nil.
func (s *Service) MayUseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	revoked, err := s.RevokedTx(tx, identity)
	if err == nil && revoked {
		err = keyRevoked()
	}
	return err
}

func (s *Service) bindTx(tx *store.Tx, b Binding) error {
	index, err := s.appendTx(tx, tlog.BindingLeaf(b.Username, b.Identity))
	if err != nil {
		return err
	}
	return insertBinding(tx, b, index)
}

// RevokeTx ends an identity key: a leaf in the log, no session and no
// published key any more, no login ever again. Who is revoked already stays
// revoked for the first reason. It returns the index of the leaf. reason is
// one of the three of pkg/tlog.
func (s *Service) RevokeTx(tx *store.Tx, identity rpc.IdentityKey, reason string) (index uint64, err error) {
	if !tlog.IsReason(reason) {
		return 0, badReason()
	}
	earlier, revoked, err := readRevocation(tx, identity)
	if err != nil || revoked {
		return earlier.index, err
	}
	index, err = s.appendTx(tx, tlog.RevocationLeaf(identity, reason))
	if err != nil {
		return 0, err
	}
	at := max(0, s.options.Now().Unix()) // a clock before 1970 has no place on the wire
	if err := insertRevocation(tx, identity, revocation{reason: reason, at: at, index: index}); err != nil {
		return 0, err
	}
	return index, s.options.Revoked(tx, identity)
}

// RevokedTx reports whether an identity key has been revoked.
func (s *Service) RevokedTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error) {
	_, revoked, err := readRevocation(tx, identity)
	return revoked, err
}

// EraseTx forgets where the leaf of an identity stands. Its leaves stay, and so
// does the memory of its revocation, which is a hash of the key.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	return deleteBinding(tx, identity)
}

// Backfill makes the log ready to serve: it signs the head anew when the
// server's name or key has changed, and binds the accounts that have no leaf,
// which are those of a database from before there was a log.
func (s *Service) Backfill(ctx context.Context) error {
	err := s.options.DB.Write(ctx, s.readyHeadTx)
	if err != nil {
		return fmt.Errorf("making the transparency log ready: %w", err)
	}
	complete := false
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		accounts, err := s.options.Accounts.CountTx(tx)
		if err != nil {
			return err
		}
		bindings, err := countBindings(tx)
		complete = bindings == accounts
		return err
	})
	if err != nil {
		return fmt.Errorf("counting what the transparency log lacks: %w", err)
	}
	added := 0
	for after := ""; !complete; {
		n := 0
		err := s.options.DB.Write(ctx, func(tx *store.Tx) error {
			page, err := s.options.Accounts.BindingsTx(tx, after, backfillRows)
			if err != nil {
				return err
			}
			for _, b := range page {
				after = b.Username
				if _, bound, err := readBinding(tx, b.Identity); err != nil {
					return err
				} else if bound {
					continue
				}
				if err := s.bindTx(tx, b); err != nil {
					return err
				}
				n++
			}
			complete = len(page) < backfillRows
			return nil
		})
		if err != nil {
			return fmt.Errorf("adding accounts to the transparency log: %w", err)
		}
		added += n
	}
	if added > 0 {
		s.options.Log.Info("accounts from before the transparency log were added to it", "count", added)
	}
	return nil
}
