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

// attemptsError is the answer to a guess too soon.
func attemptsError(wait time.Duration) error {
	return rpc.Errorf(qpcpb.CodeRateLimited, "too many attempts; wait before the next").After(wait)
}

// registrationsError is the answer to one registration too many.
func registrationsError(wait time.Duration) error {
	return rpc.Errorf(qpcpb.CodeRateLimited, "too many registrations from your address; try again later").After(wait)
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
	// record is the SHA-256 of the OPAQUE record that the login is made with:
	// a password that was changed meanwhile opens nothing.
	record [32]byte
	until  time.Time
}

func newPendingTable(now func() time.Time) *pendingTable {
	return &pendingTable{now: now, logins: make(map[*rpc.Peer]pendingLogin)}
}

// put keeps a login, in place of an earlier one on the same connection. It
// reports false when there is no room.
func (t *pendingTable) put(p *rpc.Peer, login pendingLogin) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if _, again := t.logins[p]; !again && len(t.logins) >= pendingLogins {
		for peer, other := range t.logins {
			if now.After(other.until) {
				delete(t.logins, peer)
			}
		}
		if len(t.logins) >= pendingLogins {
			return false
		}
	}
	login.until = now.Add(pendingFor)
	t.logins[p] = login
	return true
}

// take removes and returns the login that a connection has started for a
// name.
func (t *pendingTable) take(p *rpc.Peer, folded string) (pendingLogin, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	login, ok := t.logins[p]
	delete(t.logins, p)
	return login, ok && login.folded == folded && !t.now().After(login.until)
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
//
// A registration's first message counts too, for the name: its answer is the
// OPRF under the same key as a login's, so that with one KE2 in hand each
// answer tests one guess. The address has a limit of its own there.
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

// scope says how many of the keys of an attempt it counts for.
type scope int

const (
	scopeName  scope = 2 // the name, and the name from this address
	scopeLogin scope = 3 // the address too
)

// attempt counts an attempt, or returns how long to wait before one.
func (t *failureTable) attempt(name string, address netip.Addr, scope scope) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	keys := failureKeys(name, address)
	for _, key := range keys[:scope] {
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
	}{{freePerPair, maxPairWait}, {freePerName, maxNameWait}, {freePerAddress, maxAddressWait}}
	for i, key := range keys[:scope] {
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
// attempt back from the other keys that it was counted for.
func (t *failureTable) succeeded(name string, address netip.Addr, scope scope) {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := failureKeys(name, address)
	delete(t.counts, keys[0])
	for _, key := range keys[1:scope] {
		f, known := t.counts[key]
		if f.count--; !known || f.count <= 0 {
			delete(t.counts, key)
			continue
		}
		t.counts[key] = f
	}
}

// failureKeys returns the keys of an attempt, in the order of scope.
func failureKeys(name string, address netip.Addr) [3]failureKey {
	return [3]failureKey{{name: name, address: address}, {name: name}, {address: address}}
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
