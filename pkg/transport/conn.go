package transport

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// A Stream is one bidirectional stream: one call. Its methods may be called
// from one reader and one writer at a time; deadlines, cancels and Close from
// anywhere.
type Stream interface {
	io.Reader
	io.Writer
	// Close ends the sending half with FIN. The receiving half stays open.
	Close() error
	// CancelRead tells the peer to stop sending (STOP_SENDING).
	CancelRead(code uint64)
	// CancelWrite abandons the sending half (RESET_STREAM).
	CancelWrite(code uint64)
	// SetReadDeadline makes Read fail with os.ErrDeadlineExceeded from t
	// on; the zero time removes the deadline.
	SetReadDeadline(t time.Time) error
	// SetWriteDeadline does the same for Write.
	SetWriteDeadline(t time.Time) error
	// ID is the stream's number (RFC 9000, section 2.1): 0 for the first
	// bidirectional stream of the client, then 4, 8 and so on.
	ID() int64
}

// A SendStream is an unidirectional stream this side opened.
type SendStream interface {
	io.Writer
	Close() error
	CancelWrite(code uint64)
	SetWriteDeadline(t time.Time) error
}

// A ReceiveStream is an unidirectional stream the peer opened.
type ReceiveStream interface {
	io.Reader
	CancelRead(code uint64)
	SetReadDeadline(t time.Time) error
}

// A Conn is one connection with a peer. All methods are safe for concurrent
// use. Once the connection has ended, every call on it and on its streams
// returns an error that [CloseError] or the sentinels of this package explain.
type Conn interface {
	// AcceptStream waits for the peer to open a bidirectional stream.
	AcceptStream(ctx context.Context) (Stream, error)
	// OpenStream opens one, and waits for credit when the peer's limit is
	// reached.
	OpenStream(ctx context.Context) (Stream, error)
	// AcceptReceiveStream waits for the peer to open an unidirectional
	// stream.
	AcceptReceiveStream(ctx context.Context) (ReceiveStream, error)
	// OpenSendStream opens one, and waits for credit.
	OpenSendStream(ctx context.Context) (SendStream, error)
	// Close tells the peer why and ends the connection, its streams
	// included. It waits until the close is sent, not until it arrived.
	Close(code CloseCode, reason string) error
	// Context is done when the connection has ended.
	Context() context.Context
	// RemoteAddr is the peer's present address; it changes when the peer
	// migrates. IPv4 addresses are never IPv6-mapped.
	RemoteAddr() netip.AddrPort
	// HandshakeComplete is closed when the handshake is complete. What was
	// accepted earlier came in 0-RTT and may be a replay; what is accepted
	// later belongs to a live peer, even if it was sent in 0-RTT.
	HandshakeComplete() <-chan struct{}
	// ALPN is the protocol agreed on.
	ALPN() string
	// PeerCertificates is the peer's certificate chain, leaf first; empty
	// on the server side of a client connection.
	PeerCertificates() []*x509.Certificate
}

// A CloseCode says in a CONNECTION_CLOSE frame why a connection was ended
// (PROTOCOL section 1).
type CloseCode uint64

const (
	// CloseNormal is the end of work, or a server shutting down.
	CloseNormal CloseCode = 0
	// CloseBanned ends the connections of a banned identity, and one on
	// which more than five credentials were refused.
	CloseBanned CloseCode = 1
	// CloseProtocolViolation ends a connection that broke the contract.
	CloseProtocolViolation CloseCode = 2
	// CloseLimitExceeded ends a connection beyond a limit. A connection
	// refused before its handshake (CONNECTION_REFUSED, which has no room
	// for an application's code) reads as this one too.
	CloseLimitExceeded CloseCode = 3
	// CloseSessionRevoked ends the connections of a session that ended.
	CloseSessionRevoked CloseCode = 4
)

// String is the code in words, for logs and messages.
func (c CloseCode) String() string {
	switch c {
	case CloseNormal:
		return "normal"
	case CloseBanned:
		return "banned"
	case CloseProtocolViolation:
		return "protocol violation"
	case CloseLimitExceeded:
		return "limit exceeded"
	case CloseSessionRevoked:
		return "session revoked"
	}
	return fmt.Sprintf("code %d", uint64(c))
}

// How a connection or a stream can end other than by a close.
var (
	// ErrIdleTimeout: nothing arrived for longer than the idle timeout.
	ErrIdleTimeout = errors.New("connection lost: nothing arrived from the peer for too long")
	// ErrPeerRestarted: the peer no longer knows this connection (stateless
	// reset, RFC 9000, section 10.3). Dial again at once.
	ErrPeerRestarted = errors.New("connection lost: the peer restarted")
	// ErrNoAnswer: the handshake did not complete in time.
	ErrNoAnswer = errors.New("no answer")
	// ErrNothingListens: the peer's machine answered that the port is closed
	// (ICMP). Unlike ErrNoAnswer this is known after one round trip.
	ErrNothingListens = errors.New("nothing listens at that port")
	// ErrNoCommonProtocol: the peer shares no ALPN with us (RFC 7301
	// no_application_protocol).
	ErrNoCommonProtocol = errors.New("the peer does not speak this protocol")
	// ErrNoCommonVersion: the peer shares no QUIC version with us.
	ErrNoCommonVersion = errors.New("the peer speaks no QUIC version known here")
	// ErrEarlyDataRejected: the server refused 0-RTT. What was sent on this
	// stream never arrived; send it again on a new stream of the same
	// connection.
	ErrEarlyDataRejected = errors.New("the server refused early data")
	// ErrListenerClosed is what [Listener.Accept] returns after Close.
	ErrListenerClosed = fmt.Errorf("listener closed: %w", net.ErrClosed)
)

// A ClosedError says that one side closed the connection.
type ClosedError struct {
	Code   CloseCode
	Reason string // the peer's words when Remote: untrusted
	Remote bool   // the peer closed it
}

func (e *ClosedError) Error() string {
	who := "connection closed here"
	if e.Remote {
		who = "connection closed by the peer"
	}
	if e.Reason == "" {
		return who + ": " + e.Code.String()
	}
	return fmt.Sprintf("%s: %s: %q", who, e.Code, e.Reason)
}

// Unwrap makes errors.Is(err, net.ErrClosed) true.
func (e *ClosedError) Unwrap() error { return net.ErrClosed }

// A StreamError says that one half of a stream was cancelled.
type StreamError struct {
	Code   uint64 // the code given to CancelRead or CancelWrite
	Remote bool   // the peer cancelled it
}

func (e *StreamError) Error() string {
	if e.Remote {
		return fmt.Sprintf("stream cancelled by the peer with code %d", e.Code)
	}
	return fmt.Sprintf("stream cancelled here with code %d", e.Code)
}

// A HandshakeError is any other failure of QUIC or TLS: a refused certificate
// (see [ErrPinChanged]), a TLS alert, a peer that breaks QUIC.
type HandshakeError struct {
	Code   uint64 // RFC 9000, section 20.1
	Remote bool   // the peer found the fault
	Err    error  // never nil
}

func (e *HandshakeError) Error() string { return e.Err.Error() }

// Unwrap gives the cause, for example an [*ErrPinChanged].
func (e *HandshakeError) Unwrap() error { return e.Err }

// CloseError reads the close code and reason from an error that any call of a
// [Conn] or its streams returned, or from the cause of its context. ok is false
// when the connection did not end by a close.
func CloseError(err error) (code CloseCode, reason string, remote, ok bool) {
	if closed, is := errors.AsType[*ClosedError](translate(err)); is {
		return closed.Code, closed.Reason, closed.Remote, true
	}
	return 0, "", false, false
}

// PeerPin returns the pin of the certificate that the other side of a connection
// has proven; ok is false when it presented none, as clients do.
func PeerPin(c Conn) (pin Pin, ok bool) {
	certs := c.PeerCertificates()
	if len(certs) == 0 {
		return pin, false
	}
	return PinOf(certs[0]), true
}
