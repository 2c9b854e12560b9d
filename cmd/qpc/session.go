package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/home"
	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/client/localstore"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// session is an account that a command acts as. It is closed by the command.
type session struct {
	*client.Client
	app     *app
	profile home.Profile

	cancel context.CancelFunc
	ended  chan struct{} // closed when Run has returned runErr
	runErr error
}

// choose finds the account to act as, and says which when there are several.
func (a *app) choose(peer string) (home.Profile, error) {
	p, more, err := a.home.Choose(home.Wanted{Server: a.server, Name: a.cli.Profile, Peer: peer})
	if err == nil && more {
		a.note("acting as %s", p)
	}
	return p, err
}

// openStore opens the file of an account.
func (a *app) openStore(ctx context.Context, p home.Profile) (*localstore.Store, error) {
	s, err := localstore.Open(ctx, p.Database(), a.log)
	if errors.Is(err, store.ErrLocked) {
		return nil, &inUseError{p}
	}
	if err != nil {
		return nil, fmt.Errorf("opening the account %s: %w", p, err)
	}
	return s, nil
}

// options says what a client of the account is made of.
func (a *app) options(p home.Profile, s client.Store) (client.Options, error) {
	dial, err := a.dialer(p.Server)
	return client.Options{Store: s, Dial: dial, Log: a.log, Rand: rand.Reader}, err
}

// dialer returns how to connect to a server.
func (a *app) dialer(server string) (client.DialFunc, error) {
	trust, err := a.trust(server)
	if err != nil {
		return nil, err
	}
	options := transport.DialOptions{Address: server, ServerName: a.cli.ServerName, Trust: trust}
	return func(ctx context.Context) (transport.Conn, error) {
		conn, err := transport.Dial(ctx, options)
		if err == nil {
			return conn, nil
		}
		if changed, ok := errors.AsType[*transport.ErrPinChanged](err); ok {
			if a.cli.CACert != "" {
				return nil, withHint(changed, "the server has another key than the certificate in %s", a.cli.CACert)
			}
			return nil, changed
		}
		return nil, &unreachableError{server: server, cause: err}
	}, nil
}

// trust returns how a server is told from an impostor.
func (a *app) trust(server string) (transport.Trust, error) {
	if a.cli.CACert != "" {
		t, err := transport.TrustCertificateFile(a.cli.CACert)
		if err != nil {
			return nil, usageError{err}
		}
		return t, nil
	}
	servers := a.home.Servers()
	byAuthorities, err := servers.ByAuthorities(server)
	if err != nil {
		return nil, err
	}
	if byAuthorities {
		return transport.TrustAuthorities(nil), nil
	}
	servers.Met = func(server string, pin transport.Pin) {
		a.note("met server %s; its fingerprint is: %s", server, strings.Join(pin.Words(), " "))
	}
	servers.Replaced = func(server string, next transport.Pin) {
		a.note("server %s has a new key, which its old one has signed; its fingerprint is now: %s", server, strings.Join(next.Words(), " "))
	}
	return transport.TrustFirstUse(servers), nil
}

// open opens the account that a command is to act as, asking for its password.
// peer is whom the command speaks to, if anybody.
func (a *app) open(ctx context.Context, peer string) (*session, error) {
	p, err := a.choose(peer)
	if err != nil {
		return nil, err
	}
	s, err := a.openStore(ctx, p)
	if err != nil {
		return nil, err
	}
	c, err := a.unlock(ctx, p, s)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &session{Client: c, app: a, profile: p}, nil
}

// openWithPassword opens the account that a command is to act as, for a command
// that needs its password once more. doing begins what is said when it does not
// open. Closing the client closes its store.
func (a *app) openWithPassword(ctx context.Context, doing string) (*client.Client, home.Profile, []byte, error) {
	p, err := a.choose("")
	if err != nil {
		return nil, p, nil, err
	}
	s, err := a.openStore(ctx, p)
	if err != nil {
		return nil, p, nil, err
	}
	failed := func(err error) (*client.Client, home.Profile, []byte, error) {
		s.Close() // what failed before says more
		return nil, p, nil, err
	}
	o, err := a.options(p, s)
	if err != nil {
		return failed(err)
	}
	password, err := a.password(fmt.Sprintf("Password of %s: ", p.Name))
	if err != nil {
		return failed(err)
	}
	c, err := client.Open(ctx, o, password)
	if err != nil {
		return failed(fmt.Errorf("%s %s: %w", doing, p.Name, err))
	}
	return c, p, password, nil
}

// unlock opens the client in a store with the password.
func (a *app) unlock(ctx context.Context, p home.Profile, s client.Store) (*client.Client, error) {
	o, err := a.options(p, s)
	if err != nil {
		return nil, err
	}
	password, err := a.password(fmt.Sprintf("Password of %s: ", p.Name))
	if err != nil {
		return nil, err
	}
	c, err := client.Open(ctx, o, password)
	if errors.Is(err, e2ee.ErrPassword) {
		return nil, fmt.Errorf("the password of %s is another one: %w", p.Name, e2ee.ErrPassword)
	}
	return c, err
}

// start connects and stays connected. The command must take the events until
// the channel closes; then err has the reason.
func (s *session) start(ctx context.Context) <-chan client.Event {
	ctx, cancel := context.WithCancel(ctx)
	s.cancel, s.ended = cancel, make(chan struct{})
	go func() {
		defer close(s.ended)
		s.runErr = s.Run(ctx)
	}()
	return s.Events()
}

// err returns why the events have ended: nil when the command wanted it.
func (s *session) err() error {
	<-s.ended
	return s.runErr
}

// close ends the connection and gives the account free.
func (s *session) close() {
	if s.cancel != nil {
		s.cancel()
		<-s.ended
	}
	if err := s.Close(); err != nil {
		s.app.log.Error("the account was not closed cleanly", "error", err)
	}
}

// watcher tells the user of the connection while a command waits for it.
type watcher struct {
	app     *app
	waiting map[string]bool // what was said
	offline bool
}

// see takes an event. Everything is said once until it changes.
func (w *watcher) see(e client.Event) {
	switch e.Kind {
	case client.EventConnection:
		switch {
		case e.Connection == client.Disconnected && !w.offline:
			w.offline = true
			text := "the connection was lost"
			if unreachable, ok := errors.AsType[*unreachableError](e.Err); ok {
				text = unreachable.Error()
			}
			w.app.note("%s; trying again", text)
		case e.Connection == client.Connected && w.offline:
			w.offline = false
			w.app.note("connected")
		}
	case client.EventWaiting:
		if w.waiting == nil {
			w.waiting = make(map[string]bool)
		}
		text := fmt.Sprintf("messages to %s wait: %v", e.PeerName, e.Err)
		if !w.waiting[text] {
			w.waiting[text] = true
			w.app.note("%s", text)
		}
	case client.EventDistrust:
		w.app.note("%v", e.Err)
	}
}
