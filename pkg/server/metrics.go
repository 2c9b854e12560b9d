package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/metrics"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// metricsConnections bounds the readers of the metrics at once: a
	// household has one monitor, and each connection costs two goroutines.
	metricsConnections = 8
	// metricsTimeout bounds each part of a reader's request, and of the answer.
	metricsTimeout = 10 * time.Second
	// metricsHeader bounds the header of a request, in bytes.
	metricsHeader = 8 << 10
)

// metricsPage serves the metrics over HTTP.
type metricsPage struct {
	listeners []net.Listener
	server    *http.Server
}

// openMetrics listens on every address of the setting, or on none.
func openMetrics(ctx context.Context, cfg *config.Config, m *metrics.Metrics) (*metricsPage, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_ = m.WriteText(w) // a reader that went away
	})
	p := &metricsPage{server: &http.Server{
		Handler: mux, ReadTimeout: metricsTimeout, WriteTimeout: metricsTimeout, IdleTimeout: metricsTimeout, MaxHeaderBytes: metricsHeader,
	}}
	for _, addr := range cfg.MetricsListen {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr.String())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listening for readers of the metrics: %w", err), p.close())
		}
		p.listeners = append(p.listeners, netutil.LimitListener(l, metricsConnections))
	}
	return p, nil
}

// run serves until close.
func (p *metricsPage) run() {
	var serving sync.WaitGroup
	for _, l := range p.listeners {
		serving.Go(func() { _ = p.server.Serve(l) }) // ends with close
	}
	serving.Wait()
}

func (p *metricsPage) close() error {
	err := p.server.Close()
	for _, l := range p.listeners {
		if closeErr := l.Close(); closeErr != nil && !errors.Is(closeErr, net.ErrClosed) {
			err = errors.Join(err, closeErr)
		}
	}
	return err
}

// addrs returns the addresses that the metrics are read from.
func (p *metricsPage) addrs() (all []netip.AddrPort) {
	for _, l := range p.listeners {
		if tcp, ok := l.Addr().(*net.TCPAddr); ok {
			all = append(all, tcp.AddrPort())
		}
	}
	return all
}

// measure says where the metrics come from that are not counted call by call.
func (s *Server) measure(o Options) *metrics.Metrics {
	waiting := &waitingTotals{server: s, now: o.Now}
	return metrics.New(metrics.Sources{
		QueueDepth:  func() float64 { return float64(waiting.read().messages) },
		QueueBytes:  func() float64 { return float64(waiting.read().bytes) },
		InFlight:    func() float64 { return float64(s.calls.Running()) },
		Connections: func() float64 { return float64(s.listener.Stats().Connections) },
		Sessions:    func() float64 { return float64(s.hub.Connections()) },
		StorageBytes: func() float64 {
			stats := s.db.Stats()
			return float64(stats.FileBytes + stats.WALBytes)
		},
		ReadOnly: func() bool {
			readOnly, _ := s.db.ReadOnly()
			return readOnly
		},
		StorageFree:       func() float64 { return float64(store.FreeBytes(s.config.DataDir)) },
		Commits:           func() float64 { return float64(s.db.Stats().Commits) },
		CertificateExpiry: func() time.Time { return s.certs.Leaf().NotAfter },
		Started:           o.Now(),
	})
}

// totalsFor is how long the sums over all queues are good for: they cost a walk
// over the log, and one reading of the metrics asks twice.
const totalsFor = 5 * time.Second

// waitingTotals remembers the sums over all queues for a moment.
type waitingTotals struct {
	server *Server
	now    func() time.Time

	mu   sync.Mutex
	last totals
	at   time.Time
}

type totals struct{ messages, bytes uint64 }

func (w *waitingTotals) read() totals {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.at.IsZero() && w.now().Sub(w.at) < totalsFor {
		return w.last
	}
	ctx, cancel := context.WithTimeout(context.Background(), metricsTimeout)
	defer cancel()
	messages, bytes, err := w.server.delivery.Totals(ctx)
	if err != nil {
		return w.last // the storage says what is wrong with it
	}
	w.last, w.at = totals{messages, bytes}, w.now()
	return w.last
}
