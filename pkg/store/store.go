// Package store keeps one SQLite database file for one process: it opens and
// migrates it, hands out consistent reads from a small pool of connections,
// and runs all writes on a single goroutine that commits many of them at once.
//
// What it promises:
//
//   - A [DB.Write] that returned nil is on the disk: the commit that carried it
//     was synced (synchronous=FULL) before the answer. One that returned an
//     error has left nothing behind, with one exception that no database can
//     avoid: after a failed commit ([ErrCommit]) the outcome is unknown if the
//     process dies before it writes again.
//   - Writes run one after the other, in the order in which the writer took
//     them, each seeing all before it. A failing or panicking one takes only its
//     own effects with it. Each runs at most once.
//   - A [DB.Read] sees one snapshot of committed data, and neither waits for a
//     commit nor delays one.
//   - [Open] refuses what it should not touch ([ErrForeign], [ErrNewer],
//     [ErrLocked], [ErrNotWritable], [ErrCorrupt]) and leaves every byte of it
//     as it was.
//   - On a disk that is full or fails it is read-only, refusing writes with the
//     reason ([ErrReadOnly]), and writes again by itself when the disk does.
//   - There is never a -shm file: flash file systems such as jffs2 cannot map
//     one. See docs/decisions/0001-process-exclusive-wal.md.
//
// State and owners: the writer goroutine owns the write connection, the
// service clock's stored value and the checkpoints; it starts in Open and ends
// in [DB.Close]. Read connections wait in a channel and belong to whoever took
// them out. There is no other goroutine.
//
// Two drivers stand behind one door: modernc.org/sqlite where it is ported, and
// github.com/ncruces/go-sqlite3 on MIPS or with the build tag sqlite_ncruces.
// The file is the same. Statements go straight to the driver interfaces of
// database/sql/driver; database/sql itself cost two to three times as much per
// statement here, and its pool and retries are not wanted.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// Limits and pragmas, each with its reason. A router has 64 MB of memory for
// everything, and flash that wears with every page written.
const (
	// pageSize is SQLite's page: the block that file systems and flash
	// translation layers write anyway. Fixed when a file is created.
	pageSize = 4096
	// writerCacheKiB bounds the page cache of the write connection. It holds
	// the inner nodes of every index of a home-sized database.
	writerCacheKiB = 2048
	// readerCacheKiB bounds the page cache of each read connection.
	readerCacheKiB = 512
	// checkpointPages: after a commit has brought the write-ahead log to this
	// many pages (4 MiB), they are copied into the database. Larger would write
	// hot pages less often, smaller would save flash space.
	checkpointPages = 1000
	// walKeepBytes is what the log is cut back to once it has been copied, when
	// a burst or a slow reader had made it larger (journal_size_limit).
	walKeepBytes = 8 << 20
	// walMaxBytes is where the writer stops being polite: readers that overlap
	// for ever keep the log from starting over, so past this size the writer
	// lets no new ones begin and waits, at most busyTimeout, for the old ones
	// to end.
	walMaxBytes = 16 << 20
	// walRetryAfter is how long the writer leaves an oversized log alone after
	// a reader has kept it from starting over.
	walRetryAfter = 10 * time.Second
	// busyTimeout is how long SQLite waits for a lock. Only connections of this
	// process can hold one, and only for the length of a checkpoint or a read.
	busyTimeout = time.Second

	// defaultReadConnections serves two cores; each costs readerCacheKiB.
	defaultReadConnections = 2
	// maxReadConnections bounds the pool: SQLite has five read marks, so that
	// more readers at distinct snapshots would only wait for each other.
	maxReadConnections = 8

	// queueLength bounds the writes that wait for the writer; past it callers
	// block in Write (or until their context ends), which is the back-pressure.
	queueLength = 1024
	// maxBatchWrites bounds how many writes share a commit, so that the first
	// of them does not wait for an endless queue.
	maxBatchWrites = 512
	// maxBatchBytes bounds the argument bytes of a batch: above it the sync no
	// longer dominates, and the dirty pages would leave the cache.
	maxBatchBytes = 1 << 20
	// maxBatchTime bounds how long a batch gathers before it commits.
	maxBatchTime = 20 * time.Millisecond
	// gatherYields is how often the writer lets others run before it commits a
	// batch although its queue is empty. The callers it has just answered are
	// about to write again; without the yields half of them miss each commit.
	gatherYields = 2
	// slowWrite is the length from which a write function is worth a warning:
	// it held up every other writer.
	slowWrite = time.Second

	// maxStatements bounds the prepared statements kept per connection. The
	// server has about a hundred distinct ones.
	maxStatements = 160

	// fullCheckBytes: up to this size an unclean stop is followed by the full
	// integrity_check (about 0.2 s), above it by quick_check, which leaves out
	// the comparison of indexes with tables.
	fullCheckBytes = 16 << 20
	// maxFindings bounds how many problems an integrity check lists.
	maxFindings = 5
	// noRoomBytes: an I/O error with less free space than this on the file
	// system is taken for a full disk (ncruces does not tell them apart).
	noRoomBytes = 1 << 20

	// clockPersistAfter is the running time after which the next commit carries
	// the service clock with it: at most one page more per ten minutes.
	clockPersistAfter = 10 * time.Minute
	// clockPersistIdle is when the writer stores it by a commit of its own.
	clockPersistIdle = time.Hour
	// clockUncleanCredit is the least that a run without a clean end counts on
	// the service clock: a machine that always dies within ten minutes must
	// still see its data age.
	clockUncleanCredit = time.Minute
)

// Options say what to open and how. Path, Migrations and ApplicationID are
// needed; the rest has defaults.
type Options struct {
	// Path is the database file. Its directory must exist; the file is created
	// with mode 0600 when it is absent or empty.
	Path string
	// Migrations holds the numbered files NNNN_name.sql, see [Open].
	Migrations fs.FS
	// ApplicationID marks the file as ours (PRAGMA application_id), so that the
	// server and the client never take each other's, or anybody else's, file
	// for their own. Not zero.
	ApplicationID int32
	// Logger receives what an operator should know. Default: nothing is logged.
	Logger *slog.Logger
	// Now is the clock; only differences of its (monotonic) readings are used.
	// Default: time.Now.
	Now func() time.Time
	// ReadConnections is the size of the read pool, 1 to 8. Default: 2.
	ReadConnections int
}

// DB is an open database. Its methods are safe for concurrent use.
type DB struct {
	path   string
	log    *slog.Logger
	file   *os.File // holds the lock that keeps other stores out
	engine engine
	clock  *serviceClock
	writer *writer

	readers     chan *conn // idle read connections
	readerCount int

	closing   chan struct{} // closed when Close begins
	closeOnce sync.Once
	closeErr  error

	trouble atomic.Pointer[trouble] // nil while there is writing; the writer's to change
	reserve atomic.Int64            // bytes that must be free for it, as last measured

	commits, writes, failedCommits, reads atomic.Uint64
}

// Open opens the database at o.Path, creating it when absent, and brings it up
// to the newest of o.Migrations.
//
// Migrations are files named NNNN_name.sql, numbered from 0001 without a gap.
// Each runs once, in a transaction of its own that also sets user_version to
// its number; foreign keys are checked at its end instead of on the way, as
// SQLite's recipe for rebuilding tables wants. Every table must be STRICT.
//
// After an unclean stop the file is checked before it is used.
//
// Errors that a caller should tell apart are [ErrForeign], [ErrNewer],
// [ErrLocked], [ErrNotWritable] and [ErrCorrupt]; on any of them nothing has
// been written. The context bounds only the waiting between steps, not a step.
func Open(ctx context.Context, o Options) (*DB, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	migrations, err := parseMigrations(o.Migrations)
	if err != nil {
		return nil, err
	}
	path, err := resolve(o.Path)
	if err != nil {
		return nil, err
	}
	file, err := claim(ctx, path, o.ApplicationID, len(migrations))
	if err != nil {
		return nil, err
	}
	db := &DB{
		path:        path,
		log:         o.Logger,
		file:        file,
		readers:     make(chan *conn, o.ReadConnections),
		readerCount: o.ReadConnections,
		closing:     make(chan struct{}),
	}
	if err := db.start(ctx, o, migrations); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return db, nil
}

// fill checks o and sets its defaults.
func (o *Options) fill() error {
	switch {
	case o.Path == "":
		return errors.New("open store: no path given")
	case o.Migrations == nil:
		return errors.New("open store: no migrations given")
	case o.ApplicationID == 0:
		return errors.New("open store: no application id given")
	case o.ReadConnections < 0 || o.ReadConnections > maxReadConnections:
		return fmt.Errorf("open store: %d read connections, want 1 to %d", o.ReadConnections, maxReadConnections)
	}
	if o.ReadConnections == 0 {
		o.ReadConnections = defaultReadConnections
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return nil
}

// start opens the connections of a file that claim has accepted, checks and
// migrates it, and starts the writer. On error everything it opened is closed
// again, without a byte written when the error is a refusal.
func (db *DB) start(ctx context.Context, o Options, migrations []migration) (err error) {
	if db.engine, err = newEngine(db.path, db.file); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, db.engine.close())
		}
	}()
	w, err := db.openWriter(ctx)
	if err != nil {
		return err
	}
	defer func() {
		switch {
		case errors.Is(err, ErrCorrupt):
			err = errors.Join(err, db.giveUp(w))
		case err != nil:
			err = errors.Join(err, w.close())
		}
	}()
	meta, err := db.examine(w)
	if err != nil {
		return err
	}
	if err := w.migrate(ctx, db.log, migrations); err != nil {
		return fmt.Errorf("migrate %s: %w", db.path, err)
	}
	db.clock = newServiceClock(o.Now, meta.serviceSeconds)
	if !meta.clean {
		db.clock.credit(clockUncleanCredit)
	}
	// From here on a stop is unclean until Close says otherwise. On a disk that
	// takes no writes there is reading all the same, and the mark comes with
	// the first write.
	unmarked := w.storeMeta(false, db.clock.seconds())
	if unmarked != nil {
		unmarked = fmt.Errorf("mark %s as in use: %w", db.path, db.explain(unmarked))
		if !storageTrouble(unmarked) {
			return unmarked
		}
	}
	if err := db.openReaders(ctx); err != nil {
		return errors.Join(err, db.closeReaders(len(db.readers)))
	}
	if err := db.engine.settled(); err != nil {
		return errors.Join(err, db.closeReaders(len(db.readers)))
	}
	db.writer = newWriter(db, w)
	db.writer.marked = unmarked == nil
	if unmarked != nil {
		db.writer.stopWriting(unmarked, true)
	}
	go db.writer.run()
	return nil
}

// openWriter opens the write connection and takes the lock on the file.
func (db *DB) openWriter(ctx context.Context) (*conn, error) {
	w, err := openConn(ctx, db.engine)
	if err != nil {
		return nil, db.refusal("open", err)
	}
	for _, pragma := range writerPragmas() {
		if err := w.script(pragma); err != nil {
			return nil, errors.Join(db.refusal("configure", err), w.close())
		}
	}
	// The first statement that reads makes SQLite take its lock and, after an
	// unclean stop, read the log.
	var mode string
	if err := w.value("PRAGMA journal_mode = WAL", &mode); err != nil {
		refusal := db.refusal("read", err)
		if errors.Is(refusal, ErrCorrupt) {
			return nil, errors.Join(refusal, db.giveUp(w))
		}
		return nil, errors.Join(refusal, w.close())
	}
	if mode != "wal" {
		return nil, errors.Join(fmt.Errorf("open %s: journal mode is %q, want \"wal\"", db.path, mode), w.close())
	}
	return w, nil
}

// giveUp closes the connection to a damaged database so that the evidence stays
// as it is, without copying the log into the file on the way out.
func (db *DB) giveUp(w *conn) error {
	if fileSize(db.path+"-wal") == 0 {
		return w.close() // there is nothing to copy, and SQLite removes its empty log
	}
	db.engine.abandon(w.raw)
	return nil
}

// openReaders fills the read pool. Each connection reads once, so that it has
// its share of the write-ahead log's index before engine.settled.
func (db *DB) openReaders(ctx context.Context) error {
	for range db.readerCount {
		c, err := openConn(ctx, db.engine)
		if err != nil {
			return fmt.Errorf("open read connection to %s: %w", db.path, err)
		}
		db.readers <- c
		for _, pragma := range readerPragmas() {
			if err := c.script(pragma); err != nil {
				return fmt.Errorf("configure read connection to %s: %w", db.path, err)
			}
		}
		var n int64
		if err := c.value("SELECT count(*) FROM store_meta", &n); err != nil {
			return fmt.Errorf("read %s: %w", db.path, err)
		}
	}
	return nil
}

// closeReaders takes n read connections out of the pool, waiting for those in
// use, and closes them.
func (db *DB) closeReaders(n int) error {
	var errs []error
	for range n {
		c := <-db.readers
		errs = append(errs, c.close())
	}
	return errors.Join(errs...)
}

// Close runs the writes that wait, lets the reads under way end, records a
// clean stop, copies the write-ahead log into the file and closes it. Calls
// that come later get [ErrClosed]. It waits for functions passed to Read and
// Write, so it must not be called from one.
func (db *DB) Close() error {
	db.closeOnce.Do(func() {
		close(db.closing)
		<-db.writer.finished
		w := db.writer.conn
		errs := []error{db.closeReaders(db.readerCount)}
		if err := w.storeMeta(true, db.clock.seconds()); err != nil && db.trouble.Load() != nil {
			// Nothing is lost: the log is read, and the file checked, when it is
			// opened the next time.
			db.log.Warn("the clean stop cannot be recorded", "error", db.explain(err))
		} else if err != nil {
			errs = append(errs, fmt.Errorf("record the clean stop of %s: %w", db.path, db.explain(err)))
		} else if err := w.checkpoint("TRUNCATE"); err != nil {
			errs = append(errs, fmt.Errorf("checkpoint %s: %w", db.path, db.explain(err)))
		}
		errs = append(errs, w.close(), db.engine.close(), db.file.Close())
		db.closeErr = errors.Join(errs...)
	})
	return db.closeErr
}

// Path returns the absolute path of the database file.
func (db *DB) Path() string { return db.path }

// ServiceTime returns the service clock: the seconds this database has been in
// use, added up over all runs. It never goes back while the database is open,
// does not follow the wall clock, and stands still while the machine is off,
// so that expiry counted on it survives a router that boots in 1970.
//
// Its value is stored at a clean Close, and otherwise with the first commit
// after ten minutes or by itself every hour. A run that ends uncleanly loses
// what came after that, but counts for at least a minute; rows stamped in the
// lost time then lie ahead of the clock for as long.
func (db *DB) ServiceTime() int64 { return db.clock.seconds() }

// Stats are figures of a running database.
type Stats struct {
	FileBytes int64 // size of the database file
	WALBytes  int64 // size of the write-ahead log
	Commits   uint64
	// Writes counts the write functions that succeeded with those commits;
	// divided by Commits it is the size of the average batch.
	Writes        uint64
	FailedCommits uint64
	Reads         uint64
	Queued        int // writes that wait for the writer now
}

// Stats returns the present figures. It costs two stat calls.
func (db *DB) Stats() Stats {
	return Stats{
		FileBytes:     fileSize(db.path),
		WALBytes:      fileSize(db.path + "-wal"),
		Commits:       db.commits.Load(),
		Writes:        db.writes.Load(),
		FailedCommits: db.failedCommits.Load(),
		Reads:         db.reads.Load(),
		Queued:        len(db.writer.queue),
	}
}

// fileSize returns 0 for a file that is not there.
func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// resolve makes path absolute and follows symbolic links, because SQLite names
// the log after the file a link points to.
func resolve(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("open store: %w", err)
	}
	if full, err := filepath.EvalSymlinks(abs); err == nil {
		return full, nil
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", &Refusal{Kind: ErrNotWritable, Path: abs, Detail: "its directory cannot be reached; create it first", Cause: err}
	}
	return filepath.Join(dir, filepath.Base(abs)), nil
}
