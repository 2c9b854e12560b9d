package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// newSuffix names the file in which a database is made before it gets its name.
const newSuffix = ".new"

// createWait bounds the wait for another process that is creating a database in
// the same directory, which takes milliseconds.
const createWait = 5 * time.Second

// claim makes sure that path is a database this program may use, creating it
// when absent, and returns the file, open and locked. It looks at bytes only,
// without SQLite, because merely opening and closing a database with SQLite can
// write to it. schema is the number of the newest migration known.
//
// The lock is flock's. It does not meet SQLite's own (fcntl) locks; it keeps
// out a second store, in this process too, before that could do anything.
func claim(ctx context.Context, path string, applicationID int32, schema int) (*os.File, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().IsRegular() && info.Size() == 0:
		if err := create(ctx, path, applicationID); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, &Refusal{Kind: ErrNotWritable, Path: path, Detail: "it cannot be looked at", Cause: err}
	case !info.Mode().IsRegular():
		return nil, &Refusal{Kind: ErrForeign, Path: path, Detail: "it is not a file"}
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, &Refusal{Kind: ErrNotWritable, Path: path, Detail: "check the owner and mode of the file", Cause: err}
	}
	if err := accept(file, path, applicationID, schema); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// accept locks file and refuses it when it is not for us.
func accept(file *os.File, path string, applicationID int32, schema int) error {
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return &Refusal{Kind: ErrLocked, Path: path, Detail: "another process has it open; stop it first"}
		}
		return fmt.Errorf("lock %s: %w", path, err)
	}
	h, err := readHeader(file, path+"-wal")
	switch {
	case errors.Is(err, errNotSQLite):
		return &Refusal{Kind: ErrForeign, Path: path, Detail: "it is not a SQLite database; choose another path"}
	case err != nil:
		return fmt.Errorf("read the header of %s: %w", path, err)
	case h.applicationID != applicationID:
		return &Refusal{Kind: ErrForeign, Path: path,
			Detail: fmt.Sprintf("its application id is %#x, want %#x; choose another path", uint32(h.applicationID), uint32(applicationID))}
	case int64(h.userVersion) > int64(schema):
		return &Refusal{Kind: ErrNewer, Path: path,
			Detail: fmt.Sprintf("its schema is %d, this program knows %d; update the program", h.userVersion, schema)}
	}
	return writableDir(path)
}

// writableDir refuses a directory in which SQLite could not make its log.
func writableDir(path string) error {
	dir := filepath.Dir(path)
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return &Refusal{Kind: ErrNotWritable, Path: path, Detail: "check the owner and mode of its directory", Cause: err}
	}
	return nil
}

// Lock keeps everybody else from opening a database, this process included,
// until release is called; it opens nothing itself. It is [ErrLocked] while
// somebody has it open, and does nothing where there is no file.
func Lock(path string) (release func() error, err error) {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, &Refusal{Kind: ErrNotWritable, Path: path, Detail: "check the owner and mode of the file", Cause: err}
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = &Refusal{Kind: ErrLocked, Path: path, Detail: "another process has it open; stop it first"}
		}
		return nil, errors.Join(err, file.Close())
	}
	return file.Close, nil
}

// create makes an empty database at path: under another name first, so that a
// crash never leaves half of one under the real name.
func create(ctx context.Context, path string, applicationID int32) error {
	for _, suffix := range []string{"-wal", "-journal"} {
		// SQLite would replay such a leftover into the new file.
		if fileSize(path+suffix) > 0 {
			return &Refusal{Kind: ErrForeign, Path: path,
				Detail: "the database is missing but its " + suffix[1:] + " file is there; restore the database or move that file away"}
		}
	}
	if err := writableDir(path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return &Refusal{Kind: ErrNotWritable, Path: path, Detail: "its directory cannot be opened", Cause: err}
	}
	defer dir.Close() // also ends the lock
	if err := lockDir(ctx, dir); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	if fileSize(path) > 0 {
		return nil // another process was quicker; claim finds it locked, or free
	}
	if err := build(ctx, path+newSuffix, applicationID); err != nil {
		return err
	}
	if err := os.Rename(path+newSuffix, path); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync the directory of %s: %w", path, err)
	}
	return nil
}

// lockDir takes the lock that serialises creation in a directory.
func lockDir(ctx context.Context, dir *os.File) error {
	for deadline := time.Now().Add(createWait); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock its directory: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(deadline):
			return fmt.Errorf("%w: another process is creating a database in the same directory", ErrLocked)
		}
	}
}

// build writes a complete, empty database to path.
func build(ctx context.Context, path string, applicationID int32) (err error) {
	for _, suffix := range []string{"", "-wal", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what an interrupted start left: %w", err)
		}
	}
	db := &DB{path: path}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return &Refusal{Kind: ErrNotWritable, Path: path, Detail: "it cannot be created", Cause: err}
	}
	// The file is closed last: closing it ends POSIX locks on it as well.
	defer func() {
		err = errors.Join(err, file.Close())
		if err != nil {
			os.Remove(path)
		}
	}()
	eng, err := newEngine(path, file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.close()) }()
	c, err := openConn(ctx, eng)
	if err != nil {
		return db.refusal("create", err)
	}
	defer func() { err = errors.Join(err, c.close()) }()
	// page_size counts only before the first page is written, and cannot change
	// in WAL mode; application_id goes before WAL too, so that it stands in the
	// file itself and not only in its log.
	script := fmt.Sprintf(`
PRAGMA page_size = %d;
PRAGMA synchronous = FULL;
BEGIN IMMEDIATE;
PRAGMA application_id = %d;
%s
COMMIT;
PRAGMA journal_mode = WAL;`, pageSize, applicationID, metaSchema)
	if err := c.script(script); err != nil {
		return fmt.Errorf("create %s: %w", path, db.explain(err))
	}
	return nil
}
