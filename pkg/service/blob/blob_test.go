package blob_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/blob"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

const day = 24 * time.Hour

func TestStoredAndFetchedByAnybodyWhoKnowsTheHash(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	for _, size := range []int{1, 4096, chunk - 1, chunk, chunk + 1, 3*chunk + 777} {
		f := content(byte(size), size)
		alice.stores(f)
		bob.has(f)
		alice.stores(f) // again
	}
	h.agree()
	bob.misses(content(99, 10))
	if h.usage("bob") != 0 {
		t.Error("reading counts for the reader")
	}
}

func TestPortions(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	f := content(1, 3*chunk+1000)
	alice.stores(f)
	for _, test := range []struct {
		offset uint64
		length uint32
		want   int
		code   qpcpb.Code
	}{
		{0, 0, chunk, 0}, {0, 1, 1, 0}, {0, chunk + 1, chunk, 0}, {0, 1<<32 - 1, chunk, 0},
		{1, chunk, chunk, 0}, {65535, 2, 2, 0}, {65536, 65536, 65536, 0}, {100_000, 200_000, 200_000, 0},
		{3 * chunk, 0, 1000, 0}, {3*chunk + 999, 5, 1, 0}, {3*chunk + 1000, 5, 0, 0},
		{3*chunk + 1001, 0, 0, qpcpb.CodeInvalidField}, {1<<64 - 1, 0, 0, qpcpb.CodeInvalidField},
	} {
		got, err := alice.DownloadBlob(servicetest.Within(t), &qpcpb.DownloadBlobRequest{BlobId: f.hash[:], Offset: test.offset, Length: test.length})
		servicetest.WantCode(t, err, test.code)
		if err == nil && !bytes.Equal(got.Chunk, f.data[test.offset:][:test.want]) {
			t.Errorf("%d bytes at %d: got %d, want %d", test.length, test.offset, len(got.Chunk), test.want)
		}
	}
}

func TestResumesAfterARestart(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	f := content(1, 3*chunk)
	if next, whole := alice.asks(f); next != 0 || whole {
		t.Fatalf("before anything was sent: %d, %v", next, whole)
	}
	for i := range 2 {
		if _, err := alice.sends(f, i*chunk, (i+1)*chunk); err != nil {
			t.Fatal(err)
		}
		h.restart()
		h.sweep()
		alice = h.person("alice") // another connection
		if next, whole := alice.asks(f); next != (i+1)*chunk || whole {
			t.Fatalf("after %d chunks and a restart: %d, %v", i+1, next, whole)
		}
	}
	alice.misses(f) // not yet a blob
	alice.stores(f)
	h.restart()
	alice.has(f)
	h.settle(1, 0)
	h.agree()
}

func TestChunksInOrder(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	f := content(1, 2*chunk)
	_, err := alice.sends(f, chunk, 2*chunk)
	servicetest.WantCode(t, err, qpcpb.CodeBlobOffset)
	if n := h.Count("blob_upload"); n != 0 {
		t.Errorf("%d uploads begun in the middle", n)
	}
	if _, err := alice.sends(f, 0, 1000); err != nil { // a small one is fine
		t.Fatal(err)
	}
	for _, from := range []int{0, 999, 1001, chunk} {
		_, err := alice.sends(f, from, from+10)
		servicetest.WantCode(t, err, qpcpb.CodeBlobOffset)
	}
	alice.stores(f)
	alice.has(f)
}

func TestBadRequestsChangeNothing(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	f, begun := content(1, 1000), content(2, 1000)
	if _, err := alice.sends(begun, 0, 500); err != nil {
		t.Fatal(err)
	}
	h.settle(0, 1)
	for name, test := range map[string]struct {
		change func(*qpcpb.UploadBlobRequest)
		code   qpcpb.Code
	}{
		"no hash":           {func(r *qpcpb.UploadBlobRequest) { r.BlobHash = nil }, qpcpb.CodeInvalidField},
		"short hash":        {func(r *qpcpb.UploadBlobRequest) { r.BlobHash = r.BlobHash[:31] }, qpcpb.CodeInvalidField},
		"no size":           {func(r *qpcpb.UploadBlobRequest) { r.TotalSize = 0 }, qpcpb.CodeInvalidField},
		"too large":         {func(r *qpcpb.UploadBlobRequest) { r.TotalSize = blob.MaxSize + 1 }, qpcpb.CodePayloadTooLarge},
		"the largest size":  {func(r *qpcpb.UploadBlobRequest) { r.TotalSize = 1<<64 - 1 }, qpcpb.CodePayloadTooLarge},
		"past the end":      {func(r *qpcpb.UploadBlobRequest) { r.TotalSize = 999 }, qpcpb.CodeInvalidField},
		"offset and chunk":  {func(r *qpcpb.UploadBlobRequest) { r.Offset = 1 }, qpcpb.CodeInvalidField},
		"the largest start": {func(r *qpcpb.UploadBlobRequest) { r.Offset = 1<<64 - 1 }, qpcpb.CodeInvalidField},
		"chunk too large": {func(r *qpcpb.UploadBlobRequest) {
			r.Chunk, r.TotalSize = make([]byte, chunk+1), blob.MaxSize
		}, qpcpb.CodePayloadTooLarge},
		"line break in the type": {func(r *qpcpb.UploadBlobRequest) { r.MimeType = "text/plain\n" }, qpcpb.CodeInvalidField},
		"umlaut in the type":     {func(r *qpcpb.UploadBlobRequest) { r.MimeType = "täxt/plain" }, qpcpb.CodeInvalidField},
		"endless type":           {func(r *qpcpb.UploadBlobRequest) { r.MimeType = strings.Repeat("a", 256) }, qpcpb.CodeInvalidField},
		"another size than before": {func(r *qpcpb.UploadBlobRequest) {
			r.BlobHash, r.TotalSize = begun.hash[:], 1001
		}, qpcpb.CodeInvalidField},
		"a question with another size": {func(r *qpcpb.UploadBlobRequest) {
			r.BlobHash, r.TotalSize, r.Chunk = begun.hash[:], 999, nil
		}, qpcpb.CodeInvalidField},
	} {
		t.Run(name, func(t *testing.T) {
			request := &qpcpb.UploadBlobRequest{BlobHash: f.hash[:], Chunk: f.data, TotalSize: 1000}
			test.change(request)
			_, err := alice.UploadBlob(servicetest.Within(t), request)
			servicetest.WantCode(t, err, test.code)
			if h.Count("blob_upload") != 1 || h.Count("blob_blob") != 0 {
				t.Error("a refused call stored something")
			}
			h.settle(0, 1)
		})
	}
	for _, id := range [][]byte{nil, f.hash[:31], append(f.hash[:], 0)} {
		_, err := alice.DownloadBlob(servicetest.Within(t), &qpcpb.DownloadBlobRequest{BlobId: id})
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	// An account that is deleted while the call is on its way leaves nothing.
	h.Accounts.Remove("alice")
	_, err := alice.sends(f, 0, 1000)
	servicetest.WantCode(t, err, qpcpb.CodeUnauthenticated)
	if h.Count("blob_upload") != 1 || h.Count("blob_blob") != 0 {
		t.Error("a deleted account stored something")
	}
	_, err = alice.sends(begun, 500, 1000)
	servicetest.WantCode(t, err, qpcpb.CodeUnauthenticated)
	if h.Count("blob_blob") != 0 {
		t.Error("a deleted account finished something")
	}
}

func TestTheStoredTypeIsAnsweredBack(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	for want, mime := range map[string]string{"application/octet-stream": "", "text/plain; charset=utf-8": "text/plain; charset=utf-8"} {
		f := content(byte(len(mime)), 10)
		if _, err := alice.UploadBlob(servicetest.Within(t), &qpcpb.UploadBlobRequest{BlobHash: f.hash[:], Chunk: f.data, TotalSize: 10, MimeType: mime}); err != nil {
			t.Fatal(err)
		}
		got, err := alice.DownloadBlob(servicetest.Within(t), &qpcpb.DownloadBlobRequest{BlobId: f.hash[:]})
		if err != nil || got.MimeType != want {
			t.Errorf("got %q, %v, want %q", got.GetMimeType(), err, want)
		}
	}
}

func TestWrongHashLeavesNothing(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	for _, size := range []int{100, chunk + 100} {
		f := content(1, size)
		f.hash[0] ^= 1
		servicetest.WantCode(t, alice.tries(f), qpcpb.CodeBlobMismatch)
		alice.misses(f)
		if next, whole := alice.asks(f); next != 0 || whole {
			t.Errorf("after a mismatch: %d, %v", next, whole)
		}
		h.settle(0, 0)
		h.agree()
	}
	if h.usage("alice") != 0 {
		t.Error("what was thrown away counts")
	}
}

func TestQuotaOfAnIdentity(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	// Unfinished uploads count with all that they will be.
	large, rest := file{data: make([]byte, 50<<20), hash: [32]byte{1}}, content(2, 14<<20)
	for _, f := range []file{large, rest} {
		if _, err := alice.sends(f, 0, chunk); err != nil {
			t.Fatal(err)
		}
	}
	if n := h.usage("alice"); n != blob.MaxOwned {
		t.Errorf("%d bytes count, want %d", n, blob.MaxOwned)
	}
	one := content(3, 1)
	servicetest.WantCode(t, alice.tries(one), qpcpb.CodeQuotaExceeded)
	bob.stores(one)
	servicetest.WantCode(t, h.claims(alice, one), qpcpb.CodeQuotaExceeded) // a claim counts too
	alice.stores(rest)
	servicetest.WantCode(t, alice.tries(content(4, 1)), qpcpb.CodeQuotaExceeded)
	h.Service.Advance(day) // the large one is given up
	h.sweep()
	alice.stores(one)
	if n := h.usage("alice"); n != 14<<20+1 {
		t.Errorf("%d bytes count", n)
	}
	h.wantUsage(14<<20+1, 2)
	h.settle(2, 0)
	h.agree()
}

// claims stores what somebody else has stored already.
func (h *house) claims(p person, f file) error {
	_, err := p.UploadBlob(servicetest.Within(h.t), &qpcpb.UploadBlobRequest{BlobHash: f.hash[:], TotalSize: uint64(len(f.data))})
	return err
}

func TestFewUnfinishedUploads(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	for i := range blob.MaxUploads {
		if _, err := alice.sends(content(byte(i), 10), 0, 5); err != nil {
			t.Fatal(err)
		}
	}
	_, err := alice.sends(content(100, 10), 0, 5)
	servicetest.WantCode(t, err, qpcpb.CodeQuotaExceeded)
	alice.stores(content(3, 10))
	if _, err := alice.sends(content(100, 10), 0, 5); err != nil {
		t.Error("after one was finished:", err)
	}
}

func TestManyBlobsOfAnIdentity(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	h.Write(func(tx *store.Tx) error {
		for i := range blob.MaxBlobs {
			hash := [32]byte{byte(i), byte(i >> 8)}
			if _, err := tx.Exec(`INSERT INTO blob_blob (hash, size, mime_type, checks) VALUES (?, 1, '', x'')`, hash); err != nil {
				return err
			}
			if _, err := tx.Exec(`INSERT INTO blob_claim (owner_key, hash, size, valid_until) VALUES (?, ?, 1, 1000000)`, servicetest.Key("alice"), hash); err != nil {
				return err
			}
		}
		return nil
	})
	servicetest.WantCode(t, alice.tries(content(1, 1)), qpcpb.CodeQuotaExceeded)
	began := time.Now()
	h.Write(func(tx *store.Tx) error { return h.blobs.EraseTx(tx, servicetest.Key("alice")) })
	t.Log("erasing took", time.Since(began))
	alice.stores(content(1, 1))
	h.agree()
}

func TestQuotaOfAll(t *testing.T) {
	h := open(t)
	h.quota = 3*4096 + 100
	h.restart()
	alice, bob := h.person("alice"), h.person("bob")
	servicetest.WantCode(t, alice.tries(content(9, 3*4096+1)), qpcpb.CodeQuotaExceeded)
	// A file takes whole blocks, and an unfinished one all of its own.
	alice.stores(content(1, 1))
	if _, err := bob.sends(content(2, 4097), 0, 1); err != nil {
		t.Fatal(err)
	}
	servicetest.WantCode(t, alice.tries(content(3, 1)), qpcpb.CodeQuotaExceeded)
	bob.stores(content(1, 1)) // takes no room
	bob.stores(content(2, 4097))
	servicetest.WantCode(t, alice.tries(content(3, 1)), qpcpb.CodeQuotaExceeded)
	h.Write(func(tx *store.Tx) error { return h.blobs.EraseTx(tx, servicetest.Key("bob")) })
	alice.stores(content(3, 1))
	h.settle(2, 0)
	h.agree()
}

func TestTwoOwners(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	f := content(1, chunk+5)
	if _, err := bob.sends(f, 0, chunk); err != nil {
		t.Fatal(err)
	}
	alice.stores(f)
	bob.stores(f) // at once, and what was sent of it goes
	h.settle(1, 0)
	h.wantUsage(uint64(len(f.data)), 1)
	for _, name := range []string{"alice", "bob"} {
		if n := h.usage(name); n != len(f.data) {
			t.Errorf("%d bytes count for %s", n, name)
		}
	}
	h.Write(func(tx *store.Tx) error { return h.blobs.EraseTx(tx, servicetest.Key("alice")) })
	bob.has(f)
	h.agree()
	h.Write(func(tx *store.Tx) error { return h.blobs.EraseTx(tx, servicetest.Key("bob")) })
	bob.misses(f)
	h.settle(0, 0)
	h.agree()
	h.wantUsage(0, 0)
}

func TestSameBlobAtTheSameTime(t *testing.T) {
	h := open(t)
	f := content(1, 5*chunk+5)
	var all sync.WaitGroup
	for i := range 4 {
		p := h.person(fmt.Sprint("person ", i%3)) // one has two devices
		all.Go(func() {
			for range 100 {
				err := p.tries(f)
				if err == nil {
					return
				}
				if rpc.CodeOf(err) != qpcpb.CodeBlobOffset { // the other device was quicker
					t.Error(err)
				}
			}
			t.Error("never done")
		})
	}
	all.Wait()
	h.person("reader").has(f)
	h.settle(1, 0)
	h.agree()
	if n := h.Count("blob_claim"); n != 3 {
		t.Errorf("%d claims, want one for each person", n)
	}
}

func TestExpiryFollowsServiceTime(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	f, g := content(1, 100), content(2, 100)
	alice.stores(f)
	alice.stores(g)
	h.Wall.Advance(100 * 365 * day)
	h.sweep()
	h.Service.Advance(20 * day)
	alice.has(f)
	bob.stores(f) // bob's claim ends later
	h.Service.Advance(10 * day)
	alice.misses(g) // not swept yet
	h.sweep()
	bob.has(f)
	if h.usage("alice") != 0 {
		t.Error("what is over counts for alice")
	}
	h.settle(1, 0)
	h.Service.Advance(20 * day)
	bob.misses(f)
	bob.stores(f) // the file is still there, and is claimed anew
	h.sweep()
	bob.has(f)
	h.Service.Advance(30 * day)
	h.sweep()
	bob.misses(f)
	h.settle(0, 0)
	h.agree()
}

func TestUnfinishedUploadsExpire(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	f := content(1, 3*chunk)
	for i := range 2 { // each chunk gives it another day
		if _, err := alice.sends(f, i*chunk, (i+1)*chunk); err != nil {
			t.Fatal(err)
		}
		h.Service.Advance(day - time.Minute)
		h.sweep()
	}
	if next, _ := alice.asks(f); next != 2*chunk {
		t.Errorf("next_offset %d", next)
	}
	h.Service.Advance(time.Minute)
	h.sweep()
	if next, _ := alice.asks(f); next != 0 {
		t.Errorf("next_offset %d after a day", next)
	}
	_, err := alice.sends(f, 2*chunk, 3*chunk)
	servicetest.WantCode(t, err, qpcpb.CodeBlobOffset)
	h.settle(0, 0)
	h.agree()
}

func TestSweepIsBounded(t *testing.T) {
	h := open(t)
	h.sweep()
	h.Write(func(tx *store.Tx) error {
		for i := range 600 {
			hash := [32]byte{byte(i), byte(i >> 8)}
			if _, err := tx.Exec(`INSERT INTO blob_blob (hash, size, mime_type, checks) VALUES (?, 1, '', x'')`, hash); err != nil {
				return err
			}
			if _, err := tx.Exec(`INSERT INTO blob_claim (owner_key, hash, size, valid_until) VALUES (?, ?, 1, ?)`, servicetest.Key(fmt.Sprint(i)), hash, i%2*1000000); err != nil {
				return err
			}
		}
		return nil
	})
	for _, want := range []struct {
		more bool
		left int
	}{{true, 600 - 256}, {false, 300}, {false, 300}} {
		more, err := h.blobs.Sweep(t.Context())
		if err != nil || more != want.more || h.Count("blob_blob") != want.left {
			t.Errorf("got more %v, %d left, %v; want %v, %d", more, h.Count("blob_blob"), err, want.more, want.left)
		}
	}
}

// Files and rows that have nothing to do with each other, as somebody's hand
// or a crash leaves them, agree after the start and each hour.
func TestOrphansAreFound(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	kept, lost, cut, begun := content(1, 10), content(2, 10), content(3, 10), content(4, 10)
	for _, f := range []file{kept, lost, cut} {
		alice.stores(f)
	}
	if _, err := alice.sends(begun, 0, 5); err != nil {
		t.Fatal(err)
	}
	disturb := func() {
		stray := content(5, 10)
		for _, path := range []string{h.path(stray), h.dir + "/parts/" + strings.Repeat("ab", 16)} {
			if err := os.MkdirAll(path[:strings.LastIndex(path, "/")], 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, stray.data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	disturb()
	_, parts := h.files()
	for _, path := range append(parts, h.path(lost)) {
		if !strings.Contains(path, "abab") {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Truncate(h.path(cut), 9); err != nil {
		t.Fatal(err)
	}
	foreign := h.dir + "/parts/README"
	if err := os.WriteFile(foreign, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.restart()
	h.sweep()
	h.settle(1, 1) // what is not ours stays
	if err := os.Remove(foreign); err != nil {
		t.Fatal(err)
	}
	h.agree()
	alice.has(kept)
	for _, f := range []file{lost, cut} {
		alice.misses(f)
		alice.stores(f)
		alice.has(f)
	}
	if next, _ := alice.asks(begun); next != 0 {
		t.Errorf("next_offset %d of an upload whose file is gone", next)
	}
	disturb()
	h.sweep()
	h.settle(4, 1) // not due yet
	h.Wall.Advance(time.Hour)
	h.sweep()
	h.settle(3, 0)
	h.agree()
}

func (h *house) path(f file) string { return fmt.Sprintf("%s/%x/%x", h.dir, f.hash[:1], f.hash) }

// What the disk has changed is never given out, and may be stored anew.
func TestDamageIsSeen(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	f := content(1, 2*chunk+77)
	for name, damage := range map[string]func(path string) error{
		"a flipped bit": func(path string) error {
			b := bytes.Clone(f.data)
			b[chunk+100_000] ^= 4
			return os.WriteFile(path, b, 0o600)
		},
		"cut short": func(path string) error { return os.Truncate(path, 2*chunk) },
		"gone":      os.Remove,
		"another's end": func(path string) error {
			return os.WriteFile(path, append(f.data[:2*chunk:2*chunk], make([]byte, 77)...), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			alice.stores(f)
			if err := damage(h.path(f)); err != nil {
				t.Fatal(err)
			}
			alice.misses(f)
			h.agree()
			alice.stores(f)
			alice.has(f)
		})
	}
	// Who stores what is gone is asked for all of it.
	if err := os.Remove(h.path(f)); err != nil {
		t.Fatal(err)
	}
	if next, whole := alice.asks(f); next != 0 || whole {
		t.Errorf("asked to go on at %d (%v)", next, whole)
	}
}

// At each step a call may be cut off, and the machine with it. What was
// acknowledged is there afterwards, and nothing else stays.
func TestCutOffAtEachStep(t *testing.T) {
	steps := []string{"begin", "begun", "write", "written", "advance", "advanced", "place", "placed", "finished"}
	type cut struct {
		name string
		fail func() error
	}
	cuts := []cut{
		{"kill", func() error { panic("killed by the test") }},
		{"error", func() error { return syscall.EIO }},
		{"full", func() error { return syscall.ENOSPC }},
	}
	for _, how := range cuts {
		h := open(t)
		alice, stored := h.person("alice"), 0
		for _, step := range steps {
			for nth := range 4 {
				t.Run(fmt.Sprintf("%s at %s %d", how.name, step, nth), func(t *testing.T) {
					f := content(byte(stored), 3005)
					f.step = 1000
					seen := 0
					var hit atomic.Bool
					h.at(func(name string) error {
						if name != step || hit.Load() {
							return nil
						}
						if seen++; seen <= nth {
							return nil
						}
						hit.Store(true)
						return how.fail()
					})
					acknowledged, whole := 0, false
					for !whole && !hit.Load() {
						got, err := alice.sends(f, acknowledged, min(acknowledged+f.step, len(f.data)))
						if err == nil {
							acknowledged, whole = int(got.NextOffset), len(got.BlobId) > 0
						}
					}
					if nth == 0 && !hit.Load() {
						t.Fatal("there is no such step")
					}
					if how.name == "kill" {
						h.restart()
					}
					h.sweep()
					if next, _ := alice.asks(f); next < acknowledged {
						t.Fatalf("%d bytes were acknowledged, %d are there", acknowledged, next)
					}
					alice.stores(f)
					alice.has(f)
					stored++
					h.sweep()
					h.settle(stored, 0)
				})
			}
		}
		h.agree()
	}
}

// The same without anybody who goes on: nothing stays for good.
func TestCutOffAndNeverResumed(t *testing.T) {
	f := content(1, 1005)
	f.step = 1000
	for _, step := range []string{"begun", "written", "advanced", "place", "placed"} {
		t.Run(step, func(t *testing.T) {
			h := open(t)
			alice := h.person("alice")
			h.at(func(name string) error {
				if name == step {
					panic("killed by the test")
				}
				return nil
			})
			_ = alice.tries(f)
			h.restart()
			h.Service.Advance(day)
			h.sweep()
			h.Wall.Advance(time.Hour)
			h.sweep()
			h.settle(0, 0)
			h.agree()
			if h.usage("alice") != 0 {
				t.Error("something still counts")
			}
		})
	}
}

// An account is erased while a call is on its way, at whichever step: what the
// call makes after that goes too.
func TestErasedUnderACall(t *testing.T) {
	for _, test := range []struct {
		step string
		rows bool // only those: an account with the same key is there again
		code qpcpb.Code
	}{
		{"begin", true, qpcpb.CodeUnspecified}, {"begin", false, qpcpb.CodeUnauthenticated},
		{"write", true, qpcpb.CodeBlobOffset}, {"written", true, qpcpb.CodeBlobOffset},
		{"placed", true, qpcpb.CodeBlobOffset}, {"placed", false, qpcpb.CodeUnauthenticated},
	} {
		t.Run(fmt.Sprint(test.step, test.rows), func(t *testing.T) {
			h := open(t)
			alice := h.person("alice")
			f := content(1, 100)
			size := 100
			if test.step == "written" {
				size = 50 // the row is to advance
			}
			h.at(func(name string) error {
				if name == test.step {
					h.Write(func(tx *store.Tx) error { return h.blobs.EraseTx(tx, servicetest.Key("alice")) })
					if !test.rows {
						h.Accounts.Remove("alice")
					}
				}
				return nil
			})
			_, err := alice.sends(f, 0, size)
			servicetest.WantCode(t, err, test.code)
			if err != nil {
				h.settle(0, 0)
				if h.usage("alice") != 0 {
					t.Error("something counts for alice")
				}
			}
			h.agree()
		})
	}
}

// The file of a blob goes while somebody is about to store the same: the one
// that is to stay stays.
func TestRemovalAndUploadOfTheSame(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	f := content(1, 100)
	if _, err := alice.sends(f, 0, 50); err != nil {
		t.Fatal(err)
	}
	bob.stores(f)
	sent := make(chan error, 1)
	h.at(func(name string) error {
		if name == "remove" {
			go func() {
				_, err := alice.sends(f, 50, 100)
				sent <- err
			}()
			time.Sleep(50 * time.Millisecond) // alice would be done but for the lock
		}
		return nil
	})
	h.Write(func(tx *store.Tx) error { return h.blobs.EraseTx(tx, servicetest.Key("bob")) })
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	h.stop() // what was to be removed is
	alice.has(f)
	h.settle(1, 0)
	h.agree()
}

// A full disk is what the server takes it for, and costs no file.
func TestFullDisk(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	f := content(1, 2*chunk)
	var reason atomic.Pointer[error]
	var full atomic.Bool
	full.Store(true)
	h.at(func(name string) error {
		if name == "written" && full.Load() {
			return syscall.ENOSPC
		}
		return nil
	})
	qpcpb.RegisterBlobServer(spy{h.register, func(err error) {
		if err != nil {
			reason.Store(&err)
		}
	}}, h.blobs)
	if alice.tries(f) == nil || !store.IsNoSpace(*reason.Load()) {
		t.Fatalf("the reason is %v", *reason.Load())
	}
	h.settle(0, 0)
	if n := h.Count("blob_upload"); n != 0 {
		t.Errorf("%d uploads begun", n)
	}
	full.Store(false)
	alice.stores(f)
	h.agree()
}

// spy shows what handlers return, before it is made an answer.
type spy struct {
	qpcpb.Registrar
	see func(error)
}

func (s spy) Register(method qpcpb.MethodID, handler qpcpb.Handler) {
	s.Registrar.Register(method, func(ctx context.Context, request proto.Message) (proto.Message, error) {
		response, err := handler(ctx, request)
		s.see(err)
		return response, err
	})
}
