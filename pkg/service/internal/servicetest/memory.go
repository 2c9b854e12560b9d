package servicetest

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// InMemory connects without a session and without a network: the connection
// seems to come from source. It needs no Open, runs within testing/synctest,
// and is quicker than QUIC by far.
func (h *House) InMemory(source netip.Addr) *Client {
	h.t.Helper()
	near, far := pipe(netip.AddrPortFrom(source, 40000))
	c := &Client{Client: rpc.NewClient(near), Events: make(chan Event, maxEvents), t: h.t}
	var running sync.WaitGroup
	running.Go(func() { h.Server.ServeConn(far) })
	running.Go(func() { _ = c.ReceiveEvents(near.Context(), c.keep) }) // it ends with the connection
	h.t.Cleanup(func() {
		_ = near.Close(transport.CloseNormal, "") // it may have ended already
		running.Wait()
	})
	return c
}

// InMemoryAs is InMemory with a session of the principal.
func (h *House) InMemoryAs(principal rpc.Principal) *Client {
	h.t.Helper()
	token := rand.Text()
	h.mu.Lock()
	h.sessions[token] = principal
	h.mu.Unlock()
	c := h.InMemory(netip.AddrFrom4([4]byte{192, 0, 2, 1}))
	if err := c.Resume(Within(h.t), []byte(token)); err != nil {
		h.t.Fatal(err)
	}
	return c
}

// memoryStreams is how many streams may wait to be accepted.
const memoryStreams = 64

// memoryConn is one end of a connection in memory.
type memoryConn struct {
	remote netip.AddrPort
	ready  chan struct{}
	ctx    context.Context
	cancel context.CancelCauseFunc
	peer   *memoryConn

	streams chan *memoryStream
	events  chan *memoryStream

	mu    sync.Mutex
	next  int64
	pipes []net.Conn // of the streams opened here
}

// pipe returns both ends of a connection that comes from an address.
func pipe(source netip.AddrPort) (client, server *memoryConn) {
	ready := make(chan struct{})
	close(ready)
	end := func(remote netip.AddrPort) *memoryConn {
		ctx, cancel := context.WithCancelCause(context.Background())
		return &memoryConn{
			remote: remote, ready: ready, ctx: ctx, cancel: cancel,
			streams: make(chan *memoryStream, memoryStreams), events: make(chan *memoryStream, memoryStreams),
		}
	}
	client, server = end(netip.AddrPortFrom(source.Addr(), transport.DefaultPort)), end(source)
	client.peer, server.peer = server, client
	return client, server
}

func take(c *memoryConn, ctx context.Context, from chan *memoryStream) (*memoryStream, error) {
	select {
	case s := <-from:
		return s, nil
	case <-c.ctx.Done():
		return nil, context.Cause(c.ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *memoryConn) AcceptStream(ctx context.Context) (transport.Stream, error) {
	s, err := take(c, ctx, c.streams)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (c *memoryConn) AcceptReceiveStream(ctx context.Context) (transport.ReceiveStream, error) {
	s, err := take(c, ctx, c.events)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (c *memoryConn) OpenStream(ctx context.Context) (transport.Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out, in := net.Pipe()
	back, forth := net.Pipe()
	here := &memoryStream{conn: c, id: c.next, read: back, write: out}
	there := &memoryStream{conn: c.peer, id: c.next, read: in, write: forth}
	c.next += 4
	if err := c.hand(ctx, c.peer.streams, there); err != nil {
		return nil, err
	}
	c.pipes = append(c.pipes, out, back)
	return here, nil
}

func (c *memoryConn) OpenSendStream(ctx context.Context) (transport.SendStream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out, in := net.Pipe()
	if err := c.hand(ctx, c.peer.events, &memoryStream{conn: c.peer, read: in}); err != nil {
		return nil, err
	}
	c.pipes = append(c.pipes, out)
	return &memoryStream{conn: c, write: out}, nil
}

func (c *memoryConn) hand(ctx context.Context, to chan *memoryStream, s *memoryStream) error {
	select {
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	default:
	}
	select {
	case to <- s:
		return nil
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *memoryConn) Close(code transport.CloseCode, reason string) error {
	c.cancel(&transport.ClosedError{Code: code, Reason: reason})
	c.peer.cancel(&transport.ClosedError{Code: code, Reason: reason, Remote: true})
	for _, end := range []*memoryConn{c, c.peer} {
		end.mu.Lock()
		for _, p := range end.pipes {
			_ = p.Close() // never fails
		}
		end.pipes = nil
		end.mu.Unlock()
	}
	return nil
}

func (c *memoryConn) Context() context.Context              { return c.ctx }
func (c *memoryConn) RemoteAddr() netip.AddrPort            { return c.remote }
func (c *memoryConn) HandshakeComplete() <-chan struct{}    { return c.ready }
func (c *memoryConn) ALPN() string                          { return transport.ALPN }
func (c *memoryConn) PeerCertificates() []*x509.Certificate { return nil }

// memoryStream is one end of a stream: a pipe for each direction it has.
type memoryStream struct {
	conn        *memoryConn
	id          int64
	read, write net.Conn
}

// explain prefers the connection's end to what it did to a stream.
func (s *memoryStream) explain(err error) error {
	if err == nil || s.conn.ctx.Err() == nil {
		return err
	}
	return context.Cause(s.conn.ctx)
}

func (s *memoryStream) Read(b []byte) (int, error) {
	n, err := s.read.Read(b)
	if err == io.EOF {
		// What was closed with its connection did not end by itself.
		return n, s.explain(err)
	}
	return n, s.explain(err)
}

func (s *memoryStream) Write(b []byte) (int, error) {
	n, err := s.write.Write(b)
	return n, s.explain(err)
}

func (s *memoryStream) Close() error                      { return s.write.Close() }
func (s *memoryStream) CancelRead(uint64)                 { _ = s.read.Close() }  // never fails
func (s *memoryStream) CancelWrite(uint64)                { _ = s.write.Close() } // never fails
func (s *memoryStream) SetReadDeadline(t time.Time) error { return deadline(s.read.SetReadDeadline(t)) }
func (s *memoryStream) SetWriteDeadline(t time.Time) error {
	return deadline(s.write.SetWriteDeadline(t))
}
func (s *memoryStream) ID() int64 { return s.id }

// deadline passes over a pipe whose other end has closed it: what it still
// holds is read all the same.
func deadline(err error) error {
	if err == io.ErrClosedPipe || err == os.ErrClosed {
		return nil
	}
	return err
}
