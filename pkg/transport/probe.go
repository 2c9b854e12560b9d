//go:build !js

package transport

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
)

// probeTime is how long a dial listens for «port unreachable»: longer than a
// round trip to anywhere.
const probeTime = time.Second

// codeNothingListens marks, on this side only, a connection that a probe ended.
const codeNothingListens quic.ApplicationErrorCode = 1 << 40

// A probe finds out early that nobody will answer. QUIC runs on an unconnected
// socket, so that it can follow a change of network, and such a socket never
// hears of ICMP errors: a server that is not running would cost the whole
// handshake timeout. The probe is a second, connected socket that sends one
// byte, which every QUIC server drops, and hears them.
type probe struct {
	udp *net.UDPConn

	mu      sync.Mutex
	cancel  context.CancelCauseFunc // ends a dial under way
	q       *quic.Conn              // the connection, once there is one
	refused bool
}

// startProbe fails at once when there is no route to target. cancel is called
// with [ErrNothingListens].
func startProbe(network string, local *net.UDPAddr, target netip.AddrPort, cancel context.CancelCauseFunc) (*probe, error) {
	udp, err := net.DialUDP(network, local, net.UDPAddrFromAddrPort(target))
	if err != nil {
		return nil, err
	}
	p := &probe{udp: udp, cancel: cancel}
	udp.SetReadDeadline(time.Now().Add(probeTime)) // fails only when closed
	udp.Write([]byte{0})                           // a lost probe costs nothing
	go p.run()                                     // ends after probeTime at the latest
	return p, nil
}

func (p *probe) run() {
	_, err := p.udp.Read(make([]byte, 1))
	p.udp.Close()
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = true
	p.cancel(ErrNothingListens)
	p.end()
}

// watch goes on for a connection that was returned before its handshake was
// complete.
func (p *probe) watch(q *quic.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.q = q
	p.end()
}

func (p *probe) end() {
	if !p.refused || p.q == nil {
		return
	}
	select {
	case <-p.q.HandshakeComplete(): // somebody listens after all
	default:
		p.q.CloseWithError(codeNothingListens, "")
	}
}

// stop ends the probe.
func (p *probe) stop() { p.udp.Close() }
