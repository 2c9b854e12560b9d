package transparency

import (
	"math/bits"

	"github.com/transparency-dev/merkle/compact"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// position returns where the hash of a complete inner node (level 1 and up) is
// stored. Nodes are numbered in the order in which leaves complete them, so
// that the table only grows at its end:
//
//	level 2             2
//	level 1      0      1      3
//	leaves     0   1  2   3  4   5
//
// n leaves complete n - popcount(n) nodes; leaf j completes its own in the
// order of their levels.
func position(id compact.NodeID) uint64 {
	_, end := id.Coverage()
	return completed(end-1) + uint64(id.Level) - 1
}

// completed returns how many inner nodes n leaves complete.
func completed(n uint64) uint64 { return n - uint64(bits.OnesCount64(n)) }

func keyRevoked() error {
	return rpc.Errorf(qpcpb.CodeKeyRevoked, "this identity key has been revoked for good; make a new account with a new key")
}

func badReason() error {
	return rpc.Errorf(qpcpb.CodeInvalidField, "reason is one of compromised, superseded and user_revoked")
}
