package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// ServerOptions says what a server is made of.
type ServerOptions struct {
	Log *slog.Logger
	// ResumeSession finds the principal of a session token, or returns an
	// error when there is none. An error that wraps ErrCannotLook says that
	// there may be one.
	ResumeSession func(ctx context.Context, token []byte) (Principal, error)
	// Authenticated, when set, is told of every connection that logs in or
	// resumes a session, with the principal it had before, or nil.
	Authenticated func(p *Peer, before *Principal)
	// Disconnected, when set, is told when a connection has ended.
	Disconnected func(p *Peer)
	// Describe, when set, turns errors of the rooms below (storage) into
	// answers, or returns nil for errors it does not know.
	Describe func(error) *Error
	// Observe, when set, is told of every call that was answered. It is called
	// on the call's own goroutine, and must be quick.
	Observe func(Observation)
	// MemoryBudget is what large frames may hold at once, in bytes; 0 is
	// DefaultMemoryBudget.
	MemoryBudget int64
}

// Observation is a call that has been answered.
type Observation struct {
	// Method is nil for a number that is no method's.
	Method *qpcpb.MethodInfo
	// Request is nil when it was refused before it was decoded, Response when
	// the answer was an error. Neither may be kept or changed.
	Request, Response proto.Message
	// Code is CodeUnspecified when the answer was OK.
	Code qpcpb.Code
	// Took is the time from the header of the request to the end of its answer.
	Took time.Duration
}

// ErrCannotLook says that a session could not be looked up: it is neither
// accepted nor refused.
var ErrCannotLook = errors.New("the session cannot be looked up now")

// Server runs calls. It implements qpcpb.Registrar.
type Server struct {
	options    ServerOptions
	handlers   map[qpcpb.MethodID]qpcpb.Handler
	memory     *semaphore.Weighted
	peerMemory *semaphore.Weighted // of the connections of other servers
	background sync.WaitGroup      // connections that say their last words
	stopped    chan struct{}
	stopOnce   sync.Once

	mu       sync.Mutex
	draining bool
	calls    sync.WaitGroup     // requests that are whole and not yet answered
	running  int                // all calls, those included whose request is on its way, but the peers'
	ofPeers  int                // the calls of other servers
	sources  map[netip.Addr]int // the same by source address
}

// NewServer returns a server without handlers. Register them before the first
// connection is served.
func NewServer(options ServerOptions) *Server {
	if options.MemoryBudget == 0 {
		options.MemoryBudget = DefaultMemoryBudget
	}
	return &Server{
		options:  options,
		handlers: make(map[qpcpb.MethodID]qpcpb.Handler),
		sources:  make(map[netip.Addr]int),
		memory:   semaphore.NewWeighted(options.MemoryBudget),
		// A part of their own, so that neither side can keep the other out.
		peerMemory: semaphore.NewWeighted(peerBudget),
		stopped:    make(chan struct{}),
	}
}

// Register makes h answer the method. A method without a handler answers
// UNIMPLEMENTED.
func (s *Server) Register(method qpcpb.MethodID, h qpcpb.Handler) { s.handlers[method] = h }

// Running returns how many calls are under way.
func (s *Server) Running() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running + s.ofPeers
}

// ServeConn answers the calls of one client connection until it ends, and
// returns when the last of them has ended too.
func (s *Server) ServeConn(conn transport.Conn) { s.serve(newPeer(s, conn)) }

// ServePeer is ServeConn for the connection of another server, whose
// certificate is pinned for domain: it may call the methods of access peer and
// no others.
func (s *Server) ServePeer(conn transport.Conn, domain string) {
	p := newPeer(s, conn)
	p.side, p.domain, p.memory.shared = sidePeer, domain, s.peerMemory
	s.serve(p)
}

// ServeLocal is ServeConn for a connection of the control socket: it may call
// the methods of access local, public and admin.
func (s *Server) ServeLocal(conn transport.Conn) {
	p := newPeer(s, conn)
	p.side = sideLocal
	s.serve(p)
}

func (s *Server) serve(p *Peer) {
	conn := p.conn
	if p.side != sideClient {
		p.settle() // only clients resume sessions
	}
	ctx := conn.Context()
	for {
		stream, err := conn.AcceptStream(ctx)
		if err != nil {
			break
		}
		p.calls.Go(func() { s.serveStream(ctx, p, stream) })
	}
	p.settle()
	p.calls.Wait()
	if s.options.Disconnected != nil {
		s.options.Disconnected(p)
	}
}

// Drain refuses new calls with UNAVAILABLE and waits until those under way
// have been answered, or ctx ends. A call whose request is not whole yet is a
// new one: nobody may hold up the end by sending slowly.
func (s *Server) Drain(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.calls.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for %d calls to end: %w", s.Running(), ctx.Err())
	}
}

// Close ends the lingering of connections and waits for it. The connections
// themselves are the listener's to close.
func (s *Server) Close() {
	s.stopOnce.Do(func() { close(s.stopped) })
	s.background.Wait()
}

// claim takes a place for a call whose request is on its way, or says why
// there is none.
func (s *Server) claim(p *Peer) *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	source := p.source
	switch {
	case s.draining:
		return drainingError()
	case p.side == sidePeer && s.ofPeers >= maxRunningOfPeers:
		return Errorf(qpcpb.CodeBusy, "too many calls of other servers are under way; try again").After(time.Second)
	case p.side == sidePeer:
		s.ofPeers++
		return nil
	case s.running >= maxRunning:
		return Errorf(qpcpb.CodeBusy, "the server is at its limit of calls; try again").After(time.Second)
	case s.sources[source] >= maxRunningPerSource:
		return Errorf(qpcpb.CodeBusy, "too many calls from your address are under way; try again").After(time.Second)
	}
	s.running++
	s.sources[source]++
	return nil
}

func (s *Server) release(p *Peer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.side == sidePeer {
		s.ofPeers--
		return
	}
	source := p.source
	s.running--
	if s.sources[source]--; s.sources[source] == 0 {
		delete(s.sources, source)
	}
}

// begin makes Drain wait for a call, or refuses it.
func (s *Server) begin() *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return drainingError()
	}
	s.calls.Add(1)
	return nil
}

func drainingError() *Error {
	return Errorf(qpcpb.CodeDraining, "the server is shutting down; connect again soon").After(time.Second)
}

// patientReader bounds each wait for bytes and the whole.
type patientReader struct {
	stream transport.Stream
	start  time.Time
	// late is set when a bound was reached.
	late bool
}

func (r *patientReader) Read(b []byte) (int, error) {
	deadline := time.Now().Add(firstByteTimeout)
	if last := r.start.Add(requestTimeout); last.Before(deadline) {
		deadline = last
	}
	if err := r.stream.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	n, err := r.stream.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		r.late = true
	}
	return n, err
}

// serveStream takes one stream from its first byte to its last.
func (s *Server) serveStream(ctx context.Context, p *Peer, stream transport.Stream) {
	r := &patientReader{stream: stream, start: time.Now()}
	if stream.ID() == 0 && p.side == sideClient {
		var first [1]byte
		if _, err := io.ReadFull(r, first[:]); err == nil && first[0] == resumptionByte {
			s.resume(ctx, p, stream, r)
			return
		} else if err != nil {
			p.settle()
			s.refuseUnread(stream, r, frame.RequestHeader{}, headerError(err))
			return
		}
		p.settle()
		s.serveCall(ctx, p, stream, r, io.MultiReader(byteReader(first[0]), r))
		return
	}
	select {
	case <-p.settled:
	case <-ctx.Done():
		return
	}
	s.serveCall(ctx, p, stream, r, r)
}

// byteReader is a reader of one byte.
func byteReader(b byte) io.Reader { return &oneByte{b: b} }

type oneByte struct {
	b    byte
	done bool
}

func (o *oneByte) Read(p []byte) (int, error) {
	if o.done {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	p[0], o.done = o.b, true
	return 1, nil
}

// maxToken is the longest session token that is looked at; ours have 32 bytes.
const maxToken = 256

// resume answers a session handshake.
func (s *Server) resume(ctx context.Context, p *Peer, stream transport.Stream, r *patientReader) {
	defer p.settle()
	answer := byte(resumptionRefused)
	token, err := readToken(r)
	if r.late {
		s.reset(stream, resetStalled)
		return
	}
	if err == nil && s.options.ResumeSession != nil {
		principal, err := s.options.ResumeSession(ctx, token)
		switch {
		case err == nil:
			p.Authenticate(principal)
			// The session may have ended before the connection was known to
			// belong to it; whoever ended it could not find the connection.
			if _, err := s.options.ResumeSession(ctx, token); err != nil {
				p.CloseSoon(transport.CloseSessionRevoked, "the session has ended")
				break
			}
			answer = resumptionAccepted
		case errors.Is(err, ErrCannotLook):
			if ctx.Err() == nil {
				s.options.Log.Error("a session could not be looked up", "error", err)
			}
			s.reset(stream, resetFailed)
			return
		}
	}
	if answer == resumptionRefused {
		p.RefuseCredentials()
	}
	s.finish(stream, []byte{resumptionByte, answer})
	p.settle()
	// The client ends its half when it likes; cancelling it any sooner could
	// make its last write fail.
	if n, err := r.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
		stream.CancelRead(resetAnswered)
	}
}

// readToken reads what follows the first byte, to the end of the token and
// not further: the client may wait for the answer before it ends its half.
func readToken(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > maxToken {
		return nil, fmt.Errorf("a token of %d bytes", n)
	}
	token := make([]byte, n)
	_, err := io.ReadFull(r, token)
	return token, err
}

// headerError is the answer to a header that could not be read.
func headerError(error) *Error {
	return Errorf(qpcpb.CodeMalformed, "the request header is cut short")
}

// scratch buffers hold small requests while they are decoded.
var scratchPool = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// serveCall reads a request, runs it and writes the answer.
func (s *Server) serveCall(ctx context.Context, p *Peer, stream transport.Stream, r *patientReader, from io.Reader) {
	header, err := frame.ReadRequestHeader(from)
	if err != nil {
		s.refuseUnread(stream, r, frame.RequestHeader{}, headerError(err))
		return
	}
	seen := Observation{Method: qpcpb.LookupMethod(qpcpb.MethodID(header.Method))}
	info := seen.Method
	if s.options.Observe != nil {
		start := time.Now()
		defer func() {
			seen.Took = time.Since(start)
			s.options.Observe(seen)
		}()
	}
	handler, refusal := s.admit(p, info, header)
	if refusal != nil {
		seen.Code = refusal.Code
		s.refuseUnread(stream, r, header, refusal)
		return
	}
	if refusal := s.claim(p); refusal != nil {
		seen.Code = refusal.Code
		s.refuseUnread(stream, r, header, refusal)
		return
	}
	defer s.release(p)

	c := &call{peer: p, memory: reservation{from: &p.memory}}
	defer c.memory.release()
	request, refusal := s.readRequest(ctx, c, info, header, r, from)
	if refusal != nil {
		seen.Code = refusal.Code
		s.refuseUnread(stream, r, header, refusal)
		return
	}
	seen.Request = request
	if !info.Idempotent {
		// What came in 0-RTT may be a replay until the handshake completes.
		select {
		case <-p.conn.HandshakeComplete():
		case <-ctx.Done():
			return
		}
	}
	// The session may have ended while the request was on its way.
	if c.principal, refusal = p.authorize(info); refusal == nil {
		refusal = s.begin()
	}
	if refusal != nil {
		seen.Code = refusal.Code
		s.reply(stream, header, nil, refusal)
		return
	}
	defer s.calls.Done()
	response, err := s.run(ctx, c, info, handler, request)
	failure := s.answerError(ctx, p, info, header, err)
	if failure == nil {
		seen.Response = response
	} else {
		seen.Code = failure.Code
	}
	s.reply(stream, header, response, failure)
	for _, f := range c.afterReply {
		f()
	}
}

// admit finds the handler of a method, or the reason why this peer may not
// call it. It looks before the payload is read, so that a refused call costs
// no memory.
func (s *Server) admit(p *Peer, info *qpcpb.MethodInfo, header frame.RequestHeader) (qpcpb.Handler, *Error) {
	if info == nil || !p.side.calls(info.Access) {
		return nil, Errorf(qpcpb.CodeUnimplemented, "this server has no method %d here", header.Method)
	}
	if header.Length > info.MaxRequest {
		return nil, Errorf(qpcpb.CodePayloadTooLarge, "the request declares %d bytes where %d are allowed", header.Length, info.MaxRequest)
	}
	handler := s.handlers[info.ID]
	if handler == nil {
		return nil, Errorf(qpcpb.CodeUnimplemented, "this server does not serve %s", info.Name)
	}
	if _, refusal := p.authorize(info); refusal != nil {
		return nil, refusal
	}
	return handler, nil
}

// A side is who is at the other end of a connection.
type side int

const (
	sideClient side = iota // a client, with or without a session
	sidePeer               // another server
	sideLocal              // the owner, through the control socket
)

// calls reports whether methods of this access exist for the side.
func (s side) calls(access qpcpb.Access) bool {
	switch s {
	case sidePeer:
		return access == qpcpb.Access_ACCESS_PEER
	case sideLocal:
		return access == qpcpb.Access_ACCESS_LOCAL || access == qpcpb.Access_ACCESS_PUBLIC || access == qpcpb.Access_ACCESS_ADMIN
	}
	return access == qpcpb.Access_ACCESS_PUBLIC || access == qpcpb.Access_ACCESS_SESSION || access == qpcpb.Access_ACCESS_ADMIN
}

// authorize returns who makes a call of the method, or why this peer may not.
func (p *Peer) authorize(info *qpcpb.MethodInfo) (*Principal, *Error) {
	principal := p.Principal()
	switch {
	case p.closing.Load():
		return nil, Errorf(qpcpb.CodeUnauthenticated, "this connection is closing; connect again")
	case info.Access == qpcpb.Access_ACCESS_PUBLIC, p.side != sideClient:
		return principal, nil
	case principal == nil:
		return nil, Errorf(qpcpb.CodeUnauthenticated, "log in first")
	case info.Access == qpcpb.Access_ACCESS_ADMIN && !principal.Admin:
		return nil, Errorf(qpcpb.CodeAdminRequired, "only an administrator may do this")
	}
	return principal, nil
}

// readRequest reads and decodes the payload.
func (s *Server) readRequest(ctx context.Context, c *call, info *qpcpb.MethodInfo, header frame.RequestHeader, r *patientReader, from io.Reader) (proto.Message, *Error) {
	reserve, cancel := context.WithDeadline(ctx, r.start.Add(requestTimeout))
	err := c.memory.take(reserve, int(header.Length))
	cancel()
	if err != nil {
		return nil, Errorf(qpcpb.CodeBusy, "the server is busy with other large requests; try again").After(time.Second)
	}
	scratch := scratchPool.Get().(*[]byte)
	defer scratchPool.Put(scratch)
	payload, err := frame.ReadPayload(from, header.Length, info.MaxRequest, *scratch)
	if err != nil {
		return nil, Errorf(qpcpb.CodeMalformed, "%s", payloadSentence(err))
	}
	request := info.NewRequest()
	if len(payload) > smallFrame && countFields(payload, request.ProtoReflect().Descriptor()) > maxFields {
		return nil, Errorf(qpcpb.CodeMalformed, "the request has more than %d fields", maxFields)
	}
	if err := proto.Unmarshal(payload, request); err != nil {
		return nil, Errorf(qpcpb.CodeMalformed, "the request is not a valid %s", request.ProtoReflect().Descriptor().Name())
	}
	return request, nil
}

// countFields counts the fields of a message that it knows, and of the messages
// in it, up to the first that does not parse. Unknown ones are kept as they
// came, which costs what they cost on the wire. No request nests deeper than
// two messages.
func countFields(payload []byte, known protoreflect.MessageDescriptor) (count int) {
	for len(payload) > 0 {
		number, kind, n := protowire.ConsumeField(payload)
		if n < 0 {
			return count
		}
		if field := known.Fields().ByNumber(number); field != nil {
			count++
			if field.Message() != nil && kind == protowire.BytesType {
				_, _, head := protowire.ConsumeTag(payload)
				if inner, _ := protowire.ConsumeBytes(payload[head:]); inner != nil {
					count += countFields(inner, field.Message())
				}
			}
		}
		payload = payload[n:]
	}
	return count
}

// payloadSentence says what is wrong with a payload without passing on what a
// transport error holds.
func payloadSentence(err error) string {
	for _, known := range []error{frame.ErrTruncated, frame.ErrTrailing} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "the request could not be read"
}

// run calls the handler under the method's deadline, and turns a panic into
// an error of this call.
func (s *Server) run(ctx context.Context, c *call, info *qpcpb.MethodInfo, handler qpcpb.Handler, request proto.Message) (response proto.Message, err error) {
	ctx, cancel := context.WithTimeout(ctx, info.Deadline)
	defer cancel()
	c.Context = ctx
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("panic in %s: %v\n%s", info.Name, cause, debug.Stack())
		}
	}()
	return handler(c, request)
}

// answerError makes the answer of an error, and logs what the caller is not
// told.
func (s *Server) answerError(ctx context.Context, p *Peer, info *qpcpb.MethodInfo, header frame.RequestHeader, err error) *Error {
	if err == nil {
		return nil
	}
	var answer *Error
	if s.options.Describe != nil {
		answer = s.options.Describe(err)
	}
	if answer == nil {
		answer = describe(err)
	}
	if answer.Status == qpcpb.StatusInternal && ctx.Err() == nil {
		s.options.Log.Error("a call failed", "from", p.RemoteAddr(), "method", info.Name, "request", header.RequestID, "error", err)
	}
	return answer
}

// reply writes a response frame and ends the stream.
func (s *Server) reply(stream transport.Stream, header frame.RequestHeader, response proto.Message, failure *Error) {
	if failure != nil {
		payload := failure.payload()
		b := frame.AppendResponseHeader(make([]byte, 0, frame.ResponseHeaderSize+len(payload)), uint8(failure.Status), header.RequestID, uint32(len(payload)))
		s.finish(stream, append(b, payload...))
		return
	}
	size := proto.Size(response)
	if size > frame.MaxPayload {
		s.options.Log.Error("an answer is too large for a frame", "method", qpcpb.MethodID(header.Method).String(), "bytes", size)
		s.reply(stream, header, nil, Errorf(qpcpb.CodeInternal, "the answer is too large; ask for less"))
		return
	}
	b := frame.AppendResponseHeader(make([]byte, 0, frame.ResponseHeaderSize+size), uint8(qpcpb.StatusOK), header.RequestID, uint32(size))
	b, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, response)
	if err != nil {
		s.options.Log.Error("an answer could not be encoded", "method", qpcpb.MethodID(header.Method).String(), "error", err)
		s.reply(stream, header, nil, Errorf(qpcpb.CodeInternal, "the server failed; its log says why"))
		return
	}
	s.finish(stream, b)
}

// refuseUnread answers a request that is not (wholly) read, or resets a
// stream that stalled.
func (s *Server) refuseUnread(stream transport.Stream, r *patientReader, header frame.RequestHeader, failure *Error) {
	if r.late {
		s.reset(stream, resetStalled)
		return
	}
	stream.CancelRead(resetAnswered)
	s.reply(stream, header, nil, failure)
}

// finish writes the last bytes of a stream. A client that does not read them
// loses the stream.
func (s *Server) finish(stream transport.Stream, b []byte) {
	_ = stream.SetWriteDeadline(time.Now().Add(responseTimeout)) // fails only when the stream is gone
	if _, err := stream.Write(b); err != nil {
		stream.CancelWrite(resetUnread)
		return
	}
	_ = stream.Close() // nothing is left to do when it fails
}

func (s *Server) reset(stream transport.Stream, code uint64) {
	stream.CancelRead(code)
	stream.CancelWrite(code)
}
