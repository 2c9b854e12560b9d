package transparency

import (
	"context"
	"fmt"

	"github.com/transparency-dev/merkle/compact"

	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

// Report is what Verify has found.
type Report struct {
	Size uint64   // leaves
	Root [32]byte // as computed from the leaves
	// Problems are sentences for the owner, at most twenty; none when all is
	// well.
	Problems []string
}

func (r *Report) problem(format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// Verify recomputes the log from its leaves and compares every stored node,
// the signed head and the leaf of every account. The log may grow meanwhile:
// what is verified is the log as it was when Verify began. An error means that
// it could not look.
func (s *Service) Verify(ctx context.Context) (Report, error) {
	var r Report
	var signed head
	err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		if r.Size, err = countLeaves(tx); err != nil {
			return err
		}
		h, ok, err := readHead(tx)
		if err != nil {
			return err
		}
		if signed = h; !ok {
			r.problem("there is no signed checkpoint")
		}
		n, err := countNodes(tx)
		if err == nil && n != completed(r.Size) {
			r.problem("%d leaves need %d nodes; %d are stored", r.Size, completed(r.Size), n)
		}
		return err
	})
	if err != nil {
		return r, fmt.Errorf("reading the transparency log: %w", err)
	}
	if err := s.verifyTree(ctx, &r); err != nil {
		return r, fmt.Errorf("reading the transparency log: %w", err)
	}
	if signed.signed != "" {
		switch c, err := tlog.Open(signed.signed, s.signer.Origin(), s.signer.Key()); {
		case err != nil:
			r.problem("the signed checkpoint: %v", err)
		case c != (tlog.Checkpoint{Size: r.Size, Root: r.Root}):
			r.problem("the signed checkpoint says %v; the leaves give %v", c, tlog.Checkpoint{Size: r.Size, Root: r.Root})
		case signed.size != c.Size:
			r.problem("the signed checkpoint is filed under size %d and says %d", signed.size, c.Size)
		}
	}
	if err := s.verifyBindings(ctx, &r); err != nil {
		return r, fmt.Errorf("reading the bindings of the transparency log: %w", err)
	}
	return r, nil
}

// verifyTree computes every node from the leaves, some thousands at a time.
func (s *Service) verifyTree(ctx context.Context, r *Report) error {
	tree, err := newRange(0, nil)
	if err != nil {
		return err
	}
	for next := uint64(0); next < r.Size; {
		end := min(next+verifyRows, r.Size)
		err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
			leaves := make([][]byte, 0, end-next)
			err := readLeaves(tx, next, end, func(index uint64, hash []byte) error {
				if index == next+uint64(len(leaves)) {
					leaves = append(leaves, hash)
				}
				return nil
			})
			if err != nil {
				return err
			}
			if missing := next + uint64(len(leaves)); missing < end {
				r.problem("leaf %d is missing", missing)
				r.Size = next // nothing beyond can be computed
				return nil
			}
			for _, leaf := range leaves {
				var problem error
				err := tree.Append(leaf, func(id compact.NodeID, hash []byte) {
					if id.Level > 0 && problem == nil {
						problem = compareNode(tx, r, id, tlog.Hash(hash))
					}
				})
				if err != nil || problem != nil {
					return firstOf(err, problem)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		next = end
	}
	r.Root, err = rootOf(tree)
	return err
}

func firstOf(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func compareNode(tx *store.Tx, r *Report, id compact.NodeID, want tlog.Hash) error {
	stored, found, err := readHash(tx, sqlNode, position(id))
	switch {
	case err != nil:
		return err
	case !found:
		r.problem("node %d of level %d is missing", id.Index, id.Level)
	case stored != want:
		r.problem("node %d of level %d is not what its leaves hash to", id.Index, id.Level)
	}
	return nil
}

// verifyBindings compares the leaf of every account.
func (s *Service) verifyBindings(ctx context.Context, r *Report) error {
	var after []byte
	for more := true; more; {
		err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
			page, err := readBindings(tx, after, verifyRows)
			if err != nil {
				return err
			}
			for _, b := range page {
				leaf, found, err := readHash(tx, sqlLeaf, b.index)
				switch {
				case err != nil:
					return err
				case !found:
					r.problem("the leaf of %s, number %d, is missing", b.Username, b.index)
				case leaf != tlog.BindingLeaf(b.Username, b.Identity):
					r.problem("leaf %d is not that of %s and their key", b.index, b.Username)
				}
				after = b.Identity[:]
			}
			more = len(page) == verifyRows
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
