package interop_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/internal/interop/outside"
	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// town is a server in a network namespace of its own. It has two links: eth0 to
// a switch, where the other towns are, and eth1 to this machine, where its
// clients are; so that what is cut off from the others is not cut off from the
// test.
type town struct {
	*house
	name, domain string
	space        string // the namespace
	inside       string // its address at the switch
	fingerprint  string
	lab          *lab
}

// lab is the switch and the towns around it.
type lab struct {
	t     *testing.T
	id    string
	sw    string // the switch's namespace
	towns []*town
}

// ip runs iproute2's ip.
func (l *lab) ip(words ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", words...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %v\n%s", strings.Join(words, " "), err, out)
	}
}

// newLab makes the switch. It skips where the machine does not let it.
func newLab(t *testing.T) *lab {
	outside.Program(t, "ip", "iproute2")
	l := &lab{t: t, id: fmt.Sprintf("q%05d", os.Getpid()%100000)}
	l.sw = l.id + "-sw"
	if out, err := exec.Command("ip", "netns", "add", l.sw).CombinedOutput(); err != nil {
		outside.Missing(t, "network namespaces need root with CAP_SYS_ADMIN and CAP_NET_ADMIN: %v: %s", err, strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() { l.ip("netns", "del", l.sw) })
	l.ip("-n", l.sw, "link", "add", "br0", "type", "bridge")
	l.ip("-n", l.sw, "link", "set", "br0", "up")
	return l
}

// town builds a namespace with its two links, and starts the server once so that
// it has a certificate.
func (l *lab) town(program, name string) *town {
	l.t.Helper()
	n := len(l.towns) + 1
	w := &town{
		house: newHouse(l.t), name: name, domain: name + ".example", lab: l,
		space: l.id + "-" + name, inside: fmt.Sprintf("198.19.%d.%d", os.Getpid()%250, n),
	}
	// Addresses for tests of networks (RFC 2544), which lead nowhere else.
	host, client := fmt.Sprintf("198.18.%d.%d", os.Getpid()%250, 4*n+1), fmt.Sprintf("198.18.%d.%d", os.Getpid()%250, 4*n+2)
	l.ip("netns", "add", w.space)
	l.t.Cleanup(func() { l.ip("netns", "del", w.space) })
	l.ip("link", "add", l.id+name+"h", "type", "veth", "peer", "name", "eth1", "netns", w.space)
	l.t.Cleanup(func() { exec.Command("ip", "link", "del", l.id+name+"h").Run() }) // it goes with the namespace, in its own time
	l.ip("addr", "add", host+"/30", "dev", l.id+name+"h")
	l.ip("link", "set", l.id+name+"h", "up")
	l.ip("-n", w.space, "addr", "add", client+"/30", "dev", "eth1")
	l.ip("-n", l.sw, "link", "add", "p"+name, "type", "veth", "peer", "name", "eth0", "netns", w.space)
	l.ip("-n", l.sw, "link", "set", "p"+name, "master", "br0", "up")
	l.ip("-n", w.space, "addr", "add", w.inside+"/24", "dev", "eth0")
	for _, dev := range []string{"lo", "eth0", "eth1"} {
		l.ip("-n", w.space, "link", "set", dev, "up")
	}
	w.addr = netip.AddrPortFrom(netip.MustParseAddr(client), 5001)
	l.towns = append(l.towns, w)
	w.configure()
	w.run(program)
	w.stop()
	certs, err := transport.LoadOrCreate(filepath.Join(w.data, "server-cert.der"), filepath.Join(w.data, "server-key.der"), nil, nil, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	w.fingerprint = certs.Pin().String()
	return w
}

func (w *town) file() string { return filepath.Join(filepath.Dir(w.data), w.name+".uci") }

// configure writes the UCI file, with these peers.
func (w *town) configure(peers ...string) {
	w.t.Helper()
	text := fmt.Sprintf("config qpcd 'main'\n\toption server_name '%s'\n\toption data_dir '%s'\n\tlist listen '0.0.0.0:5001'\n\toption registration 'open'\n"+
		"\toption log_level 'debug'\n\toption control_socket '%s'\n", w.domain, w.data, filepath.Join(os.TempDir(), w.space+".sock"))
	if err := os.WriteFile(w.file(), []byte(text+strings.Join(peers, "")), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// peer is a peer section.
func peer(domain, address, pin string) string {
	return fmt.Sprintf("config peer\n\toption domain '%s'\n\toption address '%s'\n\toption pin '%s'\n", domain, address, pin)
}

func (w *town) asPeer() string { return peer(w.domain, w.inside, w.fingerprint) }

// run starts the program in the namespace; "ip" becomes it.
func (w *town) run(program string) {
	w.t.Helper()
	w.cmd, w.log = exec.Command("ip", "netns", "exec", w.space, program, "--config", w.file()), &logbook{}
	w.cmd.Stderr = w.log
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	book := w.log
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("%s said:\n%s", w.name, book)
		}
	})
	w.log.wait(w.t, `msg=listening .*`)
}

// stop ends the server. Unlike an interop server it may have warned: of peers
// that were away.
func (w *town) stop() {
	w.t.Helper()
	w.signal(syscall.SIGTERM)
	if err := w.cmd.Wait(); err != nil {
		w.t.Errorf("%s ended with %v", w.name, err)
	}
	w.cmd = nil
}

func (w *town) kill() {
	w.signal(syscall.SIGKILL)
	_ = w.cmd.Wait() // killed
	w.cmd = nil
}

func (w *town) signal(s syscall.Signal) {
	w.t.Helper()
	if err := w.cmd.Process.Signal(s); err != nil {
		w.t.Fatal(err)
	}
}

// cut takes a town off the switch, heal puts it back.
func (w *town) cut()  { w.lab.ip("-n", w.lab.sw, "link", "set", "p"+w.name, "down") }
func (w *town) heal() { w.lab.ip("-n", w.lab.sw, "link", "set", "p"+w.name, "up") }

// finds returns the identity of somebody in another town.
func (p *person) finds(address string) rpc.IdentityKey {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		c, err := p.FindContact(p.t.Context(), address)
		if err == nil {
			return c.Identity
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s does not find %s: %v", p.name, address, err)
		}
	}
}

// tells sends a message, without waiting for more than that it is stored here.
func (p *person) tells(to rpc.IdentityKey, text string) {
	p.t.Helper()
	if _, err := p.Send(p.t.Context(), to, text, e2ee.PartWhole); err != nil {
		p.t.Fatalf("%s cannot say %q: %v", p.name, text, err)
	}
}

// ear takes all events of a person, who is on until the test ends.
type ear struct {
	*person
	mu    sync.Mutex
	heard map[string][]string // by sender, in order
	sent  map[uint64]bool     // own messages that the home server has taken
}

func (p *person) listen() *ear {
	e := &ear{person: p, heard: make(map[string][]string), sent: make(map[uint64]bool)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range p.Events() {
			e.take(event)
		}
	}()
	p.t.Cleanup(func() { p.off(); <-done })
	return e
}

func (e *ear) take(event client.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch m := event.Message; {
	case event.Kind == client.EventMessage && m.Problem != "":
		e.heard[event.PeerName] = append(e.heard[event.PeerName], "unreadable: "+m.Problem)
	case event.Kind == client.EventMessage:
		e.heard[event.PeerName] = append(e.heard[event.PeerName], m.Text)
	case event.Kind == client.EventStatus && m.Status == client.StatusSent:
		e.sent[m.No] = true
	}
}

func (e *ear) from(sender string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.heard[sender])
}

// hears waits for all of these messages of a sender, in this order.
func (e *ear) hears(sender string, want []string) {
	e.t.Helper()
	for deadline := time.Now().Add(patience); len(e.from(sender)) < len(want) && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	if got := e.from(sender); !slices.Equal(got, want) {
		e.t.Fatalf("%s hears %d messages of %s, want %d:\n%q", e.name, len(got), sender, len(want), got)
	}
}

// stored waits until the home server has taken so many messages.
func (e *ear) stored(want int) {
	e.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		e.mu.Lock()
		got := len(e.sent)
		e.mu.Unlock()
		if got >= want {
			return
		}
		if time.Now().After(deadline) {
			e.t.Fatalf("the server of %s has taken %d messages of %d", e.name, got, want)
		}
	}
}

// stranger is a server that the test plays.
type stranger struct {
	qpcpb.FederationServer
	domain string
}

func (s stranger) FederationHealth(context.Context, *qpcpb.FederationHealthRequest) (*qpcpb.FederationHealthResponse, error) {
	return &qpcpb.FederationHealthResponse{Status: "ok", ServerDomain: s.domain, ServerKey: make([]byte, 32)}, nil
}

// certificate makes one for a server that the test plays.
func certificate(t *testing.T) *transport.CertificateStore {
	t.Helper()
	dir := t.TempDir()
	certs, err := transport.LoadOrCreate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), transport.DefaultNames("x", nil), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return certs
}

// Three servers, a partition, a power cut and several bad peers: nothing that
// was acknowledged is lost, and nothing comes twice.
func TestFederation(t *testing.T) {
	l := newLab(t)
	program := home().build(t)
	a, b, c := l.town(program, "a"), l.town(program, "b"), l.town(program, "c")

	// Who is not what a should know: a server that lies about its domain, one
	// that has another certificate, one that may connect and replays.
	liar, wrong, replay := certificate(t), certificate(t), certificate(t)
	bind := a.addr.Addr().Prev() // this machine's end of a's link
	listener, err := transport.Listen(t.Context(), transport.ServerOptions{
		Addresses: []string{netip.AddrPortFrom(bind, 0).String()}, Certificates: liar, Secret: transport.Secret{1}, Peers: anybody{},
	})
	if err != nil {
		t.Fatal(err)
	}
	calls := rpc.NewServer(rpc.ServerOptions{Log: slog.New(slog.DiscardHandler)})
	qpcpb.RegisterFederationServer(calls, stranger{domain: "b.example"})
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := listener.Accept(context.Background())
			if err != nil {
				return
			}
			calls.ServePeer(conn, "a.example") // one after the other is enough
		}
	}()
	t.Cleanup(func() { listener.Close(); <-served; calls.Close() })

	a.configure(b.asPeer(), c.asPeer(),
		peer("liar.example", listener.Addrs()[0].String(), liar.Pin().String()),
		peer("wrong.example", b.inside, wrong.Pin().String()),
		peer("replay.example", "198.19.255.254", replay.Pin().String()))
	b.configure(a.asPeer(), c.asPeer())
	c.configure(a.asPeer(), b.asPeer())
	for _, w := range l.towns {
		w.run(program)
	}
	alice, bob, carol := a.register("alice").on().listen(), b.register("bob").on().listen(), c.register("carol").on().listen()
	toBob, toCarol := alice.finds("bob@b.example"), alice.finds("carol@c.example")
	bobToAlice, carolToAlice := bob.finds("alice@a.example"), carol.finds("alice@a.example")

	// Everybody up: who it is shows by name, both ways.
	alice.tells(toBob, "hello bob")
	bob.hears("alice@a.example", []string{"hello bob"})
	carol.tells(carolToAlice, "hello alice")
	alice.hears("carol@c.example", []string{"hello alice"})

	const each = 15
	wantBob, wantCarol, wantAlice := []string{"hello bob"}, []string(nil), []string(nil)
	sentByAlice, sentByBob := 1, 0
	talk := func(part string) {
		t.Log(part)
		for i := range each {
			text := fmt.Sprintf("%s %d", part, i)
			alice.tells(toBob, text)
			alice.tells(toCarol, text)
			bob.tells(bobToAlice, text)
			wantBob, wantCarol, wantAlice = append(wantBob, text), append(wantCarol, text), append(wantAlice, text)
		}
		sentByAlice += 2 * each
		sentByBob += each
		alice.stored(sentByAlice)
		bob.stored(sentByBob)
	}
	talk("up")
	b.cut()
	talk("partition")
	if got := bob.from("alice@a.example"); len(got) > 1+each {
		t.Fatalf("b is cut off, and bob hears %q", got[1+each:])
	}
	b.heal()
	// c loses power while messages are on their way to it, and then a.
	c.kill()
	talk("c is dark")
	a.kill()
	a.run(program)
	c.run(program)
	// b hangs: it takes packets and answers none of them.
	b.signal(syscall.SIGSTOP)
	for i := range each {
		text := fmt.Sprint("b hangs ", i)
		alice.tells(toCarol, text)
		wantCarol = append(wantCarol, text)
	}
	carol.hears("alice@a.example", wantCarol)
	b.signal(syscall.SIGCONT)
	bob.hears("alice@a.example", wantBob)
	alice.hears("bob@b.example", wantAlice)

	// The bad ones.
	for name, reason := range map[string]string{
		"x@liar.example":  `level=ERROR msg="a peer is not what it should be; nothing is sent to it" peer=liar.example .*b\.example.*`,
		"x@wrong.example": `level=WARN msg="a peer is not reached; what is for it waits" peer=wrong.example .*THE KEY OF SERVER.*`,
	} {
		if c, err := alice.FindContact(t.Context(), name); err == nil {
			t.Errorf("alice finds %v", c)
		}
		a.log.wait(t, reason)
	}
	dial := func(certs *transport.CertificateStore) (*rpc.Client, error) {
		conn, err := transport.Dial(t.Context(), transport.DialOptions{
			Address: a.addr.String(), Trust: transport.TrustFirstUse(&pins{known: map[string]transport.Pin{}}), ALPN: transport.FederationALPN, Certificates: certs,
		})
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = conn.Close(transport.CloseNormal, "") })
		return rpc.NewClient(conn), nil
	}
	if calls, err := dial(certificate(t)); err == nil {
		_, err = qpcpb.NewFederationClient(calls).FederationHealth(t.Context(), &qpcpb.FederationHealthRequest{})
		if err == nil {
			t.Error("a server that nobody knows is answered")
		}
	}
	self := alice.Identity()
	recorded := &qpcpb.RelayEnqueueRequest{
		Auth: &qpcpb.FederationAuth{Origin: "replay.example"}, RecipientKey: self[:], Payload: []byte("not a message"),
		MessageId: slices.Repeat([]byte{7}, 16), SenderKey: slices.Repeat([]byte{9}, 32), SenderName: "mallory",
	}
	for i := range 3 { // the last one from a connection of its own
		var calls *rpc.Client
		if calls, err = dial(replay); err != nil {
			t.Fatal(err)
		}
		got, err := qpcpb.NewFederationClient(calls).RelayEnqueue(t.Context(), recorded)
		if err != nil || got.Duplicate != (i > 0) {
			t.Fatalf("replay %d: %v, %v", i, got, err)
		}
	}
	time.Sleep(300 * time.Millisecond) // for what must not come
	bob.hears("alice@a.example", wantBob)
	carol.hears("alice@a.example", wantCarol)
	alice.hears("bob@b.example", wantAlice)
	for _, w := range l.towns {
		for _, bad := range []string{"panic:", "fatal error:"} {
			if strings.Contains(w.log.String(), bad) {
				t.Errorf("%s: %s", w.name, bad)
			}
		}
		w.stop()
	}
}

// anybody may connect to the servers that the test plays.
type anybody struct{}

func (anybody) Admits(*x509.Certificate) bool { return true }
func (anybody) Count() int                    { return 1 }
