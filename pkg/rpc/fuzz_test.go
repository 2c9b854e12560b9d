package rpc

import (
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// outcome writes b to a stream in pieces of step bytes, ends it if fin is set,
// and returns what comes back: the bytes, or the code of the reset.
func outcome(t *testing.T, stream transport.Stream, b []byte, step int, fin bool) (got []byte, reset *transport.StreamError) {
	go func() {
		for len(b) > 0 {
			n := min(step, len(b))
			if _, err := stream.Write(b[:n]); err != nil {
				return
			}
			b = b[n:]
		}
		if fin {
			_ = stream.Close()
		}
	}()
	got, err := io.ReadAll(stream)
	if err != nil && !errors.As(err, &reset) {
		t.Fatalf("the stream ended with %v", err)
	}
	return got, reset
}

// FuzzCallStream throws bytes at a stream that is not the first. Exactly one
// well-formed response comes back, with the id of the request, or a reset when
// the stream is not ended; the next call works.
func FuzzCallStream(f *testing.F) {
	f.Add(request(qpcpb.MethodHealth, 7, &qpcpb.HealthRequest{}), uint8(1), true)
	f.Add(request(qpcpb.MethodEnqueue, 8, &qpcpb.EnqueueRequest{Payload: []byte("hello")}), uint8(3), true)
	f.Add(append(request(qpcpb.MethodEnqueue, 9, &qpcpb.EnqueueRequest{Payload: []byte("hello")}), 0), uint8(3), true)
	f.Add(header(qpcpb.MethodEnqueue, 10, frame.MaxPayload), uint8(10), true)
	f.Add(header(qpcpb.MethodEnqueue, 10, frame.MaxPayload+1), uint8(10), false)
	f.Add(header(qpcpb.MethodBanUser, 1<<32-1, 1), uint8(10), false)
	f.Add([]byte{1, 0, 32}, uint8(1), true)
	f.Add([]byte{}, uint8(1), false)
	f.Fuzz(func(t *testing.T, b []byte, step uint8, fin bool) {
		synctest.Test(t, func(t *testing.T) {
			s := newTestServer(t, ServerOptions{})
			conn := used(t, s, rpctest.Options{}, "alice")
			stream, err := conn.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got, reset := outcome(t, stream, b, int(step)+1, fin)
			switch {
			case reset != nil && (fin || reset.Code != resetStalled || len(got) > 0):
				t.Errorf("reset with %d after % x", reset.Code, got)
			case reset == nil:
				a, err := parseAnswer(got)
				if err != nil {
					t.Fatalf("% x: %v", got, err)
				}
				want := uint32(0)
				if len(b) >= frame.RequestHeaderSize {
					want = binary.BigEndian.Uint32(b[2:])
				}
				if a.id != want {
					t.Errorf("answered request %d to request %d", a.id, want)
				}
				if a.status == qpcpb.StatusInternal {
					t.Errorf("INTERNAL: %s", a.body)
				}
			}
			if got := whoami(t, NewClient(conn)); got != "alice" {
				t.Errorf("after it the caller is %s", got)
			}
			synctest.Wait()
			if s.Running() != 0 || reserved(s) != 0 {
				t.Errorf("%d calls and %d bytes are left", s.Running(), reserved(s))
			}
		})
	})
}

// FuzzStreamZero throws bytes at the first stream: an answer to the handshake
// when they begin with 0x01, a response when they do not, and never somebody
// else's session.
func FuzzStreamZero(f *testing.F) {
	f.Add(handshake("alice"), uint8(255), true)
	f.Add(handshake("alice"), uint8(0), false)
	f.Add(handshake("broken"), uint8(1), true)
	f.Add(handshake("mallory"), uint8(1), true)
	f.Add(append(handshake("alice"), 0), uint8(1), true)
	f.Add(handshake("alice")[:5], uint8(1), true)
	f.Add([]byte{1, 0xff, 0xff, 0}, uint8(1), true)
	f.Add(request(qpcpb.MethodHealth, 7, &qpcpb.HealthRequest{}), uint8(4), true)
	f.Add([]byte{}, uint8(1), false)
	f.Fuzz(func(t *testing.T, b []byte, step uint8, fin bool) {
		synctest.Test(t, func(t *testing.T) {
			s := newTestServer(t, ServerOptions{})
			conn := pipe(t, s, rpctest.Options{})
			stream, err := conn.OpenStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got, reset := outcome(t, stream, b, int(step)+1, fin)
			who := "nobody"
			if len(b) == 0 || b[0] != resumptionByte {
				if reset == nil {
					if _, err := parseAnswer(got); err != nil {
						t.Fatalf("% x: %v", got, err)
					}
				} else if fin || reset.Code != resetStalled {
					t.Errorf("reset with %d", reset.Code)
				}
			} else {
				token, whole := "", false
				if len(b) >= 3 {
					n := int(binary.BigEndian.Uint16(b[1:]))
					if whole = len(b) >= 3+n; whole {
						token = string(b[3 : 3+n])
					}
				}
				principal, err := lookup(t.Context(), []byte(token))
				switch {
				case errors.Is(err, errLookup):
					if reset == nil || reset.Code != resetFailed {
						t.Errorf("answered % x, reset %v", got, reset)
					}
				case whole && err == nil:
					who = principal.Username
					if string(got) != "\x01\x00" {
						t.Errorf("answered % x, reset %v", got, reset)
					}
				case reset != nil:
					if fin || reset.Code != resetStalled {
						t.Errorf("reset with %d", reset.Code)
					}
				case string(got) != "\x01\x01":
					t.Errorf("answered % x", got)
				}
			}
			if got := whoami(t, NewClient(conn)); got != who {
				t.Errorf("the caller is %s, want %s", got, who)
			}
		})
	})
}
