package blob_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/blob"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	chunk = blob.MaxChunk
	quota = 256 << 20
)

// house is a server of blobs that can be restarted, or die and come back.
type house struct {
	*servicetest.House
	t        testing.TB
	register qpcpb.Registrar
	dir      string
	quota    int64
	blobs    *blob.Service
	stop     func() // ends Run

	mu   sync.Mutex
	step func(name string) error // what happens at a step, or nil
}

// at has f called at each step.
func (h *house) at(f func(name string) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.step = f
}

func open(t testing.TB) *house {
	h := &house{House: servicetest.New(t), t: t, dir: filepath.Join(t.TempDir(), "blobs"), quota: quota}
	h.register = h.Replaceable()
	h.build()
	h.Open()
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *house) build() {
	h.blobs = blob.New(blob.Options{
		DB: h.DB, Accounts: h.Accounts, Log: slog.New(slog.NewTextHandler(h.t.Output(), nil)), Now: h.Wall.Now, Rand: rand.Reader,
		Dir: h.dir, Quota: h.quota,
	})
	h.blobs.TestOnlyStep(func(name string) error {
		h.mu.Lock()
		step := h.step
		h.mu.Unlock()
		if step == nil {
			return nil
		}
		return step(name)
	})
	qpcpb.RegisterBlobServer(h.register, h.blobs)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { h.blobs.Run(ctx) })
	h.stop = func() { cancel(); running.Wait() }
}

// restart is the end of one server and the start of the next. Connections
// stay.
func (h *house) restart() {
	h.t.Helper()
	h.stop()
	h.at(nil)
	h.RestartDB()
	h.build()
}

// sweep lets the sweeper do all it has to.
func (h *house) sweep() {
	h.t.Helper()
	for range 10_000 {
		more, err := h.blobs.Sweep(h.t.Context())
		if err != nil {
			h.t.Fatal(err)
		}
		if !more {
			return
		}
	}
	h.t.Fatal("the sweep never ends")
}

// files are the paths below the directory, by what they are.
func (h *house) files() (blobs, parts []string) {
	h.t.Helper()
	err := filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
		case filepath.Base(filepath.Dir(path)) == "parts":
			parts = append(parts, path)
		default:
			blobs = append(blobs, path)
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		h.t.Fatal(err)
	}
	return blobs, parts
}

// settle waits until there are so many files: Run removes them by itself.
func (h *house) settle(blobs, parts int) {
	h.t.Helper()
	ctx := servicetest.Within(h.t)
	for {
		b, p := h.files()
		if len(b) == blobs && len(p) == parts {
			return
		}
		if ctx.Err() != nil {
			h.t.Fatalf("%d files of blobs and %d of uploads, want %d and %d", len(b), len(p), blobs, parts)
		}
		time.Sleep(time.Millisecond)
	}
}

// agree checks that tables, sums and files say the same.
func (h *house) agree() {
	h.t.Helper()
	var blobs, bytes, promised, realBlobs, realBytes, realPromised, claimless, uploads int
	err := h.DB.Read(h.t.Context(), func(tx *store.Tx) error {
		if err := tx.QueryRow(`SELECT blobs, bytes, promised FROM blob_total`).Scan(&blobs, &bytes, &promised); err != nil {
			return err
		}
		return tx.QueryRow(`SELECT (SELECT count(*) FROM blob_blob), (SELECT coalesce(sum(size), 0) FROM blob_blob),
			(SELECT coalesce(sum((size + 4095) / 4096 * 4096), 0) FROM (SELECT size FROM blob_blob UNION ALL SELECT size FROM blob_upload)),
			(SELECT count(*) FROM blob_blob b WHERE NOT EXISTS (SELECT 1 FROM blob_claim c WHERE c.hash = b.hash AND c.size = b.size)),
			(SELECT count(*) FROM blob_upload WHERE stored > 0)`).Scan(&realBlobs, &realBytes, &realPromised, &claimless, &uploads)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	if blobs != realBlobs || bytes != realBytes || promised != realPromised || claimless != 0 {
		h.t.Errorf("the sums say %d blobs, %d bytes, %d promised; the rows %d, %d, %d, and %d without a claim",
			blobs, bytes, promised, realBlobs, realBytes, realPromised, claimless)
	}
	files, parts := h.files()
	if len(files) != blobs || len(parts) < uploads {
		h.t.Errorf("%d files for %d blobs, %d for %d uploads", len(files), blobs, len(parts), uploads)
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			h.t.Fatal(err)
		}
		if sum := sha256.Sum256(content); fmt.Sprintf("%x", sum) != filepath.Base(path) {
			h.t.Errorf("%s does not have its hash", path)
		}
	}
}

// file is something to store: its bytes are random but the same for a seed.
type file struct {
	data []byte
	hash [32]byte
	step int // the size of its chunks
}

func content(seed byte, size int) file {
	f := file{data: make([]byte, size), step: chunk}
	mathrand.NewChaCha8([32]byte{seed}).Read(f.data)
	f.hash = sha256.Sum256(f.data)
	return f
}

type person struct {
	*servicetest.Client
	qpcpb.BlobClient
	t    testing.TB
	name string
}

func (h *house) person(name string) person {
	c := h.Connect(name)
	return person{c, qpcpb.NewBlobClient(c), h.t, name}
}

// sends sends the bytes from one offset to another as one chunk.
func (p person) sends(f file, from, to int) (*qpcpb.UploadBlobResponse, error) {
	return p.UploadBlob(servicetest.Within(p.t), &qpcpb.UploadBlobRequest{
		BlobHash: f.hash[:], Chunk: f.data[from:to], Offset: uint64(from), TotalSize: uint64(len(f.data)), MimeType: "application/octet-stream",
	})
}

// asks returns where the server wants to go on, and whether it has the whole.
func (p person) asks(f file) (next int, whole bool) {
	p.t.Helper()
	got, err := p.UploadBlob(servicetest.Within(p.t), &qpcpb.UploadBlobRequest{BlobHash: f.hash[:], TotalSize: uint64(len(f.data))})
	if err != nil {
		p.t.Fatalf("%s asks: %v", p.name, err)
	}
	return int(got.NextOffset), len(got.BlobId) > 0
}

// stores goes on to the end.
func (p person) stores(f file) {
	p.t.Helper()
	if err := p.tries(f); err != nil {
		p.t.Fatalf("%s stores: %v", p.name, err)
	}
}

func (p person) tries(f file) error {
	next, whole := p.asks(f)
	for !whole {
		got, err := p.sends(f, next, min(next+f.step, len(f.data)))
		if err != nil {
			return err
		}
		want := min(next+f.step, len(f.data))
		next, whole = int(got.NextOffset), len(got.BlobId) > 0
		if next != want && !whole { // another may have finished it
			return fmt.Errorf("next_offset %d, want %d", next, want)
		}
		if whole != (next == len(f.data)) || whole && !bytes.Equal(got.BlobId, f.hash[:]) {
			return fmt.Errorf("at %d of %d bytes: %v", next, len(f.data), got)
		}
	}
	return nil
}

// fetches reads the whole.
func (p person) fetches(f file) error {
	var data []byte
	for {
		got, err := p.DownloadBlob(servicetest.Within(p.t), &qpcpb.DownloadBlobRequest{BlobId: f.hash[:], Offset: uint64(len(data))})
		if err != nil {
			return err
		}
		if got.TotalSize != uint64(len(f.data)) || got.MimeType != "application/octet-stream" {
			return fmt.Errorf("%d bytes of %q", got.TotalSize, got.MimeType)
		}
		if len(got.Chunk) == 0 {
			break
		}
		data = append(data, got.Chunk...)
	}
	if !bytes.Equal(data, f.data) {
		return fmt.Errorf("got %d other bytes", len(data))
	}
	return nil
}

func (p person) has(f file) {
	p.t.Helper()
	if err := p.fetches(f); err != nil {
		p.t.Fatalf("%s fetches: %v", p.name, err)
	}
}

func (p person) misses(f file) {
	p.t.Helper()
	servicetest.WantCode(p.t, p.fetches(f), qpcpb.CodeBlobNotFound)
}

// usage is what counts for somebody.
func (h *house) usage(name string) int {
	h.t.Helper()
	var n uint64
	err := h.DB.Read(h.t.Context(), func(tx *store.Tx) (err error) {
		n, err = h.blobs.UsageOfTx(tx, servicetest.Key(name))
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return int(n)
}

func (h *house) wantUsage(bytes, count uint64) {
	h.t.Helper()
	b, n, err := h.blobs.Usage(h.t.Context())
	if err != nil || b != bytes || n != count {
		h.t.Errorf("usage %d bytes of %d blobs (%v), want %d of %d", b, n, err, bytes, count)
	}
}
