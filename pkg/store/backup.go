package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Backup writes a consistent copy of the database to path, where no file may
// be: what a read at this moment sees. Reads and writes go on meanwhile; one
// read connection is taken out of the pool. The copy is complete, synced and of
// mode 0600 when Backup returns nil, and gone otherwise. It is compact: what
// was deleted is not in it.
//
// The copy is a database as [Open] takes it, marked as not closed cleanly, so
// that it is checked when it is opened. Its size is at most that of the
// database (the file and its log, see [DB.Stats]).
func (db *DB) Backup(ctx context.Context, path string) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var c *conn
	select {
	case c = <-db.readers:
	case <-ctx.Done():
		return ctx.Err()
	case <-db.closing:
		return ErrClosed
	}
	defer func() { db.readers <- c }()
	watching := make(chan struct{})
	go func() { // a shutdown does not wait for a copy
		defer close(watching)
		select {
		case <-db.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(); <-watching }()

	// A read connection may write nothing, into another file neither.
	if err := c.script("PRAGMA query_only = OFF"); err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	defer func() { err = errors.Join(err, c.script("PRAGMA query_only = ON")) }()
	return c.copyTo(ctx, path)
}

// copyTo writes a copy to a file that must not exist.
func (c *conn) copyTo(ctx context.Context, path string) (err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	// SQLite writes into an empty file that exists, and so keeps its mode.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("copy the database: %w", err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			os.Remove(path + "-journal")
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := c.vacuumInto(ctx, path); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return fmt.Errorf("copy the database: %w", cause)
		}
		return fmt.Errorf("copy the database: %w", explainAt(filepath.Dir(path), err))
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync the copy of the database: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("sync the copy of the database: %w", err)
	}
	return nil
}

// vacuumInto runs VACUUM INTO, which reads in one transaction of its own.
func (c *conn) vacuumInto(ctx context.Context, path string) error {
	e, ok := c.raw.(driver.ExecerContext)
	if !ok {
		return fmt.Errorf("driver %s runs no scripts", driverName)
	}
	_, err := e.ExecContext(ctx, "VACUUM INTO '"+strings.ReplaceAll(path, "'", "''")+"'", nil)
	return err
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Check looks for damage and returns what it finds, at most a few findings. It
// reads the whole database, beside the writer and other readers.
func (db *DB) Check(ctx context.Context) (findings []string, err error) {
	err = db.Read(ctx, func(tx *Tx) error {
		findings, err = tx.conn.quickCheck(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", db.path, db.explain(err))
	}
	return findings, nil
}

// quickCheck runs SQLite's quick_check.
func (c *conn) quickCheck(ctx context.Context) (findings []string, err error) {
	err = c.each(fmt.Sprintf("PRAGMA quick_check(%d)", maxFindings), func(row []driver.Value) error {
		if s, ok := row[0].(string); ok && s != "ok" {
			findings = append(findings, s)
		}
		return ctx.Err()
	})
	if err != nil && (primaryCode(err) == codeCorrupt || primaryCode(err) == codeNotADB) {
		return append(findings, err.Error()), nil
	}
	return findings, err
}

// Inspection is what [Inspect] finds.
type Inspection struct {
	Schema    int      // the number of its newest migration
	Newest    int      // the newest one that this program knows
	FileBytes int64    // with its log
	Clean     bool     // it was closed cleanly
	Findings  []string // damage; none is good
}

// Inspect looks at a database that nobody has open, without migrating it or
// marking it as used. It refuses what [Open] refuses, and a file that is not
// there with [fs.ErrNotExist].
func Inspect(ctx context.Context, o Options) (found Inspection, err error) {
	err = withClosed(ctx, o, func(db *DB, c *conn, newest int) error {
		found = Inspection{Newest: newest, FileBytes: fileSize(db.path) + fileSize(db.path+"-wal")}
		err := c.value("PRAGMA user_version", &found.Schema)
		if err == nil {
			err = c.value("SELECT clean FROM store_meta WHERE id = 1", &found.Clean)
		}
		if err == nil {
			found.Findings, err = c.quickCheck(ctx)
		}
		return err
	}, func() bool { return len(found.Findings) > 0 })
	return found, err
}

// BackupClosed writes a copy of a database that nobody has open, as
// [DB.Backup] does, without migrating it or marking it as used. It returns the
// number of its newest migration.
func BackupClosed(ctx context.Context, o Options, path string) (schema int, err error) {
	err = withClosed(ctx, o, func(db *DB, c *conn, _ int) error {
		if err := c.value("PRAGMA user_version", &schema); err != nil {
			return err
		}
		return c.copyTo(ctx, path)
	}, func() bool { return false })
	return schema, err
}

// withClosed opens a database for fn alone. When damaged says so afterwards the
// files are left as they are.
func withClosed(ctx context.Context, o Options, fn func(db *DB, c *conn, newest int) error, damaged func() bool) (err error) {
	if err := o.fill(); err != nil {
		return err
	}
	migrations, err := parseMigrations(o.Migrations)
	if err != nil {
		return err
	}
	path, err := resolve(o.Path)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("look at the database: %w", err)
	}
	file, err := claim(ctx, path, o.ApplicationID, len(migrations))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	db := &DB{path: path, log: o.Logger, file: file}
	if db.engine, err = newEngine(path, file); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.engine.close()) }()
	c, err := db.openWriter(ctx)
	if err != nil {
		return err
	}
	if err = fn(db, c, len(migrations)); err != nil {
		err = db.refusal("look at", err)
	}
	if damaged() {
		return errors.Join(err, db.giveUp(c)) // the evidence stays
	}
	return errors.Join(err, c.close())
}
