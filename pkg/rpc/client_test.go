package rpc

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// fakeServer answers every stream with fixed bytes.
func fakeServer(t *testing.T, respond func(request []byte) []byte) *Client {
	client, server := rpctest.Pipe(rpctest.Options{})
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			stream, err := server.AcceptStream(server.Context())
			if err != nil {
				return
			}
			request, _ := io.ReadAll(stream)
			_, _ = stream.Write(respond(request))
			_ = stream.Close()
		}
	})
	t.Cleanup(func() {
		_ = client.Close(transport.CloseNormal, "")
		serving.Wait()
	})
	return NewClient(client)
}

func TestServersThatBreakTheProtocol(t *testing.T) {
	for name, response := range map[string][]byte{
		"another request":    frame.AppendResponseHeader(nil, 0, 77, 0),
		"nothing":            nil,
		"header cut short":   {0, 0, 0},
		"payload cut short":  frame.AppendResponseHeader(nil, 0, 1, 5),
		"payload too large":  frame.AppendResponseHeader(nil, 0, 1, frame.MaxPayload+1),
		"goes on":            append(frame.AppendResponseHeader(nil, 0, 1, 0), 0),
		"does not parse":     append(frame.AppendResponseHeader(nil, 0, 1, 1), 0xff),
		"error of other ids": frame.AppendResponseHeader(nil, 2, 77, 0),
	} {
		t.Run(name, func(t *testing.T) {
			c := fakeServer(t, func([]byte) []byte { return response })
			err := c.Call(within(t), qpcpb.MethodHealth, &qpcpb.HealthRequest{}, &qpcpb.HealthResponse{})
			if answer := (*Error)(nil); err == nil || errors.As(err, &answer) {
				t.Errorf("got %v", err)
			}
		})
		t.Run("handshake, "+name, func(t *testing.T) {
			c := fakeServer(t, func([]byte) []byte { return response })
			if err := c.Resume(within(t), []byte("x")); err == nil || errors.Is(err, ErrSessionRefused) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("an error without words", func(t *testing.T) {
		c := fakeServer(t, func([]byte) []byte { return frame.AppendResponseHeader(nil, 4, 0, 0) })
		err := c.Call(within(t), qpcpb.MethodHealth, &qpcpb.HealthRequest{}, &qpcpb.HealthResponse{})
		if answer := (*Error)(nil); !errors.As(err, &answer) || answer.Status != qpcpb.StatusNotFound || answer.Message == "" {
			t.Errorf("got %v", err)
		}
	})
}

func TestCallEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestServer(t, ServerOptions{})
		s.Register(qpcpb.MethodPeek, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		conn := used(t, s, rpctest.Options{}, "alice")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begun := time.Now()
		err := NewClient(conn).Call(ctx, qpcpb.MethodPeek, &qpcpb.PeekRequest{}, &qpcpb.PeekResponse{})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "Peek") || time.Since(begun) != time.Second {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
		if got := whoami(t, NewClient(conn)); got != "alice" {
			t.Errorf("after it the caller is %s", got)
		}
		cause := errors.New("by hand")
		done, end := context.WithCancelCause(t.Context())
		end(cause)
		if err := NewClient(conn).Resume(done, []byte("alice")); err == nil {
			t.Error("resumed after the end")
		}
	})
}

func TestCallsOnAnEndedConnection(t *testing.T) {
	conn := pipe(t, newTestServer(t, ServerOptions{}), rpctest.Options{})
	_ = conn.Close(transport.CloseNormal, "")
	c := NewClient(conn)
	for name, err := range map[string]error{
		"call":   c.Call(within(t), qpcpb.MethodHealth, &qpcpb.HealthRequest{}, &qpcpb.HealthResponse{}),
		"resume": c.Resume(within(t), []byte("alice")),
		"events": c.ReceiveEvents(within(t), func(qpcpb.Event, []byte) { t.Error("an event") }),
	} {
		if _, _, _, ok := transport.CloseError(errors.Unwrap(err)); !ok && name != "events" || err == nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Events arrive whole and in order; one that is cut off costs only itself.
func TestEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := rpctest.Pipe(rpctest.Options{})
		p := newPeer(newTestServer(t, ServerOptions{}), server)
		var got []uint64
		var receiving sync.WaitGroup
		receiving.Go(func() {
			err := NewClient(client).ReceiveEvents(t.Context(), func(event qpcpb.Event, payload []byte) {
				var m qpcpb.MessageAvailable
				if err := proto.Unmarshal(payload, &m); err != nil || event != qpcpb.EventMessageAvailable {
					t.Errorf("%v: %v", event, err)
				}
				got = append(got, m.Seq)
			})
			if _, _, _, ok := transport.CloseError(err); !ok {
				t.Errorf("ended with %v", err)
			}
		})
		push := func(seq uint64) {
			if err := p.Push(t.Context(), qpcpb.EventMessageAvailable, &qpcpb.MessageAvailable{Seq: seq}); err != nil {
				t.Error(err)
			}
		}
		push(1)
		push(2)
		for _, broken := range [][]byte{{0}, frame.AppendPushHeader(nil, 1, 9), frame.AppendPushHeader(nil, 1, 1<<30)} {
			stream, err := server.OpenSendStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = stream.Write(broken)
			_ = stream.Close()
		}
		stalled, err := server.OpenSendStream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = stalled.Write([]byte{0, 1})
		push(3)
		time.Sleep(eventTimeout + time.Second)
		push(4)
		synctest.Wait()
		_ = client.Close(transport.CloseNormal, "")
		receiving.Wait()
		if want := []uint64{1, 2, 3, 4}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}

// Push does not wait for a client for longer than its context.
func TestPushEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		large := &qpcpb.Ephemeral{Payload: make([]byte, 100<<10)}
		for name, o := range map[string]rpctest.Options{"no window": {}, "no credit": {Events: 1}} {
			_, server := rpctest.Pipe(o)
			p := newPeer(newTestServer(t, ServerOptions{}), server)
			if name == "no credit" {
				if err := p.Push(t.Context(), qpcpb.EventDraining, &qpcpb.Draining{}); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			begun := time.Now()
			if err := p.Push(ctx, qpcpb.EventEphemeral, large); err == nil || time.Since(begun) != time.Second {
				t.Errorf("%s: after %v: %v", name, time.Since(begun), err)
			}
			cancel()
		}
	})
}
