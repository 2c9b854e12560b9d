//go:build sqlite_ncruces || mips || mipsle

package store

import (
	"errors"
	"sync"

	"github.com/ncruces/go-sqlite3"
	"github.com/ncruces/go-sqlite3/vfs"
)

// exclusiveVFS is the driver's own VFS with two changes, both for the main
// database file only: its locks are kept in memory, because the process as a
// whole already holds SQLite's lock (see newEngine), and the write-ahead log's
// index is mapped from another place than beside the database.
type exclusiveVFS struct {
	path  string // of the database; a copy that is being made is a main database too
	index string // path of the index's file
	locks lockTable
}

var _ vfs.VFSFilename = (*exclusiveVFS)(nil)

func (v *exclusiveVFS) Open(name string, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	return vfs.Find("").Open(name, flags)
}

func (v *exclusiveVFS) Delete(name string, syncDir bool) error {
	return vfs.Find("").Delete(name, syncDir)
}

func (v *exclusiveVFS) Access(name string, flags vfs.AccessFlag) (bool, error) {
	return vfs.Find("").Access(name, flags)
}

func (v *exclusiveVFS) FullPathname(name string) (string, error) {
	return vfs.Find("").FullPathname(name)
}

func (v *exclusiveVFS) OpenFilename(name *vfs.Filename, flags vfs.OpenFlag) (vfs.File, vfs.OpenFlag, error) {
	os, ok := vfs.Find("").(vfs.VFSFilename)
	if !ok {
		return nil, flags, sqlite3.CANTOPEN
	}
	f, out, err := os.OpenFilename(name, flags)
	if err != nil || flags&vfs.OPEN_MAIN_DB == 0 || name.String() != v.path {
		return f, out, err
	}
	file, ok := f.(osFile)
	if !ok {
		return nil, flags, errors.Join(sqlite3.CANTOPEN, f.Close())
	}
	return &mainFile{osFile: file, locks: &v.locks, index: vfs.NewSharedMemory(v.index, flags)}, out, nil
}

// osFile is what the driver's own files can do and a main database needs.
type osFile interface {
	vfs.File
	vfs.FileHasMoved
	vfs.FileSizeHint
	vfs.FilePersistWAL
	vfs.FilePowersafeOverwrite
}

// mainFile is one connection's main database file.
type mainFile struct {
	osFile
	locks *lockTable
	index vfs.SharedMemory
	level vfs.LockLevel // guarded by locks.mu
}

var (
	_ vfs.FileSharedMemory = (*mainFile)(nil)
	_ vfs.FileLockState    = (*mainFile)(nil)
)

func (f *mainFile) SharedMemory() vfs.SharedMemory   { return f.index }
func (f *mainFile) Lock(level vfs.LockLevel) error   { return f.locks.lock(f, level) }
func (f *mainFile) Unlock(level vfs.LockLevel) error { f.locks.unlock(f, level); return nil }
func (f *mainFile) CheckReservedLock() (bool, error) { return f.locks.reserved(), nil }
func (f *mainFile) LockState() (level vfs.LockLevel) {
	f.locks.mu.Lock()
	defer f.locks.mu.Unlock()
	return f.level
}

func (f *mainFile) Close() error {
	f.locks.unlock(f, vfs.LOCK_NONE)
	return errors.Join(f.index.Close(), f.osFile.Close())
}

// lockTable is SQLite's lock of one file among the connections of a process,
// https://sqlite.org/lockingv3.html section 3: any number of SHARED; beside
// them one RESERVED; PENDING keeps new SHARED out; EXCLUSIVE is alone.
type lockTable struct {
	mu     sync.Mutex
	shared int       // connections at SHARED or above
	writer *mainFile // the one at RESERVED or above
}

func (t *lockTable) lock(f *mainFile, level vfs.LockLevel) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.level >= level {
		return nil
	}
	switch level {
	case vfs.LOCK_SHARED:
		if t.writer != nil && t.writer.level >= vfs.LOCK_PENDING {
			return sqlite3.BUSY
		}
		t.shared++
	case vfs.LOCK_RESERVED:
		if t.writer != nil {
			return sqlite3.BUSY
		}
		t.writer = f
	case vfs.LOCK_EXCLUSIVE:
		if t.writer != nil && t.writer != f {
			return sqlite3.BUSY
		}
		t.writer, f.level = f, vfs.LOCK_PENDING
		if t.shared > 1 {
			return sqlite3.BUSY
		}
	default:
		return sqlite3.MISUSE
	}
	f.level = level
	return nil
}

func (t *lockTable) unlock(f *mainFile, level vfs.LockLevel) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.level <= level {
		return
	}
	if t.writer == f {
		t.writer = nil
	}
	if level == vfs.LOCK_NONE {
		t.shared--
	}
	f.level = level
}

func (t *lockTable) reserved() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.writer != nil
}
