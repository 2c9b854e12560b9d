//go:build !js

package transport

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestHandshake(t *testing.T) {
	for _, address := range []string{loopback, "[::1]:0", "localhost:0", ":0"} {
		t.Run(address, func(t *testing.T) {
			s := serve(t, ServerOptions{Addresses: []string{address}})
			_, port, _ := net.SplitHostPort(s.addr)
			host := "127.0.0.1"
			if strings.Contains(address, "::1") {
				host = "::1"
			}
			c := mustDial(t, dialOptions(net.JoinHostPort(host, port)))
			roundTrip(t, c, []byte("hello"))

			cs := c.(*clientConn).q.ConnectionState().TLS
			if cs.Version != tls.VersionTLS13 || cs.CurveID != tls.X25519MLKEM768 {
				t.Errorf("TLS %#x with key exchange %v", cs.Version, cs.CurveID)
			}
			if c.ALPN() != ALPN || len(c.PeerCertificates()) != 1 {
				t.Errorf("ALPN %q, %d certificates", c.ALPN(), len(c.PeerCertificates()))
			}
			peer := s.accepted(t)
			if got := peer.RemoteAddr().Addr(); got != addr(host) {
				t.Errorf("server sees the client at %v", got)
			}
			if len(peer.PeerCertificates()) != 0 || peer.ALPN() != ALPN {
				t.Error("server saw a client certificate or another ALPN")
			}
		})
	}
}

func TestSeveralAddresses(t *testing.T) {
	s := serve(t, ServerOptions{Addresses: []string{loopback, "[::1]:0", "127.0.0.2:0"}})
	for _, a := range s.Addrs() {
		roundTrip(t, mustDial(t, dialOptions(a.String())), []byte("hi"))
	}
	if got := s.Stats(); got.Connections != 3 || got.Accepted != 3 {
		t.Errorf("%+v", got)
	}
}

func TestWildcardsOfBothFamiliesShareAPort(t *testing.T) {
	s := serve(t, ServerOptions{Addresses: []string{"0.0.0.0:0"}})
	port := s.Addrs()[0].Port()
	six := netip.AddrPortFrom(netip.IPv6Unspecified(), port).String()
	serve(t, ServerOptions{Addresses: []string{six}})
}

func TestLargePayloadFlowsThroughSmallWindows(t *testing.T) {
	s := serve(t, ServerOptions{})
	payload := make([]byte, 4<<20)
	rand.Read(payload)
	roundTrip(t, mustDial(t, dialOptions(s.addr)), payload)
}

func TestUnidirectionalStreams(t *testing.T) {
	s := serve(t, ServerOptions{})
	c := mustDial(t, dialOptions(s.addr))
	push, err := s.accepted(t).OpenSendStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	push.Write([]byte("event"))
	push.Close()
	in, err := c.AcceptReceiveStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(in); string(got) != "event" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}

	// A client has no credit to open one.
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.OpenSendStream(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("client opened an unidirectional stream: %v", err)
	}
}

func TestStreamCredit(t *testing.T) {
	s := serve(t, ServerOptions{})
	c := mustDial(t, dialOptions(s.addr))
	var first Stream
	for i := range serverStreams {
		st, err := c.OpenStream(within(t))
		if err != nil {
			t.Fatal(err)
		}
		if st.ID() != int64(4*i) {
			t.Fatalf("stream %d has id %d", i, st.ID())
		}
		if first == nil {
			first = st
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.OpenStream(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("one stream too many: %v", err)
	}
	echo(t, first, []byte("done"))
	if _, err := c.OpenStream(within(t)); err != nil {
		t.Errorf("no credit after a call ended: %v", err)
	}
}

func TestStreamCancelAndDeadline(t *testing.T) {
	s := serve(t, ServerOptions{})
	c := mustDial(t, dialOptions(s.addr))
	st, err := c.OpenStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	st.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read past its deadline: %v", err)
	}
	st.SetReadDeadline(time.Time{})
	st.CancelWrite(7)
	// The echo server's copy fails, and it ends its half with FIN.
	if _, err := io.ReadAll(st); err != nil {
		t.Errorf("read after cancel: %v", err)
	}
	_, err = st.Write([]byte("x"))
	if e, ok := errors.AsType[*StreamError](err); !ok || e.Code != 7 || e.Remote {
		t.Errorf("write after cancel: %v", err)
	}
}

func TestNoCommonALPN(t *testing.T) {
	s := serve(t, ServerOptions{})
	o := dialOptions(s.addr)
	o.ALPN = "h3"
	if _, err := Dial(within(t), o); !errors.Is(err, ErrNoCommonProtocol) {
		t.Errorf("got %v", err)
	}
	eventually(t, "the place is given back", func() bool { return s.Stats().Connections == 0 })
}

func TestALPNList(t *testing.T) {
	s := serve(t, ServerOptions{ALPN: []string{ALPN, "other/1"}})
	o := dialOptions(s.addr)
	o.ALPN = "other/1"
	if got := mustDial(t, o).ALPN(); got != "other/1" {
		t.Errorf("agreed on %q", got)
	}
	if got := s.accepted(t).ALPN(); got != "other/1" {
		t.Errorf("server agreed on %q", got)
	}
}

func TestCloseCodes(t *testing.T) {
	s := serve(t, ServerOptions{})
	for code := CloseNormal; code <= CloseSessionRevoked; code++ {
		for _, byServer := range []bool{true, false} {
			c := mustDial(t, dialOptions(s.addr))
			st, err := c.OpenStream(within(t))
			if err != nil {
				t.Fatal(err)
			}
			closer, peer := c, s.accepted(t)
			if byServer {
				closer, peer = peer, c
			}
			if err := closer.Close(code, "because"); err != nil {
				t.Fatal(err)
			}
			<-peer.Context().Done()
			_, errAccept := peer.AcceptReceiveStream(within(t))
			_, errOpen := peer.OpenStream(within(t))
			errs := []error{errAccept, errOpen, context.Cause(peer.Context())}
			if byServer {
				_, err := st.Read(make([]byte, 1))
				errs = append(errs, err)
			}
			for i, err := range errs {
				got, reason, remote, ok := CloseError(err)
				if !ok || got != code || reason != "because" || !remote || !errors.Is(err, net.ErrClosed) {
					t.Errorf("close %v by server %v, error %d: %v", code, byServer, i, err)
				}
			}
			_, err = closer.OpenStream(within(t))
			if got, _, remote, ok := CloseError(err); !ok || got != code || remote {
				t.Errorf("close %v by server %v, own error: %v", code, byServer, err)
			}
		}
	}
	if _, _, _, ok := CloseError(io.EOF); ok {
		t.Error("EOF read as a close")
	}
}

func TestListenerClose(t *testing.T) {
	s := serve(t, ServerOptions{})
	c := mustDial(t, dialOptions(s.addr))
	roundTrip(t, c, []byte("x"))
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	_, err := c.AcceptStream(within(t))
	if code, reason, remote, ok := CloseError(err); !ok || !remote || code != CloseNormal || reason != "server shutting down" {
		t.Errorf("client saw %v", err)
	}
	if _, err := s.Accept(within(t)); !errors.Is(err, ErrListenerClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	eventually(t, "all places are given back", func() bool { return s.Stats().Connections == 0 })
	// The address is free at once.
	serve(t, ServerOptions{Addresses: []string{s.addr}})
}

func TestDrain(t *testing.T) {
	s := serve(t, ServerOptions{})
	c := mustDial(t, dialOptions(s.addr))
	s.Drain()
	_, err := Dial(within(t), dialOptions(s.addr))
	if code, _, _, ok := CloseError(err); !ok || code != CloseLimitExceeded {
		t.Errorf("dial while draining: %v", err)
	}
	roundTrip(t, c, []byte("old connections go on"))
}

func TestAcceptHonoursItsContext(t *testing.T) {
	l, err := Listen(within(t), ServerOptions{Addresses: []string{loopback}, Certificates: newStore(t), Secret: testSecret})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.Accept(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestListenErrors(t *testing.T) {
	s := serve(t, ServerOptions{})
	store := newStore(t)
	for name, tc := range map[string]struct {
		o    ServerOptions
		want string
	}{
		"in use":         {ServerOptions{Addresses: []string{loopback, s.addr}}, s.addr + ": already in use: is another qpcd running?"},
		"not ours":       {ServerOptions{Addresses: []string{"192.0.2.1:5001"}}, "192.0.2.1:5001: this machine has no such address"},
		"no port":        {ServerOptions{Addresses: []string{"0.0.0.0"}}, `"0.0.0.0" is not host:port`},
		"bad port":       {ServerOptions{Addresses: []string{"0.0.0.0:99999"}}, "listen on 0.0.0.0:99999"},
		"no address":     {ServerOptions{}, "no address"},
		"no certificate": {ServerOptions{Addresses: []string{loopback}, Secret: testSecret}, "no certificate"},
		"no secret":      {ServerOptions{Addresses: []string{loopback}, Certificates: store}, "secret"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.HasPrefix(name, "no ") || name == "no port" {
				tc.o.Certificates, tc.o.Secret = store, testSecret
			}
			l, err := Listen(within(t), tc.o)
			if err == nil {
				l.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q, want it to say %q", err, tc.want)
			}
		})
	}
}

func TestDialTriesAllAddresses(t *testing.T) {
	s := serve(t, ServerOptions{})
	port := s.Addrs()[0].Port()
	o := dialOptions(net.JoinHostPort("chat.example", strconv.Itoa(int(port))))
	o.Lookup = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{addr("127.0.0.3"), addr("::1"), addr("127.0.0.1")}, nil
	}
	roundTrip(t, mustDial(t, o), []byte("x"))

	o.Lookup = func(context.Context, string) ([]netip.Addr, error) { return nil, nil }
	if _, err := Dial(within(t), o); err == nil || !strings.Contains(err.Error(), "chat.example") {
		t.Errorf("a name without addresses: %v", err)
	}
	if _, err := Dial(within(t), dialOptions("127.0.0.1:9")); !errors.Is(err, ErrNothingListens) {
		t.Errorf("nobody there: %v", err)
	}

	// A socket that is open and silent.
	silent, err := net.ListenPacket("udp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, dialOptions(silent.LocalAddr().String())); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v", err)
	}
}

func TestInterleave(t *testing.T) {
	in := []netip.Addr{addr("::1"), addr("::2"), addr("::3"), addr("10.0.0.1"), addr("::ffff:10.0.0.2")}
	want := []netip.Addr{addr("::1"), addr("10.0.0.1"), addr("::2"), addr("10.0.0.2"), addr("::3")}
	got := interleave(in)
	if len(got) != len(want) {
		t.Fatal(got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatal(got)
		}
	}
	if n := len(interleave(make([]netip.Addr, 100))); n != maxDialAddresses {
		t.Errorf("%d addresses tried", n)
	}
}

func TestWrappersAllocateNothing(t *testing.T) {
	var sink Stream
	if n := testing.AllocsPerRun(100, func() { sink = stream{} }); n != 0 {
		t.Errorf("a stream costs %v allocations", n)
	}
	_ = sink
	if n := testing.AllocsPerRun(100, func() { translate(io.EOF) }); n != 0 {
		t.Errorf("EOF costs %v allocations", n)
	}
}
