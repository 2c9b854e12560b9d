package interop_test

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/client/localstore"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// person is an account on this machine, which a test can switch on and off.
type person struct {
	*client.Client
	t     *testing.T
	house *house
	name  string
	path  string
	pins  *pins

	stop context.CancelFunc
	done chan error
}

// pins remembers server keys.
type pins struct {
	mu    sync.Mutex
	known map[string]transport.Pin
}

func (p *pins) Lookup(server string) (transport.Pin, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pin, ok := p.known[server]
	return pin, ok, nil
}

func (p *pins) Remember(server string, pin transport.Pin) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[server] = pin
	return nil
}

func (p *pins) Replace(server string, _, next transport.Pin) error { return p.Remember(server, next) }

func (p *person) options() client.Options {
	p.t.Helper()
	store, err := localstore.Open(p.t.Context(), p.path, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return client.Options{
		Store: store, Log: slog.New(slog.DiscardHandler), Rand: rand.Reader,
		KDF: e2ee.KDF{MemoryKiB: 64, Passes: 1, Lanes: 1},
		Dial: func(ctx context.Context) (transport.Conn, error) {
			return transport.Dial(ctx, transport.DialOptions{Address: p.house.addr.String(), Trust: transport.TrustFirstUse(p.pins)})
		},
	}
}

func password(name string) []byte { return []byte("password of " + name) }

// register makes an account and leaves it switched off.
func (h *house) register(name string) *person {
	h.t.Helper()
	p := &person{t: h.t, house: h, name: name, path: filepath.Join(h.t.TempDir(), "profile.db"),
		pins: &pins{known: map[string]transport.Pin{}}}
	c, err := client.Register(h.t.Context(), p.options(), client.Registration{Server: "home", Username: name, Password: password(name)})
	if err != nil {
		h.t.Fatalf("registering %s: %v", name, err)
	}
	if err := c.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(p.off)
	return p
}

func (p *person) on() *person {
	p.t.Helper()
	c, err := client.Open(p.t.Context(), p.options(), password(p.name))
	if err != nil {
		p.t.Fatalf("opening the profile of %s: %v", p.name, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	p.Client, p.stop, p.done = c, stop, make(chan error, 1)
	go func() { p.done <- c.Run(ctx) }()
	return p
}

func (p *person) off() {
	if p.stop == nil {
		return
	}
	p.stop()
	p.stop = nil
	for range p.Events() { // a client that waits for its reader cannot end
	}
	if err := <-p.done; err != nil {
		p.t.Errorf("%s ended with: %v", p.name, err)
	}
	if err := p.Close(); err != nil {
		p.t.Error(err)
	}
	p.Client = nil
}

// until waits for an event that matches.
func (p *person) until(what string, match func(client.Event) bool) client.Event {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case e, ok := <-p.Events():
			if !ok {
				err := <-p.done
				p.done <- err
				p.t.Fatalf("%s waits for %s and was thrown out: %v", p.name, what, err)
			}
			if match(e) {
				return e
			}
		case <-deadline:
			p.t.Fatalf("%s waits in vain for %s", p.name, what)
		}
	}
}

func (p *person) connected() {
	p.t.Helper()
	p.until("the connection", func(e client.Event) bool { return e.Kind == client.EventCaughtUp })
}

func (p *person) contact(peer *person) client.Contact {
	p.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		c, err := p.FindContact(p.t.Context(), peer.name)
		if err == nil {
			return c
		}
		if !errors.Is(err, client.ErrOffline) || time.Now().After(deadline) {
			p.t.Fatalf("%s does not find %s: %v", p.name, peer.name, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// says sends a message and returns when the server has stored it.
func (p *person) says(peer *person, text string) {
	p.t.Helper()
	m, err := p.Send(p.t.Context(), p.contact(peer).Identity, text, e2ee.PartWhole)
	if err != nil {
		p.t.Fatalf("%s cannot say %q: %v", p.name, text, err)
	}
	p.until("the server to store "+text, func(e client.Event) bool {
		return e.Kind == client.EventStatus && e.Message.No == m.No && e.Message.Status == client.StatusSent
	})
}

// reads waits for the next message, which must be this one.
func (p *person) reads(peer *person, text string) {
	p.t.Helper()
	e := p.until("a message", func(e client.Event) bool { return e.Kind == client.EventMessage })
	if e.Message.Text != text || e.PeerName != peer.name {
		p.t.Fatalf("%s reads %q (%s) from %q, want %q from %q", p.name, e.Message.Text, e.Message.Problem, e.PeerName, text, peer.name)
	}
}
