package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

// testOnlyLog returns a real write-ahead log in which page 1 was committed with
// user version 1.
func testOnlyLog(t testing.TB) []byte {
	t.Helper()
	db, err := Open(context.Background(), Options{
		Path:          filepath.Join(t.TempDir(), "test.db"),
		ApplicationID: 7,
		Migrations:    fstest.MapFS{"0001_t.sql": {Data: []byte("CREATE TABLE t (a INTEGER) STRICT;")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	b, err := os.ReadFile(db.Path() + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLastFirstPage(t *testing.T) {
	log := testOnlyLog(t)
	version := func(log []byte) int32 {
		page, err := lastFirstPage(bytes.NewReader(log))
		if err != nil {
			t.Fatal(err)
		}
		if page == nil {
			return -1
		}
		h, err := parseHeader(page)
		if err != nil {
			t.Fatal(err)
		}
		return h.userVersion
	}
	if got := version(log); got != 1 {
		t.Errorf("user version %d in the log, want 1", got)
	}
	if got := version(append(bytes.Clone(log), "what an older log left here"...)); got != 1 {
		t.Errorf("user version %d with bytes after the end, want 1", got)
	}
	// Any flipped bit ends the log there; the first frames hold the migration.
	for _, at := range []int{0, 9, 20, 25, walHeaderBytes + 1, walHeaderBytes + 9, walHeaderBytes + 17, walHeaderBytes + walFrameBytes + offUserVersion} {
		bad := bytes.Clone(log)
		bad[at] ^= 4
		if got := version(bad); got == 1 {
			t.Errorf("byte %d flipped: user version 1 all the same", at)
		}
	}
	// Without its commit a frame does not count.
	if got := version(log[:walHeaderBytes+walFrameBytes+pageSize]); got != -1 {
		t.Errorf("user version %d in a log without a commit, want none", got)
	}
}

func FuzzHeader(f *testing.F) {
	log := testOnlyLog(f)
	f.Add([]byte(headerMagic), log)
	f.Add(make([]byte, headerBytes), log[:walHeaderBytes])
	file := append([]byte(headerMagic), make([]byte, headerBytes)...)
	binary.BigEndian.PutUint32(file[offApplicationID:], 7)
	f.Add(file, log)
	f.Fuzz(func(t *testing.T, file, log []byte) {
		if _, err := parseHeader(file); err != nil && !errors.Is(err, errNotSQLite) {
			t.Errorf("error %v, want none or errNotSQLite", err)
		}
		page, err := lastFirstPage(bytes.NewReader(log))
		if err != nil {
			t.Errorf("log: %v", err)
		}
		if page != nil && len(page) != headerBytes {
			t.Errorf("log: %d bytes of page 1, want %d", len(page), headerBytes)
		}
	})
}
