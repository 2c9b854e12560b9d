package reach

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// maxAsked bounds the identities whose tokens are to be looked up. More
	// are dropped; their next message asks again.
	maxAsked = 1024
	// maxPaced bounds the devices whose pace is remembered, at about 100 bytes
	// each. More are not woken until others are forgotten.
	maxPaced = 4096
	// maxSending bounds the wake-ups under way: each is a TLS connection of
	// some 60 KiB for a second or two.
	maxSending = 4
	// sendTimeout bounds one wake-up, from the look-up of the name to the end
	// of the answer.
	sendTimeout = 15 * time.Second
	// pushTTL is how long the push server keeps a wake-up for a device that it
	// cannot reach either (RFC 8030, section 5.2). Messages wait longer; a
	// device that was off for a day looks for itself when it comes back.
	pushTTL = 24 * time.Hour
	// pushTopic makes a later wake-up replace one that still waits there
	// (RFC 8030, section 5.4).
	pushTopic = "qpc"
	// maxAnswer bounds what is read of an answer, of which nothing is used.
	maxAnswer = 4 << 10
	// maxAnswerHeader bounds its header.
	maxAnswerHeader = 16 << 10
)

// target is a device that can be woken.
type target struct {
	identity rpc.IdentityKey
	device   rpc.DeviceID
}

// pending is what Run has before it: identities that were asked for, and the
// pace of their devices.
type pending struct {
	changed chan struct{} // there is something to look at

	mu      sync.Mutex
	asked   map[rpc.IdentityKey]struct{}
	paces   map[target]pace
	urls    map[target]string // of those that are wanted or sending
	sending int
}

func newPending() *pending {
	return &pending{
		changed: make(chan struct{}, 1),
		asked:   make(map[rpc.IdentityKey]struct{}),
		paces:   make(map[target]pace),
		urls:    make(map[target]string),
	}
}

func (p *pending) signal() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Wake makes the devices of an identity that has no connection look for
// messages. It returns at once, and is made to be called after the commit that
// stored one.
func (s *Service) Wake(identity rpc.IdentityKey) {
	if len(s.hosts) == 0 {
		return
	}
	p := s.pending
	p.mu.Lock()
	_, already := p.asked[identity]
	if !already && len(p.asked) < maxAsked {
		p.asked[identity] = struct{}{}
	}
	p.mu.Unlock()
	if !already {
		p.signal()
	}
}

// Run sends wake-ups until ctx ends, then waits for those under way.
func (s *Service) Run(ctx context.Context) {
	var sending sync.WaitGroup
	defer sending.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-s.pending.changed:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if err := s.lookUp(ctx); err != nil && ctx.Err() == nil {
			s.options.Log.Warn("devices are not woken", "error", err)
		}
		now := s.options.Now()
		for _, t := range s.pending.take(now) {
			if s.options.Presence.Online(t.identity) {
				s.pending.cancel(t)
				continue
			}
			sending.Go(func() { s.send(ctx, t) })
		}
		if wait, ok := s.pending.next(s.options.Now()); ok {
			timer.Reset(wait)
		}
	}
}

// lookUp turns the identities asked for into devices that are wanted.
func (s *Service) lookUp(ctx context.Context) error {
	p := s.pending
	p.mu.Lock()
	asked := p.asked
	p.asked = make(map[rpc.IdentityKey]struct{})
	p.mu.Unlock()
	if len(asked) == 0 {
		return nil
	}
	found := make(map[target]string)
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		for identity := range asked {
			tokens, err := readTokens(tx, identity)
			if err != nil {
				return err
			}
			for _, t := range tokens {
				// The list may have been another when the token was stored.
				if host, err := pushHost(t.url); err == nil && s.hosts[host] {
					found[target{identity, t.device}] = t.url
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.want(found, s.options.Now(), s.every)
	return nil
}

// want notes that devices are to be woken.
func (p *pending) want(found map[target]string, now time.Time, every time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.paces)+len(found) > maxPaced {
		for t, pace := range p.paces {
			if pace.idle(now) {
				delete(p.paces, t)
			}
		}
	}
	for t, url := range found {
		pace, known := p.paces[t]
		if !known && len(p.paces) >= maxPaced {
			continue
		}
		if old, ok := p.urls[t]; ok && old != url { // what the old one did is not its fault
			pace.failures = 0
			if next := now.Add(every); next.Before(pace.earliest) {
				pace.earliest = next
			}
		}
		pace.wanted = true
		p.paces[t], p.urls[t] = pace, url
	}
}

// take returns the devices whose time has come, as many as may be under way,
// and marks them so.
func (p *pending) take(now time.Time) (due []target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t, pace := range p.paces {
		if p.sending >= maxSending {
			break
		}
		if pace.due(now) {
			p.paces[t] = pace.sent()
			p.sending++
			due = append(due, t)
		}
	}
	return due
}

// cancel gives back a device that was taken and needs no wake-up.
func (p *pending) cancel(t target) {
	p.mu.Lock()
	pace := p.paces[t]
	pace.sending = false
	p.settle(t, pace)
	p.mu.Unlock()
	p.signal()
}

// settle notes the pace of a device that was taken. The caller holds p.mu.
func (p *pending) settle(t target, pace pace) {
	p.sending--
	p.paces[t] = pace
	if !pace.wanted {
		delete(p.urls, t)
	}
}

// next returns how long to wait for the next device that is wanted, unless
// one that ends will wake Run anyway.
func (p *pending) next(now time.Time) (wait time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sending >= maxSending {
		return 0, false
	}
	for _, pace := range p.paces {
		if !pace.wanted || pace.sending {
			continue
		}
		if left := max(0, pace.earliest.Sub(now)); !ok || left < wait {
			wait, ok = left, true
		}
	}
	return wait, ok
}

// errGone reports a push token that its host does not know any more.
var errGone = errors.New("the push address is gone")

// send wakes one device and notes what came of it.
func (s *Service) send(ctx context.Context, t target) {
	p := s.pending
	p.mu.Lock()
	address := p.urls[t]
	p.mu.Unlock()
	asked, err := s.post(ctx, address)
	gone := errors.Is(err, errGone)
	if gone {
		gone := s.options.DB.Write(ctx, func(tx *store.Tx) error { return deleteGone(tx, t.identity, token{t.device, address}) })
		if gone != nil && ctx.Err() == nil {
			s.options.Log.Warn("a push token that is gone stays stored", "error", gone)
		}
	}
	now := s.options.Now()
	p.mu.Lock()
	pace := p.paces[t].ended(now, err == nil, s.every, asked)
	if gone && p.urls[t] == address {
		pace.wanted = false // a new token would have come with a new wish
	}
	failures := pace.failures
	p.settle(t, pace)
	p.mu.Unlock()
	p.signal()
	if err != nil && !gone && ctx.Err() == nil && failures == 1 {
		// The host only: the rest of the address lets anybody wake the device.
		host, _ := pushHost(address)
		s.options.Log.Warn("a device could not be woken; trying again later", "host", host, "error", withoutURL(err))
	}
}

// withoutURL takes the address off an error of net/http.
func withoutURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// post sends one wake-up (RFC 8030, section 5). It returns how long the host
// asks to be left alone.
func (s *Service) post(ctx context.Context, address string) (asked time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, http.NoBody)
	if err != nil {
		return 0, err
	}
	request.Header.Set("TTL", strconv.Itoa(int(pushTTL/time.Second)))
	request.Header.Set("Topic", pushTopic)
	request.Header.Set("Urgency", "high") // RFC 8030, section 5.3: somebody has written
	request.Header.Set("User-Agent", "qpcd")
	response, err := s.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	// An answer that cannot be read to its end has still been given.
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, maxAnswer))
	if seconds, err := strconv.ParseUint(response.Header.Get("Retry-After"), 10, 31); err == nil {
		asked = time.Duration(seconds) * time.Second
	}
	switch code := response.StatusCode; {
	case code >= 200 && code < 300:
		return asked, nil
	case code == http.StatusNotFound, code == http.StatusGone: // RFC 8030, section 7.3
		return 0, errGone
	default:
		return asked, fmt.Errorf("the push server answers with status %d", code)
	}
}

// newClient makes the HTTP client of the wake-ups.
func (s *Service) newClient() *http.Client {
	dialer := &net.Dialer{Timeout: sendTimeout, Control: s.mayDial}
	resolve := s.options.Resolve
	if resolve == nil {
		resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy: nil,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				host, port, err := net.SplitHostPort(address)
				if err != nil {
					return nil, err
				}
				ips := []netip.Addr{}
				if ip, err := netip.ParseAddr(host); err == nil {
					ips = append(ips, ip)
				} else if ips, err = resolve(ctx, host); err != nil {
					return nil, err
				}
				err = fmt.Errorf("%s has no address", host)
				for _, ip := range ips {
					var conn net.Conn
					if conn, err = dialer.DialContext(ctx, network, net.JoinHostPort(ip.Unmap().String(), port)); err == nil {
						return conn, nil
					}
				}
				return nil, err
			},
			TLSClientConfig: &tls.Config{RootCAs: s.options.RootCAs, MinVersion: tls.VersionTLS12},
			// A wake-up a minute does not pay for connections that are kept.
			DisableKeepAlives:      true,
			TLSHandshakeTimeout:    sendTimeout,
			ResponseHeaderTimeout:  sendTimeout,
			MaxResponseHeaderBytes: maxAnswerHeader,
		},
	}
}

// errAddress reports a host that would have led to this machine or its link.
var errAddress = errors.New("the push server's name leads to an address of this machine or link; list the address itself in push_host if that is meant")

// mayDial is the last gate before a connection is made: it sees the address,
// whatever a name has said before.
func (s *Service) mayDial(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w (%s)", errAddress, address)
	}
	ip := to.Addr().Unmap()
	if s.hosts[ip.WithZone("").String()] {
		return nil
	}
	own, err := ownAddresses()
	if err != nil {
		return fmt.Errorf("finding this machine's own addresses: %w", err)
	}
	if isOwnOrLocal(ip, own) {
		return fmt.Errorf("%w (%s)", errAddress, ip)
	}
	return nil
}

func ownAddresses() (own []netip.Addr, err error) {
	all, err := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own = append(own, ip.Unmap())
			}
		}
	}
	return own, err
}
