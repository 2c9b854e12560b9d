package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// maxUnsent bounds the messages of one command that wait on this machine, so
// that a fast input does not fill its disk while the server is away.
const maxUnsent = 64

// tracker sends messages and follows what becomes of them.
type tracker struct {
	session *session

	mu      sync.Mutex
	pending map[uint64]bool // numbers of messages that are not sent yet
	sent    int
	failed  error // what the server refused for good
	fatal   error // ends everything
	online  bool
	tried   bool   // a first attempt to connect is over
	name    string // whom it sends to, once found
	ended   bool
	changed chan struct{} // closed and replaced at every change
}

func newTracker(s *session) *tracker {
	return &tracker{session: s, pending: make(map[uint64]bool), changed: make(chan struct{})}
}

// wake tells everybody who waits. The caller holds t.mu.
func (t *tracker) wake() {
	close(t.changed)
	t.changed = make(chan struct{})
}

// see takes an event.
func (t *tracker) see(e client.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e.Kind {
	case client.EventConnection:
		t.online = e.Connection == client.Connected
		t.tried = t.tried || e.Connection != client.Connecting
		t.wake()
	case client.EventStatus:
		if !t.pending[e.Message.No] || e.Message.Status == client.StatusQueued {
			return
		}
		delete(t.pending, e.Message.No)
		t.sent++
		if e.Message.Status == client.StatusFailed {
			t.failed = errors.Join(t.failed, fmt.Errorf("not sent: %s", e.Message.Problem))
		}
		t.wake()
	case client.EventWaiting:
		if isType[*client.ErrDeliveryProof](e.Err) { // a person must look
			t.fatal = e.Err
			t.wake()
		}
	}
}

// check asks, whenever the connection is there again, whether the peer still
// has the key known here. If not, sending ends.
func (t *tracker) check(ctx context.Context, e client.Event) {
	t.mu.Lock()
	name := t.name
	t.mu.Unlock()
	if name == "" || e.Kind != client.EventConnection || e.Connection != client.Connected {
		return
	}
	if _, err := t.session.FindContact(ctx, name); isType[*client.ErrIdentityChanged](err) || isType[*client.ErrServerLog](err) {
		t.mu.Lock()
		t.fatal = err
		t.wake()
		t.mu.Unlock()
	}
}

// end notes that no event comes any more.
func (t *tracker) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	t.wake()
}

// until waits until done, which is called with t.mu held, says so. It returns
// ctx's error, or that of the connection when it has ended for good.
func (t *tracker) until(ctx context.Context, done func() bool) error {
	for {
		t.mu.Lock()
		ok, ended, fatal, changed := done(), t.ended, t.fatal, t.changed
		t.mu.Unlock()
		switch {
		case fatal != nil:
			return fatal
		case ok:
			return nil
		case ended:
			if err := t.session.err(); err != nil {
				return err
			}
			return context.Canceled
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// find returns the contact of a name. When the server can be reached, it says
// whether the name still has the key that is known here; when the name is not
// known, it is waited for.
func (t *tracker) find(ctx context.Context, name string) (client.Contact, error) {
	if err := t.until(ctx, func() bool { return t.tried }); err != nil {
		return client.Contact{}, err
	}
	defer func() {
		t.mu.Lock()
		t.name = name
		t.mu.Unlock()
	}()
	for {
		peer, err := t.session.FindContact(ctx, name)
		if !errors.Is(err, client.ErrOffline) {
			return peer, err
		}
		if err := t.until(ctx, func() bool { return t.online }); err != nil {
			return client.Contact{}, err
		}
	}
}

// send stores a message to be sent, once there is room.
func (t *tracker) send(ctx context.Context, peer rpc.IdentityKey, text string, part e2ee.Part) (client.Message, error) {
	if err := t.until(ctx, func() bool { return len(t.pending) < maxUnsent }); err != nil {
		return client.Message{}, err
	}
	// Under the lock, so that the event does not overtake the number.
	t.mu.Lock()
	defer t.mu.Unlock()
	m, err := t.session.Send(ctx, peer, text, part)
	if err == nil {
		t.pending[m.No] = true
	}
	return m, err
}

// flush waits until everything is stored by the server.
func (t *tracker) flush(ctx context.Context) error {
	err := t.until(ctx, func() bool { return len(t.pending) == 0 })
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil && len(t.pending) > 0:
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			err = errors.New("ended early")
		}
		return withHint(fmt.Errorf("%w; %d of %d messages wait on this machine", err, len(t.pending), t.sent+len(t.pending)),
			"they go out while any qpc chat, send or recv of this account runs")
	case err != nil:
		return err
	}
	return t.failed
}
