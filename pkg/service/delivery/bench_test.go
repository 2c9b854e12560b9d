package delivery_test

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
)

// BenchmarkEnqueue stores messages of 256 bytes, each sender's for a recipient
// of its own, without QUIC: what is left is the domain, the storage and the
// disk. fsyncs/op says how many messages share a commit.
func BenchmarkEnqueue(b *testing.B) {
	for _, senders := range []int{1, 32} {
		b.Run(fmt.Sprintf("senders=%d", senders), func(b *testing.B) {
			h := open(b, func(l *delivery.Limits) {
				l.SendRate, l.SendBurst, l.QueueMessages, l.QueueBytes = 1e9, 1e9, 1e9, 1<<40
			})
			from, to := make([]person, senders), make([]person, senders)
			for i := range senders {
				from[i], to[i] = h.person(fmt.Sprintf("sender%d", i)), h.person(fmt.Sprintf("recipient%d", i))
			}
			payload := make([]byte, 256)
			before := h.DB.Stats().Commits
			b.ReportAllocs()
			b.ResetTimer()
			var all sync.WaitGroup
			for i := range senders {
				all.Go(func() {
					for n := i; n < b.N; n += senders {
						id := make([]byte, 16)
						_, _ = rand.Read(id) // never fails
						binary.BigEndian.PutUint64(id, uint64(time.Now().UnixMilli())<<16)
						if _, err := from[i].enqueue(&qpcpb.EnqueueRequest{RecipientKey: to[i].key, Payload: payload, MessageId: id}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			b.StopTimer()
			b.ReportMetric(float64(h.DB.Stats().Commits-before)/float64(b.N), "fsyncs/op")
		})
	}
}
