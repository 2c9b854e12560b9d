package blob

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// disk is the directory of the files. What its methods return for is synced.
type disk struct{ dir string }

const (
	partsDir = "parts"
	dirMode  = 0o700
	fileMode = 0o600
)

func (d disk) parts() string { return filepath.Join(d.dir, partsDir) }

func (d disk) partPath(p part) string {
	return filepath.Join(d.parts(), hex.EncodeToString(p[:]))
}

func (d disk) blobPath(hash Hash) string {
	name := hash.String()
	return filepath.Join(d.dir, name[:2], name)
}

// errDamaged reports a file that is not what its row says.
var errDamaged = errors.New("the file is damaged")

// diskError says what a failure of the disk means to the caller.
func diskError(doing string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%s: %w: %w", doing, store.ErrNoSpace, err)
	}
	return rpc.Errorf(qpcpb.CodeStorageFailed, "the server cannot keep files now; try again later").
		After(storageRetry).Because(fmt.Errorf("%s: %w", doing, err))
}

// fileSize returns the size of a file, -1 when there is none.
func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return 0, diskError("look at a file", err)
	}
	return info.Size(), nil
}

// write makes chunk the continuation of a part that holds stored bytes. What
// an earlier call left behind them goes. On an error the part is cut back, so
// that a full disk has the room again.
func (d disk) write(p part, stored int64, chunk []byte) (err error) {
	if err := makeDir(d.parts()); err != nil {
		return diskError("make the directory of uploads", err)
	}
	flags := os.O_RDWR
	if stored == 0 {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(d.partPath(p), flags, fileMode)
	if err != nil {
		return diskError("open an upload", err)
	}
	defer func() {
		if err != nil {
			_ = f.Truncate(stored) // the error that led here is told
		}
		err = errors.Join(err, f.Close())
	}()
	if err := f.Truncate(stored); err != nil {
		return diskError("continue an upload", err)
	}
	if _, err := f.WriteAt(chunk, stored); err != nil {
		return diskError("write an upload", err)
	}
	if err := f.Sync(); err != nil {
		return diskError("sync an upload", err)
	}
	if stored == 0 {
		if err := syncDir(d.parts()); err != nil {
			return diskError("sync the directory of uploads", err)
		}
	}
	return nil
}

// place moves a part to the name of its hash.
func (d disk) place(p part, hash Hash) error {
	path := d.blobPath(hash)
	if err := makeDir(filepath.Dir(path)); err != nil {
		return diskError("make a directory of blobs", err)
	}
	if err := os.Rename(d.partPath(p), path); err != nil {
		return diskError("place a blob", err)
	}
	for _, dir := range []string{filepath.Dir(path), d.parts()} {
		if err := syncDir(dir); err != nil {
			return diskError("sync a directory of blobs", err)
		}
	}
	return nil
}

func (d disk) removeBlob(hash Hash) error { return remove(d.blobPath(hash)) }
func (d disk) removePart(p part) error    { return remove(d.partPath(p)) }

// remove removes a file, if it is there. It is not synced: one that comes back
// after a crash is found again.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskError("remove a file", err)
	}
	return nil
}

// makeDir makes a directory, with those above it that are missing, and syncs
// what names it.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	above := filepath.Dir(dir)
	if err := makeDir(above); err != nil {
		return err
	}
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(above)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	// Some file systems of flash cannot sync a directory and say so; they
	// write names in order.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// digest reads a file of size bytes and returns its hash and the checksums of
// its blocks. It looks at ctx between blocks.
func digest(ctx context.Context, path string, size int64) (hash Hash, checks []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return hash, nil, diskError("open an upload", err)
	}
	defer f.Close() // nothing was written
	whole := sha256.New()
	block := make([]byte, checkBlock)
	checks = make([]byte, 0, (size+checkBlock-1)/checkBlock*crc32.Size)
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return hash, nil, err
		}
		b := block[:min(left, checkBlock)]
		if _, err := io.ReadFull(f, b); err != nil {
			return hash, nil, diskError("read an upload", err)
		}
		whole.Write(b) // never fails
		checks = binary.BigEndian.AppendUint32(checks, checksum(b))
		left -= int64(len(b))
	}
	return Hash(whole.Sum(nil)), checks, nil
}

func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// span is what must be read to check length bytes at offset: the blocks that
// they lie in.
func span(offset, length, size int64) (from, to int64) {
	from = offset / checkBlock * checkBlock
	to = (offset + length + checkBlock - 1) / checkBlock * checkBlock
	return from, min(to, size)
}

// read returns length bytes of a blob at offset, or errDamaged.
func (d disk) read(hash Hash, r *record, offset, length int64) ([]byte, error) {
	f, err := os.Open(d.blobPath(hash))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: it is gone", errDamaged)
	}
	if err != nil {
		return nil, diskError("open a blob", err)
	}
	defer f.Close() // nothing was written
	from, to := span(offset, length, r.size)
	b := make([]byte, to-from)
	if _, err := f.ReadAt(b, from); errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: it is cut short", errDamaged)
	} else if err != nil {
		return nil, diskError("read a blob", err)
	}
	for at := from; at < to; at += checkBlock {
		check := at / checkBlock * crc32.Size
		if check+crc32.Size > int64(len(r.checks)) {
			return nil, fmt.Errorf("%w: it has no checksum at %d", errDamaged, at)
		}
		block := b[at-from : min(at+checkBlock, to)-from]
		if checksum(block) != binary.BigEndian.Uint32(r.checks[check:]) {
			return nil, fmt.Errorf("%w: between %d and %d", errDamaged, at, at+int64(len(block)))
		}
	}
	return b[offset-from:][:length:length], nil
}
