// Package qpcpb is the protocol as Go: what protos/qpc/v1 says, generated.
//
// It holds the protobuf messages, the method table (id, access rule,
// idempotency, deadline, size), one server interface and one client stub for
// each service, and the statuses, error codes and push events. Nothing here is
// written by hand but this file; `make generate` writes the rest.
package qpcpb

import (
	"context"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
)

// MethodID is the number of a method in the request header.
type MethodID uint16

// String returns the name of the method, or its number when there is none.
func (id MethodID) String() string {
	if info := LookupMethod(id); info != nil {
		return info.Name
	}
	return "method " + strconv.Itoa(int(id))
}

// MethodInfo is one row of the method table.
type MethodInfo struct {
	ID      MethodID
	Name    string
	Service string
	// Access says who may call; it is never ACCESS_UNSPECIFIED.
	Access Access
	// Idempotent methods may be retried and may ride in 0-RTT.
	Idempotent bool
	// Deadline bounds the time from the whole request to the response.
	Deadline time.Duration
	// MaxRequest is the largest request payload, in bytes.
	MaxRequest uint32
	// Errors are the codes that the method may be answered with beside those
	// of every method and of its access rule.
	Errors      []Code
	NewRequest  func() proto.Message
	NewResponse func() proto.Message
}

// Methods returns the whole table, by id. The caller must not change it.
func Methods() []MethodInfo { return methodTable[:] }

// LookupMethod returns the row of a method, or nil when there is none.
func LookupMethod(id MethodID) *MethodInfo {
	low, high := 0, len(methodTable)
	for low < high {
		middle := (low + high) / 2
		switch row := &methodTable[middle]; {
		case row.ID == id:
			return row
		case row.ID < id:
			low = middle + 1
		default:
			high = middle
		}
	}
	return nil
}

// Handler answers one method. The request has the type of the method's row.
type Handler func(ctx context.Context, request proto.Message) (proto.Message, error)

// Registrar collects the handlers of methods; pkg/rpc's dispatcher is one.
type Registrar interface {
	Register(MethodID, Handler)
}

// Caller makes one call and decodes the answer into response; pkg/rpc's
// client is one. An answer that is not OK is an error.
type Caller interface {
	Call(ctx context.Context, method MethodID, request, response proto.Message) error
}

type codeInfo struct {
	word   string
	status Status
}

// Word returns the code as it crosses the wire: upper case, no prefix.
func (c Code) Word() string {
	if c < 0 || int(c) >= len(codeTable) {
		return codeTable[CodeUnspecified].word
	}
	return codeTable[c].word
}

// Status returns the status of a response that carries the code.
func (c Code) Status() Status {
	if c < 0 || int(c) >= len(codeTable) {
		return StatusInternal
	}
	return codeTable[c].status
}

// CodeOf returns the code of a word from the wire, or CodeUnspecified when
// this version does not know it.
func CodeOf(word string) Code {
	for code, info := range codeTable {
		if info.word == word {
			return Code(code)
		}
	}
	return CodeUnspecified
}

// reply turns a typed answer into the Handler's, keeping a nil answer nil.
func reply[T proto.Message](response T, err error) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	return response, nil
}
