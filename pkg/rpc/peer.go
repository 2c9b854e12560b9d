package rpc

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/limit"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// Principal is who is logged in on a connection.
type Principal struct {
	Identity IdentityKey
	Username string
	// Session names the session: the SHA-256 of its token.
	Session [32]byte
	// Device is the device that logged in; HasDevice is false for a client
	// that named none.
	Device    DeviceID
	HasDevice bool
	// Admin is true when the identity is in the owner's `admin` list.
	Admin bool
}

// Peer is the server's end of one connection. Its methods are safe for
// concurrent use.
type Peer struct {
	conn      transport.Conn
	server    *Server
	side      side
	domain    string     // of a server's connection
	source    netip.Addr // what the calls are counted for
	principal atomic.Pointer[Principal]
	refusals  atomic.Int32
	// authenticating keeps two logins at once in one order for everybody.
	authenticating sync.Mutex
	// settled closes when stream 0 has told whether the connection resumes a
	// session: until then no call runs.
	settled    chan struct{}
	settleOnce sync.Once
	memory     budget
	calls      sync.WaitGroup
	closing    atomic.Bool
}

func newPeer(server *Server, conn transport.Conn) *Peer {
	return &Peer{
		conn:    conn,
		server:  server,
		source:  limit.Source(conn.RemoteAddr().Addr()),
		settled: make(chan struct{}),
		memory:  budget{own: semaphore.NewWeighted(peerBudget), shared: server.memory},
	}
}

// Principal returns who is logged in, or nil.
func (p *Peer) Principal() *Principal { return p.principal.Load() }

// RemoteAddr returns the address that the connection comes from.
func (p *Peer) RemoteAddr() netip.AddrPort { return p.conn.RemoteAddr() }

// Context is done when the connection ends.
func (p *Peer) Context() context.Context { return p.conn.Context() }

// Authenticate makes the connection speak for a principal from now on.
func (p *Peer) Authenticate(principal Principal) {
	p.authenticating.Lock()
	defer p.authenticating.Unlock()
	old := p.principal.Swap(&principal)
	if p.server.options.Authenticated != nil {
		p.server.options.Authenticated(p, old)
	}
}

// RefuseCredentials counts a refused credential. After more than five the
// connection is closed with code 1.
func (p *Peer) RefuseCredentials() {
	if p.refusals.Add(1) > maxRefusals {
		p.server.options.Log.Warn("a connection is closed: too many wrong passwords or sessions", "from", p.RemoteAddr())
		p.CloseSoon(transport.CloseBanned, "too many refused credentials")
	}
}

// Push sends one event on a stream of its own. It returns when the bytes are
// handed to the transport, or an error when that takes longer than ctx allows.
func (p *Peer) Push(ctx context.Context, event qpcpb.Event, message proto.Message) error {
	stream, err := p.conn.OpenSendStream(ctx)
	if err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := stream.SetWriteDeadline(deadline); err != nil {
			return err
		}
	}
	size := proto.Size(message)
	b := frame.AppendPushHeader(make([]byte, 0, frame.PushHeaderSize+size), uint16(event), uint32(size))
	b, err = proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(b, message)
	if err != nil {
		stream.CancelWrite(resetUnread)
		return err
	}
	if _, err := stream.Write(b); err != nil {
		stream.CancelWrite(resetUnread)
		return err
	}
	return stream.Close()
}

// CloseSoon closes the connection once the words already under way have had
// time to arrive. New calls are refused meanwhile.
func (p *Peer) CloseSoon(code transport.CloseCode, reason string) {
	if p.closing.Swap(true) {
		return
	}
	p.server.background.Go(func() {
		wait := time.NewTimer(linger)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-p.conn.Context().Done():
		case <-p.server.stopped:
		}
		_ = p.conn.Close(code, reason) // the peer may be gone already
	})
}

// settle records that stream 0 has spoken.
func (p *Peer) settle() { p.settleOnce.Do(func() { close(p.settled) }) }

// call is what a handler's context carries.
type call struct {
	context.Context
	peer       *Peer
	principal  *Principal
	memory     reservation
	afterReply []func()
}

type callKey struct{}

// Value finds the call itself; everything else is the parent's.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// PeerOf returns the connection that a handler's call came on, or nil outside
// of a call.
func PeerOf(ctx context.Context) *Peer {
	if c := callOf(ctx); c != nil {
		return c.peer
	}
	return nil
}

// PrincipalOf returns who makes the call: who was logged in when it began.
// Handlers of session methods always find one, those of admin methods one or
// the owner at the control socket, for whom it returns nil as elsewhere.
func PrincipalOf(ctx context.Context) *Principal {
	if c := callOf(ctx); c != nil {
		return c.principal
	}
	return nil
}

// DomainOf returns the domain of the server that makes the call, or "" when a
// client or the owner does.
func DomainOf(ctx context.Context) string {
	if c := callOf(ctx); c != nil {
		return c.peer.domain
	}
	return ""
}

// AfterReply makes f run when the answer to the current call has been handed
// to the transport. Outside of a call it runs f at once.
func AfterReply(ctx context.Context, f func()) {
	if c := callOf(ctx); c != nil {
		c.afterReply = append(c.afterReply, f)
		return
	}
	f()
}

// ReserveMemory makes room for a response of size bytes, waiting until other
// large frames have left. Handlers call it before they build a large answer.
func ReserveMemory(ctx context.Context, size int) error {
	if c := callOf(ctx); c != nil {
		return c.memory.take(ctx, size)
	}
	return nil
}
