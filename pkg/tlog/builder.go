package tlog

import (
	"fmt"

	"github.com/transparency-dev/merkle/compact"
)

// A Builder computes the root of a log from its leaves, one after the other, in
// memory logarithmic in their number.
type Builder struct{ tree *compact.Range }

// NewBuilder returns a Builder of a log without leaves.
func NewBuilder() *Builder {
	return &Builder{tree: (&compact.RangeFactory{Hash: Node}).NewEmptyRange(0)}
}

// Append adds the next leaf.
func (b *Builder) Append(leaf Hash) error {
	if err := b.tree.Append(leaf[:], nil); err != nil {
		return fmt.Errorf("add a leaf: %w", err)
	}
	return nil
}

// Head returns the size and the root so far.
func (b *Builder) Head() (Checkpoint, error) {
	if b.tree.End() == 0 {
		return Checkpoint{Root: EmptyRoot()}, nil
	}
	root, err := b.tree.GetRootHash(nil)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("compute the root: %w", err)
	}
	return Checkpoint{Size: b.tree.End(), Root: Hash(root)}, nil
}
