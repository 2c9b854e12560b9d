package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

const (
	// handshakePace is below the 32 handshakes a second from which the server
	// asks unvalidated addresses for proof (transport:
	// DefaultHandshakesPerSecond), which costs a round trip.
	handshakePace = time.Second / 25
	// ticketPatience bounds the wait for a session ticket.
	ticketPatience = 10 * time.Second
)

// ticketCache is a session cache that tells when a ticket has come.
type ticketCache struct {
	tls.ClientSessionCache
	came chan struct{}
}

func newTicketCache() *ticketCache {
	return &ticketCache{tls.NewLRUClientSessionCache(1), make(chan struct{}, 1)}
}

// Put keeps the ticket.
func (c *ticketCache) Put(key string, session *tls.ClientSessionState) {
	c.ClientSessionCache.Put(key, session)
	if session == nil {
		return
	}
	select {
	case c.came <- struct{}{}:
	default:
	}
}

// wait returns when a ticket has come since the last wait.
func (c *ticketCache) wait(ctx context.Context) error {
	timeout := time.NewTimer(ticketPatience)
	defer timeout.Stop()
	select {
	case <-c.came:
		return nil
	case <-timeout.C:
		return errors.New("the server sent no session ticket")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// measureConnecting measures handshakes against the bare server's, and logins
// against the cryptography alone.
func (b *bench) measureConnecting(ctx context.Context) error {
	h, err := startHouse(ctx, b.inDir("connecting"), b.bin.qpcd)
	if err != nil {
		return err
	}
	defer h.kill()
	server, err := startBare(ctx, b.bin.bare)
	if err != nil {
		return err
	}
	defer server.kill()
	bare, err := b.handshakes(ctx, server.process, dialAndCallBare(server.address))
	if err != nil {
		return err
	}
	ours, err := b.handshakes(ctx, h.process, dialAndCall(h))
	if err != nil {
		return err
	}
	for i, name := range []string{"full, X25519MLKEM768", "resumed, 0-RTT"} {
		b.add(figure{section: "Connecting", name: "dial to first answer, " + name + ", median", value: milliseconds(ours[i].l.quantile(0.5)), unit: "ms",
			detail: "p99 " + number(milliseconds(ours[i].l.quantile(0.99))) + " ms",
			limits: []limit{{"quic-go alone", milliseconds(bare[i].l.quantile(0.5))}}})
		b.add(figure{section: "Connecting", name: "server CPU of a connection, " + name, value: perCall(ours[i].cpu, ours[i].l) / 1000, unit: "ms",
			limits: []limit{{"quic-go alone", perCall(bare[i].cpu, bare[i].l) / 1000}}})
	}
	if err := b.handshakeRate(ctx, h, server); err != nil {
		return err
	}
	if err := b.logins(ctx, h); err != nil {
		return err
	}
	return errors.Join(server.stop(nil), h.close())
}

// connection is one connection from its dialling to its end, with one call. It
// reports whether the answer came before the handshake was complete.
type connection func(ctx context.Context, sessions tls.ClientSessionCache) (took time.Duration, early bool, err error)

func dialAndCall(h *house) connection {
	return func(ctx context.Context, sessions tls.ClientSessionCache) (time.Duration, bool, error) {
		begin := time.Now()
		calls, err := h.dial(ctx, netip.Addr{}, sessions)
		if err != nil {
			return 0, false, err
		}
		defer hangUp(calls)
		early := !done(calls.Conn().HandshakeComplete())
		_, err = qpcpb.NewHealthClient(calls).Health(ctx, &qpcpb.HealthRequest{})
		took := time.Since(begin)
		if cache, ok := sessions.(*ticketCache); ok && err == nil {
			err = cache.wait(ctx)
		}
		return took, early, err
	}
}

func dialAndCallBare(address string) connection {
	return func(ctx context.Context, sessions tls.ClientSessionCache) (time.Duration, bool, error) {
		begin := time.Now()
		conn, err := dialBare(ctx, address, sessions)
		if err != nil {
			return 0, false, err
		}
		defer conn.CloseWithError(0, "")
		early := !done(conn.HandshakeComplete())
		err = bareCall(ctx, conn, bareAnswer)
		took := time.Since(begin)
		if cache, ok := sessions.(*ticketCache); ok && err == nil {
			err = cache.wait(ctx)
		}
		return took, early, err
	}
}

func done(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// handshakeCost is what some connections cost.
type handshakeCost struct {
	l   load
	cpu time.Duration
}

// handshakes makes full connections, then resumed ones, at handshakePace.
func (b *bench) handshakes(ctx context.Context, server *process, connect connection) (costs [2]handshakeCost, err error) {
	pace := time.NewTicker(handshakePace)
	defer pace.Stop()
	tickets := newTicketCache()
	for i, sessions := range []tls.ClientSessionCache{nil, tickets} {
		if _, _, err := connect(ctx, sessions); err != nil { // a warm-up, and the first ticket
			return costs, err
		}
		before, err := server.cpu()
		if err != nil {
			return costs, err
		}
		var times []time.Duration
		for range b.plan.handshakes {
			select {
			case <-pace.C:
			case <-ctx.Done():
				return costs, ctx.Err()
			}
			took, early, err := connect(ctx, sessions)
			if err != nil {
				return costs, err
			}
			if resumed := sessions != nil; early != resumed {
				return costs, fmt.Errorf("a connection that should have been resumed (%t) was early (%t)", resumed, early)
			}
			times = append(times, took)
		}
		after, err := server.cpu()
		if err != nil {
			return costs, err
		}
		costs[i] = handshakeCost{loadOf(times), after - before}
	}
	return costs, nil
}

// handshakeRate makes full connections one after the other, as fast as they
// go. Most of qpcd's have the round trip of Retry in them.
func (b *bench) handshakeRate(ctx context.Context, h *house, server *bareProcess) error {
	rate := func(connect connection) (load, error) {
		return hammer(ctx, b.plan.rate/4, []work{func(ctx context.Context) error {
			_, _, err := connect(ctx, nil)
			return err
		}})
	}
	bare, err := rate(dialAndCallBare(server.address))
	if err != nil {
		return err
	}
	ours, err := rate(dialAndCall(h))
	if err != nil {
		return err
	}
	b.add(figure{section: "Connecting", name: "full connections in series, with Retry past 32/s", value: ours.rate(), unit: "/s",
		detail: quantiles(ours), limits: []limit{{"quic-go alone, without Retry", bare.rate()}}})
	return nil
}

// logins measures whole logins and what they cost the server. The limit is the
// server's half of OPAQUE alone, computed here.
func (b *bench) logins(ctx context.Context, h *house) error {
	accounts, err := h.register(ctx, 2)
	if err != nil {
		return err
	}
	clients, hangUpAll, err := h.connectAll(ctx, accounts)
	if err != nil {
		return err
	}
	defer hangUpAll()
	before, err := h.cpu()
	if err != nil {
		return err
	}
	i := 0
	l, err := repeat(ctx, b.plan.logins, func(ctx context.Context) error {
		i++
		return accounts[i%2].logIn(ctx, clients[i%2])
	})
	if err != nil {
		return err
	}
	after, err := h.cpu()
	if err != nil {
		return err
	}
	alone, err := opaqueServerHalf(ctx, b.plan.logins)
	if err != nil {
		return err
	}
	b.add(figure{section: "Connecting", name: "server CPU of a login (two calls, one commit)", value: perCall(after-before, l) / 1000, unit: "ms",
		detail: fmt.Sprintf("%s for the client, Argon2id included", quantiles(l)),
		limits: []limit{{"server half of OPAQUE", milliseconds(alone.quantile(0.5))}}})
	return nil
}

// opaqueServerHalf measures what pkg/opaque does on a server for one login.
func opaqueServerHalf(ctx context.Context, n int) (load, error) {
	setup, err := opaque.NewServerSetup(rand.Reader)
	if err != nil {
		return load{}, err
	}
	server, err := opaque.NewServer(setup)
	if err != nil {
		return load{}, err
	}
	password, name := []byte("password"), []byte("name")
	registration, request, err := opaque.NewRegistration(rand.Reader, password)
	if err != nil {
		return load{}, err
	}
	response, err := server.RegistrationResponse(request, name)
	if err != nil {
		return load{}, err
	}
	record, _, err := registration.Finish(response)
	if err != nil {
		return load{}, err
	}
	var times []time.Duration
	for range n {
		if err := ctx.Err(); err != nil {
			return load{}, err
		}
		login, ke1, err := opaque.NewLogin(rand.Reader, password)
		if err != nil {
			return load{}, err
		}
		begin := time.Now()
		ke2, state, err := server.LoginResponse(rand.Reader, record, name, ke1)
		took := time.Since(begin)
		if err != nil {
			return load{}, err
		}
		ke3, _, _, _, err := login.Finish(ke2)
		if err != nil {
			return load{}, err
		}
		begin = time.Now()
		if _, err := state.Finish(ke3); err != nil {
			return load{}, err
		}
		times = append(times, took+time.Since(begin))
	}
	return loadOf(times), nil
}
