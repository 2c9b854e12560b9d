package transparency_test

import (
	"fmt"
	"math/bits"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

// What an append and a proof cost in a log of ten, a thousand and a hundred
// thousand leaves. The storage's commit, which others share, is left out of the
// appends: each iteration is one of many in a transaction.
func BenchmarkLog(b *testing.B) {
	for _, size := range []uint64{10, 1000, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			h := open(b)
			h.bind("alice")
			h.grow(size)
			b.Run("append", func(b *testing.B) {
				for done := 0; done < b.N; {
					h.Write(func(tx *store.Tx) error {
						for range min(b.N-done, 100) {
							if _, err := h.log.AppendTx(tx, number(0)); err != nil {
								return err
							}
							done++
						}
						return nil
					})
				}
			})
			b.Run("prove", func(b *testing.B) {
				err := h.DB.Read(b.Context(), func(tx *store.Tx) error {
					for range b.N {
						if _, err := h.log.InclusionProofTx(tx, "alice", servicetest.Key("alice")); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(len(h.proof("alice").Hashes)), "hashes")
			})
			b.Run("consistency", func(b *testing.B) {
				for range b.N {
					if _, err := h.log.ProveConsistency(b.Context(), &qpcpb.ProveConsistencyRequest{OldSize: size/2 + 1, NewSize: size}); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}

// Proofs grow with the logarithm of the log, and the log keeps fewer nodes than
// leaves: counted in rows and bytes, which a slow machine does not change.
func TestSizesAreLogarithmic(t *testing.T) {
	h := open(t)
	h.bind("alice")
	var sizes []int
	for _, size := range []uint64{10, 100, 1200} {
		h.grow(size)
		p := h.proof("alice")
		sizes = append(sizes, proto.Size(p))
		if n := len(p.Hashes); n > 2*bits.Len64(size) {
			t.Errorf("a proof in %d leaves has %d hashes", size, n)
		}
		nodes := h.Count("transparency_node")
		if leaves := h.Count("transparency_leaf"); nodes >= leaves {
			t.Errorf("%d leaves keep %d nodes", leaves, nodes)
		}
	}
	if sizes[2] > 3*sizes[0] {
		t.Errorf("proofs take %v bytes", sizes)
	}
	if n := h.Count("transparency_head"); n != 1 {
		t.Errorf("%d heads are kept", n)
	}
}
