package rpc

import (
	"context"

	"golang.org/x/sync/semaphore"
)

// budget bounds the memory of large frames, for one connection inside the
// bound for all. A reservation takes from the connection's part first, so that
// one connection waits for itself before it makes others wait.
type budget struct {
	own    *semaphore.Weighted
	shared *semaphore.Weighted
}

// reservation is what one call holds of a budget.
type reservation struct {
	from *budget
	held int64
}

// take adds size bytes to the reservation, waiting for them until ctx ends.
// Sizes up to smallFrame are free. A size above the whole budget is cut to it:
// the frame limit is smaller, so that only a budget set too low is meant.
func (r *reservation) take(ctx context.Context, size int) error {
	if size <= smallFrame {
		return nil
	}
	n := min(int64(size), peerBudget-r.held)
	if err := r.from.own.Acquire(ctx, n); err != nil {
		return err
	}
	if err := r.from.shared.Acquire(ctx, n); err != nil {
		r.from.own.Release(n)
		return err
	}
	r.held += n
	return nil
}

// release gives everything back.
func (r *reservation) release() {
	if r.held > 0 {
		r.from.shared.Release(r.held)
		r.from.own.Release(r.held)
		r.held = 0
	}
}
