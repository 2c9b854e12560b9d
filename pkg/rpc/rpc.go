// Package rpc carries calls over streams: one bidirectional stream a call, a
// request frame one way and a response frame back (pkg/frame has the layouts).
//
// The server side ([Server]) reads the frame, finds the method's row in the
// generated table, checks access, waits where a call may not run yet, runs the
// handler under the row's deadline and writes the answer. It knows nothing of
// what methods mean. One connection is a [Peer]; who is logged in on it is its
// [Principal].
//
// The client side ([Client]) makes calls and receives push events.
//
// The server's promises to its machine: a request costs memory only as its
// bytes arrive; large requests and responses share bounded budgets, for each
// connection and in all; a stream that stalls is reset; a handler that panics
// costs its own call and nothing else.
package rpc

import "time"

const (
	// firstByteTimeout and requestTimeout bound a stream on which nothing
	// arrives, and one whose request does not become whole (PROTOCOL 2).
	firstByteTimeout = 10 * time.Second
	requestTimeout   = 120 * time.Second
	// responseTimeout bounds a response that the client does not read. It is
	// the request's bound, seen from the other side.
	responseTimeout = 120 * time.Second

	// smallFrame is what a frame may hold without asking a budget: with 64
	// streams a connection, small frames cost at most 1 MiB of it.
	smallFrame = 16 << 10
	// peerBudget is what large frames of one connection may hold at once: one
	// request and one response of the largest size.
	peerBudget = 8<<20 + 64<<10
	// DefaultMemoryBudget is what large frames of all connections may hold at
	// once; a router of 64 MB bears it.
	DefaultMemoryBudget = 16 << 20

	// maxRunning bounds the calls that are under way in the whole server. At
	// about 16 KiB each (stack, message, stream) it is the memory that a
	// router can spare for them.
	maxRunning = 1024
	// maxRunningPerSource is the part of it that one address may hold. Half:
	// otherwise the connections that one address may have, each with all its
	// streams half sent, would keep everybody else out.
	maxRunningPerSource = maxRunning / 2
	// maxRunningOfPeers bounds the calls of other servers, which count apart
	// from those of clients: a peer makes a few at once.
	maxRunningOfPeers = 128

	// maxFields bounds the known fields of a request above smallFrame: a
	// repeated field costs 2 bytes of a frame and 24 of memory an entry, so
	// that 4 MiB of empty ones would become 100. The largest honest request
	// (RotateKeys in a full group) has some 1,300.
	maxFields = 4096

	// maxRefusals is how many refused credentials one connection may offer;
	// the next closes it with code 1 (PROTOCOL 1).
	maxRefusals = 5

	// linger is how long a connection that the server ends stays open after
	// its last words, so that they arrive: closing at once would drop them.
	linger = 500 * time.Millisecond
)

// Stream reset codes, for streams that have no answer to give.
const (
	resetStalled  = 1 // nothing arrived in time
	resetUnread   = 2 // the client does not read
	resetAnswered = 3 // the answer is on its way; the rest of the request is not wanted
	resetFailed   = 4 // the server cannot answer now; try again
)

// On stream 0 the first byte tells a session handshake from a request:
//
//	client  ┌ 0x01 ┬ length u16 ┬ token … ┐
//	server  ┌ 0x01 ┬ 0x00 accepted, 0x01 refused ┐
//
// The server answers when the token is whole and does not wait for the end of
// the client's half. A token that it cannot look up now (the storage fails) is
// neither: the stream is reset with resetFailed, so that the client keeps it.
const (
	resumptionByte     = 0x01
	resumptionAccepted = 0x00
	resumptionRefused  = 0x01
)
