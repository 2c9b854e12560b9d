//go:build !js

package transport

import (
	"bytes"
	"context"
	"crypto/x509"
	"sync"
)

// A clientConn owns its socket, carries on after a refused 0-RTT, and orders
// the opening of early streams.
type clientConn struct {
	conn
	alpn string // the only one offered, so the one agreed on
	gate *earlyGate
	free func()
}

// An earlyGate lets streams be opened in 0-RTT until the server's answer is
// being read, and from then on makes them wait for the handshake, which is a
// moment later. quic-go v0.64.1 needs that: it replaces the remembered transport
// parameters by the server's without a lock, while opening a stream reads them
// (Conn.handleTransportParameters against Conn.newFlowController).
//
// The one hook between the answer's arrival and that moment is TLS's key log:
// it is told when the handshake keys are made, right after ServerHello. The gate
// looks at the label of the line and keeps nothing of it.
type earlyGate struct {
	mu   sync.RWMutex
	shut bool
}

// Write implements the KeyLogWriter of tls.Config.
func (g *earlyGate) Write(line []byte) (int, error) {
	if bytes.HasPrefix(line, []byte("CLIENT_HANDSHAKE_TRAFFIC_SECRET ")) {
		g.mu.Lock()
		g.shut = true
		g.mu.Unlock()
	}
	return len(line), nil
}

// Close frees the socket as well.
func (c *clientConn) Close(code CloseCode, reason string) error {
	err := c.conn.Close(code, reason)
	c.free()
	return err
}

func (c *clientConn) ALPN() string { return c.alpn }

// PeerCertificates waits for the handshake: before it nobody has proven
// anything.
func (c *clientConn) PeerCertificates() []*x509.Certificate {
	if !c.settled(context.Background()) {
		return nil
	}
	return c.conn.PeerCertificates()
}

// settled waits until the handshake is complete, and reports false if ctx or the
// connection ended before.
func (c *clientConn) settled(ctx context.Context) bool {
	select {
	case <-c.HandshakeComplete():
		return true
	case <-c.Context().Done():
	case <-ctx.Done():
	}
	return false
}

func (c *clientConn) OpenStream(ctx context.Context) (Stream, error) {
	return open(ctx, c, c.conn.OpenStream, func() (Stream, error) {
		s, err := c.q.OpenStream()
		return stream{s}, err
	})
}

func (c *clientConn) OpenSendStream(ctx context.Context) (SendStream, error) {
	return open(ctx, c, c.conn.OpenSendStream, func() (SendStream, error) {
		s, err := c.q.OpenUniStream()
		return sendStream{s}, err
	})
}

func (c *clientConn) AcceptStream(ctx context.Context) (Stream, error) {
	return afterRejection(ctx, c, c.conn.AcceptStream)
}

func (c *clientConn) AcceptReceiveStream(ctx context.Context) (ReceiveStream, error) {
	return afterRejection(ctx, c, c.conn.AcceptReceiveStream)
}

// open opens a stream, early if the gate allows it and there is credit, by the
// waiting call once the handshake is complete.
func open[S any](ctx context.Context, c *clientConn, wait func(context.Context) (S, error), early func() (S, error)) (S, error) {
	select {
	case <-c.HandshakeComplete():
		return afterRejection(ctx, c, wait)
	default:
	}
	c.gate.mu.RLock()
	if !c.gate.shut {
		if s, err := early(); err == nil {
			c.gate.mu.RUnlock()
			return s, nil
		}
	}
	c.gate.mu.RUnlock()
	c.settled(ctx) // if not, the next call says why
	return afterRejection(ctx, c, wait)
}

// afterRejection runs one call and, if the server has refused 0-RTT, once more
// on the connection that follows, which is the same one with fresh streams.
func afterRejection[S any](ctx context.Context, c *clientConn, call func(context.Context) (S, error)) (S, error) {
	s, err := call(ctx)
	if err != ErrEarlyDataRejected {
		return s, err
	}
	if _, err := c.q.NextConnection(ctx); err != nil {
		return s, translate(err)
	}
	return call(ctx)
}

var (
	_ Conn = (*clientConn)(nil)
	_ Conn = conn{}
)
