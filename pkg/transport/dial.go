//go:build !js

package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// DialOptions say how [Dial] connects.
type DialOptions struct {
	// Address is the server's, in a form that [ParseAddress] reads.
	Address string
	// ServerName is the name asked for by SNI, and checked when Trust is a
	// certificate authority. Empty: the host of Address.
	ServerName string
	// Trust decides about the server's certificate. Required.
	Trust Trust
	// Sessions keeps TLS sessions, so that the next Dial to the same server
	// can send in 0-RTT. nil: every Dial is a full handshake.
	Sessions tls.ClientSessionCache
	// ALPN is the protocol asked for, [ALPN] if empty.
	ALPN string
	// Certificates, if set, has the certificate by which this side proves who
	// it is to a server that asks, as for [FederationALPN] it does.
	Certificates *CertificateStore
	// LocalAddr is the address to dial from; the zero value leaves the
	// choice to the system.
	LocalAddr netip.Addr
	// Lookup resolves host names; nil: the system's resolver.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	// Now tells the time to TLS and Trust; nil: time.Now.
	Now func() time.Time
}

// Dial connects to a server. A name's addresses are tried in turn, the two
// families alternating, five to ten seconds each, until one answers; a server
// that is not trusted ends the attempt at once.
//
// With a session of an earlier connection in Sessions, Dial returns before the
// handshake is complete, and what is sent until then goes out in 0-RTT, where
// an attacker can replay it: send only idempotent calls, or wait for
// [Conn.HandshakeComplete]. If the server refuses 0-RTT, streams opened until
// then fail with [ErrEarlyDataRejected]; the connection and new streams work.
//
// Errors: [*ErrPinChanged], [*ErrUnknownServer], [*ClosedError] (refused:
// [CloseLimitExceeded]), [ErrNoAnswer], [ErrNothingListens],
// [ErrNoCommonProtocol], [ErrNoCommonVersion], [*HandshakeError], those of the resolver, ctx's.
func Dial(ctx context.Context, o DialOptions) (Conn, error) {
	server, err := ParseAddress(o.Address)
	if err != nil {
		return nil, err
	}
	if o.Trust == nil {
		return nil, errors.New("dial: no trust given")
	}
	addrs, err := resolve(ctx, server.Host, o)
	if err != nil {
		return nil, err
	}
	var failed []error
	for _, ip := range addrs {
		target := netip.AddrPortFrom(ip, server.Port)
		c, err := dialOne(ctx, server, target, o)
		if err == nil {
			return c, nil
		}
		switch err = translate(err); {
		case errors.Is(err, ErrNoAnswer):
			err = fmt.Errorf("%w; is qpcd running there, and UDP port %d open?", err, server.Port)
		case errors.Is(err, ErrNothingListens):
			err = fmt.Errorf("%w; is qpcd running there?", err)
		}
		err = fmt.Errorf("connect to %s at %s: %w", server, target, err)
		if ctx.Err() != nil || !tryNext(err) {
			return nil, err
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

// tryNext reports whether another address may do better. One that answered
// wrongly ends the attempt: to go round a refusal would hide it.
func tryNext(err error) bool {
	if _, ok := errors.AsType[*HandshakeError](err); ok {
		return false
	}
	_, ok := errors.AsType[*ClosedError](err)
	return !ok && !errors.Is(err, ErrNoCommonProtocol) && !errors.Is(err, ErrNoCommonVersion)
}

func resolve(ctx context.Context, host string, o DialOptions) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	lookup := o.Lookup
	if lookup == nil {
		lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	found, err := lookup(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("find the address of %s: %w", host, err)
	}
	addrs := interleave(found)
	if len(addrs) == 0 {
		return nil, fmt.Errorf("find the address of %s: it has none", host)
	}
	return addrs, nil
}

// interleave alternates the families, the resolver's first choice first (RFC
// 8305, section 4), so that one broken family costs one attempt.
func interleave(in []netip.Addr) []netip.Addr {
	var first, second []netip.Addr
	for _, a := range in {
		a = a.Unmap()
		if len(first) == 0 || a.Is4() == first[0].Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	var out []netip.Addr
	for i := 0; i < max(len(first), len(second)) && len(out) < maxDialAddresses; i++ {
		if i < len(first) {
			out = append(out, first[i])
		}
		if i < len(second) {
			out = append(out, second[i])
		}
	}
	return out
}

func dialOne(ctx context.Context, server Address, target netip.AddrPort, o DialOptions) (Conn, error) {
	d, err := o.Trust.begin(server.String())
	if err != nil {
		return nil, err
	}
	network := "udp6"
	if target.Addr().Is4() {
		network = "udp4"
	}
	var local *net.UDPAddr
	if o.LocalAddr.IsValid() {
		local = net.UDPAddrFromAddrPort(netip.AddrPortFrom(o.LocalAddr, 0))
	}
	udp, err := net.ListenUDP(network, local)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p, err := startProbe(network, local, target, cancel)
	if err != nil {
		udp.Close()
		return nil, err
	}
	t := newTransport(udp)
	free := sync.OnceFunc(func() {
		p.stop()
		t.Close() // the socket below is what matters
		udp.Close()
	})
	tlsConfig, gate := clientTLS(server, d, o), &earlyGate{}
	if o.Sessions != nil {
		tlsConfig.KeyLogWriter = gate
	}
	q, err := t.DialEarly(ctx, net.UDPAddrFromAddrPort(target), tlsConfig, clientQUIC())
	if err != nil {
		free()
		return nil, err
	}
	// A server met for the first time has no session, so the handshake is
	// complete here and the key proven.
	if d.remember != nil {
		if err := d.remember(); err != nil {
			q.CloseWithError(quic.ApplicationErrorCode(CloseNormal), "")
			free()
			return nil, err
		}
	}
	context.AfterFunc(q.Context(), free)
	p.watch(q)
	return &clientConn{conn: conn{q}, alpn: tlsConfig.NextProtos[0], gate: gate, free: free}, nil
}

func clientTLS(server Address, d *decision, o DialOptions) *tls.Config {
	now := o.Now
	if now == nil {
		now = time.Now
	}
	c := &tls.Config{
		MinVersion:       tls.VersionTLS13,
		CurvePreferences: keyExchanges(),
		ServerName:       o.ServerName,
		NextProtos:       []string{o.ALPN},
		Time:             now,
		// Go's own check knows authorities and names only; VerifyConnection
		// decides instead, in full handshakes and in resumed ones.
		InsecureSkipVerify: true,
	}
	if c.ServerName == "" {
		c.ServerName = server.Host
		if ip, err := netip.ParseAddr(server.Host); err == nil {
			c.ServerName = ip.WithZone("").String()
		}
	}
	if o.ALPN == "" {
		c.NextProtos[0] = ALPN
	}
	if o.Certificates != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return o.Certificates.GetCertificate(nil)
		}
	}
	var sessions *sessionCache
	if o.Sessions != nil {
		prefix := server.String() + " " + c.ServerName + " " + c.NextProtos[0] + " "
		sessions = &sessionCache{inner: o.Sessions, prefix: prefix, scope: d.scope}
		c.ClientSessionCache = sessions
	}
	name := c.ServerName
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the server presented no certificate")
		}
		// Not cs.ServerName: that is what went out by SNI, so it is empty
		// for an IP address, and an empty name checks nothing.
		scope, err := d.verify(cs.PeerCertificates, name, now())
		if err == nil && sessions != nil {
			sessions.proven.Store(&scope)
		}
		return err
	}
	return c
}

// A sessionCache keeps sessions apart by server and by what was trusted, so that
// early data never goes to a server that was trusted under another pin.
type sessionCache struct {
	inner  tls.ClientSessionCache
	prefix string
	scope  string                 // trusted before the handshake; empty: nothing
	proven atomic.Pointer[string] // trusted since the handshake
}

func (c *sessionCache) Get(string) (*tls.ClientSessionState, bool) {
	if c.scope == "" {
		return nil, false
	}
	return c.inner.Get(c.prefix + c.scope)
}

func (c *sessionCache) Put(_ string, s *tls.ClientSessionState) {
	scope := c.scope
	if p := c.proven.Load(); p != nil {
		scope = *p
	}
	if scope != "" {
		c.inner.Put(c.prefix+scope, s)
	}
}

func clientQUIC() *quic.Config {
	return &quic.Config{
		Versions:                       quicVersions(),
		HandshakeIdleTimeout:           handshakeIdle,
		MaxIdleTimeout:                 idleTimeout,
		KeepAlivePeriod:                keepAlive,
		InitialStreamReceiveWindow:     clientStreamWindow,
		MaxStreamReceiveWindow:         clientStreamWindowMax,
		InitialConnectionReceiveWindow: clientConnWindow,
		MaxConnectionReceiveWindow:     clientConnWindowMax,
		MaxIncomingStreams:             -1, // servers open none (PROTOCOL section 1)
		MaxIncomingUniStreams:          clientUniStreams,
	}
}
