// Package frame reads and writes the three frame layouts of the wire, and
// nothing else. All integers are big-endian.
//
//	request   ┌ method u16 ┬ request_id u32 ┬ length u32 ┬ payload … ┐ FIN
//	response  ┌ status u8  ┬ request_id u32 ┬ length u32 ┬ payload … ┐ FIN
//	push      ┌ event u16  ┬ length u32     ┬ payload … ┐              FIN
//
// A request and its response share one bidirectional stream, which the client
// opens; a push has a unidirectional stream of its own, which the server
// opens. A frame fills its stream: bytes after the declared payload, and a FIN
// before its end, are errors.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Header sizes, in bytes.
const (
	RequestHeaderSize  = 10
	ResponseHeaderSize = 9
	PushHeaderSize     = 6
)

// MaxPayload is the largest payload of any frame, in bytes.
const MaxPayload = 4 << 20

// growStep is the first allocation for a payload. A buffer grows as bytes
// arrive and never ahead of them by more than its own size, so that a peer
// who declares 4 MiB and sends nothing costs 4 KiB.
const growStep = 4 << 10

var (
	// ErrTruncated reports a stream that ended before the frame did.
	ErrTruncated = errors.New("the frame ends before its declared length")
	// ErrTrailing reports bytes after the declared payload.
	ErrTrailing = errors.New("the frame goes on after its declared length")
	// ErrTooLarge reports a declared length above the limit.
	ErrTooLarge = errors.New("the declared payload is too large")
)

// RequestHeader is the head of a request.
type RequestHeader struct {
	Method    uint16
	RequestID uint32
	Length    uint32 // payload bytes that follow
}

// ResponseHeader is the head of a response.
type ResponseHeader struct {
	Status    uint8
	RequestID uint32
	Length    uint32
}

// PushHeader is the head of a push.
type PushHeader struct {
	Event  uint16
	Length uint32
}

// ReadRequestHeader reads a request header. It returns ErrTruncated when the
// stream ends inside it, and the reader's own error when reading fails.
func ReadRequestHeader(r io.Reader) (RequestHeader, error) {
	var b [RequestHeaderSize]byte
	if err := readHeader(r, b[:]); err != nil {
		return RequestHeader{}, err
	}
	return RequestHeader{
		Method:    binary.BigEndian.Uint16(b[0:]),
		RequestID: binary.BigEndian.Uint32(b[2:]),
		Length:    binary.BigEndian.Uint32(b[6:]),
	}, nil
}

// ReadResponseHeader reads a response header, with the errors of
// ReadRequestHeader.
func ReadResponseHeader(r io.Reader) (ResponseHeader, error) {
	var b [ResponseHeaderSize]byte
	if err := readHeader(r, b[:]); err != nil {
		return ResponseHeader{}, err
	}
	return ResponseHeader{
		Status:    b[0],
		RequestID: binary.BigEndian.Uint32(b[1:]),
		Length:    binary.BigEndian.Uint32(b[5:]),
	}, nil
}

// ReadPushHeader reads a push header, with the errors of ReadRequestHeader.
func ReadPushHeader(r io.Reader) (PushHeader, error) {
	var b [PushHeaderSize]byte
	if err := readHeader(r, b[:]); err != nil {
		return PushHeader{}, err
	}
	return PushHeader{
		Event:  binary.BigEndian.Uint16(b[0:]),
		Length: binary.BigEndian.Uint32(b[2:]),
	}, nil
}

func readHeader(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrTruncated
	}
	return err
}

// ReadPayload reads a payload of length bytes and the end of the stream after
// it, into scratch when that is large enough. It returns ErrTooLarge without
// reading when length is above limit, ErrTruncated and ErrTrailing for a
// stream that does not end where the frame does, and the reader's own error
// when reading fails.
func ReadPayload(r io.Reader, length uint32, limit uint32, scratch []byte) ([]byte, error) {
	if length > limit {
		return nil, fmt.Errorf("%w: %d bytes where %d are allowed", ErrTooLarge, length, limit)
	}
	payload := scratch[:0]
	if cap(payload) == 0 {
		payload = make([]byte, 0, min(length, growStep))
	}
	for uint32(len(payload)) < length {
		room := int(min(length, uint32(cap(payload))))
		if len(payload) == room {
			grown := make([]byte, len(payload), min(length, 2*uint32(max(cap(payload), growStep))))
			copy(grown, payload)
			payload = grown
			continue
		}
		n, err := r.Read(payload[len(payload):room])
		payload = payload[:len(payload)+n]
		if errors.Is(err, io.EOF) {
			if uint32(len(payload)) < length {
				return nil, ErrTruncated
			}
			return payload, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return payload, readEnd(r)
}

// readEnd expects the end of the stream.
func readEnd(r io.Reader) error {
	var b [1]byte
	for {
		n, err := r.Read(b[:])
		switch {
		case n > 0:
			return ErrTrailing
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// AppendRequestHeader appends a request header for a payload of length bytes.
func AppendRequestHeader(dst []byte, method uint16, requestID, length uint32) []byte {
	dst = binary.BigEndian.AppendUint16(dst, method)
	dst = binary.BigEndian.AppendUint32(dst, requestID)
	return binary.BigEndian.AppendUint32(dst, length)
}

// AppendResponseHeader appends a response header for a payload of length bytes.
func AppendResponseHeader(dst []byte, status uint8, requestID, length uint32) []byte {
	dst = append(dst, status)
	dst = binary.BigEndian.AppendUint32(dst, requestID)
	return binary.BigEndian.AppendUint32(dst, length)
}

// AppendPushHeader appends a push header for a payload of length bytes.
func AppendPushHeader(dst []byte, event uint16, length uint32) []byte {
	dst = binary.BigEndian.AppendUint16(dst, event)
	return binary.BigEndian.AppendUint32(dst, length)
}
