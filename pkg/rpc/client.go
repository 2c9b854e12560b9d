package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// Client makes calls on a connection and receives its events. It implements
// qpcpb.Caller, and is safe for concurrent use.
type Client struct {
	conn   transport.Conn
	lastID atomic.Uint32
}

// ErrSessionRefused reports a session token that the server does not accept:
// log in again.
var ErrSessionRefused = errors.New("the session has ended; log in again")

// ErrProtocol reports a server that does not speak the protocol.
var ErrProtocol = errors.New("the server broke the protocol")

// NewClient returns a client for a fresh connection.
func NewClient(conn transport.Conn) *Client { return &Client{conn: conn} }

// Conn returns the connection.
func (c *Client) Conn() transport.Conn { return c.conn }

// Resume logs the connection in with a session token. It must be the first
// use of the connection: the handshake belongs on stream 0. When the server
// refuses, it returns ErrSessionRefused and the connection stays usable,
// logged out. After any other error the token may still be good.
func (c *Client) Resume(ctx context.Context, token []byte) error {
	stream, err := c.conn.OpenStream(ctx)
	if err != nil {
		return fmt.Errorf("resuming the session: %w", err)
	}
	defer watch(ctx, stream)()
	if stream.ID() != 0 {
		stream.CancelWrite(resetAnswered)
		stream.CancelRead(resetAnswered)
		return errors.New("resuming the session: the connection is already in use")
	}
	b := binary.BigEndian.AppendUint16([]byte{resumptionByte}, uint16(len(token)))
	sendErr := send(stream, append(b, token...))
	var answer [2]byte
	// A server may answer before this half has ended, and want no more of it.
	if _, err := io.ReadFull(stream, answer[:]); err != nil {
		if sendErr != nil {
			err = sendErr
		}
		return fmt.Errorf("resuming the session: %w", contextError(ctx, err))
	}
	switch answer {
	case [2]byte{resumptionByte, resumptionAccepted}:
		return nil
	case [2]byte{resumptionByte, resumptionRefused}:
		return ErrSessionRefused
	default:
		return fmt.Errorf("resuming the session: %w: it answered % x", ErrProtocol, answer)
	}
}

// Call makes one call. An answer that is not OK is an *Error; any other error
// means that the call may or may not have run.
func (c *Client) Call(ctx context.Context, method qpcpb.MethodID, request, response proto.Message) error {
	size := proto.Size(request)
	if size > frame.MaxPayload {
		return Errorf(qpcpb.CodePayloadTooLarge, "the request has %d bytes where %d are allowed", size, frame.MaxPayload)
	}
	id := c.lastID.Add(1)
	b := frame.AppendRequestHeader(make([]byte, 0, frame.RequestHeaderSize+size), uint16(method), id, uint32(size))
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, request)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", method, err)
	}
	stream, err := c.conn.OpenStream(ctx)
	if err != nil {
		return fmt.Errorf("calling %s: %w", method, err)
	}
	defer watch(ctx, stream)()
	sendErr := send(stream, b)
	// A server that refuses early stops reading, so that sending fails while
	// its answer, which says why, is on its way.
	err = readResponse(stream, id, response)
	if answer := (*Error)(nil); err == nil || errors.As(err, &answer) {
		return err
	}
	if sendErr != nil {
		err = sendErr
	}
	return fmt.Errorf("calling %s: %w", method, contextError(ctx, err))
}

// readResponse reads the answer to request id.
func readResponse(stream transport.Stream, id uint32, response proto.Message) error {
	header, err := frame.ReadResponseHeader(stream)
	if err != nil {
		return err
	}
	payload, err := frame.ReadPayload(stream, header.Length, frame.MaxPayload, nil)
	if err != nil {
		return err
	}
	// A request whose header did not arrive whole is answered with id 0.
	if header.RequestID != id && header.RequestID != 0 {
		return fmt.Errorf("%w: it answered request %d to request %d", ErrProtocol, header.RequestID, id)
	}
	if header.Status != uint8(qpcpb.StatusOK) {
		return parseError(header.Status, payload)
	}
	if err := proto.Unmarshal(payload, response); err != nil {
		return fmt.Errorf("%w: its answer does not parse", ErrProtocol)
	}
	return nil
}

// ReceiveEvents gives every event to handle, in the order in which the server
// sent them where one goroutine reads them all, until the connection ends. It
// returns the connection's error. handle must not keep the payload.
func (c *Client) ReceiveEvents(ctx context.Context, handle func(event qpcpb.Event, payload []byte)) error {
	for {
		stream, err := c.conn.AcceptReceiveStream(ctx)
		if err != nil {
			return err
		}
		event, payload, err := readEvent(stream)
		if err != nil {
			stream.CancelRead(resetStalled)
			if c.conn.Context().Err() != nil {
				return err
			}
			continue // an event that was cut off: what it told of is still in the queue
		}
		handle(event, payload)
	}
}

// eventTimeout bounds the wait for an event whose stream has begun.
const eventTimeout = 30 * time.Second

func readEvent(stream transport.ReceiveStream) (qpcpb.Event, []byte, error) {
	if err := stream.SetReadDeadline(time.Now().Add(eventTimeout)); err != nil {
		return 0, nil, err
	}
	header, err := frame.ReadPushHeader(stream)
	if err != nil {
		return 0, nil, err
	}
	payload, err := frame.ReadPayload(stream, header.Length, frame.MaxPayload, nil)
	return qpcpb.Event(header.Event), payload, err
}

// send writes a whole request.
func send(stream transport.Stream, b []byte) error {
	if _, err := stream.Write(b); err != nil {
		return err
	}
	return stream.Close()
}

// watch resets the stream when ctx ends. The function it returns ends the
// watch.
func watch(ctx context.Context, stream transport.Stream) func() bool {
	return context.AfterFunc(ctx, func() {
		stream.CancelRead(resetAnswered)
		stream.CancelWrite(resetAnswered)
	})
}

// contextError prefers the reason why ctx ended to what that did to a stream.
func contextError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
