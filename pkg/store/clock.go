package store

import (
	"sync"
	"time"
)

// serviceClock counts the seconds a database has been in use, see
// [DB.ServiceTime].
type serviceClock struct {
	now func() time.Time

	mu     sync.Mutex
	base   time.Duration // what earlier runs add up to
	start  time.Time     // when this run began
	latest time.Duration // the highest reading so far
	stored time.Duration // the reading last persisted
}

// newServiceClock continues from the stored seconds.
func newServiceClock(now func() time.Time, seconds int64) *serviceClock {
	d := time.Duration(seconds) * time.Second
	return &serviceClock{now: now, base: d, start: now(), latest: d, stored: d}
}

// credit advances the clock by d.
func (c *serviceClock) credit(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.base += d
}

// reading returns the time in service. A clock that runs backwards (one without
// monotonic readings) holds it still.
func (c *serviceClock) reading() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.latest = max(c.latest, c.base+c.now().Sub(c.start))
	return c.latest
}

// seconds returns the reading in whole seconds.
func (c *serviceClock) seconds() int64 { return int64(c.reading() / time.Second) }

// due reports whether the reading should be persisted, being d or more past the
// stored one.
func (c *serviceClock) due(d time.Duration) bool {
	now := c.reading()
	c.mu.Lock()
	defer c.mu.Unlock()
	return now-c.stored >= d
}

// persisted notes that seconds is stored.
func (c *serviceClock) persisted(seconds int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stored = time.Duration(seconds) * time.Second
}
