package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/quicprochat/qpcd/pkg/store"
)

// uncleanCopy makes a database with the given schema and copies its files while
// it is in use: what a power cut leaves. The rows are in the log, or with
// copied in the file, and then only the mark of the unclean stop is in the log.
func uncleanCopy(t *testing.T, schema fstest.MapFS, copied bool) (path string) {
	t.Helper()
	o := options(testPath(t))
	o.Migrations = schema
	reopen := func() *store.DB {
		db, err := store.Open(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		return db
	}
	db := reopen()
	write(t, db, func(tx *store.Tx) error {
		for i := range 2000 {
			if err := insert(tx, fmt.Sprintf("item %d", i)); err != nil {
				return err
			}
		}
		return nil
	})
	if copied {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = reopen()
	}
	defer db.Close()
	path = testPath(t)
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(o.Path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// newerSchema is testSchema with a step more.
func newerSchema() fstest.MapFS {
	s := testSchema()
	s["0003_more.sql"] = &fstest.MapFile{Data: []byte("CREATE TABLE more (id INTEGER PRIMARY KEY) STRICT;")}
	return s
}

// closedDB makes a database and closes it cleanly.
func closedDB(t *testing.T, o store.Options) string {
	t.Helper()
	db, err := store.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return o.Path
}

func testPath(t *testing.T) string { return filepath.Join(t.TempDir(), "test.db") }

func TestRefusals(t *testing.T) {
	file := func(content string) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := testPath(t)
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	leftover := func(suffix string) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := testPath(t)
			if err := os.WriteFile(path+suffix, []byte("something"), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	tests := map[string]struct {
		make func(t *testing.T) string
		want error
	}{
		"newer": {func(t *testing.T) string {
			o := options(testPath(t))
			o.Migrations = newerSchema()
			return closedDB(t, o)
		}, store.ErrNewer},
		"newer, in the log only": {func(t *testing.T) string { return uncleanCopy(t, newerSchema(), false) }, store.ErrNewer},
		"text":                   {file(strings.Repeat("not a database\n", 100)), store.ErrForeign},
		"short":                  {file("SQLite format 3\x00"), store.ErrForeign},
		"other application": {func(t *testing.T) string {
			o := options(testPath(t))
			o.ApplicationID++
			return closedDB(t, o)
		}, store.ErrForeign},
		"directory": {func(t *testing.T) string { return t.TempDir() }, store.ErrForeign},
		"socket": {func(t *testing.T) string {
			path := testPath(t)
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}, store.ErrForeign},
		"log without database":     {leftover("-wal"), store.ErrForeign},
		"journal without database": {leftover("-journal"), store.ErrForeign},
		"no directory": {func(t *testing.T) string {
			return filepath.Join(t.TempDir(), "missing", "test.db")
		}, store.ErrNotWritable},
		"open in this process": {func(t *testing.T) string {
			return newDB(t).Path()
		}, store.ErrLocked},
		"open in another process": {func(t *testing.T) string {
			path := testPath(t)
			h := startHelper(t, "hold", path)
			if !h.out.Scan() {
				t.Fatalf("helper: %s", h.errs.String())
			}
			return path
		}, store.ErrLocked},
		"read by another program": {func(t *testing.T) string {
			path := closedDB(t, options(testPath(t)))
			sqliteShell(t, path, "BEGIN; SELECT count(*) FROM item;")
			return path
		}, store.ErrLocked},
		"damaged": {func(t *testing.T) string {
			path := uncleanCopy(t, testSchema(), true)
			damage(t, path)
			return path
		}, store.ErrCorrupt},
		"damaged, no log": {func(t *testing.T) string {
			path := uncleanCopy(t, testSchema(), true)
			if _, err := exec.LookPath("sqlite3"); err != nil {
				t.Skip("needs the sqlite3 shell")
			}
			if out, err := exec.Command("sqlite3", path, "PRAGMA wal_checkpoint").CombinedOutput(); err != nil {
				t.Fatalf("sqlite3: %v: %s", err, out)
			}
			damage(t, path)
			return path
		}, store.ErrCorrupt},
		"read-only file system, no database": {func(t *testing.T) string {
			return filepath.Join(readOnlyDir(t, func(string) {}), "test.db")
		}, store.ErrNotWritable},
		"read-only file system": {func(t *testing.T) string {
			return filepath.Join(readOnlyDir(t, func(dir string) {
				closedDB(t, options(filepath.Join(dir, "test.db")))
			}), "test.db")
		}, store.ErrNotWritable},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := tt.make(t)
			before := snapshot(t, filepath.Dir(path))
			db, err := store.Open(context.Background(), options(path))
			if err == nil {
				db.Close()
			}
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			t.Log(err)
			var refusal *store.Refusal
			if !errors.As(err, &refusal) || refusal.Detail == "" {
				t.Errorf("error %v is no Refusal with a detail", err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error has more than a line: %q", err)
			}
			if diff := cmp.Diff(before, snapshot(t, filepath.Dir(path))); diff != "" {
				t.Errorf("files changed (-before +after):\n%.2000s", diff)
			}
		})
	}
}

// damage overwrites the heads of three pages of the database.
func damage(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := int64(10); n < 13; n++ {
		if _, err := f.WriteAt([]byte("this is no page of a b-tree"), n*4096); err != nil {
			t.Fatal(err)
		}
	}
}

// sqliteShell runs sql in Debian's sqlite3, which stays open with its locks
// until the end of the test.
func sqliteShell(t *testing.T, path, sql string) {
	t.Helper()
	shell, err := exec.LookPath("sqlite3")
	if err != nil {
		t.Skip("needs the sqlite3 shell")
	}
	cmd := exec.Command(shell, path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	fmt.Fprintln(in, sql)
	if _, err := out.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
}

// readOnlyDir returns a directory on a file system that fill has written to and
// that cannot be written any more.
func readOnlyDir(t *testing.T, fill func(dir string)) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() != 0 { // ordinary permissions will do
		fill(dir)
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(dir, 0o700) })
		return dir
	}
	mountTmpfs(t, dir, "")
	fill(dir)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skipf("needs to remount: %v", err)
	}
	return dir
}

// mountTmpfs mounts a tmpfs until the end of the test.
func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := unix.Mount("none", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// Others must find the file locked by SQLite's own locks, not only by ours.
func TestLockedForOtherPrograms(t *testing.T) {
	db := newDB(t)
	f, err := os.Open(db.Path())
	if err != nil {
		t.Fatal(err)
	}
	// The shared lock's bytes, https://sqlite.org/src/file/src/os.h.
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: 0x40000002, Len: 510}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		t.Fatal(err)
	}
	if lock.Type != unix.F_WRLCK {
		t.Errorf("lock type %d on the shared range, want a write lock", lock.Type)
	}
	// Opening and closing the file elsewhere in the process must not end it.
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	shell, err := exec.LookPath("sqlite3")
	if err != nil {
		t.Skip("needs the sqlite3 shell")
	}
	for _, sql := range []string{"SELECT * FROM item;", "INSERT INTO item (name, body) VALUES ('x', x'');"} {
		out, err := exec.Command(shell, db.Path(), sql).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "locked") {
			t.Errorf("sqlite3 %q: %v, %q; want it locked out", sql, err, out)
		}
	}
	write(t, db, func(tx *store.Tx) error { return insert(tx, "still works") })
}

func TestUncleanStopIsCheckedAndUsable(t *testing.T) {
	path := uncleanCopy(t, testSchema(), false)
	db := open(t, path)
	if got := len(names(t, db)); got != 2000 {
		t.Errorf("%d rows after an unclean stop, want 2000", got)
	}
	if got := db.ServiceTime(); got < 60 {
		t.Errorf("service time %d, want at least the minute an unclean run counts", got)
	}
}

func TestInterruptedCreation(t *testing.T) {
	path := testPath(t)
	for _, suffix := range []string{".new", ".new-wal", ".new-journal"} {
		if err := os.WriteFile(path+suffix, []byte("half a database"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil { // an empty file is none
		t.Fatal(err)
	}
	db := open(t, path)
	write(t, db, func(tx *store.Tx) error { return insert(tx, "a") })
	for _, name := range dirNames(t, filepath.Dir(path)) {
		if strings.Contains(name, ".new") {
			t.Errorf("%s is left over", name)
		}
	}
}
