//go:build !js

package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/sync/errgroup"
)

// ServerOptions say how [Listen] serves.
type ServerOptions struct {
	// Addresses are host:port, at least one: "0.0.0.0:5001", "[::]:5001",
	// ":5001" (both families in one socket). Port 0 takes a free port.
	Addresses []string
	// Certificates has the server's certificate.
	Certificates *CertificateStore
	// Secret keeps tickets, tokens and resets valid over a restart; the caller
	// stores it.
	Secret Secret
	// ALPN are the protocols served to clients on the port, [ALPN] alone if
	// empty.
	ALPN []string
	// Peers are the servers that [FederationALPN] is served to, on the same
	// port; nil: none.
	Peers Peers
	// Limits bound connections and memory; zero fields have their defaults.
	Limits Limits
	// Log gets what an operator should know; nil: nothing.
	Log *slog.Logger
	// Now tells the time to TLS (ticket ages); nil: time.Now.
	Now func() time.Time
}

// A Listener accepts connections on all its addresses. It is safe for
// concurrent use.
type Listener struct {
	admission *admission
	log       *slog.Logger
	endpoints []endpoint
	ready     chan Conn
	closing   chan struct{} // closed when Close begins
	closeOnce sync.Once
	running   sync.WaitGroup // acceptors, and connections on their way to Accept
}

// An endpoint is one socket and what runs on it.
type endpoint struct {
	udp       *net.UDPConn
	transport *quic.Transport
	listener  *quic.EarlyListener
}

// Listen opens every address, or none. ctx bounds the opening, not the life of
// the listener; end that with [Listener.Close].
func Listen(ctx context.Context, o ServerOptions) (*Listener, error) {
	if len(o.Addresses) == 0 {
		return nil, errors.New("listen: no address given")
	}
	if o.Certificates == nil {
		return nil, errors.New("listen: no certificate given")
	}
	if o.Secret == (Secret{}) {
		return nil, errors.New("listen: the transport secret is empty")
	}
	l := &Listener{
		admission: newAdmission(o.Limits.withDefaults(), o.Peers),
		log:       o.Log,
		ready:     make(chan Conn, acceptQueue),
		closing:   make(chan struct{}),
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	tlsConfig, err := serverTLS(o)
	if err != nil {
		return nil, err
	}
	for _, address := range o.Addresses {
		e, err := l.open(ctx, address, o.Secret, tlsConfig)
		if err != nil {
			l.Close()
			return nil, err
		}
		l.endpoints = append(l.endpoints, e)
		l.running.Go(func() { l.serve(e) })
	}
	return l, nil
}

func serverTLS(o ServerOptions) (*tls.Config, error) {
	ticketKey, err := o.Secret.derive(infoSessionTicket)
	if err != nil {
		return nil, err
	}
	c := &tls.Config{
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: keyExchanges(),
		NextProtos:       o.ALPN,
		GetCertificate:   o.Certificates.GetCertificate,
		ClientAuth:       tls.NoClientCert,
		Time:             o.Now,
	}
	if len(c.NextProtos) == 0 {
		c.NextProtos = []string{ALPN}
	}
	c.SetSessionTicketKeys([][32]byte{ticketKey})
	if o.Peers != nil {
		peers := peerTLS(o)
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if o.Peers.Count() > 0 && wantsFederation(hello.SupportedProtos, c.NextProtos) {
				return peers, nil
			}
			return nil, nil
		}
	}
	return c, nil
}

// keyExchanges are those of PROTOCOL section 1. Go prefers the hybrid one
// whatever the order here.
func keyExchanges() []tls.CurveID {
	return []tls.CurveID{tls.X25519MLKEM768, tls.X25519}
}

func quicVersions() []quic.Version { return []quic.Version{quic.Version1, quic.Version2} }

func serverQUIC() *quic.Config {
	return &quic.Config{
		Versions:                       quicVersions(),
		HandshakeIdleTimeout:           handshakeIdle,
		MaxIdleTimeout:                 idleTimeout,
		InitialStreamReceiveWindow:     serverStreamWindow,
		MaxStreamReceiveWindow:         serverStreamWindowMax,
		InitialConnectionReceiveWindow: serverConnWindow,
		MaxConnectionReceiveWindow:     serverConnWindowMax,
		AllowConnectionWindowIncrease: func(q *quic.Conn, delta uint64) bool {
			s, ok := q.Context().Value(slotKey{}).(*slot)
			return ok && s.grow(delta)
		},
		MaxIncomingStreams:    serverStreams,
		MaxIncomingUniStreams: -1, // clients open none (PROTOCOL section 1)
		Allow0RTT:             true,
	}
}

// slotKey finds a connection's slot in its context.
type slotKey struct{}

func (l *Listener) open(ctx context.Context, address string, secret Secret, tlsConfig *tls.Config) (endpoint, error) {
	resetKey, err := secret.derive(infoStatelessReset)
	if err != nil {
		return endpoint{}, err
	}
	tokenKey, err := secret.derive(infoAddressToken)
	if err != nil {
		return endpoint{}, err
	}
	udp, err := listenUDP(ctx, address)
	if err != nil {
		return endpoint{}, err
	}
	t := newTransport(udp)
	t.StatelessResetKey = (*quic.StatelessResetKey)(&resetKey)
	t.TokenGeneratorKey = (*quic.TokenGeneratorKey)(&tokenKey)
	t.VerifySourceAddress = func(a net.Addr) bool {
		return l.admission.wantsProof(addrPort(a).Addr())
	}
	t.ConnContext = func(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
		s, err := l.admission.admit(addrPort(info.RemoteAddr).Addr())
		if err != nil {
			l.log.Debug("connection refused", "from", info.RemoteAddr, "reason", err)
			return nil, err
		}
		context.AfterFunc(ctx, s.release)
		return context.WithValue(ctx, slotKey{}, s), nil
	}
	ln, err := t.ListenEarly(tlsConfig, serverQUIC())
	if err != nil {
		udp.Close()
		return endpoint{}, fmt.Errorf("listen on %s: %w", address, err)
	}
	l.sizeBuffers(udp)
	return endpoint{udp: udp, transport: t, listener: ln}, nil
}

// listenUDP binds one address and says plainly what is wrong with it.
func listenUDP(ctx context.Context, address string) (*net.UDPConn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("listen address %q is not host:port, for example 0.0.0.0:5001 or [::]:5001: %w", cut80(address), err)
	}
	// An IP address binds its own family only, so that 0.0.0.0 and [::] can
	// be given side by side; no host binds both in one socket.
	network := "udp"
	if ip, err := netip.ParseAddr(host); err == nil {
		if network = "udp6"; ip.Is4() {
			network = "udp4"
		}
	}
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, network, address)
	switch {
	case err == nil:
		return pc.(*net.UDPConn), nil // by the documentation of ListenPacket
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("listen on %s: already in use: is another qpcd running? %w", address, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on %s: this machine has no such address: %w", address, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen on %s: not permitted; ports below 1024 need root: %w", address, err)
	case errors.Is(err, syscall.EAFNOSUPPORT):
		return nil, fmt.Errorf("listen on %s: this machine has no such address family (is IPv6 off?): %w", address, err)
	}
	return nil, fmt.Errorf("listen on %s: %w", address, err)
}

// newTransport makes a quic-go transport over a socket. quic-go prints a warning
// of several lines by the standard logger when it cannot have 7 MiB of socket
// buffers; this package asks for less and logs in its own way, so it uses
// quic-go's switch for that, unless the operator has set it.
func newTransport(udp *net.UDPConn) *quic.Transport {
	const quiet = "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING"
	if _, set := os.LookupEnv(quiet); !set {
		os.Setenv(quiet, "true") // fails only for a malformed name
	}
	return &quic.Transport{Conn: udp}
}

// sizeBuffers bounds what the kernel may queue. quic-go has by now asked for
// 7 MiB, which as root it gets.
func (l *Listener) sizeBuffers(udp *net.UDPConn) {
	err := errors.Join(udp.SetReadBuffer(socketBuffer), udp.SetWriteBuffer(socketBuffer))
	got := receiveBuffer(udp)
	if err != nil || got > 0 && got < socketBuffer {
		l.log.Info("the kernel limits the UDP receive buffer; bursts may lose packets",
			"address", udp.LocalAddr(), "bytes", got, "wanted", socketBuffer, "hint", "raise net.core.rmem_max")
	}
}

// serve hands on what one address accepts, until the listener is closed.
func (l *Listener) serve(e endpoint) {
	for {
		// Background: Close ends this by closing the quic listener, and
		// then the rest of its queue still comes through here.
		q, err := e.listener.Accept(context.Background())
		if err != nil {
			select {
			case <-l.closing:
			default:
				l.log.Error("listening address lost", "address", e.udp.LocalAddr(), "error", err)
			}
			return
		}
		s, ok := q.Context().Value(slotKey{}).(*slot)
		if !ok { // impossible: every connection went through ConnContext
			conn{q}.Close(CloseLimitExceeded, "")
			continue
		}
		s.begun(conn{q})
		// One goroutine for each unfinished handshake, bounded by
		// Limits.PendingHandshakes.
		l.running.Go(func() { l.deliver(conn{q}, s) })
	}
}

// deliver brings one connection to Accept: at once if it carries 0-RTT data,
// else when its handshake is complete, so that half-open connections cost the
// rest of the house nothing.
func (l *Listener) deliver(c conn, s *slot) {
	q, done := c.q, c.Context().Done()
	if !q.ConnectionState().Used0RTT {
		select {
		case <-q.HandshakeComplete():
		case <-done:
			return
		case <-l.closing:
			return
		}
	}
	// Who it is, is known now. Close refuses only when the connection is gone.
	if err := s.assign(c.ALPN() == FederationALPN); err != nil {
		l.log.Debug("connection refused", "from", q.RemoteAddr(), "reason", err)
		_ = c.Close(CloseLimitExceeded, err.Error())
		return
	}
	select {
	case l.ready <- c:
	case <-done:
		return
	case <-l.closing:
		return
	}
	select {
	case <-q.HandshakeComplete():
		s.settled()
	case <-done:
	case <-l.closing:
	}
}

// Accept waits for the next connection of any address. A connection may end
// while it waits here; its first call then says so. After Close it returns
// [ErrListenerClosed].
func (l *Listener) Accept(ctx context.Context) (Conn, error) {
	select {
	case <-l.closing:
		return nil, ErrListenerClosed
	default:
	}
	select {
	case c := <-l.ready:
		l.admission.accepted.Add(1)
		return c, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.closing:
		return nil, ErrListenerClosed
	}
}

// Addrs are the bound addresses, in the order of ServerOptions.Addresses, with
// the ports chosen for port 0.
func (l *Listener) Addrs() []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(l.endpoints))
	for _, e := range l.endpoints {
		out = append(out, addrPort(e.udp.LocalAddr()))
	}
	return out
}

// Stats are the counters of now.
func (l *Listener) Stats() Stats { return l.admission.stats() }

// Drain refuses new connections from now on; those there are go on.
func (l *Listener) Drain() { l.admission.drain() }

// Close refuses new connections, closes all others with [CloseNormal] and
// "server shutting down", and frees the addresses. It waits until that is done.
func (l *Listener) Close() error {
	var err error
	l.closeOnce.Do(func() {
		l.admission.drain()
		close(l.closing)
		for _, e := range l.endpoints {
			err = cmp.Or(err, e.listener.Close())
		}
		l.running.Wait()
		var g errgroup.Group
		g.SetLimit(closeFanout)
		for _, c := range l.admission.live() {
			g.Go(func() error { return c.Close(CloseNormal, errDraining.Error()) })
		}
		err = cmp.Or(err, g.Wait())
		for _, e := range l.endpoints {
			err = cmp.Or(err, e.transport.Close(), e.udp.Close())
		}
	})
	return err
}
