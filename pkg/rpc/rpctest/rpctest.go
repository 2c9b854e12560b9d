// Package rpctest is a connection without a network: two ends in memory that
// behave as a QUIC connection does towards pkg/rpc, so that timeouts can be
// tested under testing/synctest in no time and streams can be fed byte by byte.
//
// Nothing outside of tests imports it.
package rpctest

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// defaultWindow is what one direction of a stream holds before its writer
	// waits, in bytes.
	defaultWindow = 16 << 10
	// defaultEvents is the credit for unidirectional streams.
	defaultEvents = 256
	// queue is how many streams wait to be accepted.
	queue = 1024
)

// Options says how a pair of connections behaves.
type Options struct {
	// Window is what one direction of a stream holds unread; 0 is 16 KiB.
	Window int
	// Events is how many unidirectional streams may be unread at once; 0 is
	// 256.
	Events int
	// Early leaves the handshake incomplete until CompleteHandshake.
	Early bool
	// Remote is where the server believes the client to be; the zero value is
	// 192.0.2.1:1.
	Remote netip.AddrPort
}

// Conn is one end of a connection. It implements transport.Conn.
type Conn struct {
	options   Options
	peer      *Conn
	remote    netip.AddrPort
	ctx       context.Context
	end       context.CancelCauseFunc
	accept    chan *Stream
	events    chan *Stream
	credit    chan struct{}
	handshake chan struct{}

	mu     sync.Mutex
	nextID int64
}

var _ transport.Conn = (*Conn)(nil)

// Pipe returns the two ends of a fresh connection.
func Pipe(o Options) (client, server *Conn) {
	if o.Window == 0 {
		o.Window = defaultWindow
	}
	if o.Events == 0 {
		o.Events = defaultEvents
	}
	if !o.Remote.IsValid() {
		o.Remote = netip.MustParseAddrPort("192.0.2.1:1")
	}
	handshake := make(chan struct{})
	if !o.Early {
		close(handshake)
	}
	client, server = newConn(o, handshake), newConn(o, handshake)
	client.peer, server.peer = server, client
	server.remote = o.Remote
	return client, server
}

func newConn(o Options, handshake chan struct{}) *Conn {
	ctx, end := context.WithCancelCause(context.Background())
	return &Conn{
		options: o, ctx: ctx, end: end, handshake: handshake,
		accept: make(chan *Stream, queue), events: make(chan *Stream, queue), credit: make(chan struct{}, o.Events),
	}
}

// CompleteHandshake ends the handshake of a pair made with Early.
func (c *Conn) CompleteHandshake() { close(c.handshake) }

// AcceptStream implements transport.Conn.
func (c *Conn) AcceptStream(ctx context.Context) (transport.Stream, error) {
	return receive(ctx, c, c.accept)
}

// AcceptReceiveStream implements transport.Conn.
func (c *Conn) AcceptReceiveStream(ctx context.Context) (transport.ReceiveStream, error) {
	return receive(ctx, c, c.events)
}

func receive(ctx context.Context, c *Conn, from chan *Stream) (*Stream, error) {
	select {
	case s := <-from:
		return s, nil
	case <-c.ctx.Done():
		return nil, context.Cause(c.ctx)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// OpenStream implements transport.Conn.
func (c *Conn) OpenStream(ctx context.Context) (transport.Stream, error) {
	c.mu.Lock()
	id := c.nextID
	c.nextID += 4
	c.mu.Unlock()
	return c.open(ctx, id, c.peer.accept, false)
}

// OpenSendStream implements transport.Conn.
func (c *Conn) OpenSendStream(ctx context.Context) (transport.SendStream, error) {
	select {
	case c.credit <- struct{}{}:
	case <-c.ctx.Done():
		return nil, context.Cause(c.ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return c.open(ctx, -1, c.peer.events, true)
}

func (c *Conn) open(ctx context.Context, id int64, to chan *Stream, event bool) (*Stream, error) {
	if c.ctx.Err() != nil {
		return nil, context.Cause(c.ctx)
	}
	there, back := newHalf(c, c.peer), newHalf(c.peer, c)
	there.event = event
	select {
	case to <- &Stream{id: id, in: there, out: back}:
		return &Stream{id: id, in: back, out: there}, nil
	case <-c.ctx.Done():
		return nil, context.Cause(c.ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close implements transport.Conn.
func (c *Conn) Close(code transport.CloseCode, reason string) error {
	c.peer.end(&transport.ClosedError{Code: code, Reason: reason, Remote: true})
	c.end(&transport.ClosedError{Code: code, Reason: reason})
	return nil
}

// Context implements transport.Conn.
func (c *Conn) Context() context.Context { return c.ctx }

// RemoteAddr implements transport.Conn.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// HandshakeComplete implements transport.Conn.
func (c *Conn) HandshakeComplete() <-chan struct{} { return c.handshake }

// ALPN implements transport.Conn.
func (c *Conn) ALPN() string { return transport.ALPN }

// PeerCertificates implements transport.Conn.
func (c *Conn) PeerCertificates() []*x509.Certificate { return nil }

// Stream is one end of a stream. It implements transport.Stream.
type Stream struct {
	id      int64
	in, out *half
}

// Read implements transport.Stream.
func (s *Stream) Read(p []byte) (int, error) { return s.in.read(p) }

// Write implements transport.Stream.
func (s *Stream) Write(p []byte) (int, error) { return s.out.write(p) }

// Close implements transport.Stream.
func (s *Stream) Close() error {
	return s.out.change(func(h *half) error {
		if h.writeErr != nil {
			return errors.New("close of a cancelled stream")
		}
		h.fin = true
		return nil
	})
}

// CancelRead implements transport.Stream.
func (s *Stream) CancelRead(code uint64) {
	_ = s.in.change(func(h *half) error {
		if h.over() {
			return nil
		}
		h.readErr = &transport.StreamError{Code: code}
		if h.writeErr == nil && !h.fin {
			h.writeErr = &transport.StreamError{Code: code, Remote: true}
		}
		h.free()
		return nil
	})
}

// CancelWrite implements transport.Stream.
func (s *Stream) CancelWrite(code uint64) {
	_ = s.out.change(func(h *half) error {
		if h.over() {
			return nil
		}
		if h.writeErr == nil {
			h.writeErr = &transport.StreamError{Code: code}
		}
		if h.readErr == nil {
			h.readErr = &transport.StreamError{Code: code, Remote: true}
		}
		h.free()
		return nil
	})
}

// SetReadDeadline implements transport.Stream.
func (s *Stream) SetReadDeadline(t time.Time) error {
	return s.in.change(func(h *half) error { h.readBy = t; return nil })
}

// SetWriteDeadline implements transport.Stream.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	return s.out.change(func(h *half) error { h.writeBy = t; return nil })
}

// ID implements transport.Stream.
func (s *Stream) ID() int64 { return s.id }

// half is one direction of a stream.
type half struct {
	writer, reader *Conn
	event          bool // unidirectional

	mu                sync.Mutex
	changed           chan struct{} // closed and made anew with each change
	buffer            []byte
	fin               bool
	readErr, writeErr error
	readBy, writeBy   time.Time
	freed             bool
}

func newHalf(writer, reader *Conn) *half {
	return &half{writer: writer, reader: reader, changed: make(chan struct{})}
}

// over reports whether everything has been read.
func (h *half) over() bool { return h.fin && len(h.buffer) == 0 && h.freed }

// free gives the credit of a stream back, once.
func (h *half) free() {
	if h.event && !h.freed {
		<-h.writer.credit
	}
	h.freed = true
}

func (h *half) change(f func(h *half) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := f(h)
	close(h.changed)
	h.changed = make(chan struct{})
	return err
}

func (h *half) read(p []byte) (n int, err error) {
	done := false
	for {
		var changed chan struct{}
		var by time.Time
		h.mu.Lock()
		switch {
		case h.readErr != nil:
			err, done = h.readErr, true
		case !h.readBy.IsZero() && !time.Now().Before(h.readBy):
			err, done = os.ErrDeadlineExceeded, true
		case len(h.buffer) > 0:
			n, done = copy(p, h.buffer), true
			h.buffer = h.buffer[n:]
			close(h.changed)
			h.changed = make(chan struct{})
		case h.fin:
			err, done = io.EOF, true
			h.free()
		}
		changed, by = h.changed, h.readBy
		h.mu.Unlock()
		if done {
			return n, err
		}
		if err := wait(h.reader, changed, by); err != nil {
			return 0, err
		}
	}
}

func (h *half) write(p []byte) (n int, err error) {
	for {
		h.mu.Lock()
		switch {
		case h.writeErr != nil:
			err = h.writeErr
		case h.fin:
			err = errors.New("write on a closed stream")
		case !h.writeBy.IsZero() && !time.Now().Before(h.writeBy):
			err = os.ErrDeadlineExceeded
		default:
			if room := min(h.writer.options.Window-len(h.buffer), len(p)-n); room > 0 {
				h.buffer = append(h.buffer, p[n:n+room]...)
				n += room
				close(h.changed)
				h.changed = make(chan struct{})
			}
		}
		changed, by := h.changed, h.writeBy
		h.mu.Unlock()
		if err != nil || n == len(p) {
			return n, err
		}
		if err := wait(h.writer, changed, by); err != nil {
			return n, err
		}
	}
}

// wait returns nil when something changed or the deadline may have come.
func wait(c *Conn, changed chan struct{}, by time.Time) error {
	var late <-chan time.Time
	if !by.IsZero() {
		timer := time.NewTimer(time.Until(by))
		defer timer.Stop()
		late = timer.C
	}
	select {
	case <-changed:
	case <-late:
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
	return nil
}
