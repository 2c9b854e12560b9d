package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sys/unix"
)

const (
	// bareALPN is the protocol of the bare server.
	bareALPN = "bare"
	// bareRequest and bareAnswer are the frames of an Enqueue of payloadBytes
	// on the wire, and of its answer with a delivery proof.
	bareRequest = payloadBytes + 74
	bareAnswer  = 110
	// overwritten is the size of the file of overwriteLimit: small, so that a
	// fifth of the time is enough to write all of it once.
	overwritten = 16 * pageBytes
	// keepAlive is qpc's, so that idle connections are alike.
	keepAlive = 20 * time.Second
	// callPatience bounds one call: on a busy machine, far more than it takes.
	callPatience = 30 * time.Second
)

// shape is how calls are spread: so many connections with so many calls under
// way on each.
type shape struct{ connections, inFlight int }

// measureLimits finds out what disk and quic-go do alone. The figures stand in
// the table's first rows, and every later ratio refers to them.
func (b *bench) measureLimits(ctx context.Context) error {
	n := b.plan.senders
	b.disk, b.bare = map[int]load{}, map[shape]load{}
	for _, files := range []int{1, n} {
		l, err := diskLimit(ctx, b.dir, files, b.plan.rate/2)
		if err != nil {
			return err
		}
		b.disk[files] = l
		b.add(figure{section: "Limits", name: fmt.Sprintf("append %d bytes and fdatasync, %s", pageBytes, plural(files, "file")),
			value: l.rate(), unit: "/s", detail: quantiles(l)})
	}
	over, err := overwriteLimit(ctx, b.dir, b.plan.rate/4)
	if err != nil {
		return err
	}
	b.add(figure{section: "Limits", name: fmt.Sprintf("overwrite %d bytes and fdatasync, 1 file (what a log does that has its size)", pageBytes),
		value: over.rate(), unit: "/s", detail: quantiles(over)})
	server, err := startBare(ctx, b.bin.bare)
	if err != nil {
		return err
	}
	defer server.kill()
	for _, s := range []shape{{1, 1}, {n, 1}, {1, n}} {
		l, cpu, err := bareLimit(ctx, server, s, b.plan.rate/2)
		if err != nil {
			return err
		}
		b.bare[s] = l
		b.add(figure{section: "Limits", name: fmt.Sprintf("quic-go alone: a stream a call, %s, %d under way on each", plural(s.connections, "connection"), s.inFlight),
			value: l.rate(), unit: "/s", detail: fmt.Sprintf("%s; %.0f µs of server CPU a call", quantiles(l), perCall(cpu, l))})
	}
	return server.stop(nil)
}

// diskLimit appends and syncs from as many writers as files.
func diskLimit(ctx context.Context, dir string, files int, d time.Duration) (load, error) {
	page := make([]byte, pageBytes)
	var workers []work
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("append-%d", i)))
		if err != nil {
			return load{}, fmt.Errorf("making a file to append to: %w", err)
		}
		defer os.Remove(f.Name())
		defer f.Close()
		workers = append(workers, func(context.Context) error {
			if _, err := f.Write(page); err != nil {
				return fmt.Errorf("appending to a file: %w", err)
			}
			return unix.Fdatasync(int(f.Fd()))
		})
	}
	return warmed(ctx, d, workers, nil)
}

// overwriteLimit writes and syncs within a file that does not grow: the file
// system has no size to write down, and is often faster.
func overwriteLimit(ctx context.Context, dir string, d time.Duration) (load, error) {
	f, err := os.Create(filepath.Join(dir, "overwrite"))
	if err != nil {
		return load{}, fmt.Errorf("making a file to overwrite: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	page, at := make([]byte, pageBytes), int64(0)
	return warmed(ctx, d, []work{func(context.Context) error {
		if _, err := f.WriteAt(page, at); err != nil {
			return fmt.Errorf("overwriting a file: %w", err)
		}
		at = (at + pageBytes) % overwritten // the warm-up gives it its size
		return unix.Fdatasync(int(f.Fd()))
	}}, nil)
}

// bareProcess is a running bareserver.
type bareProcess struct {
	*process
	address string
}

func startBare(ctx context.Context, binary string) (*bareProcess, error) {
	const ready = "listening "
	p, err := startProcess(ctx, func(line string) bool { return strings.HasPrefix(line, ready) }, binary)
	if err != nil {
		return nil, err
	}
	return &bareProcess{p, strings.TrimPrefix(p.ready, ready)}, nil
}

// bareLimit calls the bare server and returns what that cost it.
func bareLimit(ctx context.Context, server *bareProcess, s shape, d time.Duration) (load, time.Duration, error) {
	var workers []work
	for range s.connections {
		conn, err := dialBare(ctx, server.address, nil)
		if err != nil {
			return load{}, 0, err
		}
		defer conn.CloseWithError(0, "")
		for range s.inFlight {
			workers = append(workers, func(ctx context.Context) error { return bareCall(ctx, conn, bareAnswer) })
		}
	}
	return costing(ctx, server.process, d, workers)
}

// costing is warmed with the processor time that the work cost a process.
func costing(ctx context.Context, p *process, d time.Duration, workers []work) (load, time.Duration, error) {
	var before time.Duration
	var failed error
	l, err := warmed(ctx, d, workers, func() { before, failed = p.cpu() })
	if err != nil || failed != nil {
		return l, 0, errOf(err, failed)
	}
	after, err := p.cpu()
	return l, after - before, err
}

// dialBare connects to the bare server. With sessions the connection may be an
// early one, whose first calls ride in 0-RTT.
func dialBare(ctx context.Context, address string, sessions tls.ClientSessionCache) (*quic.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	conn, err := quic.DialAddrEarly(ctx, address,
		// Nobody else has this port: there is nothing to check.
		&tls.Config{InsecureSkipVerify: true, NextProtos: []string{bareALPN}, MinVersion: tls.VersionTLS13, ServerName: "localhost", ClientSessionCache: sessions},
		&quic.Config{KeepAlivePeriod: keepAlive})
	if err != nil {
		return nil, fmt.Errorf("connecting to the bare server: %w", err)
	}
	if sessions != nil {
		return conn, nil
	}
	select {
	case <-conn.HandshakeComplete():
		return conn, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("connecting to the bare server: %w", context.Cause(ctx))
	}
}

// bareCall asks for an answer of a size.
func bareCall(ctx context.Context, conn *quic.Conn, answer uint32) error {
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return fmt.Errorf("calling the bare server: %w", err)
	}
	request := make([]byte, bareRequest)
	binary.BigEndian.PutUint32(request, answer)
	if err := stream.SetDeadline(time.Now().Add(callPatience)); err != nil {
		return fmt.Errorf("calling the bare server: %w", err)
	}
	if _, err = stream.Write(request); err == nil {
		err = stream.Close()
	}
	var n int64
	if err == nil {
		n, err = io.Copy(io.Discard, stream)
	}
	if err == nil && n != int64(answer) {
		err = fmt.Errorf("it answered %d bytes, want %d", n, answer)
	}
	if err != nil {
		return fmt.Errorf("calling the bare server: %w", err)
	}
	return nil
}
