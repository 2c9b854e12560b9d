// Package health answers whether the server is well: the one thing that anyone
// who can reach the port may ask. It tells a status word, the version and for
// how long the server has been running, and nothing about anybody.
//
// It has no state of its own and no tables.
package health

import "time"

// The status words (PROTOCOL 6, HealthRequest).
const (
	// StatusOK: everything works.
	StatusOK = "ok"
	// StatusDraining: the server is about to stop and takes no new work.
	StatusDraining = "draining"
	// StatusReadOnly: storage takes no writes, so nothing can be sent.
	StatusReadOnly = "read-only"
)

// Options says what a Service is made of.
type Options struct {
	// Status returns the present status word; nil stands for always StatusOK.
	// It is called for strangers, so it must be cheap.
	Status func() string
	// Version is the version of the program, as `qpcd version` prints it.
	Version string
	// Now is the clock. Its monotonic reading counts, as that of time.Now, so
	// that a jump of the wall clock does not change the uptime.
	Now func() time.Time
}

// Service answers HealthService. It is safe for concurrent use.
type Service struct {
	options Options
	start   time.Time
}

// New returns a Service whose uptime begins now.
func New(options Options) *Service {
	if options.Status == nil {
		options.Status = func() string { return StatusOK }
	}
	return &Service{options: options, start: options.Now()}
}
