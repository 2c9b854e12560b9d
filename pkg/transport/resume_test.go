//go:build !js

package transport

import (
	"errors"
	"io"
	"sync"
	"testing"
	"time"
)

// resume sets up a client that holds a ticket of a server, and starts another
// server at the same address. The options of both may be changed. Between them
// is a link, so that a test decides when the second server's answer arrives.
func resume(t *testing.T, change func(first, second *ServerOptions)) (*server, *link, DialOptions) {
	t.Helper()
	first := ServerOptions{Certificates: newStore(t)}
	second := first
	if change != nil {
		change(&first, &second)
	}
	s := serve(t, first)
	l := newLink(t, s.addr)
	cache := newSessions()
	o := DialOptions{Address: l.addr, Trust: TrustFirstUse(memory{}), Sessions: cache}
	c := mustDial(t, o)
	roundTrip(t, c, []byte("x"))
	cache.wait(t)
	c.Close(CloseNormal, "")
	s.Close()
	second.Addresses = []string{s.addr}
	return serve(t, second), l, o
}

func TestZeroRTTAfterARestart(t *testing.T) {
	s, l, o := resume(t, nil)
	l.hold()
	c := mustDial(t, o)
	st, err := c.OpenStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Write([]byte("early")); err != nil {
		t.Fatal(err)
	}
	// The server has the connection and its data, the client no answer yet.
	peer := s.accepted(t)
	eventually(t, "early data is counted as a pending handshake", func() bool { return s.Stats().Pending == 1 })
	for name, c := range map[string]Conn{"client": c, "server": peer} {
		select {
		case <-c.HandshakeComplete():
			t.Errorf("the %s's handshake is complete", name)
		default:
		}
	}
	if !peer.(conn).q.ConnectionState().Used0RTT {
		t.Error("the server did not take 0-RTT")
	}
	if c.ALPN() != ALPN {
		t.Errorf("ALPN %q before the answer", c.ALPN())
	}
	l.release()
	st.Close()
	if got, err := io.ReadAll(st); string(got) != "early" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	<-peer.HandshakeComplete()
	if len(c.PeerCertificates()) != 1 {
		t.Error("no certificate after resumption")
	}
	eventually(t, "the handshake is no longer pending", func() bool { return s.Stats().Pending == 0 })
	roundTrip(t, c, []byte("late"))
}

func TestEarlyDataUnderAnotherSecretIsRejected(t *testing.T) {
	s, l, o := resume(t, func(_, second *ServerOptions) { second.Secret = Secret{9} })
	l.hold()
	c := mustDial(t, o)
	early, err := c.OpenStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	early.Write([]byte("lost"))
	l.release()
	if _, err := early.Read(make([]byte, 1)); !errors.Is(err, ErrEarlyDataRejected) {
		t.Errorf("early stream: %v", err)
	}
	st, err := c.OpenStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if st.ID() != 0 {
		t.Errorf("first stream after the rejection has id %d", st.ID())
	}
	echo(t, st, []byte("again"))
	if s.accepted(t).(conn).q.ConnectionState().Used0RTT {
		t.Error("the server took 0-RTT of another secret")
	}
}

func TestTicketOfAWrongClockOnlyCostsAHandshake(t *testing.T) {
	s, _, o := resume(t, func(first, second *ServerOptions) {
		first.Now = func() time.Time { return time.Unix(30, 0) }
	})
	c := mustDial(t, o) // Dial sends in 0-RTT, the server declines
	roundTripOrRejected(t, c)
	if s.accepted(t).(conn).q.ConnectionState().Used0RTT {
		t.Error("a ticket of 1970 was taken")
	}
}

// TestManyEarlyStreams opens streams all through the handshake: each works or is
// rejected as a whole, and the race detector is content.
func TestManyEarlyStreams(t *testing.T) {
	for _, reject := range []bool{false, true} {
		_, _, o := resume(t, func(_, second *ServerOptions) {
			if reject {
				second.Secret = Secret{9}
			}
		})
		c := mustDial(t, o)
		var wg sync.WaitGroup
		for range 2 * serverStreams {
			wg.Go(func() { roundTripOrRejected(t, c) })
		}
		wg.Wait()
	}
}

func roundTripOrRejected(t *testing.T, c Conn) {
	t.Helper()
	for {
		st, err := c.OpenStream(within(t))
		if err != nil {
			t.Error(err)
			return
		}
		st.Write([]byte("x"))
		st.Close()
		if _, err = io.ReadAll(st); err == nil {
			return
		}
		if !errors.Is(err, ErrEarlyDataRejected) {
			t.Error(err)
			return
		}
	}
}

func TestNoSessionOutlivesItsTrust(t *testing.T) {
	s, _, o := resume(t, nil)
	// The user now trusts another key for this server: the old session must
	// neither carry early data nor be resumed.
	o.Trust = TrustPin(Pin{1})
	_, err := Dial(within(t), o)
	if _, ok := errors.AsType[*ErrPinChanged](err); !ok {
		t.Errorf("got %v", err)
	}
	if s.Stats().Accepted != 0 {
		t.Error("the server got a connection")
	}
}

func TestZeroRTTToADeadPort(t *testing.T) {
	s := serve(t, ServerOptions{})
	cache := newSessions()
	o := DialOptions{Address: s.addr, Trust: TrustFirstUse(memory{}), Sessions: cache}
	mustDial(t, o)
	cache.wait(t)
	s.Close()
	c, err := Dial(within(t), o)
	if err == nil { // early: the connection learns of it later
		defer c.Close(CloseNormal, "")
		_, err = c.AcceptReceiveStream(within(t))
	}
	if !errors.Is(err, ErrNothingListens) {
		t.Errorf("got %v", err)
	}
}
