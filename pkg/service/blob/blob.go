// Package blob keeps encrypted files for the people who share them (PROTOCOL
// 7.8): named by the SHA-256 of their bytes, sent in chunks, kept for 30 days.
//
// What it promises:
//
//   - What an answer says is stored is on the disk: the bytes are synced before
//     the row that tells of them, a directory before the row that needs its
//     entry. An upload goes on where it was after a crash of either side.
//   - A blob exists once its whole has the hash that it was announced under,
//     and not before.
//   - No room is promised twice: an upload counts with its full size from its
//     first chunk.
//   - Whoever stores what is stored already gets a claim of their own. A blob
//     goes with its last claim: by the end of its time, or of the account.
//   - Neither a crash at any point nor a deleted account leaves a file without
//     a row for good, or a row without a file.
//
// Anybody with a session may read a blob whose hash they know: the hash is the
// capability, and only the end-to-end encrypted message that refers to the
// blob holds it.
//
// A blob's way: it begins as a row of blob_upload and a file below parts/;
// each chunk makes both grow. The last chunk has the file read again and
// hashed, moved to its name, and the row replaced by one of blob_blob and a
// claim. A crash between the move and that leaves the upload placed; the next
// call for it, whichever, finishes it.
//
//	Dir/parts/<random, 32 digits>       what has come of an upload
//	Dir/ab/abcdef…                      a whole blob, by its hash
//
// Each 64 KiB of a blob has a checksum in its row, and what is read is checked
// against it. A blob that is damaged on the disk, or gone from it, does not
// exist any more: its rows go, the log says so, and who has the file may store
// it again. Clients verify the hash in any case.
//
// State and owners: two tables of blobs and one of uploads, and a row of sums
// that triggers keep; the files; in memory a lock for each hash that a call
// works on, and the names of files that are to go. No file is touched within a
// transaction. Run removes files, Sweep what has expired, and at the start and
// each hour Sweep compares tables and files both ways.
package blob

import (
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/quicprochat/qpcd/pkg/limit"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// MaxSize is the largest blob, in bytes (PROTOCOL 7.8).
	MaxSize = 50 << 20
	// MaxChunk is the largest part of one that a call carries, in bytes
	// (PROTOCOL 7.8).
	MaxChunk = 256 << 10
	// MaxOwned is what the blobs and the unfinished uploads of one identity may
	// add up to, in bytes (PROTOCOL 7.8).
	MaxOwned = 64 << 20
	// MaxBlobs is how many blobs one identity may have: each costs a file, and
	// an account is deleted in one transaction.
	MaxBlobs = 1024
	// MaxUploads is how many unfinished uploads one identity may have. A
	// client sends its files one after the other; this is for a few devices.
	MaxUploads = 8
	// maxMIME is the longest media type, in bytes (RFC 6838, section 4.2).
	maxMIME = 255
	// defaultMIME is what an empty media type stands for.
	defaultMIME = "application/octet-stream"

	// lifetime is how long a claim holds, in service time (PROTOCOL 7.8).
	lifetime = 30 * 24 * time.Hour
	// uploadLifetime is how long an unfinished upload waits for its next
	// chunk, in service time: a laptop may be shut overnight.
	uploadLifetime = 24 * time.Hour

	// chunkRate and chunkBurst bound the chunks of one identity: each costs two
	// syncs. They are those of messages; at full size they are 25 MiB/s.
	chunkRate  = 100
	chunkBurst = 1000
	// maxHashing bounds the blobs that are hashed at once, so that other calls
	// find a processor: a router has two, and hashes 50 MiB in some seconds.
	maxHashing = 2

	// diskBlock is what a file takes of a disk at least, and in steps of. The
	// quota of all counts so; the triggers of the table know it too.
	diskBlock = 4 << 10
	// checkBlock is the part of a blob that has a checksum: a read of a whole
	// chunk that is not aligned reads one more.
	checkBlock = 64 << 10

	// sweepRows bounds what one Sweep removes or looks at in the tables.
	sweepRows = 256
	// reconcileEvery is how often tables and files are compared. Only a crash
	// or somebody's hand makes them differ, so an hour is often enough.
	reconcileEvery = time.Hour
	// maxRemovals bounds the names of files that wait to be removed, at 32
	// bytes each: two accounts with all that they may have. Past it the next
	// comparison finds them.
	maxRemovals = 2 * (MaxBlobs + MaxUploads)
	// storageRetry is what callers are told to wait when the disk fails.
	storageRetry = 30 * time.Second
)

// Hash is the SHA-256 of a blob: its name.
type Hash [32]byte

// String returns the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// part is the name of the file of an unfinished upload: random, and never used
// again, so that it may be removed whenever no row has it.
type part [16]byte

// Accounts knows who has an account.
type Accounts interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error)
}

// Options says what a Service is made of. All are needed.
type Options struct {
	DB       *store.DB
	Accounts Accounts
	Log      *slog.Logger
	// Now is a monotonic clock, as time.Now is; it times the limit of chunks
	// and the comparisons.
	Now  func() time.Time
	Rand io.Reader
	// Dir is where the files lie. It is made when the first one comes.
	Dir string
	// Quota is the room that all blobs may take together, in bytes.
	Quota int64
}

// Service answers BlobService. It is safe for concurrent use.
type Service struct {
	options Options
	disk    disk
	chunks  *limit.Keyed[rpc.IdentityKey]
	hashing chan struct{} // a token for each blob that is being hashed
	locks   hashLocks
	gone    removals

	sweeping sync.Mutex // guards scan
	scan     scan

	// testOnlyStep, when set, is called before and after each step that
	// changes the disk or the tables, and may fail it or end the call there.
	testOnlyStep func(name string) error
}

// New returns a Service. It touches nothing yet.
func New(options Options) *Service {
	return &Service{
		options: options,
		disk:    disk{dir: options.Dir},
		chunks:  limit.NewKeyed[rpc.IdentityKey](chunkRate, chunkBurst, options.Now),
		hashing: make(chan struct{}, maxHashing),
		locks:   hashLocks{held: make(map[Hash]*hashLock)},
		gone:    removals{wake: make(chan struct{}, 1)},
		scan:    scan{due: true},
	}
}

// Dir returns the directory of the files. A backup takes it after the
// database: a file without a row is removed, a row without a file is lost.
func (s *Service) Dir() string { return s.options.Dir }

// Usage returns how many whole blobs there are and how many bytes they have,
// each counted once however many claim it.
func (s *Service) Usage(ctx context.Context) (bytes, count uint64, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		sums, err := readTotal(tx)
		bytes, count = uint64(sums.bytes), uint64(sums.blobs)
		return err
	})
	return bytes, count, err
}

// UsageOfTx returns the bytes that count for an identity: of its blobs, and of
// its unfinished uploads with their full size.
func (s *Service) UsageOfTx(tx *store.Tx, identity rpc.IdentityKey) (uint64, error) {
	h, err := readHoldings(tx, identity)
	return uint64(h.bytes), err
}

// EraseTx removes the claims and uploads of an identity, and the blobs that
// nobody else claims. Run removes the files once that is committed.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	parts, err := deleteUploadsOf(tx, identity)
	if err != nil {
		return err
	}
	hashes, err := deleteClaimsOf(tx, identity)
	if err != nil {
		return err
	}
	return s.unclaimedTx(tx, hashes, parts)
}

// unclaimedTx removes those of the blobs that have no claim left, and has
// their files, and those of parts, removed after the commit.
func (s *Service) unclaimedTx(tx *store.Tx, hashes []Hash, parts []part) error {
	var files []Hash
	for _, hash := range hashes {
		removed, err := deleteUnclaimed(tx, hash)
		if err != nil {
			return err
		}
		if removed {
			files = append(files, hash)
		}
	}
	if len(files)+len(parts) > 0 {
		tx.AfterCommit(func() { s.gone.add(files, parts) })
	}
	return nil
}

// step marks a place where tests may stop a call.
func (s *Service) step(name string) error {
	if s.testOnlyStep != nil {
		return s.testOnlyStep(name)
	}
	return nil
}
