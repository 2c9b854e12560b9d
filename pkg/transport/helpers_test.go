//go:build !js

package transport

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const loopback = "127.0.0.1:0"

var testSecret = Secret{1, 2, 3}

// within bounds a test step; nothing here takes longer than a few round trips.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func newStore(t testing.TB) *CertificateStore {
	t.Helper()
	dir := t.TempDir()
	s, err := LoadOrCreate(filepath.Join(dir, "cert.der"), filepath.Join(dir, "key.der"), DefaultNames("router", nil), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A server echoes every stream of every connection it accepts.
type server struct {
	*Listener
	addr  string
	conns chan Conn // the accepted ones, dropped when nobody looks
}

func serve(t testing.TB, o ServerOptions) *server {
	t.Helper()
	if len(o.Addresses) == 0 {
		o.Addresses = []string{loopback}
	}
	if o.Certificates == nil {
		o.Certificates = newStore(t)
	}
	if o.Secret == (Secret{}) {
		o.Secret = testSecret
	}
	l, err := Listen(within(t), o)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Listener: l, addr: l.Addrs()[0].String(), conns: make(chan Conn, 16)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			select {
			case s.conns <- c:
			default:
			}
			wg.Go(func() {
				for {
					st, err := c.AcceptStream(context.Background())
					if err != nil {
						return
					}
					wg.Go(func() {
						io.Copy(st, st)
						st.Close()
					})
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return s
}

func (s *server) accepted(t testing.TB) Conn {
	t.Helper()
	select {
	case c := <-s.conns:
		return c
	case <-within(t).Done():
		t.Fatal("server accepted no connection")
		return nil
	}
}

// memory is a PinStore.
type memory map[string]Pin

func (m memory) Lookup(server string) (Pin, bool, error)  { p, ok := m[server]; return p, ok, nil }
func (m memory) Remember(server string, pin Pin) error    { m[server] = pin; return nil }
func (m memory) Replace(server string, _, next Pin) error { m[server] = next; return nil }
func trustAll() Trust                                     { return TrustFirstUse(memory{}) }
func dialOptions(addr string) DialOptions                 { return DialOptions{Address: addr, Trust: trustAll()} }
func mustDial(t testing.TB, o DialOptions) Conn           { t.Helper(); return must(t)(Dial(within(t), o)) }
func must(t testing.TB) func(c Conn, err error) Conn {
	return func(c Conn, err error) Conn {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(CloseNormal, "") })
		return c
	}
}

func roundTrip(t testing.TB, c Conn, payload []byte) {
	t.Helper()
	st, err := c.OpenStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	echo(t, st, payload)
}

func echo(t testing.TB, st Stream, payload []byte) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := st.Write(payload); err != nil {
			t.Error("write:", err)
		}
		if err := st.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	got, err := io.ReadAll(st)
	wg.Wait()
	if err != nil {
		t.Fatal("read:", err)
	}
	if !bytes.Equal(got, payload) {
		t.Fatalf("echo of %d bytes came back as %d others", len(payload), len(got))
	}
}

// sessions is a session cache that tells when a ticket came.
type sessions struct {
	tls.ClientSessionCache
	came chan struct{}
}

func newSessions() *sessions {
	return &sessions{tls.NewLRUClientSessionCache(8), make(chan struct{}, 8)}
}

func (s *sessions) Put(key string, cs *tls.ClientSessionState) {
	s.ClientSessionCache.Put(key, cs)
	if cs != nil {
		s.came <- struct{}{}
	}
}

func (s *sessions) wait(t testing.TB) {
	t.Helper()
	select {
	case <-s.came:
	case <-within(t).Done():
		t.Fatal("no session ticket came")
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for ctx := within(t); !ok(); {
		select {
		case <-ctx.Done():
			t.Fatal("never happened: " + what)
		case <-time.After(time.Millisecond):
		}
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// A link stands between clients and a server. While it is held, packets reach
// the server and its answers wait.
type link struct {
	addr string
	mu   sync.Mutex
	open chan struct{} // closed: answers pass
}

func newLink(t *testing.T, server string) *link {
	t.Helper()
	in, err := net.ListenPacket("udp", loopback)
	if err != nil {
		t.Fatal(err)
	}
	l := &link{addr: in.LocalAddr().String(), open: make(chan struct{})}
	close(l.open)
	ended := make(chan struct{})
	var wg sync.WaitGroup
	back := map[string]net.Conn{} // by client, used by one goroutine
	wg.Go(func() {
		for b := make([]byte, 2048); ; {
			n, from, err := in.ReadFrom(b)
			if err != nil {
				break
			}
			up := back[from.String()]
			if up == nil {
				if up, err = net.Dial("udp", server); err != nil {
					t.Error(err)
					break
				}
				back[from.String()] = up
				wg.Go(func() {
					for b := make([]byte, 2048); ; {
						n, err := up.Read(b)
						if errors.Is(err, net.ErrClosed) {
							return
						}
						select {
						case <-l.gate():
							in.WriteTo(b[:n], from)
						case <-ended:
						}
					}
				})
			}
			up.Write(b[:n])
		}
		for _, up := range back {
			up.Close()
		}
	})
	t.Cleanup(func() {
		close(ended)
		in.Close()
		wg.Wait()
	})
	return l
}

func (l *link) gate() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open
}

func (l *link) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = make(chan struct{})
}

func (l *link) release() { close(l.gate()) }
