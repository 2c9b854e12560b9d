// Package localstore keeps a client's local state in one SQLite file: the
// store of pkg/client on machines with a file system.
//
// One process at a time has a profile open; a second one gets
// store.ErrLocked. What Apply returned for survives a power cut.
package localstore

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/store"
)

// applicationID marks a database as a client's profile: "qpcc" in ASCII.
const applicationID = 0x71706363

//go:embed migrations/*.sql
var migrations embed.FS

// afterPrefix is appended to a prefix to sort behind every key that begins
// with it: keys are ASCII.
const afterPrefix = "\x7f"

const (
	selectValue = `SELECT value FROM client_value WHERE key = ?`
	selectRange = `SELECT key, value FROM client_value WHERE key > ? AND key >= ? AND key < ? ORDER BY key LIMIT ?`
	upsertValue = `INSERT INTO client_value (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`
	deleteValue = `DELETE FROM client_value WHERE key = ?`
)

// Store is a client.Store in a file.
type Store struct{ db *store.DB }

var _ client.Store = (*Store)(nil)

// Open opens the file at path, making it and its directory (mode 0700) when
// they are missing. The errors are store's: ErrLocked when another process has
// it open.
func Open(ctx context.Context, path string, log *slog.Logger) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the profile's directory: %w", err)
	}
	scripts, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	db, err := store.Open(ctx, store.Options{Path: path, Migrations: scripts, ApplicationID: applicationID, Logger: log, ReadConnections: 1})
	if err != nil {
		return nil, err
	}
	return &Store{db: db}, nil
}

// Get returns the value of a key, or client.ErrNotStored.
func (s *Store) Get(ctx context.Context, key string) (value []byte, err error) {
	err = s.db.Read(ctx, func(tx *store.Tx) error { return tx.QueryRow(selectValue, key).Scan(&value) })
	if errors.Is(err, store.ErrNoRows) {
		return nil, client.ErrNotStored
	}
	return value, err
}

// List returns entries in the order of their keys.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) (entries []client.Entry, err error) {
	err = s.db.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.Query(selectRange, after, prefix, prefix+afterPrefix, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var e client.Entry
			if err := rows.Scan(&e.Key, &e.Value); err != nil {
				return err
			}
			entries = append(entries, e)
		}
		return rows.Err()
	})
	return entries, err
}

// Apply makes all changes durable at once, or none.
func (s *Store) Apply(ctx context.Context, changes ...client.Change) error {
	return s.db.Write(ctx, func(tx *store.Tx) error {
		for _, change := range changes {
			var err error
			if change.Value == nil {
				_, err = tx.Exec(deleteValue, change.Key)
			} else {
				_, err = tx.Exec(upsertValue, change.Key, change.Value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }
