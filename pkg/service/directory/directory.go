// Package directory answers who somebody is (methods 500 and 501), lists users
// (1020) and keeps who has blocked whom (1021, 1022).
//
// What it promises:
//
//   - A name is looked up in the one form in which it is stored
//     (pkg/username), so that its spelling does not matter.
//   - Blocking and unblocking are idempotent, and the blocked are not told:
//     nothing here answers them differently.
//   - A list of users is ordered by name and can be read on from its last name;
//     it has the users of this server alone.
//   - user@domain is looked up at that domain's server, and an identity that
//     lives there is answered so. user@ with this server's own domain is the
//     user here.
//
// An identity blocks at most 1,000 others. Nothing here expires; a block goes
// with either of its accounts.
//
// State: the table of blocks. Accounts belong to another domain and come by
// the interface [Accounts].
package directory

import (
	"context"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/username"
)

const (
	// MaxBlocks is how many others an identity may block: 64 KiB of keys.
	MaxBlocks = 1000
	// MaxUsers is the most users in one answer of ListUsers, and how many
	// there are when the caller does not say (limit 0).
	MaxUsers = 500

	// maxPrefix bounds the prefix and the name to read on from, in bytes: 32
	// characters of four bytes, with room for characters that folding makes
	// shorter.
	maxPrefix = 512
	// userEntry is the most that one User takes in an answer, in bytes: a name
	// of 32 characters, a key, two numbers.
	userEntry = 32*4 + 32 + 24
)

// Account is what the directory knows of an account.
type Account struct {
	Identity rpc.IdentityKey
	Username string // folded
	// LastSeenAt is wall time in Unix seconds.
	LastSeenAt int64
}

// Accounts finds accounts.
type Accounts interface {
	// FindByNameTx finds the account of a folded name.
	FindByNameTx(tx *store.Tx, folded string) (account Account, ok bool, err error)
	// FindByKeyTx finds the account of an identity.
	FindByKeyTx(tx *store.Tx, identity rpc.IdentityKey) (account Account, ok bool, err error)
	// ListTx returns up to limit accounts, in the byte order of their names:
	// those whose name begins with prefix and is above after. Both may be
	// empty, and may hold any text; '_' in them means itself.
	ListTx(tx *store.Tx, prefix, after string, limit int) ([]Account, error)
}

// Presence knows who is connected; push.Hub does.
type Presence interface {
	Online(identity rpc.IdentityKey) bool
}

// Prover proves that a binding of a name to an identity is in the transparency
// log.
type Prover interface {
	// InclusionProofTx returns a serialised InclusionProof.
	InclusionProofTx(tx *store.Tx, username string, identity rpc.IdentityKey) ([]byte, error)
}

// Remote knows people of other servers; federation.Service is one. Its errors
// are answers to the caller.
type Remote interface {
	// Domain is this server's own.
	Domain() string
	// ResolveUser asks a domain for a name. The proof is that server's.
	ResolveUser(ctx context.Context, who username.Address) (identity rpc.IdentityKey, proof []byte, err error)
	// AddressOf returns user@domain of an identity; ok is false for one that
	// lives here or that nobody has met.
	AddressOf(ctx context.Context, identity rpc.IdentityKey) (address string, ok bool, err error)
	// HomeTx returns the domain that an identity lives on; ok is false as above.
	HomeTx(tx *store.Tx, identity rpc.IdentityKey) (domain string, ok bool, err error)
}

// Options says what a Service is made of. All but Prover and Remote are needed.
type Options struct {
	DB       *store.DB
	Accounts Accounts
	Presence Presence
	// Prover may be nil: names then resolve without a proof.
	Prover Prover
	// Remote may be nil: then everybody lives here.
	Remote Remote
}

// Service answers DirectoryService. It is safe for concurrent use.
type Service struct{ options Options }

// New returns a Service.
func New(options Options) *Service { return &Service{options: options} }

// BlockedTx reports whether blocker has blocked somebody.
func (s *Service) BlockedTx(tx *store.Tx, blocker, blocked rpc.IdentityKey) (bool, error) {
	return readBlock(tx, blocker, blocked)
}

// EraseTx removes every block by and of an identity.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	return deleteOf(tx, identity)
}
