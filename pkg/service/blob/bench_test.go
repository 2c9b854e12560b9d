package blob_test

import (
	"crypto/sha256"
	"encoding/binary"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

// What one client sends and reads over QUIC on loopback, each chunk synced.
func BenchmarkUpload(b *testing.B)   { benchmark(b, true) }
func BenchmarkDownload(b *testing.B) { benchmark(b, false) }

func benchmark(b *testing.B, upload bool) {
	h := open(b)
	alice := h.person("alice")
	f := content(1, 4<<20)
	if !upload {
		alice.stores(f)
	}
	b.SetBytes(4 << 20)
	for i := 0; b.Loop(); i++ {
		if !upload {
			alice.has(f)
			continue
		}
		b.StopTimer()
		h.Wall.Advance(time.Minute) // past the limit of rate
		h.Write(func(tx *store.Tx) error { return h.blobs.EraseTx(tx, servicetest.Key("alice")) })
		binary.BigEndian.PutUint64(f.data, uint64(i)) // another blob
		f.hash = sha256.Sum256(f.data)
		b.StartTimer()
		alice.stores(f)
	}
}
