// Package limit bounds how often something may happen for each of many keys
// (a sender, an address), in bounded memory.
package limit

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxKeys bounds the keys that are remembered. A key that has its whole burst
// back is forgotten first, which changes nothing for it; at about 150 bytes
// each, this many cost 1.5 MiB.
const maxKeys = 10_000

// Keyed is one token bucket for each key. It is safe for concurrent use.
type Keyed[K comparable] struct {
	limit rate.Limit
	burst int
	now   func() time.Time

	mu      sync.Mutex
	buckets map[K]*rate.Limiter
}

// NewKeyed returns buckets that refill at perSecond tokens and hold burst. The
// clock must be monotonic, as time.Now is.
func NewKeyed[K comparable](perSecond float64, burst int, now func() time.Time) *Keyed[K] {
	return &Keyed[K]{limit: rate.Limit(perSecond), burst: burst, now: now, buckets: make(map[K]*rate.Limiter)}
}

// Take takes n tokens of a key. When they are not there it takes none and
// returns how long to wait; a wait of more than a day stands for «never», as
// when n is above the burst.
func (l *Keyed[K]) Take(key K, n int) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	bucket := l.buckets[key]
	if bucket == nil {
		if len(l.buckets) >= maxKeys {
			l.forget(now)
		}
		bucket = rate.NewLimiter(l.limit, l.burst)
		l.buckets[key] = bucket
	}
	reservation := bucket.ReserveN(now, n)
	if !reservation.OK() {
		return 48 * time.Hour, false
	}
	wait = reservation.DelayFrom(now)
	if wait > 0 {
		reservation.CancelAt(now)
		return wait, false
	}
	return 0, true
}

// Keys returns how many keys are remembered.
func (l *Keyed[K]) Keys() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.buckets)
}

// forget drops the keys that have their whole burst back, and when there are
// none, an arbitrary tenth: better to be lenient with some than to refuse all.
func (l *Keyed[K]) forget(now time.Time) {
	for key, bucket := range l.buckets {
		if bucket.TokensAt(now) >= float64(l.burst) {
			delete(l.buckets, key)
		}
	}
	for key := range l.buckets {
		if len(l.buckets) < maxKeys-maxKeys/10 {
			return
		}
		delete(l.buckets, key)
	}
}

// Source returns the part of an address that counts as one source: an IPv4
// address, or the /64 of an IPv6 address, since one home has a whole one. The
// zone stays: link-local addresses on two interfaces are two sources.
func Source(addr netip.Addr) netip.Addr {
	addr = addr.Unmap()
	if addr.Is4() || !addr.IsValid() {
		return addr
	}
	prefix, err := addr.WithZone("").Prefix(64)
	if err != nil {
		return addr
	}
	return prefix.Addr().WithZone(addr.Zone())
}
