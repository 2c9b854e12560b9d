package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quicprochat/qpcd/pkg/store"
)

func TestCreateWriteReopen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "odd name?#%.db")
	db := open(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode of the file is %o, want 600", got)
	}
	write(t, db, func(tx *store.Tx) error { return insert(tx, "a") })
	if info, err = os.Stat(path + "-wal"); err != nil {
		t.Fatal(err)
	} else if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode of the log is %o, want 600", got)
	}
	if got := dirNames(t, dir); slices.ContainsFunc(got, func(n string) bool { return strings.HasSuffix(n, "-shm") || strings.HasSuffix(n, ".new") }) {
		t.Errorf("files %q: there must be no -shm and no .new", got)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"odd name?#%.db"}, dirNames(t, dir)); diff != "" {
		t.Errorf("files after Close (-want +got):\n%s", diff)
	}
	if err := db.Write(context.Background(), func(*store.Tx) error { return nil }); !errors.Is(err, store.ErrClosed) {
		t.Errorf("write after close: %v, want ErrClosed", err)
	}
	if err := db.Read(context.Background(), func(*store.Tx) error { return nil }); !errors.Is(err, store.ErrClosed) {
		t.Errorf("read after close: %v, want ErrClosed", err)
	}
	if diff := cmp.Diff([]string{"a"}, names(t, open(t, path))); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestPragmas(t *testing.T) {
	// The values SQLite reports, from both kinds of connection.
	want := map[string]string{
		"journal_mode": "wal", "page_size": "4096", "foreign_keys": "1", "temp_store": "2",
		"trusted_schema": "0", "application_id": fmt.Sprint(testApplication), "user_version": "2",
	}
	db := newDB(t)
	// pragma_ table-valued functions are ordinary SELECTs.
	check := func(tx *store.Tx) error {
		for name, w := range want {
			var got any
			if err := tx.QueryRow("SELECT * FROM pragma_" + name).Scan(&got); err != nil {
				return err
			}
			if fmt.Sprint(got) != w {
				t.Errorf("%s is %v, want %s", name, got, w)
			}
		}
		return nil
	}
	write(t, db, func(tx *store.Tx) error {
		var got int
		if err := tx.QueryRow("SELECT * FROM pragma_synchronous").Scan(&got); err != nil || got != 2 {
			t.Errorf("synchronous is %d (%v), want 2", got, err)
		}
		return check(tx)
	})
	if err := db.Read(context.Background(), check); err != nil {
		t.Error(err)
	}
}

func TestSchemaGolden(t *testing.T) {
	db := newDB(t)
	got, err := store.Schema(context.Background(), db)
	if err != nil {
		t.Fatal(err)
	}
	want := `CREATE TABLE item ( id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, body BLOB NOT NULL ) STRICT;
CREATE INDEX item_body ON item (body);
CREATE TABLE part ( id INTEGER PRIMARY KEY, item INTEGER NOT NULL REFERENCES item (id) ON DELETE CASCADE ) STRICT;
CREATE TABLE store_meta ( id INTEGER PRIMARY KEY CHECK (id = 1), clean INTEGER NOT NULL CHECK (clean IN (0, 1)), service_seconds INTEGER NOT NULL CHECK (service_seconds >= 0) ) STRICT;
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("schema (-want +got):\n%s", diff)
	}
}

func TestMigrations(t *testing.T) {
	good := "CREATE TABLE t (id INTEGER PRIMARY KEY) STRICT;"
	tests := map[string]struct {
		files fstest.MapFS
		want  string // part of the error, "" for success
	}{
		"none":        {fstest.MapFS{}, ""},
		"gap":         {fstest.MapFS{"0001_a.sql": {Data: []byte(good)}, "0003_b.sql": {}}, "want number 0002 next"},
		"odd name":    {fstest.MapFS{"1_a.sql": {}}, "want a name like"},
		"starts at 2": {fstest.MapFS{"0002_a.sql": {}}, "want number 0001 next"},
		"broken SQL":  {fstest.MapFS{"0001_a.sql": {Data: []byte(good + "CREATE TABLE u (;")}}, "0001_a.sql"},
		"not strict":  {fstest.MapFS{"0001_a.sql": {Data: []byte("CREATE TABLE t (id INTEGER PRIMARY KEY);")}}, "table t is not STRICT"},
		"foreign key": {fstest.MapFS{"0001_a.sql": {Data: []byte(good +
			"CREATE TABLE u (t INTEGER REFERENCES t (id)) STRICT; INSERT INTO u VALUES (7);")}}, "broken foreign key"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := options(filepath.Join(t.TempDir(), "test.db"))
			o.Migrations = tt.files
			db, err := store.Open(context.Background(), o)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want one with %q", err, tt.want)
			}
			// Whatever the failed one did is undone, and another try works.
			o.Migrations = fstest.MapFS{"0001_a.sql": {Data: []byte(good)}}
			db, err = store.Open(context.Background(), o)
			if err != nil {
				t.Fatalf("open after a failed migration: %v", err)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("step by step", func(t *testing.T) {
		o := options(filepath.Join(t.TempDir(), "test.db"))
		o.Migrations = fstest.MapFS{"0001_items.sql": testSchema()["0001_items.sql"]}
		db, err := store.Open(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		write(t, db, func(tx *store.Tx) error { return insert(tx, "old") })
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = open(t, o.Path)
		write(t, db, func(tx *store.Tx) error {
			_, err := tx.Exec("INSERT INTO part (item) SELECT id FROM item")
			return err
		})
	})
}

func TestValues(t *testing.T) {
	type id [4]byte
	type name string
	type count uint16
	blob := []byte{1, 0, 2}
	key := [32]byte{31: 9}
	tests := map[string]struct {
		arg  any
		dest any // pointer
		want any
	}{
		"int64":        {int64(math.MinInt64), new(int64), int64(math.MinInt64)},
		"int":          {-5, new(int), -5},
		"uint64":       {uint64(math.MaxInt64), new(uint64), uint64(math.MaxInt64)},
		"uint32":       {uint32(math.MaxUint32), new(uint32), uint32(math.MaxUint32)},
		"uint8":        {uint8(255), new(uint8), uint8(255)},
		"named int":    {count(7), new(count), count(7)},
		"true":         {true, new(bool), true},
		"false":        {false, new(bool), false},
		"float":        {1.5, new(float64), 1.5},
		"text":         {"täxt\x00\U0001F600", new(string), "täxt\x00\U0001F600"},
		"empty text":   {"", new(string), ""},
		"named text":   {name("n"), new(name), name("n")},
		"blob":         {blob, new([]byte), blob},
		"empty blob":   {[]byte{}, new([]byte), []byte{}},
		"nil blob":     {[]byte(nil), new([]byte), []byte{}},
		"key":          {key, new([32]byte), key},
		"named array":  {id{1, 2}, new(id), id{1, 2}},
		"null blob":    {nil, new([]byte), []byte(nil)},
		"null":         {nil, new(sql.Null[int64]), sql.Null[int64]{}},
		"not null":     {3, new(sql.Null[int64]), sql.Null[int64]{V: 3, Valid: true}},
		"any":          {int64(4), new(any), any(int64(4))},
		"int as float": {4, new(float64), 4.0},
	}
	db := newDB(t)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := db.Read(context.Background(), func(tx *store.Tx) error {
				return tx.QueryRow("SELECT ?", tt.arg).Scan(tt.dest)
			})
			if err != nil {
				t.Fatal(err)
			}
			got := reflectElem(tt.dest)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("value (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("large blob", func(t *testing.T) {
		want := bytes.Repeat([]byte{7}, 5<<20) // above the largest payload
		var got []byte
		err := db.Read(context.Background(), func(tx *store.Tx) error {
			return tx.QueryRow("SELECT ?", want).Scan(&got)
		})
		if err != nil || !bytes.Equal(want, got) {
			t.Errorf("%d bytes, %v; want %d as written", len(got), err, len(want))
		}
	})
	bad := map[string]struct{ arg, dest any }{
		"null into int":      {nil, new(int)},
		"null into text":     {nil, new(string)},
		"null into key":      {nil, new([32]byte)},
		"text into int":      {"5", new(int)},
		"int into text":      {5, new(string)},
		"blob into text":     {[]byte("a"), new(string)},
		"text into blob":     {"a", new([]byte)},
		"short key":          {make([]byte, 31), new([32]byte)},
		"long key":           {make([]byte, 33), new([32]byte)},
		"overflow int8":      {200, new(int8)},
		"negative into uint": {-1, new(uint64)},
		"uint64 too large":   {uint64(math.MaxInt64) + 1, new(uint64)},
		"struct":             {struct{}{}, new(int)},
		"not a pointer":      {1, 1},
	}
	for name, tt := range bad {
		t.Run(name, func(t *testing.T) {
			err := db.Read(context.Background(), func(tx *store.Tx) error {
				return tx.QueryRow("SELECT ?", tt.arg).Scan(tt.dest)
			})
			if err == nil {
				t.Errorf("got %v, want an error", reflectElem(tt.dest))
			}
		})
	}
}

func TestRows(t *testing.T) {
	db := newDB(t)
	write(t, db, func(tx *store.Tx) error {
		for i := range 5 {
			if err := insert(tx, fmt.Sprint(i)); err != nil {
				return err
			}
		}
		return nil
	})
	const query = "SELECT id, name, body FROM item ORDER BY id"
	var leaked *store.Rows
	err := db.Read(context.Background(), func(tx *store.Tx) error {
		// The same statement nested in itself, and blobs kept past Next.
		outer, err := tx.Query(query)
		if err != nil {
			return err
		}
		var bodies [][]byte
		for outer.Next() {
			var id int
			var name string
			var body []byte
			if err := outer.Scan(&id, &name, &body); err != nil {
				return err
			}
			bodies = append(bodies, body)
			inner, err := tx.Query(query)
			if err != nil {
				return err
			}
			n := 0
			for inner.Next() {
				n++
			}
			if n != 5 {
				t.Errorf("inner query gave %d rows, want 5", n)
			}
		}
		if err := outer.Err(); err != nil {
			return err
		}
		if got := string(bytes.Join(bodies, nil)); got != "01234" {
			t.Errorf("bodies %q, want 01234", got)
		}
		if err := tx.QueryRow("SELECT id FROM item WHERE name = ?", "none").Scan(new(int)); !errors.Is(err, store.ErrNoRows) {
			t.Errorf("no row: %v, want ErrNoRows", err)
		}
		if err := tx.QueryRow("SELECT id, name FROM item").Scan(new(int)); err == nil {
			t.Error("two columns into one destination: no error")
		}
		leaked, err = tx.Query(query)
		leaked.Next()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if leaked.Next() {
		t.Error("rows go on after the transaction")
	}
	if err := leaked.Scan(new(int), new(string), new([]byte)); err == nil {
		t.Error("scan after the transaction: no error")
	}
	// RETURNING writes.
	write(t, db, func(tx *store.Tx) error {
		var id int64
		return tx.QueryRow("INSERT INTO item (name, body) VALUES (?, ?) RETURNING id", "r", nil2).Scan(&id)
	})
	if got := names(t, db); !slices.Contains(got, "r") {
		t.Errorf("names %q lack the one inserted with RETURNING", got)
	}
}

var nil2 []byte

func TestForbiddenStatements(t *testing.T) {
	db := newDB(t)
	write(t, db, func(tx *store.Tx) error { return insert(tx, "before") })
	for _, query := range []string{
		"COMMIT", "ROLLBACK", "BEGIN", "END", "SAVEPOINT x", "RELEASE one", "ATTACH ':memory:' AS x",
		"PRAGMA synchronous = OFF", " -- hidden\n /* twice */ ; ROLLBACK", "VACUUM", "DROP TABLE item",
		"INSERT OR ROLLBACK INTO item (name, body) VALUES ('before', x'')",
	} {
		err := db.Write(context.Background(), func(tx *store.Tx) error {
			if err := insert(tx, "with "+query); err != nil {
				t.Error(err)
			}
			_, err := tx.Exec(query)
			return err
		})
		if !errors.Is(err, store.ErrStatement) {
			t.Errorf("%s: %v, want ErrStatement", query, err)
		}
	}
	for _, query := range []string{
		"INSERT INTO item (name, body) VALUES ('x', x'')", "DELETE FROM item",
		"WITH a AS (SELECT 1) DELETE FROM item", "COMMIT", "PRAGMA query_only = OFF",
	} {
		err := db.Read(context.Background(), func(tx *store.Tx) error {
			_, err := tx.Exec(query)
			return err
		})
		if err == nil {
			t.Errorf("%s in Read: no error", query)
		}
	}
	if diff := cmp.Diff([]string{"before"}, names(t, db)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestConstraintKinds(t *testing.T) {
	db := newDB(t)
	write(t, db, func(tx *store.Tx) error {
		if err := insert(tx, "a"); err != nil {
			return err
		}
		if err := insert(tx, "a"); !store.IsUnique(err) || !store.IsConstraint(err) {
			t.Errorf("same name: %v, want a unique constraint", err)
		}
		if _, err := tx.Exec("INSERT INTO part (item) VALUES (99)"); !store.IsConstraint(err) || store.IsUnique(err) {
			t.Errorf("no such item: %v, want a foreign key constraint", err)
		}
		// A closure may go on after such an error.
		return insert(tx, "b")
	})
	if diff := cmp.Diff([]string{"a", "b"}, names(t, db)); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestReadIsOneSnapshotAndDoesNotWait(t *testing.T) {
	db := newDB(t)
	write(t, db, func(tx *store.Tx) error { return insert(tx, "a") })
	count := func(tx *store.Tx) (n int) {
		if err := tx.QueryRow("SELECT count(*) FROM item").Scan(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	err := db.Read(context.Background(), func(tx *store.Tx) error {
		if n := count(tx); n != 1 {
			t.Errorf("first look: %d rows, want 1", n)
		}
		// A write and a read within the read's function only to order events;
		// they run on other goroutines' terms.
		done := make(chan error)
		go func() { done <- db.Write(context.Background(), func(tx *store.Tx) error { return insert(tx, "b") }) }()
		if err := <-done; err != nil {
			return err
		}
		if n := count(tx); n != 1 {
			t.Errorf("second look: %d rows, want 1: not the same snapshot", n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// A reader in the middle of a write transaction sees what is committed.
	write(t, db, func(tx *store.Tx) error {
		if err := insert(tx, "c"); err != nil {
			return err
		}
		done := make(chan error)
		go func() {
			done <- db.Read(context.Background(), func(tx *store.Tx) error {
				if n := count(tx); n != 2 {
					t.Errorf("during a write: %d rows, want 2", n)
				}
				return nil
			})
		}()
		return <-done
	})
}

func TestReadStopsWithContext(t *testing.T) {
	db := newDB(t)
	write(t, db, func(tx *store.Tx) error { return errors.Join(insert(tx, "a"), insert(tx, "b")) })
	ctx, cancel := context.WithCancel(context.Background())
	err := db.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.Query("SELECT name FROM item")
		if err != nil {
			return err
		}
		if !rows.Next() {
			t.Error("no first row")
		}
		cancel()
		if rows.Next() {
			t.Error("rows go on after the context ended")
		}
		return rows.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if err := db.Read(ctx, func(*store.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("read with an ended context: %v", err)
	}
}

func TestServiceTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	// A hundred years asleep between the runs count nothing.
	for run, want := range []int64{0, 90, 180} {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Duration(run) * 100 * 365 * 24 * time.Hour)
			db, err := store.Open(context.Background(), options(path))
			if err != nil {
				t.Fatal(err)
			}
			if got := db.ServiceTime(); got != want {
				t.Errorf("run %d begins at %d, want %d", run, got, want)
			}
			time.Sleep(90 * time.Second)
			if got := db.ServiceTime(); got != want+90 {
				t.Errorf("run %d after 90 s: %d, want %d", run, got, want+90)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestServiceTimeIsStoredOnTheWay(t *testing.T) {
	stored := func(t *testing.T, db *store.DB) (n int64) {
		t.Helper()
		err := db.Read(context.Background(), func(tx *store.Tx) error {
			return tx.QueryRow("SELECT service_seconds FROM store_meta").Scan(&n)
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	path := filepath.Join(t.TempDir(), "test.db")
	synctest.Test(t, func(t *testing.T) {
		db, err := store.Open(context.Background(), options(path))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		steps := []struct {
			sleep time.Duration
			write bool
			want  int64
		}{
			{9 * time.Minute, true, 0},  // too early
			{2 * time.Minute, false, 0}, // due, but nothing commits
			{0, true, 660},              // carried by a commit
			{time.Minute, true, 660},    // again too early
			{48*time.Minute - 1, false, 660},
			{2, false, 3600}, // by itself after an hour
		}
		for i, s := range steps {
			time.Sleep(s.sleep)
			synctest.Wait()
			if s.write {
				write(t, db, func(tx *store.Tx) error { return insert(tx, fmt.Sprint(i)) })
			}
			if got := stored(t, db); got != s.want {
				t.Errorf("step %d: %d stored, want %d", i, got, s.want)
			}
		}
	})
}

func TestServiceTimeWithABackwardClock(t *testing.T) {
	now := time.Unix(1000, 0)
	o := options(filepath.Join(t.TempDir(), "test.db"))
	o.Now = func() time.Time { return now }
	db, err := store.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	now = now.Add(50 * time.Second)
	if got := db.ServiceTime(); got != 50 {
		t.Errorf("service time %d, want 50", got)
	}
	now = time.Unix(0, 0)
	if got := db.ServiceTime(); got != 50 {
		t.Errorf("service time went to %d, want 50", got)
	}
}

func TestStats(t *testing.T) {
	db := newDB(t)
	before := db.Stats()
	write(t, db, func(tx *store.Tx) error { return insert(tx, "a") })
	names(t, db)
	after := db.Stats()
	if after.Commits-before.Commits != 1 || after.Writes-before.Writes != 1 || after.Reads-before.Reads != 1 {
		t.Errorf("stats went from %+v to %+v, want one commit, write and read more", before, after)
	}
	if after.FileBytes == 0 || after.WALBytes == 0 {
		t.Errorf("stats %+v: sizes are missing", after)
	}
}

func TestServerMigrationsAreReadable(t *testing.T) {
	o := options(filepath.Join(t.TempDir(), "test.db"))
	o.Migrations = store.ServerMigrations()
	db, err := store.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}
