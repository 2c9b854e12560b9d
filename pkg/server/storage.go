package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/quicprochat/qpcd/pkg/backup"
	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/keys"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// snapshotDir is the directory within the data directory in which copies of
	// the database wait to be put into a backup. It holds nothing else.
	snapshotDir = "backup"
	// snapshotFor is how long such a copy waits for whoever asked for it.
	snapshotFor = time.Hour

	selectSchema = `SELECT user_version FROM pragma_user_version`
)

// snapshots makes the copies of the database for backups: one at a time, none
// for longer than snapshotFor.
type snapshots struct {
	db  *store.DB
	dir string
	now func() time.Time

	running sync.Mutex // held while a copy is made or removed
	path    string     // of the last copy
	made    time.Time
}

// databaseOptions says which database a configuration means.
func databaseOptions(cfg *config.Config, log *slog.Logger, now func() time.Time) store.Options {
	return store.Options{
		Path:          filepath.Join(cfg.DataDir, databaseFile),
		Migrations:    store.ServerMigrations(),
		ApplicationID: applicationID,
		Logger:        log,
		Now:           now,
	}
}

// finishRestore finishes a restore that was interrupted, before anything of the
// data directory is used.
func finishRestore(cfg *config.Config, log *slog.Logger) error {
	finished, err := backup.Recover(cfg.DataDir)
	switch {
	case errors.Is(err, backup.ErrBusy):
		return &store.Refusal{Kind: store.ErrLocked, Path: cfg.DataDir, Detail: "a restore is under way there; wait for its end", Cause: err}
	case err != nil:
		return fmt.Errorf("finish an interrupted restore: %w", err)
	case finished:
		log.Info("an interrupted restore is finished", "data_dir", cfg.DataDir)
	}
	return nil
}

// clear removes every copy, also those of earlier runs.
func (s *snapshots) clear() error {
	s.path = ""
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("remove the copies for backups: %w", err)
	}
	return nil
}

// sweep removes a copy that nobody has fetched.
func (s *snapshots) sweep(context.Context) (more bool, err error) {
	if !s.running.TryLock() {
		return false, nil
	}
	defer s.running.Unlock()
	if s.path == "" || s.now().Sub(s.made) < snapshotFor {
		return false, nil
	}
	return false, s.clear()
}

// make makes a copy and returns its path, its size and the schema's number.
func (s *snapshots) make(ctx context.Context) (path string, size int64, schema int, err error) {
	if !s.running.TryLock() {
		return "", 0, 0, rpc.Errorf(qpcpb.CodeAlreadyRunning, "a copy for another backup is being made; wait for its end")
	}
	defer s.running.Unlock()
	if err := s.clear(); err != nil {
		return "", 0, 0, err
	}
	stats := s.db.Stats()
	if need, spare := stats.FileBytes+stats.WALBytes, s.db.Spare(); spare < need {
		return "", 0, 0, rpc.Errorf(qpcpb.CodeDiskFull,
			"a copy of the database needs %d KiB, and %d KiB are free in %s; make room, or stop the server and back it up then, which makes the copy beside the backup", need>>10, spare>>10, filepath.Dir(s.dir))
	}
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return "", 0, 0, fmt.Errorf("prepare a backup: %w", err)
	}
	var name [8]byte
	rand.Read(name[:]) // a name that no earlier caller knows
	path = filepath.Join(s.dir, "qpcd-"+hex.EncodeToString(name[:])+".db")
	err = s.db.Backup(ctx, path)
	if err == nil {
		err = s.db.Read(ctx, func(tx *store.Tx) error { return tx.QueryRow(selectSchema).Scan(&schema) })
	}
	if err != nil {
		return "", 0, 0, errors.Join(err, s.clear())
	}
	s.path, s.made = path, s.now()
	return path, fileSize(path), schema, nil
}

// remove removes a copy, and reports whether it was there.
func (s *snapshots) remove(path string) (bool, error) {
	s.running.Lock()
	defer s.running.Unlock()
	if s.path == "" || absolute(path) != absolute(s.path) {
		return false, nil
	}
	return true, s.clear()
}

// PrepareBackup makes a copy of the database (method 1160).
func (s *Server) PrepareBackup(ctx context.Context, _ *qpcpb.PrepareBackupRequest) (*qpcpb.PrepareBackupResponse, error) {
	path, size, schema, err := s.snapshots.make(ctx)
	if err != nil {
		return nil, err
	}
	blobs, _, err := s.blobs.Usage(ctx)
	if err != nil {
		return nil, err
	}
	bytes := uint64(size) + blobs + uint64(fileSize(s.config.TLSCert)+fileSize(s.config.TLSKey))
	return &qpcpb.PrepareBackupResponse{
		Database: absolute(path), BlobDir: absolute(s.blobs.Dir()),
		Certificate: absolute(s.config.TLSCert), Key: absolute(s.config.TLSKey),
		Bytes: bytes, Schema: uint32(schema), ServerName: s.config.ServerName, Version: s.version,
	}, nil
}

// absolute is a path for a process that works in another directory.
func absolute(path string) string {
	full, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	return full
}

// FinishBackup removes the copy that PrepareBackup has made (method 1161).
func (s *Server) FinishBackup(_ context.Context, r *qpcpb.FinishBackupRequest) (*qpcpb.FinishBackupResponse, error) {
	removed, err := s.snapshots.remove(r.Database)
	return &qpcpb.FinishBackupResponse{Success: removed}, err
}

// CopyStopped does for a server that does not run what PrepareBackup does for
// one that runs. The copy goes to the path to.
func CopyStopped(ctx context.Context, cfg *config.Config, log *slog.Logger, to string) (*qpcpb.PrepareBackupResponse, error) {
	if err := finishRestore(cfg, log); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	o := databaseOptions(cfg, log, nil)
	need := fileSize(o.Path) + fileSize(o.Path+"-wal")
	if free := store.FreeBytes(filepath.Dir(to)); free < need {
		return nil, fmt.Errorf("%w: a copy of the database needs %d KiB, and %d KiB are free in %s", store.ErrNoSpace, need>>10, free>>10, filepath.Dir(to))
	}
	schema, err := store.BackupClosed(ctx, o, to)
	if err != nil {
		return nil, err
	}
	return &qpcpb.PrepareBackupResponse{
		Database: to, BlobDir: BlobDir(cfg.DataDir), Certificate: cfg.TLSCert, Key: cfg.TLSKey,
		Schema: uint32(schema), ServerName: cfg.ServerName,
	}, nil
}

// InspectDatabase looks at the database of a server that does not run.
func InspectDatabase(ctx context.Context, cfg *config.Config, log *slog.Logger) (store.Inspection, error) {
	return store.Inspect(ctx, databaseOptions(cfg, log, nil))
}

// DatabasePath returns the path of the database in a data directory.
func DatabasePath(dataDir string) string { return filepath.Join(dataDir, databaseFile) }

// BlobDir returns the directory of the blobs in a data directory.
func BlobDir(dataDir string) string { return filepath.Join(dataDir, blobDir) }

// BlobPath returns the path of a blob, named by its hash in hexadecimal, in a
// data directory.
func BlobPath(dataDir, hash string) string {
	return filepath.Join(dataDir, blobDir, hash[:2], hash)
}

// NewestSchema returns the number of the newest migration that this program
// knows.
func NewestSchema() (int, error) { return store.Newest(store.ServerMigrations()) }

// AdoptRestored makes the database in a directory, which comes from a backup,
// fit for going on with: it is brought up to the newest schema, checked for
// damage, and what must not come back from the past is taken out, see
// RestoredTx of the domains. A database that cannot be used is refused as
// [New] would.
func AdoptRestored(ctx context.Context, dir string, log *slog.Logger) (err error) {
	o := databaseOptions(&config.Config{DataDir: dir}, log, nil)
	db, err := store.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.Write(ctx, func(tx *store.Tx) error {
		for _, restored := range []func(*store.Tx) error{auth.RestoredTx, delivery.RestoredTx, keys.RestoredTx} {
			if err := restored(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("adopt the restored database: %w", err)
	}
	return nil
}

// LockDatabase keeps a server from starting on a data directory until release
// is called. It refuses with [store.ErrLocked] while one runs.
func LockDatabase(dataDir string) (release func() error, err error) {
	return store.Lock(DatabasePath(dataDir))
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}
