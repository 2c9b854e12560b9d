package store

import (
	"context"
	"database/sql/driver"
	"net/url"
	"strings"
)

// An engine is a SQLite driver made ready for one database file. Each driver's
// file defines
//
//	newEngine(path string, file *os.File) (engine, error)
//	extendedCode(err error) int   // SQLite's extended result code, 0 if none
//	blobsBorrowed                 // whether a row's blobs must be copied
//	driverName
//
// Whatever the driver, the connections of one engine share a write-ahead log
// whose index lies in this process's memory, and other processes are locked out
// of the file with SQLite's own locks from the first statement that reads.
type engine interface {
	// connect opens a connection.
	connect(ctx context.Context) (driver.Conn, error)
	// settled is called when every connection has been opened and has read.
	settled() error
	// abandon gives up a connection without a checkpoint, leaving the database
	// and its log as they are.
	abandon(c driver.Conn)
	// close releases what is left once the connections are closed.
	close() error
}

// fileURI returns SQLite's URI for path with the given parameters.
func fileURI(path string, query url.Values) string {
	// SQLite reads %20 as a space but not the + of HTML forms.
	q := strings.ReplaceAll(query.Encode(), "+", "%20")
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q}).String()
}
