package blob

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// Run removes the files of what was deleted, as it is deleted, until ctx ends.
func (s *Service) Run(ctx context.Context) {
	for {
		select {
		case <-s.gone.wake:
			s.removeGone(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// removeGone removes the files that have lost their rows. What it cannot
// remove is left to the next comparison.
func (s *Service) removeGone(ctx context.Context) {
	hashes, parts := s.gone.take()
	var errs []error
	for _, hash := range hashes {
		_, err := s.removeBlob(ctx, hash)
		errs = append(errs, err)
	}
	for _, p := range parts {
		_, err := s.removePart(ctx, p)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		s.gone.miss()
		if ctx.Err() == nil {
			s.options.Log.Warn("deleted files stay for now", "error", err)
		}
	}
}

// removeBlob removes the file of a hash unless a row needs it: that of a blob,
// or of an upload that is placed.
func (s *Service) removeBlob(ctx context.Context, hash Hash) (removed bool, err error) {
	unlock, err := s.locks.lock(ctx, hash)
	if err != nil {
		return false, err
	}
	defer unlock()
	var known int64
	var parts []part
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		if known, err = readBlobSize(tx, hash); err != nil {
			return err
		}
		parts, err = partsOf(tx, hash)
		return err
	})
	if err != nil || known > 0 {
		return false, err
	}
	for _, p := range parts {
		if found, err := fileSize(s.disk.partPath(p)); err != nil || found < 0 {
			return false, err
		}
	}
	if err := s.step("remove"); err != nil {
		return false, err
	}
	return true, s.disk.removeBlob(hash)
}

// removePart removes a file of an upload unless a row has it.
func (s *Service) removePart(ctx context.Context, p part) (removed bool, err error) {
	var known bool
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		known, err = hasPart(tx, p)
		return err
	})
	if err != nil || known {
		return false, err
	}
	return true, s.disk.removePart(p)
}

// Sweep removes a bounded number of claims and uploads whose time is over, and
// when a comparison of tables and files is due or under way, takes a step of
// it. It reports whether there may be more to do.
func (s *Service) Sweep(ctx context.Context) (more bool, err error) {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	more, err = s.expire(ctx)
	if err != nil {
		return false, err
	}
	going, err := s.compare(ctx)
	return (more || going) && err == nil, err
}

func (s *Service) expire(ctx context.Context) (more bool, err error) {
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		now := s.options.DB.ServiceTime()
		hashes, err := deleteExpiredClaims(tx, now, sweepRows)
		if err != nil {
			return err
		}
		parts, err := deleteExpiredUploads(tx, now, sweepRows)
		if err != nil {
			return err
		}
		more = len(hashes) == sweepRows || len(parts) == sweepRows
		return s.unclaimedTx(tx, hashes, parts)
	})
	return more, err
}

// scan is a comparison of tables and files: each directory in turn, then each
// row. Its steps are a directory (of blobs there are 256) or sweepRows rows.
type scan struct {
	due   bool // at once
	last  time.Time
	going bool

	dirs   []string // that are to be looked at
	blobs  bool     // their rows have been
	after  Hash     // the last row of a blob that was
	owner  rpc.IdentityKey
	upload Hash // the last row of an upload, with owner
	files  int  // removed
	lost   int  // rows removed
}

// compare takes a step of a comparison, if one is due.
func (s *Service) compare(ctx context.Context) (going bool, err error) {
	now := s.options.Now()
	if !s.scan.going {
		missed := s.gone.takeMissed()
		if !s.scan.due && !missed && now.Sub(s.scan.last) < reconcileEvery {
			return false, nil
		}
		dirs, err := subdirectories(s.options.Dir)
		if err != nil {
			return false, err
		}
		s.scan = scan{going: true, last: now, dirs: dirs}
	}
	switch {
	case len(s.scan.dirs) > 0:
		dir := s.scan.dirs[0]
		s.scan.dirs = s.scan.dirs[1:]
		err = s.compareDir(ctx, dir)
	case !s.scan.blobs:
		err = s.compareBlobs(ctx)
	default:
		err = s.compareUploads(ctx)
	}
	if err != nil {
		// Nothing is forgotten: the next comparison begins anew.
		s.scan = scan{last: now, due: ctx.Err() != nil}
		return false, err
	}
	if !s.scan.going && s.scan.files+s.scan.lost > 0 {
		s.options.Log.Warn("tables and files differed, as after a crash, and agree again",
			"files without a row", s.scan.files, "rows without a file", s.scan.lost)
	}
	return s.scan.going, nil
}

func subdirectories(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the files of blobs: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// compareDir removes the files of a directory that no row has. What does not
// have a name that we give is not ours.
func (s *Service) compareDir(ctx context.Context, name string) error {
	entries, err := os.ReadDir(filepath.Join(s.options.Dir, name))
	if err != nil {
		return fmt.Errorf("list the files of blobs: %w", err)
	}
	var hashes []Hash
	var parts []part
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		for _, e := range entries {
			id, err := hex.DecodeString(e.Name())
			switch {
			case err != nil:
			case name == partsDir && len(id) == len(part{}):
				known, err := hasPart(tx, part(id))
				if err != nil {
					return err
				}
				if !known {
					parts = append(parts, part(id))
				}
			case len(id) == len(Hash{}) && name == e.Name()[:2]:
				known, err := readBlobSize(tx, Hash(id))
				if err != nil {
					return err
				}
				if known == 0 {
					hashes = append(hashes, Hash(id))
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, hash := range hashes {
		removed, err := s.removeBlob(ctx, hash)
		if err != nil {
			return err
		}
		if removed {
			s.scan.files++
		}
	}
	for _, p := range parts {
		removed, err := s.removePart(ctx, p)
		if err != nil {
			return err
		}
		if removed {
			s.scan.files++
		}
	}
	return nil
}

// compareBlobs removes rows of blobs whose file is not there, or has another
// size.
func (s *Service) compareBlobs(ctx context.Context) error {
	var found []sized
	err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		found, err = blobsAfter(tx, s.scan.after, sweepRows)
		return err
	})
	if err != nil {
		return err
	}
	for _, b := range found {
		s.scan.after = b.hash
		if have, err := fileSize(s.disk.blobPath(b.hash)); err != nil {
			return err
		} else if have == b.size {
			continue
		}
		if err := s.settleBlob(ctx, b); err != nil {
			return err
		}
	}
	s.scan.blobs = len(found) < sweepRows
	return nil
}

// settleBlob looks at a blob again, now that nobody changes it.
func (s *Service) settleBlob(ctx context.Context, b sized) error {
	unlock, err := s.locks.lock(ctx, b.hash)
	if err != nil {
		return err
	}
	defer unlock()
	var known int64
	if err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		known, err = readBlobSize(tx, b.hash)
		return err
	}); err != nil || known == 0 {
		return err
	}
	have, err := fileSize(s.disk.blobPath(b.hash))
	if err != nil || have == known {
		return err
	}
	s.scan.lost++
	return s.lose(ctx, b.hash, fmt.Errorf("%w: it has %d bytes where %d are wanted", errDamaged, have, known))
}

// compareUploads removes rows of uploads whose file is not there.
func (s *Service) compareUploads(ctx context.Context) error {
	var found []upload
	err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		found, err = uploadsAfter(tx, s.scan.owner, s.scan.upload, sweepRows)
		return err
	})
	if err != nil {
		return err
	}
	for _, u := range found {
		s.scan.owner, s.scan.upload = u.owner, u.hash
		if err := s.settleUpload(ctx, u); err != nil {
			return err
		}
	}
	s.scan.going = len(found) == sweepRows
	return nil
}

func (s *Service) settleUpload(ctx context.Context, seen upload) error {
	unlock, err := s.locks.lock(ctx, seen.hash)
	if err != nil {
		return err
	}
	defer unlock()
	var u *upload
	if err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		u, err = readUpload(tx, seen.owner, seen.hash)
		return err
	}); err != nil || u == nil {
		return err
	}
	if there, _, err := s.inspect(u); err != nil || there {
		return err
	}
	s.scan.lost++
	s.options.Log.Error("an upload has lost its file and begins again", "blob", u.hash)
	return s.drop(ctx, u)
}
