//go:build !js

package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
)

// peerList admits what a test has put on it.
type peerList struct {
	mu   sync.Mutex
	pins map[Pin]bool
}

func peersOf(stores ...*CertificateStore) *peerList {
	l := &peerList{pins: map[Pin]bool{}}
	for _, s := range stores {
		l.pins[s.Pin()] = true
	}
	return l
}

func (l *peerList) Admits(cert *x509.Certificate) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pins[PinOf(cert)]
}

func (l *peerList) Count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.pins)
}

func (l *peerList) replace(old, with Pin) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pins, old)
	l.pins[with] = true
}

// peerDial is how one server dials another.
func peerDial(s *server, own *CertificateStore) DialOptions {
	o := dialOptions(s.addr)
	o.ALPN, o.Certificates = FederationALPN, own
	return o
}

func TestPeersProveTheirKeyBothWays(t *testing.T) {
	ours, theirs := newStore(t), newStore(t)
	peers := peersOf(theirs)
	s := serve(t, ServerOptions{Certificates: ours, Peers: peers})

	o := peerDial(s, theirs)
	o.Trust = TrustPin(ours.Pin())
	c := mustDial(t, o)
	roundTrip(t, c, []byte("from another server"))
	theirEnd := s.accepted(t)
	if pin, ok := PeerPin(theirEnd); !ok || pin != theirs.Pin() || theirEnd.ALPN() != FederationALPN || c.ALPN() != FederationALPN {
		t.Errorf("the listener sees %v %v on %q", pin, ok, theirEnd.ALPN())
	}
	if pin, ok := PeerPin(c); !ok || pin != ours.Pin() {
		t.Errorf("the dialler sees %v %v", pin, ok)
	}

	// A client on the same port is asked for nothing.
	client := mustDial(t, dialOptions(s.addr))
	roundTrip(t, client, []byte("from a client"))
	if end := s.accepted(t); len(end.PeerCertificates()) != 0 || end.ALPN() != ALPN {
		t.Errorf("a client has %d certificates and speaks %q", len(end.PeerCertificates()), end.ALPN())
	}
}

func TestWhoIsNoPeerFailsInTheHandshake(t *testing.T) {
	known, stranger := newStore(t), newStore(t)
	s := serve(t, ServerOptions{Peers: peersOf(known)})
	for name, o := range map[string]DialOptions{
		"another certificate": peerDial(s, stranger),
		"no certificate":      peerDial(s, nil),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Dial(within(t), o)
			if err == nil {
				// TLS 1.3: the dialler is done before its certificate is read.
				<-c.Context().Done()
				_, err = c.OpenStream(within(t))
			}
			handshake, ok := errors.AsType[*HandshakeError](err)
			if !ok || !handshake.Remote {
				t.Errorf("ended with %v", err)
			}
		})
	}
	if n := len(s.conns); n != 0 {
		t.Errorf("%d connections were handed out", n)
	}
	// An open door for nobody is no door.
	s = serve(t, ServerOptions{Peers: peersOf()})
	if _, err := Dial(within(t), peerDial(s, known)); !errors.Is(err, ErrNoCommonProtocol) {
		t.Errorf("without peers: %v", err)
	}
	s = serve(t, ServerOptions{})
	if _, err := Dial(within(t), peerDial(s, known)); !errors.Is(err, ErrNoCommonProtocol) {
		t.Errorf("without federation: %v", err)
	}
}

func TestPeersHaveNoTicketsAndNoEarlyData(t *testing.T) {
	theirs := newStore(t)
	peers := peersOf(theirs)
	s := serve(t, ServerOptions{Peers: peers})
	o := peerDial(s, theirs)
	o.Sessions = tls.NewLRUClientSessionCache(4)
	store := memory{}
	o.Trust = TrustFirstUse(store)
	for range 2 {
		c := mustDial(t, o)
		select {
		case <-c.HandshakeComplete():
		default:
			t.Error("returned before the handshake was complete")
		}
		roundTrip(t, c, []byte("x"))
		c.Close(CloseNormal, "")
	}
	peers.replace(theirs.Pin(), Pin{1}) // the protocol is still offered
	c, err := Dial(within(t), o)
	if err == nil {
		<-c.Context().Done()
	}
	if n := len(s.conns); n != 2 {
		t.Errorf("%d connections, want the first 2: a session outlived its peer", n)
	}
}

func TestClientsAndPeersKeepTheirRooms(t *testing.T) {
	theirs := newStore(t)
	s := serve(t, ServerOptions{Peers: peersOf(theirs), Limits: Limits{Connections: 2}})
	client, other := dialOptions(s.addr), dialOptions(s.addr)
	other.LocalAddr = netip.MustParseAddr("127.0.0.2")

	mustDial(t, client)
	first := mustDial(t, other)
	s.accepted(t)
	s.accepted(t)
	wantRefused(t, other)
	var last Conn
	for range connectionsPerPeer {
		last = mustDial(t, peerDial(s, theirs))
		roundTrip(t, last, []byte("the clients' room is full, ours is not"))
		s.accepted(t)
	}
	wantRefused(t, peerDial(s, theirs))

	// A place that is given back goes to its own kind.
	first.Close(CloseNormal, "")
	eventually(t, "the client's place is free", func() bool { return s.Stats().Connections == 1+connectionsPerPeer })
	wantRefused(t, peerDial(s, theirs))
	roundTrip(t, mustDial(t, other), []byte("a client again"))
	last.Close(CloseNormal, "")
	eventually(t, "the peer's place is free", func() bool { return s.Stats().Connections == 1+connectionsPerPeer })
	roundTrip(t, mustDial(t, peerDial(s, theirs)), []byte("a peer again"))
}

// wantRefused dials beyond a limit; the refusal may come after the handshake.
func wantRefused(t *testing.T, o DialOptions) {
	t.Helper()
	c, err := Dial(within(t), o)
	if err == nil {
		select {
		case <-c.Context().Done():
		case <-within(t).Done():
			t.Fatal("a connection beyond the limit stays")
		}
		_, err = c.OpenStream(within(t))
	}
	if code, _, remote, ok := CloseError(err); !ok || code != CloseLimitExceeded || !remote {
		t.Fatalf("refused with %v", err)
	}
}

func TestOneClientProtocolMakesAClient(t *testing.T) {
	clients := []string{ALPN}
	for offered, want := range map[string]bool{
		"": false, ALPN: false, FederationALPN: true, FederationALPN + " h3": true, FederationALPN + " " + ALPN: false,
	} {
		if got := wantsFederation(strings.Fields(offered), clients); got != want {
			t.Errorf("%q: %v", offered, got)
		}
	}
}
