package server

import (
	"crypto/sha256"
	"io/fs"
	"path/filepath"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/blob"
)

// filesOfBlobs counts the files below the directory of blobs.
func (h *house) filesOfBlobs() (n int) {
	h.t.Helper()
	err := filepath.WalkDir(h.s.blobs.Dir(), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// With the account go its files, at once and not with the next sweep; what
// somebody else has stored too stays.
func TestFilesGoWithTheAccount(t *testing.T) {
	t.Parallel()
	h := open(t, t.TempDir(), nil)
	alice, bob := h.dial("").resume(h.settle(person("alice"))), h.dial("").resume(h.settle(person("bob")))
	own, shared, begun := random(1000), random(1000), random(1000)
	store := func(c *client, data, chunk []byte) {
		t.Helper()
		hash := sha256.Sum256(data)
		_, err := qpcpb.NewBlobClient(c).UploadBlob(within(t), &qpcpb.UploadBlobRequest{BlobHash: hash[:], Chunk: chunk, TotalSize: 1000})
		if err != nil {
			t.Fatal(err)
		}
	}
	store(alice, own, own)
	store(alice, shared, shared)
	store(alice, begun, begun[:500])
	store(bob, shared, nil)
	if n := h.filesOfBlobs(); n != 3 {
		t.Errorf("%d files, want 3", n)
	}
	if _, err := qpcpb.NewAuthClient(alice).DeleteAccount(within(t), &qpcpb.DeleteAccountRequest{}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); h.filesOfBlobs() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d files stay, want bob's", h.filesOfBlobs())
		}
	}
	hash := sha256.Sum256(shared)
	got, err := qpcpb.NewBlobClient(bob).DownloadBlob(within(t), &qpcpb.DownloadBlobRequest{BlobId: hash[:]})
	if err != nil || string(got.Chunk) != string(shared) {
		t.Errorf("bob's file: %v", err)
	}
}

// The setting blob_quota is the bound of all.
func TestBlobQuota(t *testing.T) {
	t.Parallel()
	h := open(t, t.TempDir(), func(c *config.Config) { c.BlobQuota = 64 << 10 })
	alice := qpcpb.NewBlobClient(h.dial("").resume(h.settle(person("alice"))))
	_, err := alice.UploadBlob(within(t), &qpcpb.UploadBlobRequest{BlobHash: random(32), Chunk: []byte{1}, TotalSize: 64<<10 + 1})
	wantCode(t, err, qpcpb.CodeQuotaExceeded)
	_, err = alice.UploadBlob(within(t), &qpcpb.UploadBlobRequest{BlobHash: random(32), Chunk: []byte{1}, TotalSize: blob.MaxSize + 1})
	wantCode(t, err, qpcpb.CodePayloadTooLarge)
	if _, err = alice.UploadBlob(within(t), &qpcpb.UploadBlobRequest{BlobHash: random(32), Chunk: []byte{1}, TotalSize: 64 << 10}); err != nil {
		t.Error(err)
	}
}
