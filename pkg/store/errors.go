package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The refusals of [Open], and what else a caller decides by. Compare with
// errors.Is; a refusal's text is one sentence for the operator.
var (
	// ErrForeign: the file is not SQLite, or belongs to another program.
	ErrForeign = errors.New("not a database of this program")
	// ErrNewer: a newer version of this program has changed the file.
	ErrNewer = errors.New("database is of a newer version")
	// ErrLocked: another process (or this one) has the file open.
	ErrLocked = errors.New("database is in use")
	// ErrNotWritable: the file or its directory cannot be written.
	ErrNotWritable = errors.New("database cannot be written")
	// ErrCorrupt: the integrity check after an unclean stop failed, or SQLite
	// found the file malformed.
	ErrCorrupt = errors.New("database is damaged")

	// ErrNoSpace: the file system is full. See [IsNoSpace].
	ErrNoSpace = errors.New("no space left for the database")
	// ErrCommit: the batch could not be committed, and none of its writes is
	// acknowledged. Trying again is sensible once the cause is gone.
	ErrCommit = errors.New("commit failed")
	// ErrReadOnly: the disk is full or fails, so that nothing is written. The
	// write was not tried; the error wraps the reason, [ErrNoSpace] for one.
	ErrReadOnly = errors.New("the database is read-only for now")
	// ErrClosed: the database was closed before the call could run.
	ErrClosed = errors.New("store is closed")
	// ErrPanic: the function passed to Write panicked; it had no effect.
	ErrPanic = errors.New("write function panicked")
	// ErrTxDone: a Tx or its rows were used after its function had returned.
	ErrTxDone = errors.New("transaction is over")
	// ErrStatement: the statement is not allowed where it was used.
	ErrStatement = errors.New("statement not allowed here")
)

// IsNoSpace reports whether err came from a full disk, whichever way the driver
// told it.
func IsNoSpace(err error) bool { return errors.Is(err, ErrNoSpace) }

// IsUnwritable reports whether err says that a write failed because of the
// disk, and was undone: full, failing, or read-only for either reason.
func IsUnwritable(err error) bool {
	return errors.Is(err, ErrReadOnly) || errors.Is(err, ErrCommit) || errors.Is(err, ErrNoSpace)
}

// Refusal says why [Open] will not use a file. It unwraps to its Kind, one of
// the sentinels above, and to its Cause.
type Refusal struct {
	Kind   error  // ErrForeign, ErrNewer, ErrLocked, ErrNotWritable or ErrCorrupt
	Path   string // the database file
	Detail string // what was found, and what to do
	Cause  error  // may be nil
}

// Error returns one sentence: the file, what is wrong with it, what to do.
func (r *Refusal) Error() string {
	s := fmt.Sprintf("%s: %v: %s", r.Path, r.Kind, r.Detail)
	if r.Cause != nil {
		s += fmt.Sprintf(" (%v)", r.Cause)
	}
	return s
}

// Unwrap gives errors.Is and errors.As the kind and the cause.
func (r *Refusal) Unwrap() []error {
	if r.Cause == nil {
		return []error{r.Kind}
	}
	return []error{r.Kind, r.Cause}
}

// SQLite's primary result codes that decide something here,
// https://sqlite.org/rescode.html.
const (
	codeBusy     = 5
	codeLocked   = 6
	codeNoMem    = 7
	codeReadOnly = 8
	codeInterr   = 9
	codeIOErr    = 10
	codeCorrupt  = 11
	codeFull     = 13
	codeCantOpen = 14
	codeConstr   = 19
	codeNotADB   = 26

	// Extended codes of a broken uniqueness.
	codeConstrPrimaryKey = codeConstr | 6<<8
	codeConstrUnique     = codeConstr | 8<<8
	codeConstrRowID      = codeConstr | 10<<8
)

// primaryCode returns SQLite's primary result code of err, 0 if there is none.
func primaryCode(err error) int { return extendedCode(err) & 0xff }

// IsConstraint reports whether err says that a statement would have broken a
// constraint of the schema. Only that statement was undone.
func IsConstraint(err error) bool { return primaryCode(err) == codeConstr }

// IsUnique reports whether err says that a row with the same key exists.
func IsUnique(err error) bool {
	switch extendedCode(err) {
	case codeConstrPrimaryKey, codeConstrUnique, codeConstrRowID:
		return true
	}
	return false
}

// losesTransaction reports whether SQLite may have rolled the whole transaction
// back because of err, https://sqlite.org/lang_transaction.html (section 3.1).
func losesTransaction(err error) bool {
	switch primaryCode(err) {
	case codeFull, codeIOErr, codeNoMem, codeBusy, codeInterr, codeCorrupt, codeReadOnly, codeCantOpen, codeLocked:
		return true
	}
	return false
}

// refusal turns an error met while opening into the refusal it stands for.
func (db *DB) refusal(doing string, err error) error {
	r := &Refusal{Path: db.path, Cause: err}
	switch primaryCode(err) {
	case codeBusy, codeLocked:
		r.Kind, r.Detail = ErrLocked, "another program has it open; stop it first"
	case codeReadOnly, codeCantOpen:
		r.Kind, r.Detail = ErrNotWritable, "check the owner and mode of the file and its directory"
	case codeCorrupt:
		r.Kind, r.Detail = ErrCorrupt, "restore a backup"
	case codeNotADB:
		r.Kind, r.Detail = ErrForeign, "it is not a SQLite database"
	default:
		return fmt.Errorf("%s %s: %w", doing, db.path, db.explain(err))
	}
	return r
}

// explain adds ErrNoSpace to err when the disk is full. A full disk is
// SQLITE_FULL in one driver and a plain I/O error in the other, so for the
// latter the free space decides.
func (db *DB) explain(err error) error { return explainAt(filepath.Dir(db.path), err) }

// explainAt is explain for a file in any directory.
func explainAt(dir string, err error) error {
	if err == nil || errors.Is(err, ErrNoSpace) {
		return err
	}
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	switch primaryCode(err) {
	case codeFull:
		full = true
	case codeIOErr, codeCantOpen:
		full = full || freeBytes(dir) < noRoomBytes
	}
	if full {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// FreeBytes returns what this process may still write to the file system of a
// directory, and plenty when that cannot be told.
func FreeBytes(dir string) int64 { return int64(min(freeBytes(dir), 1<<62)) }

// freeBytes returns what an unprivileged process may still write to the file
// system of dir, and plenty when it cannot be told.
func freeBytes(dir string) uint64 {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 1 << 62
	}
	return uint64(s.Bavail) * uint64(s.Bsize)
}

// oneLine keeps what SQLite says within a sentence.
func oneLine(findings []string) string {
	return strings.ReplaceAll(strings.Join(findings, "; "), "\n", ", ")
}
