// Package control is the local way to the server: a Unix stream socket on which
// the owner's commands, rpcd and LuCI make the same calls in the same frames as
// clients do over QUIC (PROTOCOL 7.13).
//
//	client  connect, request frame, end of its half
//	server  response frame, end
//
// One connection carries one call. What it promises:
//
//   - Only root and the user that the server runs as get in. The file has mode
//     0600 from its first moment, and the credentials of each connection are
//     asked of the kernel, so that a file whose rights were widened later opens
//     nothing.
//   - A socket that a dead server left behind is replaced; a live one, and a
//     file that is no socket, are left alone and refuse the start.
//   - At most maxConnections connections are served at once; more wait in the
//     kernel's queue, and none is dropped. Who sends nothing, or half a
//     request, is ended by the deadlines of pkg/rpc.
//
// State: a [Listener] owns its socket, one goroutine that accepts and one for
// each connection; all have ended when Run has returned.
package control

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// maxConnections bounds what is served at once: a household's scripts and
	// pages, at two goroutines and some 20 KiB each.
	maxConnections = 32
	// maxPath is what the kernel has room for: 108 bytes with a NUL at the end
	// (unix(7), sun_path).
	maxPath = 107
	// streamID is the number of a connection's one stream. Not 0: a session
	// handshake has no place here, and there is a first byte that would mean
	// one (PROTOCOL 3).
	streamID = 4
)

var (
	// ErrNotRunning reports that no server listens on the socket.
	ErrNotRunning = errors.New("no server is running")
	// ErrNotAllowed reports a user who may not use the socket.
	ErrNotAllowed = errors.New("only root and the user that the server runs as may do this")
	// ErrInUse reports a socket on which another server answers.
	ErrInUse = errors.New("another server answers on the control socket")

	errOneCall = errors.New("a connection of the control socket carries one call")
)

// checkPath returns an error for a path that no socket can have.
func checkPath(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("the path of the control socket has %d bytes where %d are possible; choose a shorter control_socket: %s", len(path), maxPath, path)
	}
	return nil
}

// conn is a connection as pkg/rpc wants it, with one stream. The side that
// accepts gets it by AcceptStream, the side that opens by OpenStream.
type conn struct {
	unix   *net.UnixConn
	ctx    context.Context
	end    context.CancelFunc
	ready  chan struct{} // closed: there is no handshake to wait for
	stream *stream

	mu    sync.Mutex
	taken bool
}

var _ transport.Conn = (*conn)(nil)

func newConn(unix *net.UnixConn) *conn {
	ctx, end := context.WithCancel(context.Background())
	c := &conn{unix: unix, ctx: ctx, end: end, ready: make(chan struct{})}
	close(c.ready)
	c.stream = &stream{UnixConn: unix, done: make(chan struct{})}
	return c
}

// take hands the stream out, once.
func (c *conn) take() (transport.Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken {
		return nil, errOneCall
	}
	c.taken = true
	return c.stream, nil
}

// AcceptStream returns the stream, and after it waits until its call is
// answered, to return io.EOF.
func (c *conn) AcceptStream(ctx context.Context) (transport.Stream, error) {
	if s, err := c.take(); err == nil {
		return s, nil
	}
	select {
	case <-c.stream.done:
		return nil, io.EOF
	case <-c.ctx.Done():
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// OpenStream returns the stream; a second call fails.
func (c *conn) OpenStream(context.Context) (transport.Stream, error) { return c.take() }

// AcceptReceiveStream fails: nothing is pushed here.
func (c *conn) AcceptReceiveStream(context.Context) (transport.ReceiveStream, error) {
	return nil, errOneCall
}

// OpenSendStream fails: nothing is pushed here.
func (c *conn) OpenSendStream(context.Context) (transport.SendStream, error) { return nil, errOneCall }

// Close ends the connection; the other side is not told why.
func (c *conn) Close(transport.CloseCode, string) error {
	c.end()
	return c.unix.Close()
}

// Context is done when this side has closed the connection.
func (c *conn) Context() context.Context { return c.ctx }

// The rest of transport.Conn has nothing to tell here.

func (c *conn) RemoteAddr() netip.AddrPort            { return netip.AddrPort{} }
func (c *conn) HandshakeComplete() <-chan struct{}    { return c.ready }
func (c *conn) ALPN() string                          { return "" }
func (c *conn) PeerCertificates() []*x509.Certificate { return nil }

// stream is the connection's one stream. Its halves end by shutdown(2).
type stream struct {
	*net.UnixConn
	done chan struct{} // closed when this side has sent its last byte
	once sync.Once
}

var _ transport.Stream = (*stream)(nil)

// ID implements transport.Stream.
func (s *stream) ID() int64 { return streamID }

// Read treats a reset as the end. The kernel resets a connection that is closed
// while bytes of ours are unread (a request that was refused early), and gives
// us what was sent before it first; a frame says itself whether it is whole.
func (s *stream) Read(b []byte) (int, error) {
	n, err := s.UnixConn.Read(b)
	if errors.Is(err, syscall.ECONNRESET) {
		err = io.EOF
	}
	return n, err
}

// Close ends the sending half.
func (s *stream) Close() error {
	defer s.once.Do(func() { close(s.done) })
	return s.UnixConn.CloseWrite()
}

// CancelRead makes the other side's writes fail. What it has sent already is
// dropped with the connection.
func (s *stream) CancelRead(uint64) { _ = s.UnixConn.CloseRead() } // fails only when the connection is gone

// CancelWrite ends the sending half in the middle. The other side sees a frame
// that is cut short, since there is no reset to tell it more.
func (s *stream) CancelWrite(uint64) { _ = s.Close() } // fails only when the connection is gone
