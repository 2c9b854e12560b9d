package auth

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/username"
)

// fold returns the one form of a name, or the answer to a name that is none.
func fold(name string) (string, error) {
	folded, err := username.Fold(name)
	if err != nil {
		return "", rpc.Errorf(qpcpb.CodeInvalidUsername, "%s", strings.TrimSuffix(err.Error(), "."))
	}
	return folded, nil
}

// credentialsError is the one answer to a wrong password, an unknown name and
// a wrong identity key.
func credentialsError() error {
	return rpc.Errorf(qpcpb.CodeBadCredentials, "name, password or identity key is wrong")
}

// opaqueError is the answer to an OPAQUE message that does not parse.
func opaqueError(field string, err error) error {
	if errors.Is(err, opaque.ErrMalformed) {
		return rpc.Errorf(qpcpb.CodeInvalidField, "%s is not a valid OPAQUE message", field)
	}
	return err
}

// pendingTable holds the logins between start and finish: at most one for
// each connection.
type pendingTable struct {
	now func() time.Time

	mu     sync.Mutex
	logins map[*rpc.Peer]pendingLogin
}

type pendingLogin struct {
	folded string
	state  opaque.LoginState
	until  time.Time
}

func newPendingTable(now func() time.Time) *pendingTable {
	return &pendingTable{now: now, logins: make(map[*rpc.Peer]pendingLogin)}
}

// put keeps a login, in place of an earlier one on the same connection. It
// reports false when there is no room.
func (t *pendingTable) put(p *rpc.Peer, folded string, state opaque.LoginState) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if _, again := t.logins[p]; !again && len(t.logins) >= pendingLogins {
		for peer, login := range t.logins {
			if now.After(login.until) {
				delete(t.logins, peer)
			}
		}
		if len(t.logins) >= pendingLogins {
			return false
		}
	}
	t.logins[p] = pendingLogin{folded: folded, state: state, until: now.Add(pendingFor)}
	return true
}

// take removes and returns the login that a connection has started for a
// name.
func (t *pendingTable) take(p *rpc.Peer, folded string) (opaque.LoginState, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	login, ok := t.logins[p]
	delete(t.logins, p)
	return login.state, ok && login.folded == folded && !t.now().After(login.until)
}

func (t *pendingTable) forget(p *rpc.Peer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.logins, p)
}

// Failures are counted three ways. Every attempt counts as failed when it
// starts, since an OPAQUE client learns whether its guess was right without
// finishing; a success takes its attempt back.
//
//	name from one address   5 free, then 1 s, 2 s, 4 s … 15 min
//	one address, any name  20 free, then the same
//	one name, anywhere     50 free, then 1 s … 30 s: guessing from many
//	                       addresses is slow, and never locks the owner out
const (
	freePerPair    = 5
	freePerAddress = 20
	freePerName    = 50
	maxPairWait    = 15 * time.Minute
	maxAddressWait = 15 * time.Minute
	maxNameWait    = 30 * time.Second
	// failuresForgottenAfter is when a key without new failures starts afresh.
	failuresForgottenAfter = time.Hour
	// maxFailureKeys bounds the table, at about 120 bytes each.
	maxFailureKeys = 8192
)

// failureKey names what failures are counted for: a name, an address, or
// both.
type failureKey struct {
	name    string
	address netip.Addr
}

type failure struct {
	count int
	last  time.Time
	until time.Time // no attempt before
}

type failureTable struct {
	now func() time.Time

	mu     sync.Mutex
	counts map[failureKey]failure
}

func newFailureTable(now func() time.Time) *failureTable {
	return &failureTable{now: now, counts: make(map[failureKey]failure)}
}

// attempt counts an attempt, or returns how long to wait before one.
func (t *failureTable) attempt(name string, address netip.Addr) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	keys := failureKeys(name, address)
	for _, key := range keys {
		if f, known := t.counts[key]; known && now.Before(f.until) {
			wait = max(wait, f.until.Sub(now))
		}
	}
	if wait > 0 {
		return wait, false
	}
	bounds := [...]struct {
		free int
		most time.Duration
	}{{freePerPair, maxPairWait}, {freePerAddress, maxAddressWait}, {freePerName, maxNameWait}}
	for i, key := range keys {
		t.counts[key] = t.counts[key].next(now, bounds[i].free, bounds[i].most)
	}
	if len(t.counts) > maxFailureKeys {
		t.forget(now)
	}
	return 0, true
}

// next counts one more failure.
func (f failure) next(now time.Time, free int, most time.Duration) failure {
	if now.Sub(f.last) > failuresForgottenAfter {
		f = failure{}
	}
	f.count++
	f.last = now
	if over := f.count - free; over > 0 {
		f.until = now.Add(min(most, time.Second<<min(over-1, 20)))
	}
	return f
}

// succeeded forgets the failures of a name from an address, and takes one
// attempt back from the address and the name alone.
func (t *failureTable) succeeded(name string, address netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := failureKeys(name, address)
	delete(t.counts, keys[0])
	for _, key := range keys[1:] {
		f := t.counts[key]
		if f.count--; f.count <= 0 {
			delete(t.counts, key)
			continue
		}
		t.counts[key] = f
	}
}

func failureKeys(name string, address netip.Addr) [3]failureKey {
	return [3]failureKey{{name: name, address: address}, {address: address}, {name: name}}
}

// forget drops what is old, and when that is not enough, an arbitrary half of
// what holds nobody back.
func (t *failureTable) forget(now time.Time) {
	for key, f := range t.counts {
		if now.Sub(f.last) > failuresForgottenAfter {
			delete(t.counts, key)
		}
	}
	for key, f := range t.counts {
		if len(t.counts) <= maxFailureKeys/2 {
			return
		}
		if !now.Before(f.until) {
			delete(t.counts, key)
		}
	}
	for key := range t.counts {
		if len(t.counts) <= maxFailureKeys {
			return
		}
		delete(t.counts, key)
	}
}
