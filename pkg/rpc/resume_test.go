package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func handshake(token string) []byte {
	return append([]byte{resumptionByte, byte(len(token) >> 8), byte(len(token))}, token...)
}

// readAll reads a stream to its end.
func readAll(t testing.TB, stream transport.Stream) string {
	t.Helper()
	b, err := io.ReadAll(stream)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The rules of PROTOCOL 3 for stream 0.
func TestSessionResumption(t *testing.T) {
	const accepted, refused = "\x01\x00", "\x01\x01"
	tests := []struct {
		name   string
		stream []byte
		open   bool // the client waits for the answer before it ends its half
		want   string
		who    string
	}{
		{"accepted", handshake("alice"), false, accepted, "alice"},
		{"accepted before the FIN", handshake("alice"), true, accepted, "alice"},
		{"refused, still usable", handshake("mallory"), false, refused, "nobody"},
		{"empty token", handshake(""), false, refused, "nobody"},
		{"token of 256 bytes", handshake(string(make([]byte, maxToken))), false, refused, "nobody"},
		{"token of 257 bytes", handshake(string(make([]byte, maxToken+1))), true, refused, "nobody"},
		{"declares 65,535", []byte{1, 0xff, 0xff}, true, refused, "nobody"},
		{"cut short in the token", handshake("alice")[:7], false, refused, "nobody"},
		{"cut short in the length", []byte{1, 0}, false, refused, "nobody"},
		{"one byte", []byte{1}, false, refused, "nobody"},
		{"bytes after the token", append(handshake("alice"), "more"...), false, accepted, "alice"},
	}
	s := newTestServer(t, ServerOptions{})
	loopback := listen(t, s)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for network, conn := range map[string]transport.Conn{"QUIC": dial(t, loopback), "memory": pipe(t, s, rpctest.Options{})} {
				stream := open(t, conn, test.stream, !test.open)
				if got := readAll(t, stream); got != test.want {
					t.Errorf("%s: answered % x", network, got)
				}
				if test.open {
					_ = stream.Close()
				}
				if got := whoami(t, NewClient(conn)); got != test.who {
					t.Errorf("%s: the caller is %s", network, got)
				}
			}
		})
	}
}

func TestClientResumes(t *testing.T) {
	s := newTestServer(t, ServerOptions{})
	loopback := listen(t, s)
	client := NewClient(dial(t, loopback))
	if err := client.Resume(within(t), []byte("mallory")); !errors.Is(err, ErrSessionRefused) {
		t.Errorf("a refused token: %v", err)
	}
	if err := client.Resume(within(t), []byte("alice")); err == nil || errors.Is(err, ErrSessionRefused) {
		t.Errorf("a second handshake: %v", err)
	}
	if got := whoami(t, client); got != "nobody" {
		t.Errorf("the caller is %s", got)
	}
	// A server that cannot look does not make the client throw its token away.
	client = NewClient(dial(t, loopback))
	err := client.Resume(within(t), []byte("broken"))
	var reset *transport.StreamError
	if !errors.As(err, &reset) || reset.Code != resetFailed || errors.Is(err, ErrSessionRefused) {
		t.Errorf("a lookup that failed: %v", err)
	}
	if got := whoami(t, client); got != "nobody" {
		t.Errorf("after it the caller is %s", got)
	}
}

func TestCallsWaitForStreamZero(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		looked := make(chan struct{})
		s := newTestServer(t, ServerOptions{ResumeSession: func(ctx context.Context, token []byte) (Principal, error) {
			<-looked
			return lookup(ctx, token)
		}})
		conn := pipe(t, s, rpctest.Options{})
		zero := open(t, conn, handshake("alice")[:4], false)
		call := open(t, conn, request(qpcpb.MethodHealth, 1, &qpcpb.HealthRequest{}), true)
		synctest.Wait()
		if s.Running() != 0 {
			t.Error("a call runs before the session is known")
		}
		time.Sleep(firstByteTimeout - time.Second)
		_, _ = zero.Write(handshake("alice")[4:])
		_ = zero.Close()
		synctest.Wait()
		if s.Running() != 0 {
			t.Error("a call runs while the session is looked up")
		}
		close(looked)
		var response qpcpb.HealthResponse
		if err := proto.Unmarshal(finish(t, call).body, &response); err != nil || response.Status != "alice" {
			t.Errorf("the call was made by %s, %v", response.Status, err)
		}
	})
}

// A stream 0 that stalls does not hold the others up for longer than it may
// stall.
func TestStreamZeroStalls(t *testing.T) {
	for name, sent := range map[string][]byte{"nothing sent": nil, "half a handshake": {1, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTestServer(t, ServerOptions{})
				conn := pipe(t, s, rpctest.Options{})
				zero := open(t, conn, sent, false)
				begun := time.Now()
				call := open(t, conn, request(qpcpb.MethodHealth, 1, &qpcpb.HealthRequest{}), true)
				if got := finish(t, call); got.status != qpcpb.StatusOK {
					t.Errorf("got %+v", got)
				}
				if waited := time.Since(begun); waited != firstByteTimeout {
					t.Errorf("the call waited %v", waited)
				}
				wantReset(t, zero, resetStalled)
			})
		})
	}
}

func TestTooManyRefusedCredentials(t *testing.T) {
	s := newTestServer(t, ServerOptions{})
	s.Register(qpcpb.MethodOpaqueLoginFinish, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
		PeerOf(ctx).RefuseCredentials()
		return nil, Errorf(qpcpb.CodeBadCredentials, "wrong")
	})
	conn := dial(t, listen(t, s))
	client := NewClient(conn)
	if err := client.Resume(within(t), []byte("mallory")); !errors.Is(err, ErrSessionRefused) { // counts as the first
		t.Fatal(err)
	}
	try := func() error {
		return client.Call(within(t), qpcpb.MethodOpaqueLoginFinish, &qpcpb.OpaqueLoginFinishRequest{}, &qpcpb.OpaqueLoginFinishResponse{})
	}
	for range maxRefusals - 1 {
		wantCode(t, try(), qpcpb.CodeBadCredentials)
	}
	if got := whoami(t, client); got != "nobody" {
		t.Error("the connection is not usable after five refusals")
	}
	wantCode(t, try(), qpcpb.CodeBadCredentials) // the sixth is answered, and is the last
	wantCode(t, try(), qpcpb.CodeUnauthenticated)
	wantClosed(t, conn, transport.CloseBanned)
}

// Two logins at once on one connection are told to everybody in one order.
func TestAuthenticateInOrder(t *testing.T) {
	var last atomic.Pointer[Principal]
	s := newTestServer(t, ServerOptions{Authenticated: func(p *Peer, before *Principal) {
		if before != last.Load() {
			t.Error("told of a login out of order")
		}
		last.Store(p.Principal())
	}})
	_, server := rpctest.Pipe(rpctest.Options{})
	p := newPeer(s, server)
	done := make(chan struct{})
	for i := range 4 {
		go func() {
			for range 200 {
				p.Authenticate(Principal{Identity: IdentityKey{byte(i)}})
			}
			done <- struct{}{}
		}()
	}
	for range 4 {
		<-done
	}
}

// tickets is a session cache that tells when a ticket came.
type tickets struct {
	tls.ClientSessionCache
	came chan struct{}
}

func (c *tickets) Put(key string, state *tls.ClientSessionState) {
	c.ClientSessionCache.Put(key, state)
	if state != nil {
		c.came <- struct{}{}
	}
}

// Over real QUIC: with a ticket, both kinds of calls arrive.
func TestZeroRTT(t *testing.T) {
	var early atomic.Int32
	s := newTestServer(t, ServerOptions{})
	s.Register(qpcpb.MethodHealth, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
		select {
		case <-PeerOf(ctx).conn.HandshakeComplete():
		default:
			early.Add(1)
		}
		return &qpcpb.HealthResponse{Status: PrincipalOf(ctx).Username}, nil
	})
	s.Register(qpcpb.MethodEnqueue, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
		select {
		case <-PeerOf(ctx).conn.HandshakeComplete():
		default:
			t.Error("a call that is not idempotent runs in 0-RTT")
		}
		return &qpcpb.EnqueueResponse{}, nil
	})
	options := listen(t, s)
	cache := &tickets{tls.NewLRUClientSessionCache(8), make(chan struct{}, 64)}
	options.Sessions = cache
	first := dial(t, options)
	if err := NewClient(first).Resume(within(t), []byte("alice")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-cache.came:
	case <-time.After(patience):
		t.Fatal("no ticket came")
	}
	for range 20 {
		client := NewClient(dial(t, options))
		resumed := make(chan error, 1)
		go func() { resumed <- client.Resume(within(t), []byte("alice")) }()
		if err := <-resumed; err != nil {
			t.Fatal(err)
		}
		if got := whoami(t, client); got != "alice" {
			t.Errorf("the caller is %s", got)
		}
		if err := client.Call(within(t), qpcpb.MethodEnqueue, &qpcpb.EnqueueRequest{}, &qpcpb.EnqueueResponse{}); err != nil {
			t.Fatal(err)
		}
		_ = client.Conn().Close(transport.CloseNormal, "")
	}
	t.Logf("%d of 20 ran early", early.Load())
}

// In memory, where the handshake waits for the test.
func TestOnlyIdempotentCallsRunEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, ServerOptions{})
		conn := pipe(t, s, rpctest.Options{Early: true})
		client := NewClient(conn)
		if err := client.Resume(t.Context(), []byte("alice")); err != nil {
			t.Fatal(err)
		}
		if got := whoami(t, client); got != "alice" {
			t.Errorf("an idempotent call was made by %s", got)
		}
		enqueue := open(t, conn, request(qpcpb.MethodEnqueue, 2, &qpcpb.EnqueueRequest{Payload: []byte("x")}), true)
		ended := make(chan answer, 1)
		go func() { ended <- finish(t, enqueue) }()
		time.Sleep(time.Hour)
		select {
		case got := <-ended:
			t.Errorf("answered before the handshake: %+v", got)
		default:
		}
		conn.CompleteHandshake()
		if got := <-ended; got.status != qpcpb.StatusOK {
			t.Errorf("got %+v", got)
		}
	})
}
