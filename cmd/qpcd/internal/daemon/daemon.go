// Package daemon is the life of the qpcd process: its log, its signals, and the
// one line that says that it serves.
//
//	SIGTERM, SIGINT  drain: calls under way are answered, then Run returns
//	once more        Run returns [ErrForced] at once; the process must exit
//	SIGHUP           the certificate is read again; one that cannot be used is
//	                 logged and the old one stays
//	SIGPIPE          ignored
package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/logs"
	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/server"
)

// shortPin is how many hex digits of the pin the first log line shows: enough
// to tell two servers apart, while comparing is `qpcd fingerprint`'s work.
const shortPin = 16

// ErrForced is the end by a second signal. Goroutines of the server still run.
var ErrForced = errors.New("stopped at once by a second signal; calls under way were not answered")

// Run starts the server and serves until a signal ends it; it returns nil after
// a clean stop, and the refusal of [server.New] when nothing was started. It
// logs to w, and owns the process's signals: call it once.
func Run(cfg *config.Config, version string, w io.Writer) error {
	// A reader of the log that goes away first, as in `qpcd 2>&1 | tee log`,
	// must not end the server in the middle of its work.
	signal.Ignore(syscall.SIGPIPE)
	ends, hangups := make(chan os.Signal, 2), make(chan os.Signal, 1)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
	signal.Notify(hangups, syscall.SIGHUP)

	log, err := logs.New(cfg, logs.Options{Output: w, Rand: rand.Reader, Now: time.Now})
	if err != nil {
		return err
	}
	for _, warning := range cfg.Warnings {
		log.Warn(warning)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	started, stopped := make(chan *server.Server, 1), make(chan error, 1)
	go func() {
		s, err := server.New(ctx, cfg, server.Options{Log: log, Version: version})
		if err == nil {
			started <- s
			if err = s.Run(ctx); err != nil {
				err = fmt.Errorf("running: %v", err) // %v: exit codes from 3 on mean that nothing ran
			}
		} else if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil
		}
		stopped <- err
	}()
	var s *server.Server
	var reloads <-chan os.Signal // nil until there is a certificate to read again
	for {
		select {
		case s = <-started:
			announce(log, cfg, version, s)
			reloads = hangups
		case <-reloads:
			_ = s.ReloadCertificate() // it logs
		case sig := <-ends:
			if ctx.Err() != nil {
				return ErrForced
			}
			log.Info("stopping", "signal", sig.String())
			stop()
		case err := <-stopped:
			if err == nil {
				log.Info("stopped")
			}
			return err
		}
	}
}

// announce logs the one line that says that the server listens, and how.
func announce(log *slog.Logger, cfg *config.Config, version string, s *server.Server) {
	var addrs []string
	for _, a := range s.Addrs() {
		addrs = append(addrs, a.String())
	}
	line := []any{"addr", strings.Join(addrs, ","), "version", version, "registration", cfg.Registration,
		"data_dir", cfg.DataDir, "pin", s.Pin().String()[:shortPin]}
	if cfg.Registration == config.RegistrationOpen {
		line = append(line, "note", "anyone who reaches this server can register")
	}
	log.Info("listening", line...)
}
