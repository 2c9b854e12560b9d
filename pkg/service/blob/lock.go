package blob

import (
	"context"
	"sync"
)

// hashLocks lets one call or removal at a time work on a hash: whether its
// file may go depends on rows that another would add. Waiting costs an entry,
// so that the calls under way bound them.
type hashLocks struct {
	mu   sync.Mutex
	held map[Hash]*hashLock
}

type hashLock struct {
	turn  chan struct{} // holds the token of whoever has the lock
	users int           // who has it or waits for it
}

// lock waits for the lock of a hash, or for the end of ctx.
func (l *hashLocks) lock(ctx context.Context, hash Hash) (unlock func(), err error) {
	l.mu.Lock()
	h := l.held[hash]
	if h == nil {
		h = &hashLock{turn: make(chan struct{}, 1)}
		l.held[hash] = h
	}
	h.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(l.held, hash)
		}
	}
	select {
	case h.turn <- struct{}{}:
		return func() { <-h.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// removals are files that have lost their rows.
type removals struct {
	wake chan struct{} // somebody should look

	mu     sync.Mutex
	hashes []Hash
	parts  []part
	missed bool // some were not noted
}

// add notes files. It neither blocks nor waits: it runs on the writer.
func (r *removals) add(hashes []Hash, parts []part) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.hashes)+len(r.parts)+len(hashes)+len(parts) > maxRemovals {
		r.missed = true
	} else {
		r.hashes = append(r.hashes, hashes...)
		r.parts = append(r.parts, parts...)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *removals) take() (hashes []Hash, parts []part) {
	r.mu.Lock()
	defer r.mu.Unlock()
	hashes, parts = r.hashes, r.parts
	r.hashes, r.parts = nil, nil
	return hashes, parts
}

// miss notes that files were left behind.
func (r *removals) miss() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.missed = true
}

// takeMissed reports, once, whether files were left behind.
func (r *removals) takeMissed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	missed := r.missed
	r.missed = false
	return missed
}
