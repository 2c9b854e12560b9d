package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"
)

// conn is one connection and its prepared statements. It belongs to one
// goroutine at a time.
type conn struct {
	raw   driver.Conn
	stmts map[string]*stmt
	tick  uint64              // counts uses, to find the statement unused longest
	args  []driver.NamedValue // scratch space of bind
}

// stmt is a prepared statement.
type stmt struct {
	raw   driver.Stmt
	exec  driver.StmtExecContext
	query driver.StmtQueryContext
	kind  stmtKind
	used  uint64 // conn.tick at its last use
	busy  bool   // its rows are being read
}

// stmtKind is what a statement may do.
type stmtKind uint8

const (
	kindRead    stmtKind = iota + 1 // begins with SELECT or VALUES
	kindWith                        // begins with WITH: reads or writes
	kindWrite                       // INSERT, REPLACE, UPDATE, DELETE
	kindControl                     // everything else: would reach beyond its transaction
)

// writerPragmas are set once on the write connection. Of these only the order
// of the first matters: before it a locked file would be an error at once.
// What the file itself keeps (page_size, application_id, WAL) is set when it is
// created.
func writerPragmas() []string {
	return append(commonPragmas(),
		"PRAGMA synchronous = FULL", // sync the log at every commit
		fmt.Sprintf("PRAGMA cache_size = -%d", writerCacheKiB),
		fmt.Sprintf("PRAGMA wal_autocheckpoint = %d", checkpointPages),
		fmt.Sprintf("PRAGMA journal_size_limit = %d", walKeepBytes),
	)
}

// readerPragmas are set once on each read connection.
func readerPragmas() []string {
	return append(commonPragmas(),
		fmt.Sprintf("PRAGMA cache_size = -%d", readerCacheKiB),
		"PRAGMA query_only = ON",
	)
}

func commonPragmas() []string {
	return []string{
		fmt.Sprintf("PRAGMA busy_timeout = %d", busyTimeout.Milliseconds()),
		"PRAGMA foreign_keys = ON",
		"PRAGMA temp_store = MEMORY",     // no temporary files on flash
		"PRAGMA mmap_size = 0",           // an I/O error must be an error, not SIGBUS
		"PRAGMA trusted_schema = OFF",    // a doctored file calls no functions
		"PRAGMA cell_size_check = ON",    // notice damaged pages when they are read
		"PRAGMA recursive_triggers = ON", // REPLACE fires delete triggers
	}
}

// openConn opens a connection.
func openConn(ctx context.Context, e engine) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	raw, err := e.connect(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{raw: raw, stmts: make(map[string]*stmt)}, nil
}

// close finalizes the statements and closes the connection.
func (c *conn) close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.raw.Close())
	}
	c.stmts = nil
	errs = append(errs, c.raw.Close())
	return errors.Join(errs...)
}

// script runs SQL of any number of statements, without arguments or results.
func (c *conn) script(sql string) error {
	e, ok := c.raw.(driver.ExecerContext)
	if !ok {
		return fmt.Errorf("driver %s runs no scripts", driverName)
	}
	_, err := e.ExecContext(context.Background(), sql, nil)
	return err
}

// control runs one statement of ours, such as COMMIT, from the cache.
func (c *conn) control(query string, args ...any) error {
	s, err := c.prepare(query, true)
	if err != nil {
		return err
	}
	named, _, err := c.bind(args)
	if err != nil {
		return err
	}
	_, err = s.exec.ExecContext(context.Background(), named)
	return err
}

// value scans the first row of query into dest; no row is sql.ErrNoRows.
func (c *conn) value(query string, dest ...any) error {
	found := false
	err := c.each(query, func(values []driver.Value) error {
		if found {
			return nil
		}
		found = true
		return scanAll(values, dest)
	})
	if err == nil && !found {
		return sql.ErrNoRows
	}
	return err
}

// each calls fn with every row of query. The values are gone after fn.
func (c *conn) each(query string, fn func([]driver.Value) error) error {
	s, err := c.prepare(query, true)
	if err != nil {
		return err
	}
	rows, err := s.query.QueryContext(context.Background(), nil)
	if err != nil {
		return err
	}
	values := make([]driver.Value, len(rows.Columns()))
	for {
		if err = rows.Next(values); err != nil {
			break
		}
		if err = fn(values); err != nil {
			break
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, rows.Close())
}

// prepare returns the cached statement for query. One whose rows are being
// read is not handed out twice: the second caller gets one of its own, which
// its rows close. A statement of kindControl is refused before the driver sees
// it unless ours: some pragmas take effect while they are prepared.
func (c *conn) prepare(query string, ours bool) (*stmt, error) {
	c.tick++
	if s := c.stmts[query]; s != nil && !s.busy && (ours || s.kind != kindControl) {
		s.used = c.tick
		return s, nil
	}
	kind, err := classify(query)
	if err != nil {
		return nil, err
	}
	if kind == kindControl && !ours {
		return nil, fmt.Errorf("%w: %s", ErrStatement, firstWord(query))
	}
	p, ok := c.raw.(driver.ConnPrepareContext)
	if !ok {
		return nil, fmt.Errorf("driver %s cannot prepare", driverName)
	}
	raw, err := p.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, err
	}
	s := &stmt{raw: raw, kind: kind, used: c.tick}
	var okExec, okQuery bool
	s.exec, okExec = raw.(driver.StmtExecContext)
	s.query, okQuery = raw.(driver.StmtQueryContext)
	if !okExec || !okQuery {
		return nil, errors.Join(fmt.Errorf("driver %s cannot run statements", driverName), raw.Close())
	}
	if c.stmts[query] == nil {
		c.evict()
		c.stmts[query] = s
	}
	return s, nil
}

// evict makes room for a statement by closing the one unused longest.
func (c *conn) evict() {
	if len(c.stmts) < maxStatements {
		return
	}
	oldest := ""
	for query, s := range c.stmts {
		if !s.busy && (oldest == "" || s.used < c.stmts[oldest].used) {
			oldest = query
		}
	}
	if s := c.stmts[oldest]; s != nil {
		s.raw.Close() // repeats the error of its last use, if any
		delete(c.stmts, oldest)
	}
}

// cached reports whether s will be used again.
func (c *conn) cached(query string, s *stmt) bool { return c.stmts[query] == s }

// classify reads a statement's first word.
func classify(query string) (stmtKind, error) {
	word := firstWord(query)
	switch word {
	case "SELECT", "VALUES":
		return kindRead, nil
	case "WITH":
		return kindWith, nil
	case "INSERT", "REPLACE", "UPDATE", "DELETE":
		// A conflict clause ROLLBACK would end the transaction of everybody in
		// the batch.
		if fields := strings.Fields(strings.ToUpper(query)); len(fields) > 2 && fields[1] == "OR" && fields[2] == "ROLLBACK" {
			return 0, fmt.Errorf("%w: %s OR ROLLBACK", ErrStatement, word)
		}
		return kindWrite, nil
	}
	return kindControl, nil
}

// firstWord returns the first keyword of query in upper case, past white space
// and comments.
func firstWord(query string) string {
	for {
		query = strings.TrimLeft(query, " \t\r\n;")
		switch {
		case strings.HasPrefix(query, "--"):
			_, query, _ = strings.Cut(query, "\n")
		case strings.HasPrefix(query, "/*"):
			_, query, _ = strings.Cut(query, "*/")
		default:
			end := strings.IndexFunc(query, func(r rune) bool {
				return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z')
			})
			if end < 0 {
				end = len(query)
			}
			return strings.ToUpper(query[:end])
		}
	}
}
