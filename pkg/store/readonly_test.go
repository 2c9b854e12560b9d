package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/quicprochat/qpcd/pkg/store"
)

// waitWritable waits until a database has found out that its disk takes writes.
func waitWritable(t *testing.T, db *store.DB) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		readOnly, reason := db.ReadOnly()
		if !readOnly {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still read-only: %s", reason)
		}
	}
}

// logBook is a log that a test reads.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBook) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// smallDisk is a database on a disk of its own, which is taken away when the
// test ends.
func smallDisk(t *testing.T, size string) (store.Options, *logBook) {
	t.Helper()
	dir := t.TempDir()
	mountTmpfs(t, dir, "size="+size)
	log := &logBook{}
	o := options(filepath.Join(dir, "test.db"))
	o.Logger = slog.New(slog.NewTextHandler(log, nil))
	return o, log
}

func openWith(t *testing.T, o store.Options) *store.DB {
	t.Helper()
	db, err := store.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// put stores a row of some size under a name.
func put(ctx context.Context, db *store.DB, name string, size int) error {
	return db.Write(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec("INSERT INTO item (name, body) VALUES (?, ?)", name, make([]byte, size))
		return err
	})
}

// fill stores rows until the database refuses one, and returns the names of the
// acknowledged ones and that error.
func fill(t *testing.T, db *store.DB, size int) (acknowledged []string, refusal error) {
	t.Helper()
	for i := range 2000 {
		name := fmt.Sprintf("%04d", i)
		if err := put(context.Background(), db, name, size); err != nil {
			return acknowledged, err
		}
		acknowledged = append(acknowledged, name)
	}
	t.Fatal("the disk does not fill")
	return nil, nil
}

// ballast takes all the space that is left of a disk, and returns how to give
// it back.
func ballast(t *testing.T, dir string) (release func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func has(t *testing.T, db *store.DB, want []string) {
	t.Helper()
	if diff := cmp.Diff(want, names(t, db)); diff != "" {
		t.Errorf("rows (-acknowledged +there):\n%s", diff)
	}
}

// whole reopens a database after a clean or unclean stop and checks it.
func whole(t *testing.T, o store.Options, want []string) {
	t.Helper()
	db := openWith(t, o)
	has(t, db, want)
	err := db.Read(context.Background(), func(tx *store.Tx) error {
		var verdict string
		if err := tx.QueryRow("SELECT integrity_check FROM pragma_integrity_check").Scan(&verdict); err != nil {
			return err
		}
		if verdict != "ok" {
			t.Errorf("integrity check: %s", verdict)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A database that fills its disk stops before there is no room left, goes on
// reading, and goes on writing by itself when others make room.
func TestDiskFillsAndHeals(t *testing.T) {
	o, log := smallDisk(t, "4m")
	db := openWith(t, o)
	acknowledged, refusal := fill(t, db, 20_000)
	if !errors.Is(refusal, store.ErrReadOnly) || !store.IsNoSpace(refusal) {
		t.Fatalf("the refusal is %v", refusal)
	}
	if n := len(acknowledged); n < 60 {
		t.Errorf("full after %d rows of 20 kB on a disk of 4 MB", n)
	}
	if n := db.Stats().FailedCommits; n != 0 {
		t.Errorf("%d commits failed before it stopped", n)
	}
	readOnly, reason := db.ReadOnly()
	if !readOnly || !strings.Contains(reason, "the disk is full") {
		t.Errorf("read-only: %v, %q", readOnly, reason)
	}
	before := db.Stats()
	for range 100 {
		if err := put(context.Background(), db, "more", 10); !errors.Is(err, store.ErrReadOnly) {
			t.Fatalf("a write on the full disk: %v", err)
		}
	}
	if after := db.Stats(); after.Commits != before.Commits || after.WALBytes != before.WALBytes {
		t.Error("refused writes touched the disk")
	}
	has(t, db, acknowledged)

	if err := unix.Mount("", filepath.Dir(o.Path), "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	waitWritable(t, db)
	if err := put(context.Background(), db, "a last one", 20_000); err != nil {
		t.Fatal(err)
	}
	acknowledged = append(acknowledged, "a last one")
	if n, m := log.count("level=ERROR"), log.count("the disk takes writes again"); n != 1 || m != 1 {
		t.Errorf("the log has %d lines of entering and %d of leaving:\n%s", n, m, &log.b)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	whole(t, o, acknowledged)
}

// Deleting frees pages within the file, not on the disk; that must heal as
// well, and on the reserve deleting must be possible.
func TestDeletingHeals(t *testing.T) {
	o, _ := smallDisk(t, "4m")
	db := openWith(t, o)
	acknowledged, _ := fill(t, db, 20_000)
	remove := func(ctx context.Context, name string) error {
		return db.Write(ctx, func(tx *store.Tx) error {
			_, err := tx.Exec("DELETE FROM item WHERE name = ?", name)
			return err
		})
	}
	if err := remove(context.Background(), acknowledged[0]); !errors.Is(err, store.ErrReadOnly) {
		t.Errorf("an ordinary write: %v", err)
	}
	for _, name := range acknowledged[:60] {
		if err := remove(store.Freeing(context.Background()), name); err != nil {
			t.Fatalf("deleting %s: %v", name, err)
		}
	}
	waitWritable(t, db)
	for i := range 30 {
		if err := put(context.Background(), db, fmt.Sprint("new ", i), 20_000); err != nil {
			t.Fatalf("after making room, row %d: %v", i, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// Somebody else takes the last byte: commits fail, then nothing is tried any
// more, a restart on the full disk reads, and all of it heals.
func TestOthersFillTheDisk(t *testing.T) {
	o, log := smallDisk(t, "8m")
	db := openWith(t, o)
	var acknowledged []string
	for i := range 10 {
		name := fmt.Sprintf("%04d", i)
		if err := put(context.Background(), db, name, 20_000); err != nil {
			t.Fatal(err)
		}
		acknowledged = append(acknowledged, name)
	}
	release := ballast(t, filepath.Dir(o.Path))
	var refusal error
	for i := 10; refusal == nil && i < 1000; i++ {
		name := fmt.Sprintf("%04d", i)
		if refusal = put(context.Background(), db, name, 200_000); refusal == nil {
			acknowledged = append(acknowledged, name)
		}
	}
	if !store.IsNoSpace(refusal) || !store.IsUnwritable(refusal) {
		t.Fatalf("the refusal is %v", refusal)
	}
	has(t, db, acknowledged)
	err := db.Write(store.Freeing(context.Background()), func(tx *store.Tx) error {
		_, err := tx.Exec("INSERT INTO item (name, body) VALUES (?, ?)", "no room for this", make([]byte, 1<<20))
		return err
	})
	if !store.IsNoSpace(err) {
		t.Errorf("a write that makes room and is too large: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatalf("closing on a full disk: %v", err)
	}

	db = openWith(t, o)
	has(t, db, acknowledged)
	if err := put(context.Background(), db, "x", 10); !errors.Is(err, store.ErrReadOnly) {
		t.Errorf("a write after the restart: %v", err)
	}
	release()
	waitWritable(t, db)
	if err := put(context.Background(), db, "after", 20_000); err != nil {
		t.Fatal(err)
	}
	acknowledged = append(acknowledged, "after")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if n := log.count("level=ERROR"); n > 2 {
		t.Errorf("%d errors in the log of two runs:\n%s", n, &log.b)
	}
	whole(t, o, acknowledged)
}

// A clean database that is opened on a full disk, and killed there, still says
// that it was closed cleanly; one write later it no longer does.
func TestMarkComesWithTheFirstWrite(t *testing.T) {
	o, log := smallDisk(t, "4m")
	db := openWith(t, o)
	if err := put(context.Background(), db, "before", 10); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	release := ballast(t, filepath.Dir(o.Path))
	copyFiles := func() store.Options {
		to := o
		to.Path = filepath.Join(t.TempDir(), "copy.db")
		for _, suffix := range []string{"", "-wal"} {
			b, err := os.ReadFile(o.Path + suffix)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if err := os.WriteFile(to.Path+suffix, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return to
	}
	checks := func() int { return log.count("was not closed cleanly") }

	db = openWith(t, o)
	if readOnly, _ := db.ReadOnly(); !readOnly {
		t.Fatal("not read-only on a full disk")
	}
	openWith(t, copyFiles()).Close()
	if checks() != 0 {
		t.Error("checked although nothing was written")
	}
	release()
	// What makes room is admitted before the store has looked again, and marks
	// the file as well.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		err := db.Write(store.Freeing(context.Background()), func(tx *store.Tx) error {
			_, err := tx.Exec("DELETE FROM item")
			return err
		})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	openWith(t, copyFiles()).Close()
	if checks() != 1 {
		t.Error("not checked although it was in use")
	}
	waitWritable(t, db)
}

// A disk that fails without being full: a file size limit makes the kernel
// refuse every write to the log, whichever the driver.
func TestFailingDisk(t *testing.T) {
	h := startHelper(t, "limit", testPath(t))
	for h.out.Scan() {
		t.Log(h.out.Text())
	}
	if err := h.cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, h.errs.String())
	}
}

// limited is the helper program of TestFailingDisk: the limit is the whole
// process's.
func limited(db *store.DB) error {
	ctx := context.Background()
	if err := put(ctx, db, "before", 1000); err != nil {
		return err
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	limit := old
	limit.Cur = uint64(db.Stats().WALBytes)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	err := put(ctx, db, "during", 100_000)
	if !errors.Is(err, store.ErrCommit) || store.IsNoSpace(err) {
		return fmt.Errorf("a write to the failing disk: %v", err)
	}
	failed := db.Stats().FailedCommits
	for _, ctx := range []context.Context{ctx, store.Freeing(ctx)} {
		if err := put(ctx, db, "during", 10); !errors.Is(err, store.ErrReadOnly) || store.IsNoSpace(err) {
			return fmt.Errorf("the next write: %v", err)
		}
	}
	if n := db.Stats().FailedCommits; n != failed {
		return fmt.Errorf("%d commits were tried on the failing disk", n-failed)
	}
	_, reason := db.ReadOnly()
	if !strings.HasPrefix(reason, "the disk fails") {
		return fmt.Errorf("the reason is %q", reason)
	}
	time.Sleep(1500 * time.Millisecond) // the first look finds it failing still
	if readOnly, _ := db.ReadOnly(); !readOnly {
		return errors.New("it writes although the disk fails")
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if readOnly, _ := db.ReadOnly(); !readOnly {
			break
		}
		if time.Now().After(deadline) {
			return errors.New("it does not heal")
		}
	}
	if err := put(ctx, db, "after", 100_000); err != nil {
		return err
	}
	var n int
	if err := db.Read(ctx, func(tx *store.Tx) error { return tx.QueryRow("SELECT count(*) FROM item").Scan(&n) }); err != nil || n != 2 {
		return fmt.Errorf("%d rows, %v; want 2", n, err)
	}
	return nil
}
