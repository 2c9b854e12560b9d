package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/pkg/store"
)

// helperEnv makes the test binary run one of the helper programs of this
// package instead of its tests.
const helperEnv = "QPC_STORE_TEST_HELPER"

func TestMain(m *testing.M) {
	if name := os.Getenv(helperEnv); name != "" {
		os.Exit(runHelper(name, os.Args[1:]))
	}
	goleak.VerifyTestMain(m)
}

const testApplication = 0x71706374

// testSchema is a small schema of two steps.
func testSchema() fstest.MapFS {
	return fstest.MapFS{
		"README.md": {Data: []byte("not a migration")},
		"0001_items.sql": {Data: []byte(`
			-- a comment; with a semicolon
			CREATE TABLE item (
				id   INTEGER PRIMARY KEY,
				name TEXT NOT NULL UNIQUE,
				body BLOB NOT NULL
			) STRICT;
			CREATE INDEX item_body ON item (body);`)},
		"0002_parts.sql": {Data: []byte(`
			CREATE TABLE part (
				id   INTEGER PRIMARY KEY,
				item INTEGER NOT NULL REFERENCES item (id) ON DELETE CASCADE
			) STRICT;`)},
	}
}

func options(path string) store.Options {
	return store.Options{Path: path, Migrations: testSchema(), ApplicationID: testApplication}
}

func open(t testing.TB, path string) *store.DB {
	t.Helper()
	db, err := store.Open(context.Background(), options(path))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return db
}

func newDB(t testing.TB) *store.DB {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "test.db"))
}

func insert(tx *store.Tx, name string) error {
	_, err := tx.Exec("INSERT INTO item (name, body) VALUES (?, ?)", name, []byte(name))
	return err
}

func write(t testing.TB, db *store.DB, fn func(tx *store.Tx) error) {
	t.Helper()
	if err := db.Write(context.Background(), fn); err != nil {
		t.Fatalf("write: %v", err)
	}
}

// names returns all item names, sorted.
func names(t testing.TB, db *store.DB) []string {
	t.Helper()
	var out []string
	err := db.Read(context.Background(), func(tx *store.Tx) error {
		rows, err := tx.Query("SELECT name FROM item ORDER BY name")
		if err != nil {
			return err
		}
		for rows.Next() {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			out = append(out, name)
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatalf("read names: %v", err)
	}
	return out
}

// snapshot returns the name, mode and content of all files in dir.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		if info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(b)
		}
		out[d.Name()] = fmt.Sprintf("%v %v %s", info.Mode(), info.ModTime(), content)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// dirNames returns the names of the files in dir.
func dirNames(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

var errTest = errors.New("test failure")

// benchSchema has one table of messages.
func benchSchema() fstest.MapFS {
	return fstest.MapFS{"0001_msg.sql": {Data: []byte("CREATE TABLE msg (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT;")}}
}
