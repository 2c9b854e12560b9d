package rpc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// wantReset waits for the stream to be reset with a code.
func wantReset(t testing.TB, stream transport.Stream, code uint64) {
	t.Helper()
	_, err := io.ReadAll(stream)
	var reset *transport.StreamError
	if !errors.As(err, &reset) || !reset.Remote || reset.Code != code {
		t.Fatalf("read ended with %v, want a reset with code %d", err, code)
	}
}

// used is how a connection looks that has spoken on stream 0 already.
func used(t testing.TB, s *Server, o rpctest.Options, token string) *rpctest.Conn {
	t.Helper()
	conn := pipe(t, s, o)
	if token == "" {
		exchange(t, conn, request(qpcpb.MethodHealth, 1, &qpcpb.HealthRequest{}))
		return conn
	}
	if err := NewClient(conn).Resume(within(t), []byte(token)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestStreamsThatStallAreReset(t *testing.T) {
	whole := request(qpcpb.MethodEnqueue, 1, &qpcpb.EnqueueRequest{Payload: make([]byte, 1000)})
	tests := []struct {
		name  string
		first int           // bytes sent at once
		every time.Duration // then one byte each
		want  time.Duration // when the reset comes; 0: the call is answered
	}{
		{"nothing arrives", 0, 0, firstByteTimeout},
		{"one byte arrives", 1, 0, firstByteTimeout},
		{"the header arrives", frame.RequestHeaderSize, 0, firstByteTimeout},
		{"half arrives", 500, 0, firstByteTimeout},
		{"all but the FIN arrives", len(whole), 0, firstByteTimeout},
		{"a byte every 9 s", 1, 9 * time.Second, requestTimeout},
		{"a byte every 11 s", 1, 11 * time.Second, firstByteTimeout},
		{"slow, and done in time", len(whole) - 13, 9 * time.Second, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTestServer(t, ServerOptions{})
				conn := used(t, s, rpctest.Options{}, "alice")
				stream := open(t, conn, whole[:test.first], false)
				begun := time.Now()
				var sending sync.WaitGroup
				defer sending.Wait()
				if test.every > 0 {
					sending.Go(func() {
						for _, b := range whole[test.first:] {
							time.Sleep(test.every)
							if _, err := stream.Write([]byte{b}); err != nil {
								return
							}
						}
						_ = stream.Close()
					})
				}
				if test.want == 0 {
					if got := finish(t, stream); got.status != qpcpb.StatusOK {
						t.Errorf("got %+v", got)
					}
					return
				}
				wantReset(t, stream, resetStalled)
				if got := time.Since(begun); got != test.want {
					t.Errorf("reset after %v, want %v", got, test.want)
				}
				if _, err := stream.Write([]byte{0}); err == nil {
					t.Error("the server still takes bytes")
				}
				synctest.Wait()
				if s.Running() != 0 {
					t.Errorf("%d calls still running", s.Running())
				}
			})
		})
	}
}

// A response that nobody reads is cut off, and takes nothing with it.
func TestUnreadResponseIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, ServerOptions{})
		s.Register(qpcpb.MethodPeek, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
			const size = 1 << 20
			if err := ReserveMemory(ctx, size); err != nil {
				return nil, err
			}
			return &qpcpb.PeekResponse{Payloads: []*qpcpb.Envelope{{Data: make([]byte, size)}}}, nil
		})
		conn := used(t, s, rpctest.Options{}, "alice")
		stream := open(t, conn, request(qpcpb.MethodPeek, 1, &qpcpb.PeekRequest{}), true)
		time.Sleep(responseTimeout - time.Second)
		if s.Running() != 1 {
			t.Error("it was cut off early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		wantReset(t, stream, resetUnread)
		if s.Running() != 0 {
			t.Errorf("%d calls still running", s.Running())
		}
		if !s.memory.TryAcquire(DefaultMemoryBudget) {
			t.Error("the memory is not given back")
		}
		s.memory.Release(DefaultMemoryBudget)
		if got := whoami(t, NewClient(conn)); got != "alice" {
			t.Errorf("after it the caller is %s", got)
		}
	})
}

// reserved is how much of the budget for large frames is held.
func reserved(s *Server) int64 {
	var free int64
	for step := int64(1 << 22); step > 0; step /= 2 {
		for s.memory.TryAcquire(step) {
			free += step
		}
	}
	s.memory.Release(free)
	return DefaultMemoryBudget - free
}

// A client that opens 64 streams, each declaring 4 MiB, and sends slowly.
func TestMemoryOfLargeRequestsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, ServerOptions{})
		hostile := used(t, s, rpctest.Options{}, "alice")
		var streams []transport.Stream
		for i := range 64 {
			streams = append(streams, open(t, hostile, append(header(qpcpb.MethodEnqueue, uint32(i), frame.MaxPayload), 0), false))
		}
		synctest.Wait()
		if got := reserved(s); got > peerBudget || got < frame.MaxPayload {
			t.Errorf("the connection holds %d bytes, its part is %d", got, peerBudget)
		}
		// Small calls go on, its own and others'; a large one of another
		// connection still finds room.
		other := used(t, s, rpctest.Options{}, "alice")
		for _, conn := range []*rpctest.Conn{hostile, other} {
			if got := whoami(t, NewClient(conn)); got != "alice" {
				t.Errorf("the caller is %s", got)
			}
		}
		large := &qpcpb.EnqueueRequest{Payload: bytes.Repeat([]byte{7}, 4_000_000)}
		var response qpcpb.EnqueueResponse
		if err := NewClient(other).Call(within(t), qpcpb.MethodEnqueue, large, &response); err != nil || !bytes.Equal(response.DeliveryProof, large.Payload) {
			t.Errorf("a large call of another connection: %v", err)
		}
		// Those that hold memory stall; those that wait for it get it in turn,
		// or are told to come back.
		time.Sleep(requestTimeout + firstByteTimeout + time.Second)
		synctest.Wait()
		stalled, busy := 0, 0
		for _, stream := range streams {
			b, err := io.ReadAll(stream)
			var reset *transport.StreamError
			switch a, bad := parseAnswer(b); {
			case errors.As(err, &reset) && reset.Code == resetStalled:
				stalled++
			case err == nil && bad == nil && a.code == "BUSY":
				busy++
			default:
				t.Errorf("a stream ended with % x, %v, %v", b, err, bad)
			}
		}
		if stalled < 2 || busy < 2 {
			t.Errorf("%d streams stalled, %d were told to come back", stalled, busy)
		}
		if got := reserved(s); got != 0 || s.Running() != 0 {
			t.Errorf("%d bytes and %d calls are left", got, s.Running())
		}
	})
}

func TestMemoryOfLargeResponsesIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, ServerOptions{})
		var building atomic.Int32
		s.Register(qpcpb.MethodPeek, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
			if err := ReserveMemory(ctx, 4<<20); err != nil {
				return nil, err
			}
			building.Add(1)
			return &qpcpb.PeekResponse{Payloads: []*qpcpb.Envelope{{Data: make([]byte, 4<<20-100)}}}, nil
		})
		conn := used(t, s, rpctest.Options{}, "alice")
		for range 32 {
			open(t, conn, request(qpcpb.MethodPeek, 1, &qpcpb.PeekRequest{}), true)
		}
		synctest.Wait()
		if got := building.Load(); got != 2 {
			t.Errorf("%d responses of 4 MiB at once, room is for 2", got)
		}
	})
}

// A reservation cannot outgrow its connection's part, wherever it comes from.
func TestReservationsAreCut(t *testing.T) {
	s := newTestServer(t, ServerOptions{})
	_, server := rpctest.Pipe(rpctest.Options{})
	p := newPeer(s, server)
	r := reservation{from: &p.memory}
	for range 5 {
		if err := r.take(within(t), 4<<20); err != nil {
			t.Fatal(err)
		}
	}
	if r.held != peerBudget || reserved(s) != peerBudget {
		t.Errorf("holds %d of %d", r.held, peerBudget)
	}
	r.release()
	r.release()
	if reserved(s) != 0 {
		t.Error("not given back")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	full := reservation{from: &p.memory}
	if err := full.take(within(t), peerBudget); err != nil {
		t.Fatal(err)
	}
	late := reservation{from: &p.memory}
	if err := late.take(ended, smallFrame+1); !errors.Is(err, context.Canceled) || late.held != 0 {
		t.Errorf("holds %d, %v", late.held, err)
	}
	if err := late.take(ended, smallFrame); err != nil {
		t.Error("a small frame asks for memory:", err)
	}
}

func TestAfterReply(t *testing.T) {
	ran := false
	AfterReply(context.Background(), func() { ran = true })
	if !ran {
		t.Error("outside of a call it does not run at once")
	}
	if err := ReserveMemory(context.Background(), 1<<30); err != nil || PeerOf(context.Background()) != nil || PrincipalOf(context.Background()) != nil {
		t.Error("outside of a call there is a call")
	}
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, ServerOptions{})
		s.Register(qpcpb.MethodLogout, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
			AfterReply(ctx, func() { PeerOf(ctx).CloseSoon(transport.CloseSessionRevoked, "bye") })
			return &qpcpb.LogoutResponse{Success: true}, nil
		})
		conn := used(t, s, rpctest.Options{}, "alice")
		var response qpcpb.LogoutResponse
		begun := time.Now()
		if err := NewClient(conn).Call(t.Context(), qpcpb.MethodLogout, &qpcpb.LogoutRequest{}, &response); err != nil || !response.Success {
			t.Errorf("got %v, %v", &response, err)
		}
		wantClosed(t, conn, transport.CloseSessionRevoked)
		if got := time.Since(begun); got != linger {
			t.Errorf("closed after %v", got)
		}
	})
}
