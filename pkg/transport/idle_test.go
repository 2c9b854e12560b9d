//go:build !js

package transport

import (
	"context"
	"crypto/tls"
	"net"
	"runtime"
	"sync"
	"testing"

	"github.com/quic-go/quic-go"
)

// BenchmarkIdleConnection measures what one idle connection costs a process
// that runs both ends, in bytes of heap and stack, with the server of this
// package and with bare quic-go of the same configuration. The clients are the
// same, so the difference is this package's.
func BenchmarkIdleConnection(b *testing.B) {
	const n = 500
	for _, bare := range []bool{true, false} {
		name := "transport"
		if bare {
			name = "bare"
		}
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.ReportMetric(idleCost(b, bare, n), "bytes/conn")
			}
		})
	}
}

func idleCost(b *testing.B, bare bool, n int) float64 {
	store := newStore(b)
	var address string
	var stop func()
	var wg sync.WaitGroup
	if bare {
		udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			b.Fatal(err)
		}
		t := newTransport(udp)
		config := serverQUIC()
		config.AllowConnectionWindowIncrease = nil
		tlsConfig := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{ALPN}, GetCertificate: store.GetCertificate}
		ln, err := t.Listen(tlsConfig, config)
		if err != nil {
			b.Fatal(err)
		}
		var kept []*quic.Conn
		wg.Go(func() {
			for {
				q, err := ln.Accept(context.Background())
				if err != nil {
					return
				}
				kept = append(kept, q)
			}
		})
		address, stop = udp.LocalAddr().String(), func() { ln.Close(); wg.Wait(); t.Close(); udp.Close(); _ = kept }
	} else {
		l, err := Listen(within(b), ServerOptions{Addresses: []string{loopback}, Certificates: store, Secret: testSecret,
			Limits: Limits{Connections: n, ConnectionsPerSource: 4 * n, PendingHandshakes: n, HandshakeBurst: 4 * n}})
		if err != nil {
			b.Fatal(err)
		}
		var kept []Conn
		wg.Go(func() {
			for {
				c, err := l.Accept(context.Background())
				if err != nil {
					return
				}
				kept = append(kept, c)
			}
		})
		address, stop = l.Addrs()[0].String(), func() { l.Close(); wg.Wait(); _ = kept }
	}
	defer stop()

	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer udp.Close()
	t := newTransport(udp)
	defer t.Close()
	target, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		b.Fatal(err)
	}
	clients := &tls.Config{NextProtos: []string{ALPN}, InsecureSkipVerify: true}
	dial := func() {
		if _, err := t.Dial(context.Background(), target, clients, clientQUIC()); err != nil {
			b.Fatal(err)
		}
	}
	before := inUse()
	for range n {
		dial()
	}
	return float64(inUse()-before) / float64(n)
}

func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}
