package transparency

import (
	"errors"
	"fmt"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/proof"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

// ErrDamaged reports a log whose stored parts contradict each other. Nothing
// is appended to it or signed.
var ErrDamaged = errors.New("the transparency log is damaged; run \"qpcd log verify\", and restore a backup if need be")

// appendTx puts a leaf at the end of the log and signs the new head. It
// returns the index of the leaf.
func (s *Service) appendTx(tx *store.Tx, leaf tlog.Hash) (index uint64, err error) {
	tree, err := s.trunkTx(tx)
	if err != nil {
		return 0, err
	}
	index = tree.End()
	var problem error
	err = tree.Append(leaf[:], func(id compact.NodeID, hash []byte) {
		if problem != nil {
			return
		}
		if id.Level == 0 {
			problem = insertLeaf(tx, id.Index, hash)
		} else {
			problem = insertNode(tx, position(id), hash)
		}
	})
	if err := errors.Join(err, problem); err != nil {
		return 0, err
	}
	return index, s.signTx(tx, tree)
}

// trunkTx reads what an append needs of the tree, the roots of its complete
// subtrees from left to right, and checks that they hash to what was signed
// last.
func (s *Service) trunkTx(tx *store.Tx) (*compact.Range, error) {
	size, err := countLeaves(tx)
	if err != nil {
		return nil, err
	}
	tree, err := readTrunk(tx, size)
	if err != nil {
		return nil, err
	}
	stored, ok, err := readHead(tx)
	switch {
	case err != nil:
		return nil, err
	case !ok && size == 0:
		return tree, nil
	case !ok:
		return nil, fmt.Errorf("%w: it has %d leaves and no head", ErrDamaged, size)
	}
	signed, err := tlog.Open(stored.signed, s.signer.Origin(), s.signer.Key())
	if err != nil {
		return nil, fmt.Errorf("%w: its head: %w", ErrDamaged, err)
	}
	root, err := rootOf(tree)
	if err != nil {
		return nil, err
	}
	if signed != (tlog.Checkpoint{Size: size, Root: root}) {
		return nil, fmt.Errorf("%w: it was signed as %v and is %v", ErrDamaged, signed, tlog.Checkpoint{Size: size, Root: root})
	}
	return tree, nil
}

// readTrunk reads the roots of the complete subtrees of a tree of some size.
func readTrunk(tx *store.Tx, size uint64) (*compact.Range, error) {
	hashes, err := readHashes(tx, compact.RangeNodes(0, size, nil))
	if err != nil {
		return nil, err
	}
	tree, err := newRange(size, hashes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return tree, nil
}

func newRange(size uint64, hashes [][]byte) (*compact.Range, error) {
	return (&compact.RangeFactory{Hash: tlog.Node}).NewRange(0, size, hashes)
}

// rootOf returns the root of the whole tree.
func rootOf(tree *compact.Range) (tlog.Hash, error) {
	if tree.End() == 0 {
		return tlog.EmptyRoot(), nil
	}
	root, err := tree.GetRootHash(nil)
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("compute the root of the log: %w", err)
	}
	return tlog.Hash(root), nil
}

// readHashes reads complete nodes in the order of their ids.
func readHashes(tx *store.Tx, ids []compact.NodeID) ([][]byte, error) {
	hashes := make([][]byte, len(ids))
	for i, id := range ids {
		query, number := sqlLeaf, id.Index
		if id.Level > 0 {
			query, number = sqlNode, position(id)
		}
		hash, found, err := readHash(tx, query, number)
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, fmt.Errorf("%w: node %d of level %d is missing", ErrDamaged, id.Index, id.Level)
		}
		hashes[i] = hash[:]
	}
	return hashes, nil
}

// signTx signs a tree as the head of the log.
func (s *Service) signTx(tx *store.Tx, tree *compact.Range) error {
	root, err := rootOf(tree)
	if err != nil {
		return err
	}
	signed, err := s.signer.Sign(tlog.Checkpoint{Size: tree.End(), Root: root})
	if err != nil {
		return err
	}
	return writeHead(tx, head{size: tree.End(), signed: signed})
}

// readyHeadTx sees to it that there is a head by the present name and key. A
// head that this server has signed and that contradicts the tree stays as it
// is: the owner is told, what is stored can still be read, and nothing is
// appended.
func (s *Service) readyHeadTx(tx *store.Tx) error {
	size, err := countLeaves(tx)
	if err != nil {
		return err
	}
	stored, ok, err := readHead(tx)
	if err != nil {
		return err
	}
	if ok {
		switch _, err := s.trunkTx(tx); {
		case err == nil:
			return nil
		case !errors.Is(err, tlog.ErrSignature) && !errors.Is(err, tlog.ErrMalformed):
			s.options.Log.Error("no new account can be made", "error", err)
			return nil
		case stored.size != size:
			s.options.Log.Error("no new account can be made", "error", fmt.Errorf("%w: it was signed with %d leaves and has %d", ErrDamaged, stored.size, size))
			return nil
		}
		s.options.Log.Warn("the name or the signing key of this server has changed: the transparency log is signed anew, and clients that know the old one will ask their users",
			"log", s.signer.Origin())
	}
	tree, err := readTrunk(tx, size)
	if err != nil {
		return err
	}
	return s.signTx(tx, tree)
}

// headTx returns the newest signed checkpoint and its size.
func (s *Service) headTx(tx *store.Tx) (head, error) {
	h, ok, err := readHead(tx)
	if err == nil && !ok {
		err = fmt.Errorf("%w: it has no head", ErrDamaged)
	}
	return h, err
}

// InclusionProofTx returns a serialised InclusionProof that a name is bound to
// an identity key, against the checkpoint of this transaction.
func (s *Service) InclusionProofTx(tx *store.Tx, username string, identity rpc.IdentityKey) ([]byte, error) {
	at, ok, err := readBinding(tx, identity)
	if err != nil {
		return nil, err
	}
	if !ok || at.username != username {
		return nil, fmt.Errorf("%w: an account has no leaf", ErrDamaged)
	}
	h, err := s.headTx(tx)
	if err != nil {
		return nil, err
	}
	nodes, err := proof.Inclusion(at.index, h.size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	hashes, err := proveTx(tx, nodes)
	if err != nil {
		return nil, err
	}
	return proto.Marshal(&qpcpb.InclusionProof{
		LeafIndex: at.index, TreeSize: h.size, Hashes: hashes, Checkpoint: h.signed,
	})
}

// proveTx reads the nodes of a proof and puts them together.
func proveTx(tx *store.Tx, nodes proof.Nodes) ([][]byte, error) {
	hashes, err := readHashes(tx, nodes.IDs)
	if err != nil {
		return nil, err
	}
	proven, err := nodes.Rehash(hashes, tlog.Node)
	if err != nil {
		return nil, fmt.Errorf("put a proof together: %w", err)
	}
	return proven, nil
}
