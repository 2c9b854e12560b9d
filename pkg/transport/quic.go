//go:build !js

package transport

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"
)

// stream, sendStream, receiveStream and conn hold a single pointer, so that
// turning one into its interface allocates nothing.
type (
	stream        struct{ s *quic.Stream }
	sendStream    struct{ s *quic.SendStream }
	receiveStream struct{ s *quic.ReceiveStream }
	conn          struct{ q *quic.Conn }
)

func (s stream) Read(p []byte) (int, error) {
	n, err := s.s.Read(p)
	return n, translate(err)
}

func (s stream) Write(p []byte) (int, error) {
	n, err := s.s.Write(p)
	return n, translate(err)
}

func (s stream) Close() error                       { return translate(s.s.Close()) }
func (s stream) CancelRead(code uint64)             { s.s.CancelRead(quic.StreamErrorCode(code)) }
func (s stream) CancelWrite(code uint64)            { s.s.CancelWrite(quic.StreamErrorCode(code)) }
func (s stream) SetReadDeadline(t time.Time) error  { return s.s.SetReadDeadline(t) }
func (s stream) SetWriteDeadline(t time.Time) error { return s.s.SetWriteDeadline(t) }
func (s stream) ID() int64                          { return int64(s.s.StreamID()) }

func (s sendStream) Write(p []byte) (int, error) {
	n, err := s.s.Write(p)
	return n, translate(err)
}

func (s sendStream) Close() error                       { return translate(s.s.Close()) }
func (s sendStream) CancelWrite(code uint64)            { s.s.CancelWrite(quic.StreamErrorCode(code)) }
func (s sendStream) SetWriteDeadline(t time.Time) error { return s.s.SetWriteDeadline(t) }

func (s receiveStream) Read(p []byte) (int, error) {
	n, err := s.s.Read(p)
	return n, translate(err)
}

func (s receiveStream) CancelRead(code uint64)            { s.s.CancelRead(quic.StreamErrorCode(code)) }
func (s receiveStream) SetReadDeadline(t time.Time) error { return s.s.SetReadDeadline(t) }

func (c conn) AcceptStream(ctx context.Context) (Stream, error) {
	s, err := c.q.AcceptStream(ctx)
	if err != nil {
		return nil, translate(err)
	}
	return stream{s}, nil
}

func (c conn) OpenStream(ctx context.Context) (Stream, error) {
	s, err := c.q.OpenStreamSync(ctx)
	if err != nil {
		return nil, translate(err)
	}
	return stream{s}, nil
}

func (c conn) AcceptReceiveStream(ctx context.Context) (ReceiveStream, error) {
	s, err := c.q.AcceptUniStream(ctx)
	if err != nil {
		return nil, translate(err)
	}
	return receiveStream{s}, nil
}

func (c conn) OpenSendStream(ctx context.Context) (SendStream, error) {
	s, err := c.q.OpenUniStreamSync(ctx)
	if err != nil {
		return nil, translate(err)
	}
	return sendStream{s}, nil
}

func (c conn) Close(code CloseCode, reason string) error {
	return translate(c.q.CloseWithError(quic.ApplicationErrorCode(code), cut(reason)))
}

func (c conn) Context() context.Context           { return c.q.Context() }
func (c conn) HandshakeComplete() <-chan struct{} { return c.q.HandshakeComplete() }
func (c conn) RemoteAddr() netip.AddrPort         { return addrPort(c.q.RemoteAddr()) }
func (c conn) ALPN() string                       { return c.q.ConnectionState().TLS.NegotiatedProtocol }
func (c conn) PeerCertificates() []*x509.Certificate {
	return c.q.ConnectionState().TLS.PeerCertificates
}

// addrPort is the plain form of an UDP address; the zero value for any other.
func addrPort(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := u.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func cut(reason string) string {
	return reason[:min(len(reason), maxReason)]
}

// alertNoApplicationProtocol is the TLS alert of RFC 7301 as a QUIC error code
// (RFC 9001, section 4.8).
const alertNoApplicationProtocol = 0x100 + 120

// translate turns quic-go's errors into this package's, so that no other room
// needs to know them. Anything else (io.EOF, context and deadline errors)
// passes unchanged.
func translate(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	if e, ok := errors.AsType[*quic.StreamError](err); ok {
		return &StreamError{Code: uint64(e.ErrorCode), Remote: e.Remote}
	}
	if e, ok := errors.AsType[*quic.ApplicationError](err); ok {
		if e.ErrorCode == codeNothingListens && !e.Remote {
			return ErrNothingListens
		}
		return &ClosedError{Code: CloseCode(e.ErrorCode), Reason: cut(e.ErrorMessage), Remote: e.Remote}
	}
	if _, ok := errors.AsType[*quic.IdleTimeoutError](err); ok {
		return ErrIdleTimeout
	}
	if _, ok := errors.AsType[*quic.StatelessResetError](err); ok {
		return ErrPeerRestarted
	}
	if _, ok := errors.AsType[*quic.HandshakeTimeoutError](err); ok {
		return ErrNoAnswer
	}
	if _, ok := errors.AsType[*quic.VersionNegotiationError](err); ok {
		return ErrNoCommonVersion
	}
	if e, ok := errors.AsType[*quic.TransportError](err); ok {
		switch {
		case e.ErrorCode == quic.ConnectionRefused && e.Remote:
			// Refused before there was a connection; see admission.
			return &ClosedError{Code: CloseLimitExceeded, Reason: "connection refused, try again later", Remote: true}
		case e.ErrorCode == alertNoApplicationProtocol:
			return ErrNoCommonProtocol
		}
		return &HandshakeError{Code: uint64(e.ErrorCode), Remote: e.Remote, Err: err}
	}
	if errors.Is(err, quic.Err0RTTRejected) {
		return ErrEarlyDataRejected
	}
	if errors.Is(err, quic.ErrTransportClosed) {
		return &ClosedError{Code: CloseNormal, Reason: "endpoint closed"}
	}
	return err
}
