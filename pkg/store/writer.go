package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Write runs fn in a write transaction and returns when that is durable, or has
// failed.
//
// Calls that wait at the same time share one commit, and so one sync of the
// disk: fn runs on the writer goroutine, after the functions before it and
// seeing their effects. Keep it short, since every other writer waits for it;
// it must not call Write or Read or wait for anything that does.
//
// fn runs once at most. If it returns an error or panics ([ErrPanic]), only its
// own effects are undone; before its first write statement failing costs
// nothing. If the commit fails, every function of the batch gets [ErrCommit],
// also those that had failed for reasons of their own, since these reasons may
// have been the work of a neighbour that is gone. A statement that fails for
// lack of disk, memory or a readable file ends the batch in the same way.
//
// When ctx ends before fn has started, fn does not run and ctx's error is
// returned. After that the result is awaited and told as it is: a commit that
// happened is success.
//
// While the disk is full or fails, fn does not run either: the error is
// [ErrReadOnly] with the reason, at once. See [DB.ReadOnly] and [Freeing].
func (db *DB) Write(ctx context.Context, fn func(tx *Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := db.refused(ctx); err != nil {
		return err
	}
	return db.writer.submit(ctx, fn)
}

// writer runs write functions and commits them. All fields below queue belong
// to its goroutine.
type writer struct {
	db       *DB
	queue    chan *request
	finished chan struct{}
	requests sync.Pool // of *request

	conn     *conn
	batch    []*request
	bytes    int
	dirty    bool  // some function of the batch has written
	lost     error // why the batch cannot be committed
	stopped  bool
	walRetry time.Time // when an oversized log is worth another try

	marked       bool          // the file says that it is in use, see examine
	lastLook     time.Time     // at the free space
	sinceLook    int           // bytes written since
	retry        *time.Timer   // runs while the database is read-only
	pause        time.Duration // before the next write to a disk that fails
	healthySince time.Time     // when the last trouble ended
}

// request is one call of Write.
type request struct {
	ctx    context.Context
	fn     func(tx *Tx) error
	state  atomic.Uint32
	done   chan error // capacity 1, so that the writer never waits
	err    error      // fn's
	after  []func()
	undone []func()
}

// The states of a request. Whoever moves it out of waiting decides its fate.
const (
	stateWaiting uint32 = iota
	stateStarted
	stateWithdrawn
)

func newWriter(db *DB, c *conn) *writer {
	return &writer{
		db:       db,
		conn:     c,
		queue:    make(chan *request, queueLength),
		finished: make(chan struct{}),
		retry:    stoppedTimer(),
		requests: sync.Pool{New: func() any { return &request{done: make(chan error, 1)} }},
	}
}

// stoppedTimer returns a timer that does not run yet.
func stoppedTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// submit hands fn to the writer and waits for its answer.
func (w *writer) submit(ctx context.Context, fn func(tx *Tx) error) error {
	select {
	case <-w.db.closing:
		return ErrClosed
	default:
	}
	r := w.requests.Get().(*request)
	r.ctx, r.fn = ctx, fn
	r.state.Store(stateWaiting)
	select {
	case w.queue <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-w.db.closing:
		return ErrClosed
	}
	var err error
	select {
	case err = <-r.done:
	case <-ctx.Done():
		if r.state.CompareAndSwap(stateWaiting, stateWithdrawn) {
			return ctx.Err() // r is still in the queue: not for the pool
		}
		err = <-r.done
	case <-w.finished:
		// The writer answers all it has started before it finishes.
		if r.state.CompareAndSwap(stateWaiting, stateWithdrawn) {
			return ErrClosed
		}
		err = <-r.done
	}
	*r = request{done: r.done}
	w.requests.Put(r)
	return err
}

// run is the writer goroutine.
func (w *writer) run() {
	defer func() {
		if w.stopped {
			close(w.finished)
			return
		}
		// A write function has called runtime.Goexit, as a failing test does:
		// this goroutine cannot be kept, its work can.
		w.lost = fmt.Errorf("%w: it ended its goroutine", ErrPanic)
		w.settle(w.lost)
		go w.run()
	}()
	idle := time.NewTimer(clockPersistIdle)
	defer idle.Stop()
	for {
		select {
		case r := <-w.queue:
			w.runBatch(r)
		case <-idle.C:
			w.persistClock()
			idle.Reset(clockPersistIdle)
		case <-w.retry.C:
			w.tryWriting()
		case <-w.db.closing:
			for {
				select {
				case r := <-w.queue:
					w.runBatch(r)
					continue
				default:
				}
				break
			}
			w.retry.Stop()
			w.stopped = true
			return
		}
	}
}

// runBatch runs first and whatever else waits in one transaction, commits it
// and answers.
func (w *writer) runBatch(first *request) {
	if !first.state.CompareAndSwap(stateWaiting, stateStarted) {
		return
	}
	if w.look(); w.refuse(first) {
		return
	}
	w.batch = append(w.batch[:0], first)
	w.bytes, w.dirty, w.lost = 0, false, nil
	if err := w.conn.control("BEGIN IMMEDIATE"); err != nil {
		w.settle(w.failure("begin", err))
		return
	}
	start := time.Now()
	w.runOne(first)
	for yields := 0; w.lost == nil && len(w.batch) < maxBatchWrites && w.bytes < maxBatchBytes; {
		var r *request
		select {
		case r = <-w.queue:
		default:
			if yields < gatherYields {
				yields++
				runtime.Gosched()
				continue
			}
		}
		if r == nil {
			break
		}
		if !r.state.CompareAndSwap(stateWaiting, stateStarted) || w.refuse(r) {
			continue
		}
		w.batch = append(w.batch, r)
		w.runOne(r)
		if time.Since(start) > maxBatchTime {
			break
		}
	}
	err := w.commit()
	w.settle(err)
	if err == nil {
		w.tendLog()
	}
}

// runOne runs one function within the batch's transaction and undoes its
// effects if it fails.
func (w *writer) runOne(r *request) {
	tx := &Tx{db: w.db, conn: w.conn, ctx: r.ctx, writer: w}
	start := time.Now()
	r.err = w.call(tx, r.fn)
	if took := time.Since(start); took > slowWrite {
		w.db.log.Warn("a write function held up all others", "took", took)
	}
	w.bytes += tx.bytes
	switch {
	case tx.lost != nil:
		w.lost = tx.lost
	case r.err == nil:
		r.after, r.undone = tx.after, tx.undone
		if tx.savepoint {
			w.must(w.conn.control("RELEASE one"))
		}
	case tx.savepoint:
		w.must(w.conn.control("ROLLBACK TO one"))
		w.must(w.conn.control("RELEASE one"))
	case tx.dirty:
		// The first to write: nothing else is in the transaction yet.
		w.must(w.conn.control("ROLLBACK"))
		w.must(w.conn.control("BEGIN IMMEDIATE"))
		w.dirty = false
	}
	if tx.lost != nil || r.err != nil {
		w.hooks(tx.undone)
	}
}

// must ends the batch if the transaction is no longer what we think it is.
func (w *writer) must(err error) {
	if err != nil && w.lost == nil {
		w.lost = w.db.explain(err)
	}
}

// call runs fn, closes what it left open and turns a panic into an error.
func (w *writer) call(tx *Tx, fn func(tx *Tx) error) (err error) {
	defer func() {
		tx.end()
		if p := recover(); p != nil {
			w.db.log.Error("a write function panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("%w: %v", ErrPanic, p)
		}
	}()
	return fn(tx)
}

// commit ends the transaction, durably if anything was written, or rolls it
// back and says why.
func (w *writer) commit() error {
	err := w.lost
	clock := int64(-1)
	if err == nil && w.dirty && (!w.marked || w.db.clock.due(clockPersistAfter)) {
		clock = w.db.clock.seconds()
		err = w.conn.storeMeta(false, clock)
	}
	if err == nil {
		err = w.conn.control("COMMIT")
	}
	if err == nil {
		w.sinceLook += w.bytes
		if w.dirty {
			w.db.commits.Add(1)
			for _, r := range w.batch {
				if r.err == nil {
					w.db.writes.Add(1)
				}
			}
		}
		if clock >= 0 {
			w.db.clock.persisted(clock)
			w.marked = true
		}
		return nil
	}
	w.db.failedCommits.Add(1)
	return w.failure("", err)
}

// failure turns the error that ended a batch into what its functions get, and
// makes the database read-only when the disk is to blame.
func (w *writer) failure(doing string, err error) error {
	err = w.db.explain(err)
	if doing != "" {
		err = fmt.Errorf("%s: %w", doing, err)
	}
	if storageTrouble(err) {
		w.stopWriting(err, true)
	} else {
		w.db.log.Error("writes failed", "error", err, "writes", len(w.batch))
	}
	return fmt.Errorf("%w: %w", ErrCommit, err)
}

// settle answers the batch: with failure if that is not nil, after rolling back,
// and otherwise with each function's own result, after its hooks.
func (w *writer) settle(failure error) {
	if failure != nil {
		// SQLite may have rolled back by itself, and says so; either way the
		// next batch begins afresh.
		if err := w.conn.control("ROLLBACK"); err != nil {
			w.db.log.Debug("rollback after a failed batch", "error", err)
		}
		for _, r := range w.batch {
			w.hooks(r.undone)
		}
	}
	for i, r := range w.batch {
		err := r.err
		if failure != nil {
			err = failure
		} else if err == nil {
			w.hooks(r.after)
		}
		r.after, r.undone = nil, nil
		r.done <- err
		w.batch[i] = nil // it belongs to its caller again
	}
	w.batch = w.batch[:0]
}

// hooks runs functions that were registered with a transaction, in order.
func (w *writer) hooks(all []func()) {
	for _, fn := range all {
		w.hook(fn)
	}
}

// hook runs one of them; the outcome stands whatever it does.
func (w *writer) hook(fn func()) {
	defer func() {
		if p := recover(); p != nil {
			w.db.log.Error("a function of a transaction that has ended panicked", "panic", p, "stack", string(debug.Stack()))
		}
	}()
	fn()
}

// persistClock stores the service clock when no commit has carried it lately.
func (w *writer) persistClock() {
	if w.db.trouble.Load() != nil || !w.db.clock.due(clockPersistAfter) {
		return
	}
	seconds := w.db.clock.seconds()
	if err := w.conn.storeMeta(false, seconds); err != nil {
		w.db.log.Error("service clock not stored", "error", w.db.explain(err))
		return
	}
	w.db.clock.persisted(seconds)
}

// tendLog keeps readers that overlap for ever from growing the write-ahead log
// without bound. On a full disk it lets the log not grow at all.
func (w *writer) tendLog() {
	if w.db.trouble.Load() != nil {
		_, _ = w.conn.copyLog() // the next write tells, if it matters
		return
	}
	size := fileSize(w.db.path + "-wal")
	if size <= walMaxBytes || time.Now().Before(w.walRetry) {
		return
	}
	// Readers that overlap would keep the log from starting over for ever, so
	// none begins until it has.
	held := w.holdReaders(busyTimeout)
	err := errCheckpointBusy
	if len(held) == w.db.readerCount {
		err = w.conn.checkpoint("RESTART")
	}
	for _, c := range held {
		w.db.readers <- c
	}
	if err == nil {
		return
	}
	w.walRetry = time.Now().Add(walRetryAfter)
	if errors.Is(err, errCheckpointBusy) || primaryCode(err) == codeBusy {
		w.db.log.Warn("a long read keeps the write-ahead log growing", "bytes", size)
		return
	}
	err = fmt.Errorf("copying the log: %w", w.db.explain(err))
	if storageTrouble(err) {
		w.stopWriting(err, true)
		return
	}
	w.db.log.Error("checkpoint failed", "error", err, "bytes", size)
}

// holdReaders takes the read connections out of the pool, as they become
// idle, for at most a while.
func (w *writer) holdReaders(wait time.Duration) (held []*conn) {
	end := time.NewTimer(wait)
	defer end.Stop()
	for len(held) < w.db.readerCount {
		select {
		case c := <-w.db.readers:
			held = append(held, c)
		case <-end.C:
			return held
		}
	}
	return held
}
