package server

import (
	"errors"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/directory"
	"github.com/quicprochat/qpcd/pkg/store"
)

// ErrCertificate reports certificate files that cannot be used.
var ErrCertificate = errors.New("the certificate cannot be used")

// storageRetry is what callers are told to wait when the storage fails: long
// enough for a sweep to make room.
const storageRetry = 30 * time.Second

// describe turns the storage's errors into answers.
func (s *Server) describe(err error) *rpc.Error {
	if e := (*rpc.Error)(nil); errors.As(err, &e) {
		return nil // a domain has said it already
	}
	switch {
	case store.IsNoSpace(err):
		return rpc.Errorf(qpcpb.CodeDiskFull, "the server's disk is full; its owner must make room").After(storageRetry).Because(err)
	case errors.Is(err, store.ErrClosed):
		return rpc.Errorf(qpcpb.CodeDraining, "the server is shutting down; connect again soon").After(time.Second).Because(err)
	case errors.Is(err, store.ErrCommit), errors.Is(err, store.ErrNotWritable), errors.Is(err, store.ErrCorrupt):
		s.log.Error("the storage failed", "error", err)
		return rpc.Errorf(qpcpb.CodeStorageFailed, "the server cannot store anything now; try again later").After(storageRetry).Because(err)
	}
	return nil
}

// eraseTx removes an identity from every domain but auth, which calls it.
func (s *Server) eraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	for _, erase := range s.erase {
		if err := erase(tx, identity); err != nil {
			return err
		}
	}
	return nil
}

// accountBook shows the accounts to the directory in its own terms.
type accountBook struct{ accounts *auth.Service }

func toDirectory(a auth.Account) directory.Account {
	return directory.Account{Identity: a.Identity, Username: a.Username, LastSeenAt: a.LastSeenAt.Unix()}
}

func found(a auth.Account, err error) (directory.Account, bool, error) {
	if errors.Is(err, auth.ErrNoAccount) {
		return directory.Account{}, false, nil
	}
	return toDirectory(a), err == nil, err
}

func (b accountBook) FindByNameTx(tx *store.Tx, folded string) (directory.Account, bool, error) {
	return found(b.accounts.FindByNameTx(tx, folded))
}

func (b accountBook) FindByKeyTx(tx *store.Tx, identity rpc.IdentityKey) (directory.Account, bool, error) {
	return found(b.accounts.FindByKeyTx(tx, identity))
}

func (b accountBook) ListTx(tx *store.Tx, prefix, after string, limit int) ([]directory.Account, error) {
	accounts, err := b.accounts.ListTx(tx, prefix, after, limit)
	if err != nil {
		return nil, err
	}
	listed := make([]directory.Account, len(accounts))
	for i, a := range accounts {
		listed[i] = toDirectory(a)
	}
	return listed, nil
}

// unblocked returns the contacts that an identity has not blocked: the others
// do not learn whether it is online.
func unblocked(tx *store.Tx, names *directory.Service, of rpc.IdentityKey, contacts []rpc.IdentityKey) ([]rpc.IdentityKey, error) {
	kept := contacts[:0]
	for _, contact := range contacts {
		blocked, err := names.BlockedTx(tx, of, contact)
		if err != nil {
			return nil, err
		}
		if !blocked {
			kept = append(kept, contact)
		}
	}
	return kept, nil
}
