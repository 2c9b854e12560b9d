//go:build !sqlite_ncruces && !mips && !mipsle

package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"os"

	"modernc.org/sqlite"
)

// driverName names the driver in use.
const driverName = "modernc.org/sqlite"

// blobsBorrowed: the driver hands out copies.
const blobsBorrowed = false

// moderncEngine uses SQLite's own "unix-excl" VFS: the first lock that a
// connection takes is exclusive to the process, and the write-ahead log's index
// is heap memory that all connections of the process share.
type moderncEngine struct{ connector driver.Connector }

func newEngine(path string, _ *os.File) (engine, error) {
	// Both switches are process-wide and idempotent. OFD locks belong to the
	// open file: with the POSIX locks that are the default, any code here that
	// opened and closed the database file would silently end SQLite's lock on
	// it. Kernels without them (before 3.15) keep the default, and so does a
	// program that has used the driver before us.
	if _, err := sqlite.OFDLocking(true); err != nil &&
		!errors.Is(err, sqlite.ErrOFDLockingUnavailable) && !errors.Is(err, sqlite.ErrOFDLockingTooLate) {
		return nil, fmt.Errorf("prepare file locks: %w", err)
	}
	// What every Linux distribution's SQLite does: the same durability without
	// a journal transaction for the file's times.
	if _, err := sqlite.Fdatasync(true); err != nil && !errors.Is(err, sqlite.ErrFdatasyncUnavailable) {
		return nil, fmt.Errorf("prepare syncing: %w", err)
	}
	c, err := sqlite.NewConnector(fileURI(path, url.Values{"vfs": {"unix-excl"}}))
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", path, err)
	}
	return &moderncEngine{connector: c}, nil
}

func (e *moderncEngine) connect(ctx context.Context) (driver.Conn, error) {
	return e.connector.Connect(ctx)
}

func (e *moderncEngine) settled() error { return nil }

// abandon leaves the connection open: closing the last one always copies the
// log into the database, and the driver offers no way to forbid it. A program
// that was told its database is damaged is about to end anyway.
func (e *moderncEngine) abandon(driver.Conn) {}

func (e *moderncEngine) close() error { return nil }

func extendedCode(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}
