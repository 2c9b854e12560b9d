package server

import (
	"errors"
	"time"

	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/device"
	"github.com/quicprochat/qpcd/pkg/service/directory"
	"github.com/quicprochat/qpcd/pkg/service/group"
	"github.com/quicprochat/qpcd/pkg/service/reach"
	"github.com/quicprochat/qpcd/pkg/service/transparency"
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
	case store.IsUnwritable(err): // the store has logged it, once
		return rpc.Errorf(qpcpb.CodeStorageFailed, "the server cannot store anything now; try again later").After(storageRetry).Because(err)
	case errors.Is(err, store.ErrNotWritable), errors.Is(err, store.ErrCorrupt):
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

// mayLogInTx asks every domain that may keep an identity from logging in.
func (s *Server) mayLogInTx(tx *store.Tx, identity rpc.IdentityKey) error {
	for _, may := range s.mayLogIn {
		if err := may(tx, identity); err != nil {
			return err
		}
	}
	return nil
}

// boundAccounts lists the accounts for the transparency log, which is made
// before them.
type boundAccounts struct{ accounts **auth.Service }

func (b boundAccounts) CountTx(tx *store.Tx) (int, error) { return (*b.accounts).CountTx(tx) }

func (b boundAccounts) BindingsTx(tx *store.Tx, after string, limit int) ([]transparency.Binding, error) {
	accounts, err := (*b.accounts).ListTx(tx, "", after, limit)
	if err != nil {
		return nil, err
	}
	bindings := make([]transparency.Binding, len(accounts))
	for i, a := range accounts {
		bindings[i] = transparency.Binding{Username: a.Username, Identity: a.Identity}
	}
	return bindings, nil
}

// usableAccounts are those that may publish keys: a call that was on its way
// when the identity key was revoked finds none.
type usableAccounts struct {
	accounts *auth.Service
	keyLog   *transparency.Service
}

func (u usableAccounts) ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error) {
	revoked, err := u.keyLog.RevokedTx(tx, identity)
	if err != nil || revoked {
		return false, err
	}
	return u.accounts.ExistsTx(tx, identity)
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

// wakingHub is the hub as delivery sees it. Delivery looks for connections once
// for each message that it has stored, after the commit; where there are none,
// the recipient's devices are woken.
type wakingHub struct {
	*push.Hub
	reach *reach.Service
}

func (h wakingHub) Online(identity rpc.IdentityKey) bool {
	online := h.Hub.Online(identity)
	if !online {
		h.reach.Wake(identity)
	}
	return online
}

// usernames tells groups what their members are called.
type usernames struct{ accounts *auth.Service }

func (u usernames) UsernameTx(tx *store.Tx, identity rpc.IdentityKey) (string, bool, error) {
	a, err := u.accounts.FindByKeyTx(tx, identity)
	if errors.Is(err, auth.ErrNoAccount) {
		return "", false, nil
	}
	return a.Username, err == nil, err
}

// groupDevices lists devices for the groups, which are made before them.
type groupDevices struct{ devices **device.Service }

func (g groupDevices) ListTx(tx *store.Tx, identity rpc.IdentityKey) ([]rpc.DeviceID, error) {
	return (*g.devices).ListTx(tx, identity)
}

// groupPost queues what groups send, by the delivery that is made after them.
type groupPost struct{ server *Server }

func (g groupPost) PostTx(tx *store.Tx, p group.Posting) error {
	return g.server.delivery.PostTx(tx, delivery.Posting(p))
}
