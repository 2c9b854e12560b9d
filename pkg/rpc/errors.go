package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// Error is an answer that is not OK: on the server what a handler returns, on
// the client what a call returns.
type Error struct {
	Status qpcpb.Status
	// Code is CodeUnspecified when the word is one this version does not know.
	Code qpcpb.Code
	// Word is the code as it crossed the wire.
	Word string
	// Message is one sentence that says what to do. It holds no secrets,
	// paths, SQL or another user's data: it goes to the caller.
	Message string
	// RetryAfter says how long to wait before trying again; 0 when waiting
	// does not help.
	RetryAfter time.Duration
	// cause stays on the server, in its log.
	cause error
}

// Errorf returns an error with the code, its status, and a message.
func Errorf(code qpcpb.Code, format string, args ...any) *Error {
	return &Error{Status: code.Status(), Code: code, Word: code.Word(), Message: fmt.Sprintf(format, args...)}
}

// After returns a copy of e that tells the caller how long to wait.
func (e *Error) After(wait time.Duration) *Error {
	c := *e
	c.RetryAfter = wait
	return &c
}

// Because returns a copy of e with a cause for the server's log.
func (e *Error) Because(cause error) *Error {
	c := *e
	c.cause = cause
	return &c
}

// Error returns the message and the code.
func (e *Error) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s (%s): %v", e.Message, e.Word, e.cause)
	}
	return fmt.Sprintf("%s (%s)", e.Message, e.Word)
}

// Unwrap returns the cause, on the server.
func (e *Error) Unwrap() error { return e.cause }

// CodeOf returns the code of an *Error in err's chain, or CodeUnspecified.
func CodeOf(err error) qpcpb.Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return qpcpb.CodeUnspecified
}

// payload returns the error as it crosses the wire.
func (e *Error) payload() []byte {
	b, err := proto.Marshal(&qpcpb.Error{
		Code:         e.Word,
		Message:      e.Message,
		RetryAfterMs: uint32(min(e.RetryAfter, time.Duration(1<<32-1)*time.Millisecond) / time.Millisecond),
	})
	if err != nil {
		return nil // a message of ours that is not UTF-8; the status still says enough
	}
	return b
}

// parseError reads an error answer. A payload that does not parse leaves the
// status to speak.
func parseError(status uint8, payload []byte) *Error {
	e := &Error{Status: qpcpb.Status(status)}
	var wire qpcpb.Error
	if err := proto.Unmarshal(payload, &wire); err != nil || wire.Code == "" {
		e.Word = e.Status.String()
		e.Message = "the server refused and gave no reason"
		return e
	}
	e.Code = qpcpb.CodeOf(wire.Code)
	e.Word = wire.Code
	e.Message = wire.Message
	e.RetryAfter = time.Duration(wire.RetryAfterMs) * time.Millisecond
	return e
}

// describe turns any error of a handler into an answer. Errors that are not
// for the caller become INTERNAL, and their text stays here.
func describe(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return Errorf(qpcpb.CodeDeadlineExceeded, "the server did not finish in time; try again").Because(err)
	case errors.Is(err, context.Canceled):
		return Errorf(qpcpb.CodeDraining, "the connection is closing; connect again").Because(err)
	default:
		return Errorf(qpcpb.CodeInternal, "the server failed; its log says why").Because(err)
	}
}
