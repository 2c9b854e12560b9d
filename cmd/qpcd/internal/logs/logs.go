// Package logs makes the daemon's log: one line an event, in the shape that
// the settings ask for, and two promises to the owner:
//
//   - It can be shown to others. With redact_logs, who and where somebody is
//     appears as a short hash, the same throughout one run of the server and
//     another in the next, so that lines can be told apart and nobody be found.
//   - It cannot be flooded. Lines that one address causes, and lines of one
//     kind, are bounded; how many were left out is said with the next one.
//
// Contents of messages, passwords and tokens are never logged: no room of the
// server passes them to a logger.
package logs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/limit"
)

const (
	// linesAtOnce and linesPerMinute bound the lines of one kind from one
	// address, and of one kind from nowhere: the first ones tell what happens,
	// and six a minute that it goes on.
	linesAtOnce    = 10
	linesPerMinute = 6
	// maxKinds bounds what is counted as left out; further kinds are left out
	// uncounted. Kinds are messages in the source, addresses are anybody's.
	maxKinds = 1000
	// saltSize is how many random bytes hide behind the hashes of one run:
	// without them, every address could be tried.
	saltSize = 16
	// hashDigits is how much of a hash is shown: enough to tell a household's
	// lines apart.
	hashDigits = 8
)

// personal are the keys of attributes that tell who or where somebody is. Every
// room that logs such a thing uses one of them.
func personal() []string { return []string{"from", "identity", "user", "recipient", "address_of"} }

// fromKey is the key of the address that caused a line.
const fromKey = "from"

// Options say what a log is made of.
type Options struct {
	// Output gets the lines.
	Output io.Writer
	// Rand salts the hashes of one run.
	Rand io.Reader
	// Now is the clock, with a monotonic reading.
	Now func() time.Time
}

// New returns the log that the settings ask for.
func New(cfg *config.Config, o Options) (*slog.Logger, error) {
	salt := make([]byte, saltSize)
	if _, err := io.ReadFull(o.Rand, salt); err != nil {
		return nil, fmt.Errorf("making the salt of the log: %w", err)
	}
	handlerOptions := &slog.HandlerOptions{Level: cfg.LogLevel, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case len(groups) == 0 && a.Key == slog.TimeKey && !cfg.LogTime:
			return slog.Attr{}
		case cfg.RedactLogs && slices.Contains(personal(), a.Key):
			return slog.String(a.Key, shortHash(salt, a.Value))
		}
		return a
	}}
	var inner slog.Handler = slog.NewTextHandler(o.Output, handlerOptions)
	if cfg.LogFormat == config.LogJSON {
		inner = slog.NewJSONHandler(o.Output, handlerOptions)
	}
	return slog.New(&bounded{
		inner: inner,
		flood: &flood{
			lines:   limit.NewKeyed[kind](linesPerMinute/60., linesAtOnce, o.Now),
			leftOut: make(map[kind]int),
		},
	}), nil
}

// shortHash stands for a value in one run of the server. An address counts
// without its port, which changes with every connection.
func shortHash(salt []byte, v slog.Value) string {
	text := v.String()
	if source := sourceOf(v); source.IsValid() {
		text = source.String()
	}
	sum := sha256.Sum256(append(slices.Clone(salt), text...))
	return "#" + hex.EncodeToString(sum[:])[:hashDigits]
}

// sourceOf returns the address in a value, or the zero address.
func sourceOf(v slog.Value) netip.Addr {
	switch a := v.Any().(type) {
	case netip.Addr:
		return limit.Source(a)
	case netip.AddrPort:
		return limit.Source(a.Addr())
	case net.Addr:
		if ap, err := netip.ParseAddrPort(a.String()); err == nil {
			return limit.Source(ap.Addr())
		}
	}
	return netip.Addr{}
}

// kind is what lines are bounded by: the text of the message, and the address
// that caused it if a line tells one.
type kind struct {
	message string
	from    netip.Addr
}

// flood counts the lines, for a handler and all that are derived from it.
type flood struct {
	lines *limit.Keyed[kind]

	mu      sync.Mutex
	leftOut map[kind]int
}

// bounded is a handler that lets a bounded number of lines through.
type bounded struct {
	inner slog.Handler
	flood *flood
	from  netip.Addr // of an attribute that all its lines have
}

func (h *bounded) Enabled(ctx context.Context, level slog.Level) bool {
	return h.inner.Enabled(ctx, level)
}

func (h *bounded) Handle(ctx context.Context, r slog.Record) error {
	k := kind{message: r.Message, from: h.from}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == fromKey {
			k.from = sourceOf(a.Value)
		}
		return a.Key != fromKey
	})
	_, ok := h.flood.lines.Take(k, 1)
	if n := h.flood.count(k, ok); n > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("left_out", n))
	}
	if !ok {
		return nil
	}
	return h.inner.Handle(ctx, r)
}

// count notes a line that is left out, or returns how many were before one
// that is not.
func (f *flood) count(k kind, let bool) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n = f.leftOut[k]
	switch {
	case let:
		delete(f.leftOut, k)
		return n
	case n > 0 || len(f.leftOut) < maxKinds:
		f.leftOut[k]++
	}
	return 0
}

func (h *bounded) WithAttrs(attrs []slog.Attr) slog.Handler {
	derived := *h
	derived.inner = h.inner.WithAttrs(attrs)
	for _, a := range attrs {
		if a.Key == fromKey {
			derived.from = sourceOf(a.Value)
		}
	}
	return &derived
}

func (h *bounded) WithGroup(name string) slog.Handler {
	derived := *h
	derived.inner = h.inner.WithGroup(name)
	return &derived
}
