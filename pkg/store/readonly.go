package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// How the store behaves when the disk is full or fails:
//
//	         a commit fails, or room runs short
//	writing ────────────────────────────────────► read-only, full or failing
//	   ▲                                                    │
//	   └─── a small durable write has succeeded, and ◄──────┘ looked at again
//	        there is room again                               every few seconds
//
// Read-only, a write is refused at once with the reason, without touching the
// disk; reads go on. It is entered before it is too late, while the log can
// still be copied: that reserve, about 1 MiB, is what writes that make room
// ([Freeing]) live on. They are admitted while the disk is full, and not while
// it fails.
const (
	// spareBytes are kept free beyond what the log and its copying need: for a
	// batch and the pages of its indexes. Free pages within the database count
	// as well, down to spareFloor.
	spareBytes = 512 << 10
	// spareFloor is kept free whatever the database holds: file systems that
	// never overwrite in place (ubifs, jffs2, f2fs) need blocks even to free
	// some.
	spareFloor = 256 << 10
	// leaveBytes is what must be free beyond the reserve before writes go on,
	// so that the state does not flutter at its edge.
	leaveBytes = 256 << 10
	// lookEvery and lookBytes say when the free space is looked at: after a
	// second, or so many bytes of arguments.
	lookEvery = time.Second
	lookBytes = 128 << 10
	// growBytes is what the log may grow by until then: with the pages of
	// indexes, a few times the arguments.
	growBytes = 4 * lookBytes
	// roomPoll is how often a full disk is looked at; only when it has room is
	// it written to.
	roomPoll = 2 * time.Second
	// retryFirst and retryMost bound the pause between two writes to a disk
	// that fails. It doubles.
	retryFirst = time.Second
	retryMost  = 30 * time.Second
	// healthyAfter is how long writes must have gone well for the pause to
	// begin at retryFirst again: a disk that fails off and on does not fill the
	// log.
	healthyAfter = 10 * time.Minute
	// logBytes is the size that the write-ahead log reaches between two
	// checkpoints while there is room. Where it would not fit, the log is copied
	// at every look.
	logBytes = walHeaderBytes + checkpointPages*(walFrameBytes+pageSize)
)

// trouble is why there is no writing.
type trouble struct {
	err  error // what a write is answered with: ErrReadOnly and the cause
	full bool  // for lack of room, as opposed to a disk that fails
	// hold: writes that make room wait until then too, the last one having
	// failed.
	hold time.Time
}

// freeingKey marks a context, see Freeing.
type freeingKey struct{}

// Freeing marks the writes made with a context as ones that make room: they
// delete rows, or let a sweep delete them. They are admitted while the disk is
// full, living on the space kept in reserve, so that a database that has filled
// its disk can heal itself. Small ones only.
func Freeing(ctx context.Context) context.Context {
	return context.WithValue(ctx, freeingKey{}, true)
}

// admits reports whether a write may be tried all the same.
func (t *trouble) admits(ctx context.Context) bool {
	return t.full && ctx.Value(freeingKey{}) != nil && !time.Now().Before(t.hold)
}

// ReadOnly reports whether writes are refused because the disk is full or
// fails, and why: a sentence for the owner.
func (db *DB) ReadOnly() (readOnly bool, reason string) {
	t := db.trouble.Load()
	switch {
	case t == nil:
		return false, ""
	case t.full:
		return true, "the disk is full: " + t.err.Error()
	}
	return true, "the disk fails: " + t.err.Error()
}

// Spare returns how many bytes the file system of the database can take beyond
// what the database itself keeps in reserve: what other files in its directory
// may still grow by. It costs one system call.
func (db *DB) Spare() int64 {
	return max(0, db.free()-db.reserve.Load())
}

// refused returns what a write gets while there is trouble that does not admit
// it.
func (db *DB) refused(ctx context.Context) error {
	if t := db.trouble.Load(); t != nil && !t.admits(ctx) {
		return t.err
	}
	return nil
}

// refuse answers a request that is not admitted.
func (w *writer) refuse(r *request) bool {
	err := w.db.refused(r.ctx)
	if err == nil {
		return false
	}
	r.done <- err
	return true
}

// storageTrouble reports whether err says that the disk takes no writes, as
// opposed to a defect of one statement or of the data.
func storageTrouble(err error) bool {
	switch primaryCode(err) {
	case codeFull, codeIOErr, codeReadOnly, codeCantOpen:
		return true
	}
	return errors.Is(err, ErrNoSpace)
}

// look measures the room from time to time, and ends the writing when it runs
// short. It runs between transactions.
func (w *writer) look() {
	if w.db.trouble.Load() != nil || w.sinceLook < lookBytes && time.Since(w.lastLook) < lookEvery {
		return
	}
	w.lastLook, w.sinceLook = time.Now(), 0
	if err := w.room(0); err != nil {
		w.stopWriting(err, false)
	}
}

// room is an ErrNoSpace when less than the reserve and more is free.
//
// The reserve is what a database needs that writes no more than it must: the
// growth of its file by what is committed to the log already, the growth of the
// log until the next look, and a little more, for which free pages within the
// file count as well.
func (w *writer) room(more int64) error {
	var pages, unused int64
	if err := w.conn.value("PRAGMA page_count", &pages); err != nil {
		return nil // a commit will tell
	}
	if err := w.conn.value("PRAGMA freelist_count", &unused); err != nil {
		return nil
	}
	wal := w.db.path + "-wal"
	growth := func() int64 { return max(0, pages*pageSize-fileSize(w.db.path)) }
	free := w.db.free()
	log := int64(growBytes)
	if free < growth()+logBytes+spareBytes && fileSize(wal) > 0 {
		if copied, err := w.conn.copyLog(); err == nil && copied {
			log = max(0, log-fileSize(wal)) // it starts over in its own place
		}
		free = w.db.free()
	}
	need := growth() + log + max(spareFloor, spareBytes+more-unused*pageSize)
	w.db.reserve.Store(need)
	if free >= need {
		return nil
	}
	return fmt.Errorf("%w: %d KiB are free, %d KiB must be for writing to go on", ErrNoSpace, free>>10, need>>10)
}

// free returns the free bytes of the database's file system.
func (db *DB) free() int64 { return FreeBytes(filepath.Dir(db.path)) }

// stopWriting makes the database read-only because of err, or renews the
// reason. tried says that it was a write that failed.
func (w *writer) stopWriting(err error, tried bool) {
	t := &trouble{err: fmt.Errorf("%w: %w", ErrReadOnly, err), full: IsNoSpace(err)}
	first := w.db.trouble.Load() == nil
	if first && time.Since(w.healthySince) > healthyAfter || w.pause == 0 {
		w.pause = retryFirst
	}
	pause := w.pause
	if tried {
		t.hold = time.Now().Add(pause)
	}
	if t.full {
		pause = roomPoll
	}
	w.db.trouble.Store(t)
	w.retry.Reset(pause)
	if first {
		w.db.log.Error("the disk takes no writes: read-only until it does", "error", err,
			"free_bytes", w.db.free())
		return
	}
	w.db.log.Debug("still read-only", "error", err)
}

// tryWriting looks whether the trouble is over.
func (w *writer) tryWriting() {
	if w.db.trouble.Load() == nil {
		return
	}
	if err := w.room(leaveBytes); err != nil {
		w.stopWriting(err, false)
		return
	}
	if err := w.probe(); err != nil {
		w.pause = min(2*w.pause, retryMost)
		w.stopWriting(err, true)
		return
	}
	w.healthySince, w.lastLook, w.sinceLook = time.Now(), time.Now(), 0
	w.db.trouble.Store(nil)
	w.db.log.Info("the disk takes writes again")
}

// probe makes a small durable write, and copies an oversized log, whose
// checkpoint may have been what failed.
func (w *writer) probe() error {
	seconds := w.db.clock.seconds()
	if err := w.conn.storeMeta(false, seconds); err != nil {
		return fmt.Errorf("a small write: %w", w.db.explain(err))
	}
	w.marked = true
	w.db.clock.persisted(seconds)
	if fileSize(w.db.path+"-wal") <= walMaxBytes {
		return nil
	}
	if _, err := w.conn.copyLog(); err != nil && storageTrouble(err) {
		return fmt.Errorf("copying the log: %w", w.db.explain(err))
	}
	return nil
}
