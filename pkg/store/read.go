package store

import (
	"context"
	"errors"
	"fmt"
)

// Read runs fn in a read transaction: all its queries see the same snapshot,
// taken at the first of them and at least as new as every write acknowledged
// before. It waits for a connection of the pool, or the end of ctx, but never
// for a writer. Its error is fn's.
//
// Keep fn short: while it runs, the write-ahead log cannot start over. It must
// not call Read, which could wait for itself, nor Write, whose effect it would
// not see.
func (db *DB) Read(ctx context.Context, fn func(tx *Tx) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	var c *conn
	select {
	case <-db.closing:
		return ErrClosed
	default:
	}
	select {
	case c = <-db.readers:
	case <-ctx.Done():
		return ctx.Err()
	case <-db.closing:
		return ErrClosed
	}
	defer func() { db.readers <- c }()
	if err := c.control("BEGIN DEFERRED"); err != nil {
		return fmt.Errorf("begin to read: %w", db.explain(err))
	}
	tx := &Tx{db: db, conn: c, ctx: ctx}
	defer func() {
		tx.end()
		// COMMIT of a transaction that only read cannot fail for lack of
		// anything; ROLLBACK ends it however it stands.
		if e := c.control("ROLLBACK"); e != nil {
			err = errors.Join(err, fmt.Errorf("end reading: %w", db.explain(e)))
		}
	}()
	db.reads.Add(1)
	return fn(tx)
}
