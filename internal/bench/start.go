package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// goalStart is milliseconds from the start of the process to the first
// handshake.
const goalStart = 100

// measureStarting starts qpcd on the database that the deliveries have left:
// after it was stopped in order, and after it was killed, which makes it check
// the file.
func (b *bench) measureStarting(ctx context.Context) error {
	bare, err := b.bareStarts(ctx)
	if err != nil {
		return err
	}
	for _, how := range []struct {
		name string
		goal *goal
		end  func(h *house) error
	}{
		{"after a clean stop", atMost(goalStart), (*house).close},
		{"after kill -9", nil, func(h *house) error { h.kill(); return nil }},
	} {
		var times []time.Duration
		for i := range b.plan.starts + 1 {
			begin := time.Now()
			h, err := startHouse(ctx, b.dataDir(), b.bin.qpcd)
			if err != nil {
				return err
			}
			calls, err := h.dial(ctx, netip.Addr{}, nil)
			took := time.Since(begin)
			if err != nil {
				h.kill()
				return err
			}
			hangUp(calls)
			if err := how.end(h); err != nil {
				return err
			}
			if i > 0 { // the first follows the stop before it, which may have been of the other kind
				times = append(times, took)
			}
		}
		size, err := os.Stat(filepath.Join(b.dataDir(), "qpcd.db"))
		if err != nil {
			return fmt.Errorf("looking at the database: %w", err)
		}
		l := loadOf(times)
		b.add(figure{section: "Starting", name: "process start to first handshake, " + how.name + ", median", value: milliseconds(l.quantile(0.5)), unit: "ms", goal: how.goal,
			detail: fmt.Sprintf("at most %s ms; a database of %s MiB", number(milliseconds(l.quantile(1))), number(mebibytes(size.Size()))),
			limits: []limit{{"bare quic-go server", milliseconds(bare.quantile(0.5))}}})
	}
	return nil
}

func (b *bench) bareStarts(ctx context.Context) (load, error) {
	var times []time.Duration
	for range b.plan.starts {
		begin := time.Now()
		server, err := startBare(ctx, b.bin.bare)
		if err != nil {
			return load{}, err
		}
		conn, err := dialBare(ctx, server.address, nil)
		took := time.Since(begin)
		if err != nil {
			server.kill()
			return load{}, err
		}
		_ = conn.CloseWithError(0, "") // the server's end ends it anyway
		if err := server.stop(nil); err != nil {
			return load{}, err
		}
		times = append(times, took)
	}
	return loadOf(times), nil
}
