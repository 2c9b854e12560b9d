package group

import (
	"bytes"
	"slices"

	"github.com/quicprochat/qpcd/pkg/rpc"
)

// sorted puts a pair in the order in which it is stored.
func sorted(a, b rpc.IdentityKey) (low, high rpc.IdentityKey) {
	if bytes.Compare(a[:], b[:]) > 0 {
		return b, a
	}
	return a, b
}

func contains(members []rpc.IdentityKey, identity rpc.IdentityKey) bool {
	return slices.Contains(members, identity)
}
