package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quicprochat/qpcd/pkg/store"
)

// A copy that is made while others write holds all that was acknowledged before
// it, nothing in halves, and opens as a database.
func TestBackupWhileWriting(t *testing.T) {
	db := newDB(t)
	pair := func(name string) error {
		return db.Write(context.Background(), func(tx *store.Tx) error {
			for _, half := range []string{"a", "b"} {
				if err := insert(tx, name+half); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for i := range 500 {
		if err := pair(fmt.Sprintf("before %03d ", i)); err != nil {
			t.Fatal(err)
		}
	}
	before := names(t, db)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for worker := range 2 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := pair(fmt.Sprintf("worker %d %06d ", worker, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	path := filepath.Join(t.TempDir(), "it's a copy.db")
	err := db.Backup(context.Background(), path)
	close(stop)
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("the copy: %v, %v", info.Mode(), err)
	}
	if err := db.Write(context.Background(), func(tx *store.Tx) error { return insert(tx, "after") }); err != nil {
		t.Fatal(err)
	}
	err = db.Read(context.Background(), func(tx *store.Tx) error {
		_, err := tx.Query("INSERT INTO item (name, body) VALUES ('x', x'') RETURNING id")
		return err
	})
	if !errors.Is(err, store.ErrStatement) {
		t.Errorf("a read connection writes after it: %v", err)
	}

	found, err := store.Inspect(context.Background(), options(path))
	if err != nil || len(found.Findings) != 0 || found.Schema != 2 || found.Newest != 2 || found.Clean {
		t.Errorf("inspecting the copy: %+v, %v", found, err)
	}
	there := names(t, open(t, path))
	have := map[string]bool{}
	for _, name := range there {
		have[name] = true
	}
	for _, name := range before {
		if !have[name] {
			t.Fatalf("%q is not in the copy", name)
		}
	}
	for name := range have {
		if len(name) > 1 && !have[name[:len(name)-1]+"b"] {
			t.Fatalf("%q is in the copy without its other half", name)
		}
	}
}

func TestBackupThatFailsLeavesNothing(t *testing.T) {
	db := newDB(t)
	for i := range 200 {
		if err := put(context.Background(), db, fmt.Sprint(i), 20_000); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("disk full", func(t *testing.T) {
		dir := t.TempDir()
		mountTmpfs(t, dir, "size=1m")
		if err := db.Backup(context.Background(), filepath.Join(dir, "copy.db")); !store.IsNoSpace(err) {
			t.Errorf("the error is %v", err)
		}
		if left := dirNames(t, dir); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("given up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		dir := t.TempDir()
		if err := db.Backup(ctx, filepath.Join(dir, "copy.db")); !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
		if left := dirNames(t, dir); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("something there", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "copy.db")
		if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := db.Backup(context.Background(), path); !errors.Is(err, fs.ErrExist) {
			t.Errorf("the error is %v", err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
			t.Errorf("the file is now %q, %v", b, err)
		}
	})
	if err := put(context.Background(), db, "after", 10); err != nil {
		t.Fatal(err)
	}
}

func TestInspect(t *testing.T) {
	o := options(testPath(t))
	if _, err := store.Inspect(t.Context(), o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	closedDB(t, o)
	before := snapshot(t, filepath.Dir(o.Path))
	found, err := store.Inspect(t.Context(), o)
	if err != nil || !found.Clean || len(found.Findings) != 0 {
		t.Errorf("%+v, %v", found, err)
	}
	if diff := cmp.Diff(before, snapshot(t, filepath.Dir(o.Path))); diff != "" {
		t.Errorf("inspecting changed (-before +after):\n%s", diff)
	}
	copied := filepath.Join(t.TempDir(), "copy.db")
	if schema, err := store.BackupClosed(t.Context(), o, copied); err != nil || schema != 2 {
		t.Errorf("copying: schema %d, %v", schema, err)
	}
	open(t, copied)
	if diff := cmp.Diff(before, snapshot(t, filepath.Dir(o.Path))); diff != "" {
		t.Errorf("copying changed (-before +after):\n%s", diff)
	}
	open(t, o.Path)
	if _, err := store.Inspect(t.Context(), o); !errors.Is(err, store.ErrLocked) {
		t.Errorf("in use: %v", err)
	}
}

func TestCheck(t *testing.T) {
	db := newDB(t)
	if findings, err := db.Check(t.Context()); err != nil || len(findings) != 0 {
		t.Errorf("%v, %v", findings, err)
	}
}
