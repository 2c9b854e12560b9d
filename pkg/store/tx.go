package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
)

// ErrNoRows is what [Row.Scan] returns when the query had no row.
var ErrNoRows = sql.ErrNoRows

// Tx is a transaction, valid only within the function it was passed to and only
// on that goroutine.
type Tx struct {
	db     *DB
	conn   *conn
	ctx    context.Context
	writer *writer // nil in a read transaction

	over      bool
	dirty     bool // a write statement has been tried
	savepoint bool // a savepoint was set before it
	lost      error
	bytes     int
	after     []func()
	undone    []func()
	open      []*Rows
}

// Result tells what a statement changed.
type Result struct {
	RowsAffected int64 // rows inserted, updated or deleted by the statement itself
	LastInsertID int64 // rowid of the last INSERT on the connection
}

// Context returns the context given to Read or Write.
func (tx *Tx) Context() context.Context { return tx.ctx }

// Exec runs one INSERT, UPDATE, DELETE or REPLACE.
//
// Statements are prepared once per connection and kept by their text, so pass
// constants. Arguments stand for the ?s in order: integers (uint64 up to
// 2^63-1), bool (as 0 or 1), float64, string, []byte, byte arrays, named types
// of these, and nil for NULL. A nil []byte is an empty blob, not NULL. SQLite
// copies them.
//
// An error means that this statement had no effect; those before it still have.
func (tx *Tx) Exec(query string, args ...any) (Result, error) {
	s, named, err := tx.ready(query, args)
	if err != nil {
		return Result{}, err
	}
	r, err := s.exec.ExecContext(context.Background(), named)
	if !tx.conn.cached(query, s) {
		err = errors.Join(err, s.raw.Close())
	}
	if err != nil {
		return Result{}, tx.failed(query, err)
	}
	var out Result
	out.RowsAffected, _ = r.RowsAffected() // neither driver fails here
	out.LastInsertID, _ = r.LastInsertId()
	return out, nil
}

// Query runs a query, or a write statement with RETURNING, in which case all
// its rows must be read for it to be carried out. Arguments are as for Exec.
// The rows are closed at the latest when the transaction's function returns.
func (tx *Tx) Query(query string, args ...any) (*Rows, error) {
	s, named, err := tx.ready(query, args)
	if err != nil {
		return nil, err
	}
	rows, err := s.query.QueryContext(context.Background(), named)
	if err != nil {
		if !tx.conn.cached(query, s) {
			s.raw.Close() // repeats the error
		}
		return nil, tx.failed(query, err)
	}
	s.busy = true
	r := &Rows{tx: tx, query: query, stmt: s, raw: rows, values: make([]driver.Value, len(rows.Columns()))}
	tx.open = append(tx.open, r)
	return r, nil
}

// QueryRow runs a query of which only the first row is wanted.
func (tx *Tx) QueryRow(query string, args ...any) *Row {
	rows, err := tx.Query(query, args...)
	return &Row{rows: rows, err: err}
}

// AfterCommit registers fn to run once the transaction is durably committed and
// before its caller is answered; not when it fails. The functions of all
// transactions run one after the other in commit order on the writer goroutine:
// they must be quick, must not block, and must not use the database. Within
// Read they are ignored.
func (tx *Tx) AfterCommit(fn func()) { tx.after = append(tx.after, fn) }

// AfterRollback registers fn to run when what the function has written is
// undone: because it returned an error, or because the commit that it was part
// of failed. It is for state in memory that follows the transaction, and runs
// on the writer goroutine before any later function, under the rules of
// AfterCommit.
func (tx *Tx) AfterRollback(fn func()) { tx.undone = append(tx.undone, fn) }

// ready prepares and binds a statement, and marks the transaction dirty if it
// may write.
func (tx *Tx) ready(query string, args []any) (*stmt, []driver.NamedValue, error) {
	switch {
	case tx.over:
		return nil, nil, ErrTxDone
	case tx.lost != nil:
		return nil, nil, tx.lost
	}
	s, err := tx.conn.prepare(query, false)
	if err != nil {
		return nil, nil, tx.failed(query, err)
	}
	named, size, err := tx.conn.bind(args)
	switch {
	case err != nil:
	case s.kind == kindWrite && tx.writer == nil:
		err = fmt.Errorf("%w: %s", ErrStatement, firstWord(query))
	case s.kind != kindRead && tx.writer != nil:
		tx.bytes += size
		err = tx.soil()
	}
	if err != nil {
		if !tx.conn.cached(query, s) {
			err = errors.Join(err, s.raw.Close())
		}
		return nil, nil, tx.failed(query, err)
	}
	return s, named, nil
}

// soil prepares for the first write of this function: from here on a failure
// costs something. The first function of a batch that writes needs no savepoint,
// since what it may have to undo is all there is.
func (tx *Tx) soil() error {
	if tx.dirty {
		return nil
	}
	if tx.writer.dirty {
		if err := tx.conn.control("SAVEPOINT one"); err != nil {
			return err
		}
		tx.savepoint = true
	}
	tx.dirty, tx.writer.dirty = true, true
	return nil
}

// failed wraps a statement's error, and notes when it may have cost the whole
// transaction.
func (tx *Tx) failed(query string, err error) error {
	if tx.writer != nil && losesTransaction(err) {
		tx.lost = tx.db.explain(err)
	}
	return fmt.Errorf("%w (in %s)", tx.db.explain(err), abridge(query))
}

// abridge cuts a statement to a length fit for a log line.
func abridge(query string) string {
	const limit = 80
	if len(query) > limit {
		return query[:limit] + "..."
	}
	return query
}

// end closes what the function left open.
func (tx *Tx) end() {
	for _, r := range tx.open {
		r.Close() // its error is in r for whoever reads on
	}
	tx.open = nil
	tx.over = true
}

// Rows are the result of a query, used like this:
//
//	for rows.Next() {
//		if err := rows.Scan(&a, &b); err != nil { ... }
//	}
//	if err := rows.Err(); err != nil { ... }
type Rows struct {
	tx     *Tx
	query  string
	stmt   *stmt
	raw    driver.Rows
	values []driver.Value
	err    error
	row    bool // values holds a row
	closed bool
}

// Next moves to the next row. After the last one, or an error, it closes the
// rows and returns false. It stops when the context of the transaction ends,
// in Read only: a write goes on.
func (r *Rows) Next() bool {
	r.row = false
	if r.closed {
		return false
	}
	if r.tx.writer == nil {
		if err := r.tx.ctx.Err(); err != nil {
			r.err = err
			r.Close()
			return false
		}
	}
	err := r.raw.Next(r.values)
	if err == nil {
		r.row = true
		return true
	}
	if !errors.Is(err, io.EOF) {
		r.err = r.tx.failed(r.query, err)
	}
	r.Close()
	return false
}

// Scan stores the columns of the current row in dest, in order: pointers to
// integers and bool (from INTEGER, an error when it does not fit), float64,
// string (TEXT), []byte (BLOB, or nil for NULL), byte arrays (a BLOB of exactly
// that length), any, or sql.Null and other sql.Scanners. What it stores is a
// copy.
func (r *Rows) Scan(dest ...any) error {
	if !r.row {
		return errors.Join(r.err, fmt.Errorf("scan without a row: %w", ErrTxDone))
	}
	if err := scanAll(r.values, dest); err != nil {
		return fmt.Errorf("%w (in %s)", err, abridge(r.query))
	}
	return nil
}

// Err returns the error that ended the rows, nil at their regular end.
func (r *Rows) Err() error { return r.err }

// Close ends the query. Calling it again, or after the last row, does nothing.
func (r *Rows) Close() error {
	if r.closed {
		return nil
	}
	r.closed, r.row = true, false
	r.stmt.busy = false
	err := r.raw.Close()
	if !r.tx.conn.cached(r.query, r.stmt) {
		err = errors.Join(err, r.stmt.raw.Close())
	}
	if n := len(r.tx.open); n > 0 && r.tx.open[n-1] == r {
		r.tx.open = r.tx.open[:n-1]
	}
	if err != nil && r.err == nil {
		r.err = r.tx.failed(r.query, err)
	}
	return r.err
}

// Row is the first row of a query.
type Row struct {
	rows *Rows
	err  error
}

// Scan stores the row as [Rows.Scan] does; no row is [ErrNoRows].
func (r *Row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return errors.Join(err, r.rows.Close())
	}
	return r.rows.Close()
}
