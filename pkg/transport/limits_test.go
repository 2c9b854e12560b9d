//go:build !js

package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/pkg/limit"
)

func refused(t *testing.T, o DialOptions) {
	t.Helper()
	c, err := Dial(within(t), o)
	if err == nil {
		c.Close(CloseNormal, "")
		t.Fatal("connection beyond the limit")
	}
	if code, _, remote, ok := CloseError(err); !ok || code != CloseLimitExceeded || !remote {
		t.Fatalf("refused with %v", err)
	}
}

func TestLimitPerSource(t *testing.T) {
	s := serve(t, ServerOptions{Limits: Limits{ConnectionsPerSource: 2}})
	here, there := dialOptions(s.addr), dialOptions(s.addr)
	there.LocalAddr = addr("127.0.0.2")

	first := mustDial(t, here)
	mustDial(t, here)
	refused(t, here)
	roundTrip(t, mustDial(t, there), []byte("another address is not affected"))
	if got := s.Stats(); got.Connections != 3 || got.Refused == 0 {
		t.Errorf("%+v", got)
	}

	first.Close(CloseNormal, "")
	eventually(t, "the place is given back", func() bool { return s.Stats().Connections == 2 })
	roundTrip(t, mustDial(t, here), []byte("a place is free again"))
	refused(t, here)
}

func TestLimitInAll(t *testing.T) {
	s := serve(t, ServerOptions{Limits: Limits{Connections: 3}})
	for range 3 {
		mustDial(t, dialOptions(s.addr))
	}
	o := dialOptions(s.addr)
	o.LocalAddr = addr("127.0.0.2")
	refused(t, o)
	if got := s.Stats(); got.Connections != 3 || got.Retries != 0 {
		t.Errorf("%+v", got)
	}
}

func TestRetryAfterTheBucketIsEmpty(t *testing.T) {
	s := serve(t, ServerOptions{Limits: Limits{HandshakesPerSecond: 1e-6, HandshakeBurst: 2}})
	for i := range 4 {
		before := s.Stats().Retries
		roundTrip(t, mustDial(t, dialOptions(s.addr)), []byte("x"))
		// A ClientHello with ML-KEM takes two packets, and both may be
		// answered.
		if got, want := s.Stats().Retries > before, i >= 2; got != want {
			t.Fatalf("connection %d: asked for a proof of address: %v", i+1, got)
		}
	}
}

func TestForgedHandshakesAreBoundedAndShutNobodyOut(t *testing.T) {
	s := serve(t, ServerOptions{Limits: Limits{PendingHandshakes: 8, ConnectionsPerSource: 100}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 20 {
		// To the server, a client that hears no answer is one with a
		// forged address.
		l := newLink(t, s.addr)
		l.hold()
		forged := l.addr
		wg.Go(func() {
			if _, err := Dial(ctx, dialOptions(forged)); err == nil {
				t.Error("a handshake without a way back")
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	eventually(t, "the flood fills half of the places", func() bool { return s.Stats().Pending == 4 })
	eventually(t, "the rest of the flood must prove its address", func() bool { return s.Stats().Retries >= 16 })

	before := s.Stats()
	roundTrip(t, mustDial(t, dialOptions(s.addr)), []byte("an honest client comes in by Retry"))
	after := s.Stats()
	if after.Retries == before.Retries || after.Refused != 0 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if len(s.conns) != 1 {
		t.Errorf("%d connections were handed out", len(s.conns))
	}
}

func TestForgedAddressesTakeHalfAShareOnly(t *testing.T) {
	a := newAdmission(Limits{ConnectionsPerSource: 8}.withDefaults(), nil)
	victim := addr("192.0.2.1")
	taken := 0
	for range 100 {
		if a.wantsProof(victim) {
			break
		}
		if _, err := a.admit(victim); err != nil {
			t.Fatal(err)
		}
		taken++
	}
	if taken != 4 {
		t.Errorf("%d places taken without a proof", taken)
	}
	if a.wantsProof(addr("192.0.2.2")) {
		t.Error("another address must prove itself too")
	}
}

func TestWindowBudget(t *testing.T) {
	a := newAdmission(Limits{WindowBudget: 100}.withDefaults(), nil)
	one, _ := a.admit(addr("192.0.2.1"))
	two, _ := a.admit(addr("192.0.2.2"))
	if !one.grow(60) || two.grow(60) || !two.grow(40) || two.grow(1) {
		t.Fatal("the budget is not kept")
	}
	one.release()
	if one.grow(1) {
		t.Error("a connection that ended grew")
	}
	if !two.grow(60) || two.grow(1) {
		t.Error("the budget is not given back")
	}
}

func TestWindowBudgetEmptyIsSlowButFlows(t *testing.T) {
	s := serve(t, ServerOptions{Limits: Limits{WindowBudget: 1}})
	roundTrip(t, mustDial(t, dialOptions(s.addr)), make([]byte, 1<<20))
	s.admission.mu.Lock()
	defer s.admission.mu.Unlock()
	if left := s.admission.windowLeft; left != 1 {
		t.Errorf("%d bytes of budget left", left)
	}
}

// TestAdmission drives the counters through any order of events.
func TestAdmission(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := Limits{Connections: 6, ConnectionsPerSource: 3, PendingHandshakes: 4, WindowBudget: 1000}.withDefaults()
		a := newAdmission(limits, nil)
		addrs := []netip.Addr{addr("10.0.0.1"), addr("10.0.0.2"), addr("2001:db8::1"), addr("2001:db8::2")}
		live := map[*slot]bool{} // slot: pending
		var refusals uint64
		count := func(f func(*slot) bool) (n int) {
			for s := range live {
				if f(s) {
					n++
				}
			}
			return n
		}
		pick := func(t *rapid.T) *slot {
			var all []*slot
			for s := range live {
				all = append(all, s)
			}
			if len(all) == 0 {
				t.Skip("none")
			}
			return all[rapid.IntRange(0, len(all)-1).Draw(t, "which")]
		}
		t.Repeat(map[string]func(*rapid.T){
			"admit": func(t *rapid.T) {
				from := rapid.SampledFrom(addrs).Draw(t, "from")
				same := count(func(s *slot) bool { return s.source == limit.Source(from) })
				pending := count(func(s *slot) bool { return live[s] })
				want := len(live) < limits.Connections && same < limits.ConnectionsPerSource && pending < limits.PendingHandshakes
				s, err := a.admit(from)
				if (err == nil) != want {
					t.Fatalf("admit: %v with %d in all, %d alike, %d pending", err, len(live), same, pending)
				}
				if err != nil {
					refusals++
					return
				}
				live[s] = true
			},
			"settle": func(t *rapid.T) {
				s := pick(t)
				s.settled()
				live[s] = false
			},
			"grow": func(t *rapid.T) { pick(t).grow(rapid.Uint64Range(0, 500).Draw(t, "bytes")) },
			"release": func(t *rapid.T) {
				s := pick(t)
				s.release()
				s.release()
				delete(live, s)
			},
			"": func(t *rapid.T) {
				got := a.stats()
				want := Stats{Connections: len(live), Pending: count(func(s *slot) bool { return live[s] }), Refused: refusals}
				if got != want {
					t.Fatalf("counted %+v, want %+v", got, want)
				}
				grown := int64(0)
				for s := range live {
					grown += s.grown
				}
				if grown+a.windowLeft != limits.WindowBudget || a.windowLeft < 0 {
					t.Fatalf("window budget: %d grown, %d left", grown, a.windowLeft)
				}
				if len(a.sources) > len(live) {
					t.Fatalf("%d sources for %d connections", len(a.sources), len(live))
				}
			},
		})
	})
}

// TestAddressTokensOutliveARestart uses quic-go's own client, which keeps tokens
// as quinn does.
func TestAddressTokensOutliveARestart(t *testing.T) {
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	client := newTransport(udp)
	defer client.Close()
	config := clientQUIC()
	tokens := quic.NewLRUTokenStore(1, 4)
	config.TokenStore = tokens
	dial := func(to string) {
		target := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
		q, err := client.Dial(within(t), target, &tls.Config{NextProtos: []string{ALPN}, InsecureSkipVerify: true, ServerName: "x"}, config)
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, conn{q}, []byte("x")) // by then the token is here
		q.CloseWithError(0, "")
	}
	s := serve(t, ServerOptions{})
	dial(s.addr)
	s.Close()
	s = serve(t, ServerOptions{Addresses: []string{s.addr}, Limits: Limits{HandshakesPerSecond: 1e-6, HandshakeBurst: 1}})
	mustDial(t, dialOptions(s.addr)) // empties the bucket
	dial(s.addr)
	if got := s.Stats().Retries; got != 0 {
		t.Errorf("a client with a token was asked to prove its address")
	}
}

// crash makes a listener vanish as SIGKILL does: no close reaches the peers.
func crash(l *Listener) {
	for _, e := range l.endpoints {
		e.udp.Close()
	}
}

func TestClientNoticesARestartAtOnce(t *testing.T) {
	s := serve(t, ServerOptions{})
	c := mustDial(t, dialOptions(s.addr))
	roundTrip(t, c, []byte("x"))
	st, err := c.OpenStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	crash(s.Listener)
	serve(t, ServerOptions{Addresses: []string{s.addr}})

	start := time.Now()
	// A stateless reset answers packets of some size only; a request of
	// 64 bytes is one.
	st.Write(make([]byte, 64))
	st.SetReadDeadline(start.Add(3 * time.Second))
	_, err = st.Read(make([]byte, 1))
	if !errors.Is(err, ErrPeerRestarted) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("noticed after %v", d)
	}
}
