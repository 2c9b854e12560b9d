package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/server"
)

const (
	// roleServe is the first argument of a qpcd that can be profiled:
	//
	//	bench serve FLAG...    qpcd's flags
	//
	// A line on its input, "profile FILE", begins a CPU profile, and "end" ends
	// it; each is answered by a line "profile: begun" or "profile: written".
	// SIGTERM ends it as it ends qpcd.
	roleServe = "serve"
	begun     = "profile: begun"
	ended     = "profile: written"
)

// runServe is the role: qpcd's rooms, put together as cmd/qpcd does, with the
// profiler beside them.
func runServe(ctx context.Context, args []string, stdin io.Reader, stderr io.Writer) error {
	cfg, _, err := config.Load(config.Sources{Args: args})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	s, err := server.New(ctx, cfg, server.Options{Log: log, Version: "bench"})
	if err != nil {
		return err
	}
	// Its input ends with the harness: this goroutine ends then, at the latest
	// with the process.
	go func() {
		if err := obeyProfiler(stdin, stderr); err != nil {
			log.Error("profiling failed", "error", err)
		}
	}()
	log.Info("listening", "addr", s.Addrs()[0].String())
	return s.Run(ctx)
}

func obeyProfiler(stdin io.Reader, answers io.Writer) error {
	var file *os.File
	for lines := bufio.NewScanner(stdin); lines.Scan(); {
		name, begin := strings.CutPrefix(lines.Text(), "profile ")
		switch {
		case begin && file == nil:
			var err error
			if file, err = os.Create(name); err != nil {
				return err
			}
			if err := pprof.StartCPUProfile(file); err != nil {
				return errors.Join(err, file.Close())
			}
			fmt.Fprintln(answers, begun)
		case file != nil:
			pprof.StopCPUProfile()
			if err := file.Close(); err != nil {
				return err
			}
			file = nil
			fmt.Fprintln(answers, ended)
		}
	}
	return nil
}

// profile writes CPU profiles of a server, each of one kind of load.
func (b *bench) profile(ctx context.Context, dir string, out io.Writer) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making a directory for profiles: %w", err)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	h, err := startHouse(ctx, b.dataDir(), self, roleServe)
	if err != nil {
		return err
	}
	defer h.kill()
	p, err := h.people(ctx, b.plan.senders)
	if err != nil {
		return err
	}
	n := b.plan.senders
	b.disk, b.bare = map[int]load{}, map[shape]load{} // no limits: only the profiles are wanted
	for _, step := range []struct {
		name string
		run  func() error
	}{
		{"enqueue-1", func() error { return b.enqueue(ctx, h, p, 1, nil) }},
		{"enqueue-many", func() error { return b.enqueue(ctx, h, p, n, nil) }},
		{"peek-ack-many", func() error { return b.drain(ctx, h, p, n, "Peek and Ack", peekAndAckAll) }},
		{"enqueue-pipelined", func() error { return b.enqueuePipelined(ctx, h, p) }},
		{"fetch-1", func() error { return b.drain(ctx, h, p, 1, "Fetch", fetchAll) }},
		{"latency", func() error { return b.latency(ctx, h, p) }},
	} {
		file := filepath.Join(dir, step.name+".pprof")
		if err := h.tell(ctx, "profile "+file, begun); err != nil {
			return err
		}
		err := step.run()
		if err = errOf(err, h.tell(ctx, "end", ended)); err != nil {
			return fmt.Errorf("profiling %s: %w", step.name, err)
		}
		fmt.Fprintln(out, "go tool pprof -top", file)
	}
	return h.close()
}
