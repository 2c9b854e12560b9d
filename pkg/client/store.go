package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

// ErrNotStored is what Store.Get returns for a key that has no value.
var ErrNotStored = errors.New("not stored")

// Entry is one stored value.
type Entry struct {
	Key   string
	Value []byte
}

// Change sets a key to a value, or removes it when the value is nil.
type Change struct {
	Key   string
	Value []byte
}

// Store keeps a profile's local state: an ordered map from short keys to
// values. The client seals every secret value before it gets here, so that an
// implementation handles ciphertext only. pkg/client/localstore keeps it in
// SQLite; a browser may keep it in IndexedDB. package storetest has the suite
// that every implementation must pass.
type Store interface {
	// Get returns the value of a key, or ErrNotStored.
	Get(ctx context.Context, key string) ([]byte, error)
	// List returns up to limit entries whose keys begin with prefix and sort
	// above after, in the order of their keys' bytes.
	List(ctx context.Context, prefix, after string, limit int) ([]Entry, error)
	// Apply makes all changes durable at once, or none.
	Apply(ctx context.Context, changes ...Change) error
	Close() error
}

// box is a Store whose values are sealed in a vault, and encoded as JSON.
type box struct {
	store  Store
	vault  *e2ee.Vault
	random io.Reader
}

// get decodes the value of a key into v. It reports false when there is none.
func (b *box) get(ctx context.Context, key string, v any) (bool, error) {
	sealed, err := b.store.Get(ctx, key)
	if errors.Is(err, ErrNotStored) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading %s: %w", key, err)
	}
	return true, b.open(key, sealed, v)
}

func (b *box) open(key string, sealed []byte, v any) error {
	plain, err := b.vault.Open(key, sealed)
	if err != nil {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	if err := json.Unmarshal(plain, v); err != nil {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	return nil
}

// put returns the change that stores v under a key.
func (b *box) put(key string, v any) (Change, error) {
	plain, err := json.Marshal(v)
	if err != nil {
		return Change{}, fmt.Errorf("storing %s: %w", key, err)
	}
	sealed, err := b.vault.Seal(b.random, key, plain)
	if err != nil {
		return Change{}, fmt.Errorf("storing %s: %w", key, err)
	}
	return Change{Key: key, Value: sealed}, nil
}

// batch gathers changes that belong together.
type batch struct {
	box     *box
	changes []Change
	err     error
}

func (b *box) batch() *batch { return &batch{box: b} }

func (b *batch) put(key string, v any) {
	change, err := b.box.put(key, v)
	b.err = errors.Join(b.err, err)
	b.changes = append(b.changes, change)
}

func (b *batch) remove(key string) { b.changes = append(b.changes, Change{Key: key}) }

func (b *batch) apply(ctx context.Context) error {
	if b.err != nil {
		return b.err
	}
	if len(b.changes) == 0 {
		return nil
	}
	if err := b.box.store.Apply(ctx, b.changes...); err != nil {
		return fmt.Errorf("storing: %w", err)
	}
	return nil
}

// list decodes every value under a prefix, in order, and gives it to visit
// until that returns false.
func list[T any](ctx context.Context, b *box, prefix string, visit func(key string, value T) (bool, error)) error {
	return listAfter(ctx, b, prefix, "", visit)
}

// listAfter is list from behind a key.
func listAfter[T any](ctx context.Context, b *box, prefix, after string, visit func(key string, value T) (bool, error)) error {
	const page = 64
	for {
		entries, err := b.store.List(ctx, prefix, after, page)
		if err != nil {
			return fmt.Errorf("listing %s: %w", prefix, err)
		}
		for _, entry := range entries {
			var value T
			if err := b.open(entry.Key, entry.Value, &value); err != nil {
				return err
			}
			if more, err := visit(entry.Key, value); err != nil || !more {
				return err
			}
			after = entry.Key
		}
		if len(entries) < page {
			return nil
		}
	}
}
