package server

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// streamsOf is the credit for concurrent calls on one connection.
	streamsOf = 64
	// mostHeap bounds what the attack below may cost, in bytes. It runs in this
	// process, so its own half of every connection, stream and unread answer
	// counts too. Without the server's bounds it would be some 2 GiB: 256
	// requests and 256 answers of 4 MiB.
	mostHeap = 128 << 20
	// victimWaits is the longest that a call of somebody else may take: 40 ms
	// are usual here, far more under the race detector on a busy machine.
	victimWaits = 5 * time.Second
	// cutOff is when a silent stream must be gone: 10 s, and room for a slow
	// machine.
	cutOff = 15 * time.Second
)

// One address takes all connections that it may have, and on each of them all
// streams: some say nothing, some declare 4 MiB and stall, some ask for 4 MiB
// and do not read, some flood. Somebody at another address does not notice.
func TestHostileClient(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for 10 s")
	}
	h := open(t, t.TempDir(), nil)
	mallory, victim := h.settle(person("mallory")), h.settle(person("victim"))
	v := h.dial("127.0.0.2").resume(victim)
	bait := h.dial("127.0.0.3").resume(mallory)
	if _, err := qpcpb.NewDeliveryClient(bait).Enqueue(within(t), &qpcpb.EnqueueRequest{RecipientKey: mallory.key[:], Payload: make([]byte, delivery.MaxPayload)}); err != nil {
		t.Fatal(err)
	}
	bait.leave()
	before, opened := heap(), time.Now()

	var conns []*client
	for range transport.DefaultMaxConnectionsPerSource {
		conns = append(conns, h.dial("127.0.0.1"))
	}
	if _, err := transport.Dial(within(t), transport.DialOptions{Address: h.s.Addrs()[0].String(), Trust: transport.TrustPin(h.s.Pin())}); err == nil {
		t.Error("one connection too many")
	} else if code, _, _, ok := transport.CloseError(err); !ok || code != transport.CloseLimitExceeded {
		t.Errorf("one connection too many ends with %v", err)
	}
	silent := make(chan error, len(conns)*streamsOf)
	var attack, flood sync.WaitGroup
	stop := make(chan struct{})
	for i, c := range conns {
		var first []byte
		switch i % 8 {
		case 0, 4: // says nothing after the first byte of a payload
			first = append(frame.AppendRequestHeader(nil, uint16(qpcpb.MethodHealth), 1, 4096), 0)
		case 1: // declares 4 MiB and stalls
			c.resume(mallory)
			first = append(frame.AppendRequestHeader(nil, uint16(qpcpb.MethodEnqueue), 1, frame.MaxPayload), make([]byte, 8<<10)...)
		case 2: // reads nothing
			c.resume(mallory)
			first = framed(qpcpb.MethodPeek, marshal(t, &qpcpb.PeekRequest{RecipientKey: mallory.key[:]}))
		default: // is idle, or floods once the others are there
			continue
		}
		for range streamsOf {
			stream, err := c.Conn().OpenStream(within(t))
			if err != nil {
				t.Fatal(err)
			}
			_ = stream.SetWriteDeadline(time.Now().Add(5 * time.Millisecond)) // the server need not take it all
			_, _ = stream.Write(first)
			if i%8 == 2 {
				_ = stream.Close()
				continue
			}
			if i%4 == 0 {
				attack.Go(func() {
					_, err := io.ReadAll(stream)
					silent <- err
				})
			}
		}
	}

	// A few callers in a closed loop keep this machine's cores busy.
	for i := 3; i < len(conns); i += 8 {
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = qpcpb.NewHealthClient(conns[i]).Health(conns[i].Conn().Context(), &qpcpb.HealthRequest{})
				}
			}
		})
	}

	begun := time.Now()
	t.Logf("the attack stands after %v", begun.Sub(opened))

	// The victim's calls go on meanwhile, and the heap stays bounded.
	var most uint64
	slowest := time.Duration(0)
	for i := 0; time.Since(begun) < 5*time.Second; i++ {
		call := time.Now()
		sent, err := qpcpb.NewDeliveryClient(v).Enqueue(within(t), &qpcpb.EnqueueRequest{RecipientKey: victim.key[:], Payload: fmt.Append(nil, i)})
		if err != nil {
			t.Fatal("the victim cannot send:", err)
		}
		got, err := qpcpb.NewDeliveryClient(v).Fetch(within(t), &qpcpb.FetchRequest{RecipientKey: victim.key[:]})
		if err != nil || len(got.Payloads) != 1 || got.Payloads[0].Seq != sent.Seq {
			t.Fatalf("the victim reads %v, %v", got, err)
		}
		slowest = max(slowest, time.Since(call))
		if now := heap(); now > before {
			most = max(most, now-before)
		}
		time.Sleep(50 * time.Millisecond)
	}
	close(stop)
	flood.Wait()
	t.Logf("the attack costs %d MiB of heap on both sides; the victim's slowest call took %v", most>>20, slowest)
	if most > mostHeap {
		t.Errorf("the attack costs %d MiB", most>>20)
	}
	if slowest > victimWaits {
		t.Errorf("a call of the victim took %v", slowest)
	}

	// What says nothing is cut off, by a reset or with an answer that says why.
	// (What waits for memory is, after 120 s: pkg/rpc tests that without
	// waiting.)
	attack.Wait()
	if took := time.Since(begun); took > cutOff {
		t.Errorf("the last silent stream ended after %v", took)
	}
	close(silent)
	resets := 0
	for err := range silent {
		if reset := (*transport.StreamError)(nil); errors.As(err, &reset) {
			resets++
		} else if err != nil {
			t.Errorf("a silent stream ended with %v", err)
		}
	}
	if resets < streamsOf {
		t.Errorf("%d silent streams were reset", resets)
	}
	for _, c := range conns {
		c.leave()
	}
	for ctx := within(t); h.s.calls.Running() > 0; time.Sleep(time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatalf("%d calls are left", h.s.calls.Running())
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
