package store

import (
	"database/sql/driver"
	"errors"
	"fmt"
)

// metaSchema is the store's own table, one row. It is made with the file and is
// no part of the caller's migrations.
//
// clean is 1 from the last commit of a regular Close to the first commit of the
// next Open; so whatever ends a run otherwise, it reads 0.
const metaSchema = `
CREATE TABLE store_meta (
	id              INTEGER PRIMARY KEY CHECK (id = 1),
	clean           INTEGER NOT NULL CHECK (clean IN (0, 1)),
	service_seconds INTEGER NOT NULL CHECK (service_seconds >= 0)
) STRICT;
INSERT INTO store_meta (id, clean, service_seconds) VALUES (1, 1, 0);
`

// meta is the row of store_meta.
type meta struct {
	clean          bool
	serviceSeconds int64
}

// storeMeta writes the row, outside a transaction: durably, by itself.
func (c *conn) storeMeta(clean bool, seconds int64) error {
	return c.control("UPDATE store_meta SET clean = ?, service_seconds = ? WHERE id = 1", clean, seconds)
}

// examine reads the meta row and, after an unclean stop, checks the database.
// It writes nothing.
func (db *DB) examine(c *conn) (meta, error) {
	var m meta
	if err := c.value("SELECT clean, service_seconds FROM store_meta WHERE id = 1", &m.clean, &m.serviceSeconds); err != nil {
		if code := primaryCode(err); code == codeCorrupt || code == codeNotADB {
			return m, db.refusal("read", err)
		}
		return m, &Refusal{Kind: ErrCorrupt, Path: db.path, Detail: "its table store_meta cannot be read; restore a backup", Cause: err}
	}
	if m.clean {
		return m, nil
	}
	check := "quick_check"
	if fileSize(db.path)+fileSize(db.path+"-wal") <= fullCheckBytes {
		check = "integrity_check"
	}
	db.log.Info("database was not closed cleanly, checking it", "path", db.path, "check", check)
	var findings []string
	err := c.each(fmt.Sprintf("PRAGMA %s(%d)", check, maxFindings), func(row []driver.Value) error {
		if s, ok := row[0].(string); ok && s != "ok" {
			findings = append(findings, s)
		}
		return nil
	})
	if err != nil {
		if primaryCode(err) != codeCorrupt && primaryCode(err) != codeNotADB {
			return m, fmt.Errorf("check %s: %w", db.path, db.explain(err))
		}
		findings = append(findings, err.Error())
	}
	if len(findings) == 0 {
		if err := c.foreignKeyCheck(); errors.Is(err, errForeignKey) {
			findings = append(findings, err.Error())
		} else if err != nil {
			return m, fmt.Errorf("check %s: %w", db.path, db.explain(err))
		}
	}
	if len(findings) > 0 {
		return m, &Refusal{Kind: ErrCorrupt, Path: db.path, Detail: "restore a backup; the check found: " + oneLine(findings)}
	}
	return m, nil
}

// errForeignKey: a row refers to one that is not there.
var errForeignKey = errors.New("broken foreign key")

// foreignKeyCheck looks for rows whose foreign key leads nowhere.
func (c *conn) foreignKeyCheck() error {
	return c.each("PRAGMA foreign_key_check", func(row []driver.Value) error {
		return fmt.Errorf("%w: table %v, row %v, refers to %v", errForeignKey, row[0], row[1], row[2])
	})
}

// checkpoint copies the write-ahead log into the database. Mode RESTART makes
// the next write start the log over, TRUNCATE also empties its file; both wait
// for readers, at most busyTimeout.
func (c *conn) checkpoint(mode string) error {
	var busy, pages, copied int64
	if err := c.value("PRAGMA wal_checkpoint("+mode+")", &busy, &pages, &copied); err != nil {
		return err
	}
	if busy != 0 {
		return errCheckpointBusy
	}
	return nil
}

// copyLog copies what it can of the write-ahead log into the database without
// waiting for anybody, and reports whether that was all: the log then starts
// over in its own place.
func (c *conn) copyLog() (all bool, err error) {
	var busy, pages, copied int64
	err = c.value("PRAGMA wal_checkpoint(PASSIVE)", &busy, &pages, &copied)
	return err == nil && busy == 0 && pages == copied, err
}

// errCheckpointBusy: a reader kept the log from starting over.
var errCheckpointBusy = errors.New("a reader is in the way")
