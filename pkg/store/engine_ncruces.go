//go:build sqlite_ncruces || mips || mipsle

package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/ncruces/go-sqlite3"
	ncruces "github.com/ncruces/go-sqlite3/driver"
	"github.com/ncruces/go-sqlite3/vfs"
	"golang.org/x/sys/unix"
)

// driverName names the driver in use.
const driverName = "github.com/ncruces/go-sqlite3"

// blobsBorrowed: a row's blobs are SQLite's memory, gone with the next step.
const blobsBorrowed = true

// The range of bytes that SQLite locks in a database file, whatever its size:
// PENDING_BYTE, RESERVED_BYTE and the 510 bytes of the shared lock.
const (
	lockFirst = 0x40000000
	lockBytes = 512
)

// connMemory bounds the memory of one connection, page cache included. Each
// reserves that much address space, of which a MIPS process has 2 GiB.
const connMemory = 64 << 20

// ncrucesEngine gives the driver what SQLite's "unix-excl" VFS gives the other
// one. The driver keeps the write-ahead log's index in a shared mapping of a
// file; here that file lies in memory (tmpfs), in a directory only we can enter,
// and is unlinked as soon as every connection has it open. (A memfd would need
// no directory, but the driver opens with O_NOFOLLOW, which /proc/self/fd is
// not.)
type ncrucesEngine struct {
	name      string // of the registered VFS
	memory    string // directory of the index's file, "" once removed
	connector driver.Connector
}

func newEngine(path string, file *os.File) (engine, error) {
	// One lock of the whole process for as long as the file is open. It is in
	// SQLite's place and of SQLite's kind, so other programs find the database
	// locked. As an OFD lock it belongs to file, not to the process.
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: lockFirst, Len: lockBytes}
	if err := unix.FcntlFlock(file.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, &Refusal{Kind: ErrLocked, Path: path, Detail: "another program has it open; stop it first"}
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	memory, err := memoryDir()
	if err != nil {
		return nil, fmt.Errorf("make room for the log's index: %w", err)
	}
	e := &ncrucesEngine{name: filepath.Base(memory), memory: memory}
	vfs.Register(e.name, &exclusiveVFS{path: path, index: filepath.Join(memory, "index")})
	// modeof: the log gets the database's mode; the driver's default is 0644.
	uri := fileURI(path, url.Values{"vfs": {e.name}, "modeof": {path}})
	e.connector, err = (&ncruces.SQLite{}).OpenConnector(uri)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare %s: %w", path, err), e.close())
	}
	return e, nil
}

// memoryDir makes a private directory on a file system that can map files
// shared: /dev/shm, or the temporary directory (tmpfs on OpenWrt).
func memoryDir() (string, error) {
	const pattern = "qpc-store-*"
	if dir, err := os.MkdirTemp("/dev/shm", pattern); err == nil {
		return dir, nil
	}
	return os.MkdirTemp("", pattern)
}

func (e *ncrucesEngine) connect(ctx context.Context) (driver.Conn, error) {
	return e.connector.Connect(sqlite3.WithMaxMemory(ctx, connMemory))
}

func (e *ncrucesEngine) settled() error {
	if e.memory == "" {
		return nil
	}
	if err := os.RemoveAll(e.memory); err != nil {
		return fmt.Errorf("unlink the log's index: %w", err)
	}
	e.memory = ""
	return nil
}

func (e *ncrucesEngine) abandon(c driver.Conn) {
	if raw, ok := c.(ncruces.Conn); ok {
		if _, err := raw.Raw().Config(sqlite3.DBCONFIG_NO_CKPT_ON_CLOSE, true); err == nil {
			raw.Close() // what it says no longer matters
		}
	}
}

func (e *ncrucesEngine) close() error {
	vfs.Unregister(e.name)
	return e.settled()
}

func extendedCode(err error) int {
	if e, ok := errors.AsType[*sqlite3.Error](err); ok {
		return int(e.ExtendedCode())
	}
	if c, ok := errors.AsType[sqlite3.ErrorCode](err); ok {
		return int(c)
	}
	return 0
}
