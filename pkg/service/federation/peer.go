package federation

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// peer is another server, and our connection to it.
type peer struct {
	service *Service
	domain  string
	address string
	given   transport.Pin // as the owner says
	where   string        // in the configuration; empty: added by the control socket

	rowsWait  chan struct{} // capacity 1: look into the outbox
	hasCalled chan struct{} // capacity 1: the peer has connected to us
	ephemeral chan Message
	stop      context.CancelFunc // of its goroutines; nil before Run; guarded by Service.mu

	// dialling is held by whoever connects; the others wait for the outcome.
	dialling chan struct{}
	// asking is held by whoever moves the peer's last checkpoint.
	asking chan struct{}

	mu       sync.Mutex
	pin      transport.Pin // now
	client   *rpc.Client   // the connection, or nil
	used     time.Time     // when it was last used
	ended    bool
	failedAt time.Time
	failure  error // of the last attempt; nil after a success
	contact  int64 // Unix seconds of the last success
	incoming []transport.Conn
	stuck    int // places that wait
}

func (s *Service) newPeer(domain, address string, pin transport.Pin, where string) *peer {
	return &peer{
		service: s, domain: domain, address: address, given: pin, pin: pin, where: where,
		rowsWait: make(chan struct{}, 1), hasCalled: make(chan struct{}, 1),
		ephemeral: make(chan Message, ephemeralQueue),
		dialling:  make(chan struct{}, 1), asking: make(chan struct{}, 1),
	}
}

// nudge tells whoever waits on a channel of capacity 1.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// find returns the peer of a domain.
func (s *Service) find(domain string) (*peer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.peers[domain]
	return p, ok
}

// Load reads the peers that the owner has added and what is known of all.
// Call it once, before Run and before anybody connects.
func (s *Service) Load(ctx context.Context) error {
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		for _, c := range s.options.Peers {
			s.peers[c.Domain] = s.newPeer(c.Domain, c.Address, c.Pin, c.Where)
		}
		if err := s.loadAddedTx(tx); err != nil {
			return err
		}
		for _, p := range s.peers {
			t, ok, err := readTrust(tx, p.domain)
			if err != nil {
				return err
			}
			if ok && t.given == p.given {
				p.pin, p.contact = t.pin, t.contactAt
			}
		}
		return nil
	})
	if err == nil {
		err = s.leaveOut(ctx)
	}
	if err != nil {
		return fmt.Errorf("reading the peers: %w", err)
	}
	return nil
}

// leaveOut forgets what was learnt of servers that the configuration names no
// more, so that an owner can begin anew with one. What waits for them waits on,
// in case that the owner has only made a mistake.
func (s *Service) leaveOut(ctx context.Context) error {
	var former []string
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.Query(sqlTrusted)
		if err != nil {
			return err
		}
		for rows.Next() {
			var domain string
			if err := rows.Scan(&domain); err != nil {
				return err
			}
			if s.peers[domain] == nil {
				former = append(former, domain)
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if rows, err = tx.Query(sqlWaitingDomains); err != nil {
			return err
		}
		for rows.Next() {
			var domain string
			var n int
			if err := rows.Scan(&domain, &n); err != nil {
				return err
			}
			if s.peers[domain] == nil {
				s.options.Log.Warn("messages wait for a server that is no peer any more; they expire unless it becomes one again", "domain", domain, "messages", n)
			}
		}
		return rows.Err()
	})
	if err != nil || len(former) == 0 {
		return err
	}
	return s.options.DB.Write(store.Freeing(ctx), func(tx *store.Tx) error {
		for _, domain := range former {
			if _, err := tx.Exec(sqlDropTrust, domain); err != nil {
				return err
			}
		}
		return nil
	})
}

// loadAddedTx reads the peers that were added by the control socket. What the
// configuration says comes first.
func (s *Service) loadAddedTx(tx *store.Tx) error {
	rows, err := tx.Query(sqlPeers)
	if err != nil {
		return err
	}
	for rows.Next() {
		var domain, address string
		var pin transport.Pin
		if err := rows.Scan(&domain, &address, &pin); err != nil {
			return err
		}
		if reason := s.refuseLocked(domain, pin); reason != nil {
			s.options.Log.Warn("a peer that was added by command is left out", "peer", domain, "reason", reason)
			continue
		}
		s.peers[domain] = s.newPeer(domain, address, pin, "")
	}
	return rows.Err()
}

// refuseLocked says why a server cannot be a peer beside those that there are,
// or replace the one of its domain. The caller holds s.mu, or is alone.
func (s *Service) refuseLocked(domain string, pin transport.Pin) *rpc.Error {
	known := s.peers[domain]
	switch {
	case domain == s.options.Domain:
		return rpc.Errorf(qpcpb.CodeInvalidField, "%s is this server's own name; name another server", domain)
	case known != nil && known.where != "":
		return rpc.Errorf(qpcpb.CodePeerExists, "%s stands in the configuration; change it there (%s)", domain, known.where)
	case known == nil && len(s.peers) >= MaxPeers:
		return rpc.Errorf(qpcpb.CodeQuotaExceeded, "there are %d peers, the most that there may be; remove one", MaxPeers)
	}
	for _, other := range s.peers {
		if other.domain != domain && (other.given == pin || other.pinNow() == pin) {
			return rpc.Errorf(qpcpb.CodePeerExists, "the pin is that of %s; a certificate stands for one domain", other.domain)
		}
	}
	return nil
}

func (p *peer) pinNow() transport.Pin {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pin
}

// Count implements transport.Peers.
func (s *Service) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.peers)
}

// Admits implements transport.Peers: a peer's own certificate, or one that its
// key has handed over to.
func (s *Service) Admits(cert *x509.Certificate) bool { return s.bearer(cert) != nil }

// bearer returns the peer that a certificate stands for, or nil.
func (s *Service) bearer(cert *x509.Certificate) *peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	pin := transport.PinOf(cert)
	for _, p := range s.peers {
		if p.pinNow() == pin {
			return p
		}
	}
	for _, p := range s.peers {
		if transport.HandedOver(cert, p.pinNow()) {
			return p
		}
	}
	return nil
}

// connectionsPerPeer is how many connections of one peer are kept; the oldest
// gives way, since the peer has probably lost it.
const connectionsPerPeer = 3

// Attach takes the connection of another server and returns the domain that it
// speaks for; ok is false when its certificate is no peer's, or not any more.
// Call detach when the connection has been served.
func (s *Service) Attach(conn transport.Conn) (domain string, detach func(), ok bool) {
	certs := conn.PeerCertificates()
	if len(certs) == 0 {
		return "", nil, false
	}
	p := s.bearer(certs[0])
	if p == nil {
		return "", nil, false
	}
	p.adopt(conn.Context(), transport.PinOf(certs[0]))
	p.mu.Lock()
	if p.ended {
		p.mu.Unlock()
		return "", nil, false
	}
	var oldest transport.Conn
	if len(p.incoming) >= connectionsPerPeer {
		oldest, p.incoming = p.incoming[0], slices.Delete(p.incoming, 0, 1)
	}
	p.incoming = append(p.incoming, conn)
	p.failedAt = time.Time{} // it is there: the next question may dial at once
	p.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close(transport.CloseLimitExceeded, "a newer connection takes its place")
	}
	nudge(p.hasCalled)
	return p.domain, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.incoming = slices.DeleteFunc(p.incoming, func(c transport.Conn) bool { return c == conn })
	}, true
}

// adopt remembers the pin that a peer has proven, when it is another than
// before: its key has handed over.
func (p *peer) adopt(ctx context.Context, pin transport.Pin) {
	p.mu.Lock()
	changed := p.pin != pin
	p.pin = pin
	p.mu.Unlock()
	if !changed {
		return
	}
	p.service.options.Log.Info("a peer has handed over to a new key", "peer", p.domain, "pin", pin.String())
	if err := p.changeTrust(ctx, func(t *trust) { t.pin = pin }); err != nil {
		p.service.options.Log.Warn("the new key of a peer is not remembered", "peer", p.domain, "error", err)
	}
}

// changeTrust changes what is known of the peer.
func (p *peer) changeTrust(ctx context.Context, change func(*trust)) error {
	return p.service.options.DB.Write(ctx, func(tx *store.Tx) error {
		t, err := p.trustTx(tx)
		if err != nil {
			return err
		}
		change(&t)
		return writeTrust(tx, p.domain, t)
	})
}

// trustTx returns what is known of the peer; of another pin than the owner has
// given nothing is.
func (p *peer) trustTx(tx *store.Tx) (trust, error) {
	t, ok, err := readTrust(tx, p.domain)
	if err == nil && (!ok || t.given != p.given) {
		t = trust{given: p.given, pin: p.pinNow()}
	}
	return t, err
}

// end closes all connections with the peer and lets no new one come.
func (p *peer) end() {
	p.mu.Lock()
	p.ended = true
	client, incoming := p.client, p.incoming
	p.client, p.incoming = nil, nil
	p.mu.Unlock()
	if client != nil {
		_ = client.Conn().Close(transport.CloseNormal, "federation ends")
	}
	for _, conn := range incoming {
		_ = conn.Close(transport.CloseNormal, "federation ends")
	}
}

// live returns the connection, or nil when there is none.
func (p *peer) live() *rpc.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil && p.client.Conn().Context().Err() != nil {
		p.client = nil
	}
	if p.client != nil {
		p.used = p.service.options.Now()
	}
	return p.client
}

// connect returns the connection, making it when there is none. A failure
// answers those who ask in the next moment too, but for insistent ones.
func (p *peer) connect(ctx context.Context, insist bool) (*rpc.Client, error) {
	select {
	case p.dialling <- struct{}{}:
		defer func() { <-p.dialling }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if client := p.live(); client != nil {
		return client, nil
	}
	p.mu.Lock()
	failure, since := p.failure, p.service.options.Now().Sub(p.failedAt)
	p.mu.Unlock()
	if failure != nil && since < redialAfter && !insist {
		return nil, failure
	}
	client, _, err := p.dial(ctx)
	if err == nil {
		err = p.keep(client)
	}
	if err != nil && ctx.Err() != nil {
		return nil, err // who gave up says nothing of the peer
	}
	p.note(err)
	return client, err
}

// keep makes a fresh connection the peer's.
func (p *peer) keep(client *rpc.Client) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		_ = client.Conn().Close(transport.CloseNormal, "federation ends")
		return errors.New("federation has ended")
	}
	p.client, p.used = client, p.service.options.Now()
	return nil
}

// note remembers how an attempt went, and tells the owner when that changes.
func (p *peer) note(err error) {
	p.mu.Lock()
	before := p.failure
	p.failure = err
	if err != nil {
		p.failedAt = p.service.options.Now()
	} else {
		p.contact = p.service.options.Now().Unix()
	}
	p.mu.Unlock()
	log := p.service.options.Log
	switch {
	case err == nil && before != nil:
		log.Info("a peer is reached again", "peer", p.domain)
	case err != nil && (before == nil || before.Error() != err.Error()):
		if lie := (*MismatchError)(nil); errors.As(err, &lie) {
			log.Error("a peer is not what it should be; nothing is sent to it", "peer", p.domain, "detail", lie.Detail)
			return
		}
		log.Warn("a peer is not reached; what is for it waits", "peer", p.domain, "error", err)
	}
}

// drop closes the connection, if it is still the present one.
func (p *peer) drop(client *rpc.Client, reason string) {
	p.mu.Lock()
	if p.client == client {
		p.client = nil
	}
	p.mu.Unlock()
	_ = client.Conn().Close(transport.CloseNormal, reason)
}

// dropIdle closes a connection that has not been used for a while.
func (p *peer) dropIdle() {
	p.mu.Lock()
	client := p.client
	if client == nil || p.service.options.Now().Sub(p.used) < idleAfter {
		p.mu.Unlock()
		return
	}
	p.client = nil
	p.mu.Unlock()
	_ = client.Conn().Close(transport.CloseNormal, "idle")
}

// dial connects and makes sure that it is the peer: TLS proves the certificate,
// FederationHealth must say the domain and the key that belong to it.
func (p *peer) dial(ctx context.Context) (client *rpc.Client, health *qpcpb.FederationHealthResponse, err error) {
	conn, err := p.service.options.Dial(ctx, p.address, transport.TrustPin(p.pinNow()))
	if err != nil {
		return nil, nil, err
	}
	client = rpc.NewClient(conn)
	defer func() {
		if err != nil {
			_ = conn.Close(transport.CloseNormal, "")
			client = nil
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	health, err = qpcpb.NewFederationClient(client).FederationHealth(ctx, &qpcpb.FederationHealthRequest{})
	if err != nil {
		return client, nil, err
	}
	if health.ServerDomain != p.domain {
		return client, health, mismatch(p.domain, "the server with its certificate says that it is %.80q; correct the domain or the pin", health.ServerDomain)
	}
	if len(health.ServerKey) != ed25519.PublicKeySize {
		return client, health, mismatch(p.domain, "it gives no key for its log of names")
	}
	if pin, ok := transport.PeerPin(conn); ok {
		p.adopt(ctx, pin)
	}
	return client, health, p.learn(ctx, health.ServerKey)
}

// learn compares the key of the peer's log with the one known, which at the
// first contact is this one.
func (p *peer) learn(ctx context.Context, key []byte) error {
	known, err := p.known(ctx)
	if err != nil {
		return err
	}
	now := p.service.options.Now().Unix()
	switch {
	case len(known.serverKey) == 0:
		err = p.changeTrust(ctx, func(t *trust) { t.serverKey, t.contactAt = key, now })
		if err != nil {
			return fmt.Errorf("remember the key of %s: %w", p.domain, err)
		}
	case !bytes.Equal(known.serverKey, key):
		return mismatch(p.domain, "the key of its log of names has changed, its certificate has not; if its owner has set it up anew, remove the peer, restart, and add it again")
	case now-known.contactAt > int64(noteContact/time.Second):
		// For the owner to look at. On a full disk it is left out: what is sent
		// makes room.
		if err := p.changeTrust(ctx, func(t *trust) { t.contactAt = now }); err != nil {
			p.service.options.Log.Debug("the contact with a peer is not noted", "peer", p.domain, "error", err)
		}
	}
	return nil
}

// ask makes a call that a user waits for.
func (p *peer) ask(ctx context.Context, call func(ctx context.Context, client qpcpb.FederationClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client, err := p.connect(ctx, false)
	if err != nil {
		return answerOf(p.domain, err)
	}
	err = call(ctx, qpcpb.NewFederationClient(client))
	if err == nil {
		return nil
	}
	if answer := (*rpc.Error)(nil); !errors.As(err, &answer) {
		if ctx.Err() == nil || client.Conn().Context().Err() != nil {
			p.drop(client, "a call failed")
		}
		p.service.options.Log.Debug("a question to a peer failed", "peer", p.domain, "error", err)
	}
	return answerOf(p.domain, err)
}

// auth is what every call to a peer carries.
func (s *Service) auth() *qpcpb.FederationAuth {
	return &qpcpb.FederationAuth{Origin: s.options.Domain}
}
