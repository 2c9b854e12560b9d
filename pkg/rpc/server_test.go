package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func header(method qpcpb.MethodID, id, length uint32) []byte {
	return frame.AppendRequestHeader(nil, uint16(method), id, length)
}

// The rules of PROTOCOL 2 and 5, over loopback QUIC and in memory.
func TestFrameRules(t *testing.T) {
	const id = 0xdeadbeef
	health := request(qpcpb.MethodHealth, id, &qpcpb.HealthRequest{})
	enqueue := request(qpcpb.MethodEnqueue, id, &qpcpb.EnqueueRequest{Payload: []byte("hello")})
	largest := make([]byte, frame.MaxPayload-32)
	tests := []struct {
		name   string
		as     string // token, empty for a stranger
		stream []byte
		open   bool // no FIN: the answer must not wait for it
		id     uint32
		status qpcpb.Status
		code   string
	}{
		{name: "a call", stream: health, id: id},
		{name: "a call with a payload", as: "alice", stream: enqueue, id: id},
		{name: "the largest payload", as: "alice", stream: request(qpcpb.MethodEnqueue, id, &qpcpb.EnqueueRequest{Payload: largest}), id: id},
		{name: "unknown fields are ignored", stream: append(header(qpcpb.MethodHealth, id, 4), 0x98, 0x3f, 0x96, 0x01), id: id},
		{"one byte too large", "alice", header(qpcpb.MethodEnqueue, id, frame.MaxPayload+1), true, id, qpcpb.StatusPayloadTooLarge, "PAYLOAD_TOO_LARGE"},
		{"declares all it can", "alice", header(qpcpb.MethodEnqueue, id, 1<<32-1), true, id, qpcpb.StatusPayloadTooLarge, "PAYLOAD_TOO_LARGE"},
		{"too large for a public method", "", header(qpcpb.MethodHealth, id, 4097), true, id, qpcpb.StatusPayloadTooLarge, "PAYLOAD_TOO_LARGE"},
		{"trailing byte", "", append(bytes.Clone(health), 0), true, id, qpcpb.StatusBadRequest, "MALFORMED"},
		{"trailing megabyte", "alice", append(bytes.Clone(enqueue), make([]byte, 1<<20)...), false, id, qpcpb.StatusBadRequest, "MALFORMED"},
		{"early FIN", "alice", enqueue[:len(enqueue)-1], false, id, qpcpb.StatusBadRequest, "MALFORMED"},
		{"no payload at all", "alice", enqueue[:frame.RequestHeaderSize], false, id, qpcpb.StatusBadRequest, "MALFORMED"},
		{"not protobuf", "", append(header(qpcpb.MethodHealth, id, 2), 0xff, 0xff), false, id, qpcpb.StatusBadRequest, "MALFORMED"},
		{"string that is not UTF-8", "", append(header(qpcpb.MethodOpaqueLoginStart, id, 3), 0x0a, 1, 0xff), false, id, qpcpb.StatusBadRequest, "MALFORMED"},
		{"nothing", "", nil, false, 0, qpcpb.StatusBadRequest, "MALFORMED"},
		{"header cut short", "", health[:9], false, 0, qpcpb.StatusBadRequest, "MALFORMED"},
		{"half a method", "", health[:1], false, 0, qpcpb.StatusBadRequest, "MALFORMED"},
		{"unknown method", "alice", header(9999, id, 0), true, id, qpcpb.StatusUnimplemented, "UNIMPLEMENTED"},
		{"method 0", "alice", header(0, id, 0), true, id, qpcpb.StatusUnimplemented, "UNIMPLEMENTED"},
		{"0x01 first elsewhere than on stream 0", "alice", header(0x0100, id, 0), true, id, qpcpb.StatusUnimplemented, "UNIMPLEMENTED"},
		{"0x01 first, as in a handshake", "alice", []byte{1, 0, 5, 'a', 'l', 'i', 'c', 'e'}, false, 0, qpcpb.StatusBadRequest, "MALFORMED"},
		{"peer method", "admin", header(qpcpb.MethodRelayEnqueue, id, 0), true, id, qpcpb.StatusUnimplemented, "UNIMPLEMENTED"},
		{"local method", "admin", header(1100, id, 0), true, id, qpcpb.StatusUnimplemented, "UNIMPLEMENTED"},
		{"no handler", "alice", header(qpcpb.MethodCreateChannel, id, 0), true, id, qpcpb.StatusUnimplemented, "UNIMPLEMENTED"},
		{"session method, stranger", "", header(qpcpb.MethodEnqueue, id, 4), true, id, qpcpb.StatusUnauthorized, "UNAUTHENTICATED"},
		{"admin method, stranger", "", header(qpcpb.MethodBanUser, id, 0), true, id, qpcpb.StatusUnauthorized, "UNAUTHENTICATED"},
		{"admin method, user", "alice", header(qpcpb.MethodBanUser, id, 0), true, id, qpcpb.StatusForbidden, "ADMIN_REQUIRED"},
		{name: "admin method, admin", as: "admin", stream: header(qpcpb.MethodBanUser, id, 0), id: id},
	}
	s := newTestServer(t, ServerOptions{})
	s.Register(qpcpb.MethodOpaqueLoginStart, func(context.Context, proto.Message) (proto.Message, error) {
		return &qpcpb.OpaqueLoginStartResponse{}, nil
	})
	loopback := listen(t, s)
	networks := map[string]func(t *testing.T) transport.Conn{
		"QUIC":   func(t *testing.T) transport.Conn { return dial(t, loopback) },
		"memory": func(t *testing.T) transport.Conn { return pipe(t, s, rpctest.Options{}) },
	}
	for network, connect := range networks {
		conns := map[string]transport.Conn{}
		for _, token := range []string{"", "alice", "admin"} {
			conn := connect(t)
			if token != "" {
				if err := NewClient(conn).Resume(within(t), []byte(token)); err != nil {
					t.Fatal(err)
				}
			} else if got := exchange(t, conn, health); got.status != qpcpb.StatusOK { // stream 0
				t.Fatal(got)
			}
			conns[token] = conn
		}
		for _, test := range tests {
			t.Run(network+"/"+test.name, func(t *testing.T) {
				stream := open(t, conns[test.as], test.stream, !test.open)
				got := finish(t, stream)
				if got.status != test.status || got.id != test.id || got.code != test.code {
					t.Errorf("got %v %s, request %#x; want %v %s, request %#x", got.status, got.code, got.id, test.status, test.code, test.id)
				}
				if test.open {
					_ = stream.Close() // it has served its purpose
				}
			})
		}
	}
}

// On stream 0, too, an ordinary request is answered as such, whatever is wrong
// with it.
func TestRequestOnStreamZero(t *testing.T) {
	s := newTestServer(t, ServerOptions{})
	for name, test := range map[string]struct {
		stream []byte
		id     uint32
		status qpcpb.Status
	}{
		"call":             {request(qpcpb.MethodHealth, 7, &qpcpb.HealthRequest{}), 7, qpcpb.StatusOK},
		"empty":            {nil, 0, qpcpb.StatusBadRequest},
		"one byte":         {[]byte{0}, 0, qpcpb.StatusBadRequest},
		"header cut short": {header(qpcpb.MethodHealth, 7, 0)[:9], 0, qpcpb.StatusBadRequest},
		"trailing":         {append(header(qpcpb.MethodHealth, 7, 0), 1), 7, qpcpb.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			conn := pipe(t, s, rpctest.Options{})
			if got := exchange(t, conn, test.stream); got.status != test.status || got.id != test.id {
				t.Errorf("got %+v", got)
			}
			if got := whoami(t, NewClient(conn)); got != "nobody" {
				t.Errorf("after it the caller is %s", got)
			}
		})
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	var logged bytes.Buffer
	s := newTestServer(t, ServerOptions{
		Log: slog.New(slog.NewTextHandler(&logged, nil)),
		Describe: func(err error) *Error {
			if errors.Is(err, errLookup) {
				return Errorf(qpcpb.CodeDiskFull, "no room").After(3 * time.Second)
			}
			return nil
		},
	})
	var fail error
	s.Register(qpcpb.MethodPeek, func(context.Context, proto.Message) (proto.Message, error) { return nil, fail })
	client := NewClient(pipe(t, s, rpctest.Options{}))
	if err := client.Resume(within(t), []byte("alice")); err != nil {
		t.Fatal(err)
	}
	secret := errors.New("SELECT /home/alice")
	tests := []struct {
		name  string
		err   error
		code  qpcpb.Code
		wait  time.Duration
		words string // the whole message, when it is not empty
		log   bool
	}{
		{"of a domain", Errorf(qpcpb.CodeQueueFull, "full at %d", 7).After(1500 * time.Millisecond).Because(secret), qpcpb.CodeQueueFull, 1500 * time.Millisecond, "full at 7", false},
		{"wrapped", fmt.Errorf("more: %w", Errorf(qpcpb.CodeNameTaken, "taken")), qpcpb.CodeNameTaken, 0, "taken", false},
		{"a wait beyond 32 bits", Errorf(qpcpb.CodeRateLimited, "slow").After(1 << 62), qpcpb.CodeRateLimited, (1<<32 - 1) * time.Millisecond, "", false},
		{"of the storage", fmt.Errorf("storing: %w", errLookup), qpcpb.CodeDiskFull, 3 * time.Second, "no room", false},
		{"not for the caller", secret, qpcpb.CodeInternal, 0, "", true},
		{"late", fmt.Errorf("waiting: %w", context.DeadlineExceeded), qpcpb.CodeDeadlineExceeded, 0, "", false},
		{"a message that is not UTF-8", Errorf(qpcpb.CodeNameTaken, "\xff"), qpcpb.CodeUnspecified, 0, "", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			logged.Reset()
			fail = test.err
			err := client.Call(within(t), qpcpb.MethodPeek, &qpcpb.PeekRequest{}, &qpcpb.PeekResponse{})
			var got *Error
			if !errors.As(err, &got) {
				t.Fatal(err)
			}
			if got.Code != test.code || got.RetryAfter != test.wait || test.words != "" && got.Message != test.words {
				t.Errorf("got %+v", got)
			}
			if CodeOf(fmt.Errorf("again: %w", err)) != test.code {
				t.Error("CodeOf does not see it")
			}
			if test.code != qpcpb.CodeUnspecified && (got.Status != test.code.Status() || got.Word != test.code.Word()) {
				t.Errorf("got %v %s", got.Status, got.Word)
			}
			if strings.Contains(err.Error(), "SELECT") {
				t.Errorf("the caller learns the cause: %v", err)
			}
			if got := strings.Contains(logged.String(), "SELECT"); got != test.log {
				t.Errorf("log: %s", logged.String())
			}
		})
	}
}

func TestCodeThatTheClientDoesNotKnow(t *testing.T) {
	e := parseError(uint8(qpcpb.StatusConflict), []byte("\x0a\x03NEW\x12\x02hm"))
	if e.Code != qpcpb.CodeUnspecified || e.Word != "NEW" || e.Message != "hm" || e.Status != qpcpb.StatusConflict {
		t.Errorf("got %+v", e)
	}
	if e := parseError(200, []byte{0xff}); e.Status != 200 || e.Message == "" {
		t.Errorf("got %+v", e)
	}
}

func TestPanicCostsItsOwnCall(t *testing.T) {
	var logged bytes.Buffer
	s := newTestServer(t, ServerOptions{Log: slog.New(slog.NewTextHandler(&logged, nil))})
	s.Register(qpcpb.MethodPeek, func(context.Context, proto.Message) (proto.Message, error) { panic("by hand") })
	s.Register(qpcpb.MethodFetch, func(context.Context, proto.Message) (proto.Message, error) {
		var none *qpcpb.Envelope
		return &qpcpb.FetchResponse{Payloads: []*qpcpb.Envelope{{Data: none.Data}}}, nil
	})
	client := NewClient(dial(t, listen(t, s)))
	if err := client.Resume(within(t), []byte("alice")); err != nil {
		t.Fatal(err)
	}
	for _, method := range []qpcpb.MethodID{qpcpb.MethodPeek, qpcpb.MethodFetch} {
		info := qpcpb.LookupMethod(method)
		wantCode(t, client.Call(within(t), method, info.NewRequest(), info.NewResponse()), qpcpb.CodeInternal)
	}
	if got := whoami(t, client); got != "alice" {
		t.Errorf("after it the caller is %s", got)
	}
	if !strings.Contains(logged.String(), "by hand") {
		t.Errorf("log: %s", logged.String())
	}
	for ctx := within(t); s.Running() != 0; time.Sleep(time.Millisecond) { // the place is given back after the answer
		if ctx.Err() != nil {
			t.Fatalf("%d calls still running", s.Running())
		}
	}
}

func TestAnswerTooLargeForAFrame(t *testing.T) {
	s := newTestServer(t, ServerOptions{})
	s.Register(qpcpb.MethodPeek, func(context.Context, proto.Message) (proto.Message, error) {
		return &qpcpb.PeekResponse{Payloads: []*qpcpb.Envelope{{Data: make([]byte, frame.MaxPayload)}}}, nil
	})
	client := NewClient(pipe(t, s, rpctest.Options{}))
	if err := client.Resume(within(t), []byte("alice")); err != nil {
		t.Fatal(err)
	}
	wantCode(t, client.Call(within(t), qpcpb.MethodPeek, &qpcpb.PeekRequest{}, &qpcpb.PeekResponse{}), qpcpb.CodeInternal)
	tooLarge := &qpcpb.EnqueueRequest{Payload: make([]byte, frame.MaxPayload)}
	wantCode(t, client.Call(within(t), qpcpb.MethodEnqueue, tooLarge, &qpcpb.EnqueueResponse{}), qpcpb.CodePayloadTooLarge)
}

// Every row's handler is given the row's deadline.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, ServerOptions{})
		wait := func(ctx context.Context, _ proto.Message) (proto.Message, error) {
			<-ctx.Done()
			return nil, fmt.Errorf("waiting: %w", ctx.Err())
		}
		for _, method := range []qpcpb.MethodID{qpcpb.MethodPeek, qpcpb.MethodFetchWait} {
			s.Register(method, wait)
		}
		client := NewClient(pipe(t, s, rpctest.Options{}))
		if err := client.Resume(t.Context(), []byte("alice")); err != nil {
			t.Fatal(err)
		}
		for method, want := range map[qpcpb.MethodID]time.Duration{
			qpcpb.MethodPeek: 30 * time.Second, qpcpb.MethodFetchWait: 70 * time.Second,
		} {
			begun := time.Now()
			info := qpcpb.LookupMethod(method)
			err := client.Call(t.Context(), method, info.NewRequest(), info.NewResponse())
			wantCode(t, err, qpcpb.CodeDeadlineExceeded)
			if got := time.Since(begun); got != want {
				t.Errorf("%s ended after %v, want %v", method, got, want)
			}
		}
	})
}

// What a repeated field costs in memory must not be many times what it costs
// on the wire.
func TestManyFieldsAreRefused(t *testing.T) {
	s := newTestServer(t, ServerOptions{})
	var seen int
	s.Register(qpcpb.MethodFetchHybridKeys, func(_ context.Context, r proto.Message) (proto.Message, error) {
		seen = len(r.(*qpcpb.FetchHybridKeysRequest).IdentityKeys)
		return &qpcpb.FetchHybridKeysResponse{}, nil
	})
	conn := pipe(t, s, rpctest.Options{})
	if err := NewClient(conn).Resume(within(t), []byte("alice")); err != nil {
		t.Fatal(err)
	}
	frameOf := func(payload []byte) []byte {
		return append(header(qpcpb.MethodFetchHybridKeys, 1, uint32(len(payload))), payload...)
	}
	unknown := protowire.AppendTag(nil, 500, protowire.BytesType)
	unknown = append(unknown, 0)
	for name, test := range map[string]struct {
		payload []byte
		status  qpcpb.Status
		seen    int
	}{
		"a bomb":             {bytes.Repeat([]byte{0x0a, 0}, frame.MaxPayload/2), qpcpb.StatusBadRequest, 0},
		"one too many":       {bytes.Repeat([]byte{0x0a, 3, 1, 2, 3}, maxFields+1), qpcpb.StatusBadRequest, 0},
		"as many as may":     {bytes.Repeat([]byte{0x0a, 3, 1, 2, 3}, maxFields), qpcpb.StatusOK, maxFields},
		"unknown ones":       {bytes.Repeat(unknown, 30_000), qpcpb.StatusOK, 0},
		"broken at the end":  {append(bytes.Repeat([]byte{0x0a, 3, 1, 2, 3}, maxFields), 0xff), qpcpb.StatusBadRequest, 0},
		"broken in the bomb": {append([]byte{0xff}, bytes.Repeat([]byte{0x0a, 0}, 1<<20)...), qpcpb.StatusBadRequest, 0},
	} {
		t.Run(name, func(t *testing.T) {
			seen = 0
			if got := exchange(t, conn, frameOf(test.payload)); got.status != test.status || seen != test.seen {
				t.Errorf("got %v %s, the handler saw %d", got.status, got.code, seen)
			}
		})
	}
}

func TestDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, ServerOptions{})
		release := make(chan struct{})
		s.Register(qpcpb.MethodPeek, func(context.Context, proto.Message) (proto.Message, error) {
			<-release
			return &qpcpb.PeekResponse{}, nil
		})
		conn := pipe(t, s, rpctest.Options{})
		client := NewClient(conn)
		if err := client.Resume(t.Context(), []byte("alice")); err != nil {
			t.Fatal(err)
		}
		var calls sync.WaitGroup
		calls.Go(func() {
			if err := client.Call(t.Context(), qpcpb.MethodPeek, &qpcpb.PeekRequest{}, &qpcpb.PeekResponse{}); err != nil {
				t.Error("a call under way:", err)
			}
		})
		// A request that never becomes whole does not hold up the end.
		whole := request(qpcpb.MethodEnqueue, 9, &qpcpb.EnqueueRequest{Payload: []byte("x")})
		half := open(t, conn, whole[:len(whole)-1], false)
		synctest.Wait()

		late, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.Drain(late); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("draining ended with %v while a call was under way", err)
		}
		err := client.Call(t.Context(), qpcpb.MethodHealth, &qpcpb.HealthRequest{}, &qpcpb.HealthResponse{})
		wantCode(t, err, qpcpb.CodeDraining)
		if e := (*Error)(nil); !errors.As(err, &e) || e.RetryAfter == 0 {
			t.Error("no word of when to come back")
		}
		close(release)
		calls.Wait()
		if err := s.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		_, _ = half.Write(whole[len(whole)-1:])
		_ = half.Close()
		if got := finish(t, half); got.code != "DRAINING" || got.id != 9 {
			t.Errorf("the half request: %+v", got)
		}
	})
}

// Whoever loses the session while a request is on its way does not get in with
// it.
func TestSessionEndsWhileTheRequestIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var peer *Peer
		ran := false
		s := newTestServer(t, ServerOptions{Authenticated: func(p *Peer, _ *Principal) { peer = p }})
		s.Register(qpcpb.MethodEnqueue, func(context.Context, proto.Message) (proto.Message, error) {
			ran = true
			return &qpcpb.EnqueueResponse{}, nil
		})
		conn := pipe(t, s, rpctest.Options{})
		if err := NewClient(conn).Resume(t.Context(), []byte("alice")); err != nil {
			t.Fatal(err)
		}
		whole := request(qpcpb.MethodEnqueue, 1, &qpcpb.EnqueueRequest{Payload: []byte("x")})
		stream := open(t, conn, whole[:len(whole)-1], false)
		synctest.Wait()
		peer.CloseSoon(transport.CloseSessionRevoked, "logged out")
		_, _ = stream.Write(whole[len(whole)-1:])
		_ = stream.Close()
		if got := finish(t, stream); got.code != "UNAUTHENTICATED" || ran {
			t.Errorf("got %+v, ran %v", got, ran)
		}
		wantClosed(t, conn, transport.CloseSessionRevoked)
	})
}

// Streams that one address leaves half sent do not keep the others out.
func TestOneAddressDoesNotTakeAllCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, ServerOptions{})
		flood := func(addr string, streams int) *rpctest.Conn {
			conn := pipe(t, s, rpctest.Options{Remote: addrPort(addr)})
			for range streams {
				open(t, conn, header(qpcpb.MethodHealth, 1, 4096), false)
			}
			synctest.Wait()
			return conn
		}
		first := flood("192.0.2.1:1", maxRunningPerSource)
		if s.Running() != maxRunningPerSource {
			t.Fatalf("%d running", s.Running())
		}
		health := request(qpcpb.MethodHealth, 5, &qpcpb.HealthRequest{})
		if got := exchange(t, first, health); got.code != "BUSY" {
			t.Errorf("the flooding address gets %+v", got)
		}
		other := pipe(t, s, rpctest.Options{Remote: addrPort("192.0.2.2:1")})
		if got := exchange(t, other, health); got.status != qpcpb.StatusOK {
			t.Errorf("another address gets %+v", got)
		}
		flood("[2001:db8::1]:1", maxRunningPerSource)
		if got := exchange(t, other, health); got.code != "BUSY" {
			t.Errorf("beyond the whole bound: %+v", got)
		}
		time.Sleep(firstByteTimeout)
		synctest.Wait()
		if s.Running() != 0 || len(s.sources) != 0 {
			t.Errorf("%d still running, %d sources kept", s.Running(), len(s.sources))
		}
	})
}
