// Package tlog is what server and client must agree on about the transparency
// log (PROTOCOL 7.9): how a leaf is hashed, how the head of the log is signed,
// and how a proof is checked. Tree arithmetic is that of
// github.com/transparency-dev/merkle, the signed head a C2SP tlog-checkpoint
// (golang.org/x/mod/sumdb/note).
//
// The log is one append-only list. Hashing is that of RFC 6962, section 2.1,
// over entries that are themselves hashes, with one kind of leaf more:
//
//	binding     SHA-256(0x00 ‖ SHA-256(username ‖ 0x00 ‖ identity key 32))
//	inner node  SHA-256(0x01 ‖ left 32 ‖ right 32)
//	revocation  SHA-256(0x02 ‖ SHA-256(identity key 32 ‖ 0x00 ‖ reason))
//
// The first byte keeps the three apart: no name and key can be chosen so that
// a binding is taken for a revocation or an inner node.
//
// Everything here is pure: no I/O, no state.
package tlog

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
)

const (
	prefixBinding    = 0x00 // RFC 6962, section 2.1: a leaf
	prefixRevocation = 0x02 // the next free one, after 0x01 for inner nodes

	// MaxProofHashes bounds a proof: an inclusion proof has at most one hash
	// for each level of a tree of 2^63 leaves, a consistency proof one more.
	MaxProofHashes = 65
)

// Hash is a SHA-256: of a leaf, a node or a whole tree.
type Hash = [sha256.Size]byte

// ErrProof reports a proof that does not prove what it is for.
var ErrProof = errors.New("the proof does not verify")

// The reasons that a revocation may have.
const (
	ReasonCompromised = "compromised"  // somebody else has the key
	ReasonSuperseded  = "superseded"   // its owner has a new one
	ReasonUserRevoked = "user_revoked" // its owner wants no more of it
)

// IsReason reports whether a revocation may give this reason.
func IsReason(reason string) bool {
	return reason == ReasonCompromised || reason == ReasonSuperseded || reason == ReasonUserRevoked
}

// BindingLeaf returns the hash of the leaf that binds a folded username to an
// identity key.
func BindingLeaf(username string, identity [32]byte) Hash {
	return leaf(prefixBinding, []byte(username), identity[:])
}

// RevocationLeaf returns the hash of the leaf that ends an identity key.
func RevocationLeaf(identity [32]byte, reason string) Hash {
	return leaf(prefixRevocation, identity[:], []byte(reason))
}

func leaf(prefix byte, first, second []byte) Hash {
	entry := make([]byte, 0, len(first)+1+len(second))
	entry = append(append(append(entry, first...), 0), second...)
	inner := sha256.Sum256(entry)
	return sha256.Sum256(append([]byte{prefix}, inner[:]...))
}

// Node returns the hash of an inner node.
func Node(left, right []byte) []byte { return rfc6962.DefaultHasher.HashChildren(left, right) }

// EmptyRoot is the root of a log without leaves.
func EmptyRoot() Hash { return Hash(rfc6962.DefaultHasher.EmptyRoot()) }

// VerifyInclusion checks that a leaf stands at an index of the tree that a
// checkpoint speaks of. hashes are the proof of RFC 6962, section 2.1.1, in
// its order; an error wraps ErrProof.
func VerifyInclusion(head Checkpoint, index uint64, leaf Hash, hashes [][]byte) error {
	if err := checkHashes(hashes); err != nil {
		return err
	}
	if err := proof.VerifyInclusion(rfc6962.DefaultHasher, index, head.Size, leaf[:], hashes, head.Root[:]); err != nil {
		return fmt.Errorf("%w: the entry is not at place %d of %d", ErrProof, index, head.Size)
	}
	return nil
}

// VerifyConsistency checks that the tree of a newer checkpoint begins with
// that of an older one. hashes are the proof of RFC 6962, section 2.1.2; none
// are wanted when both have the same size or the older one is empty. An error
// wraps ErrProof.
func VerifyConsistency(older, newer Checkpoint, hashes [][]byte) error {
	if err := checkHashes(hashes); err != nil {
		return err
	}
	if older.Size == 0 && older.Root != EmptyRoot() {
		return fmt.Errorf("%w: an empty log has another root", ErrProof)
	}
	err := proof.VerifyConsistency(rfc6962.DefaultHasher, older.Size, newer.Size, hashes, older.Root[:], newer.Root[:])
	if err != nil {
		return fmt.Errorf("%w: the log of %d entries does not begin with the one of %d", ErrProof, newer.Size, older.Size)
	}
	return nil
}

// checkHashes refuses what no proof can hold.
func checkHashes(hashes [][]byte) error {
	if len(hashes) > MaxProofHashes {
		return fmt.Errorf("%w: it has %d hashes where at most %d are needed", ErrProof, len(hashes), MaxProofHashes)
	}
	for _, h := range hashes {
		if len(h) != sha256.Size {
			return fmt.Errorf("%w: it holds a hash of %d bytes where %d are wanted", ErrProof, len(h), sha256.Size)
		}
	}
	return nil
}
