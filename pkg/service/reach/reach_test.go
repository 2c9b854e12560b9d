package reach_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/service/reach"
	"github.com/quicprochat/qpcd/pkg/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is long enough for a loopback, and quiet long enough to see that
// nothing comes.
const (
	patience = 10 * time.Second
	quiet    = 150 * time.Millisecond
)

// world is what reach learns of other domains.
type world struct {
	mu       sync.Mutex
	contacts map[rpc.IdentityKey][]rpc.IdentityKey
	blocked  map[[2]rpc.IdentityKey]bool
	online   map[rpc.IdentityKey]bool
	devices  map[rpc.IdentityKey]rpc.DeviceID
}

func (w *world) ContactsTx(_ *store.Tx, of rpc.IdentityKey) ([]rpc.IdentityKey, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.contacts[of], nil
}

func (w *world) BlockedTx(_ *store.Tx, blocker, blocked rpc.IdentityKey) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.blocked[[2]rpc.IdentityKey{blocker, blocked}], nil
}

func (w *world) ExistsTx(_ *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d, ok := w.devices[identity]
	return ok && d == device, nil
}

func (w *world) Online(identity rpc.IdentityKey) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.online[identity]
}

func (w *world) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

type house struct {
	*servicetest.House
	*world
	reach *reach.Service
	log   *lines
}

type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func open(t *testing.T, tweak func(*reach.Options)) house {
	h := house{House: servicetest.New(t), log: &lines{}, world: &world{
		contacts: make(map[rpc.IdentityKey][]rpc.IdentityKey), blocked: make(map[[2]rpc.IdentityKey]bool),
		online: make(map[rpc.IdentityKey]bool), devices: make(map[rpc.IdentityKey]rpc.DeviceID),
	}}
	o := reach.Options{
		DB: h.DB, Log: slog.New(slog.NewTextHandler(h.log, nil)), Accounts: h.Accounts, Devices: h.world, Contacts: h.world, Blocks: h.world,
		Presence: h.world, Now: h.Wall.Now,
	}
	if tweak != nil {
		tweak(&o)
	}
	h.reach = reach.New(o)
	qpcpb.RegisterEndpointServer(h.Server, h.reach)
	qpcpb.RegisterPushTokenServer(h.Server, h.reach)
	h.Open()
	return h
}

type person struct {
	qpcpb.EndpointClient
	qpcpb.PushTokenClient
	name string
	t    *testing.T
}

func (h house) person(t *testing.T, name string) person {
	c := h.Connect(name)
	h.set(func() { h.devices[servicetest.Key(name)] = servicetest.Device(name) })
	return person{qpcpb.NewEndpointClient(c), qpcpb.NewPushTokenClient(c), name, t}
}

func (p person) publishes(address string, ttl uint32) error {
	_, err := p.PublishEndpoint(servicetest.Within(p.t), &qpcpb.PublishEndpointRequest{IdentityKey: servicetest.Bytes(p.name), Address: []byte(address), TtlSecs: ttl})
	return err
}

func (p person) resolves(name string) (*qpcpb.ResolveEndpointResponse, error) {
	return p.ResolveEndpoint(servicetest.Within(p.t), &qpcpb.ResolveEndpointRequest{IdentityKey: servicetest.Bytes(name)})
}

func (p person) registers(url string) error {
	device := servicetest.Device(p.name)
	_, err := p.RegisterPushToken(servicetest.Within(p.t), &qpcpb.RegisterPushTokenRequest{Platform: reach.PlatformUnifiedPush, Token: url, DeviceId: device[:]})
	return err
}

func TestEndpointsAreForContacts(t *testing.T) {
	h := open(t, nil)
	alice, bob, carol := h.person(t, "alice"), h.person(t, "bob"), h.person(t, "carol")
	h.set(func() { h.contacts[servicetest.Key("alice")] = []rpc.IdentityKey{servicetest.Key("bob")} })
	nobody := func() {
		t.Helper()
		for _, p := range []person{alice, bob, carol} {
			_, err := p.resolves("alice")
			servicetest.WantCode(t, err, qpcpb.CodeEndpointNotFound)
		}
	}
	nobody()
	servicetest.WantCode(t, alice.publishes("here", 60), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.publishes("there", 600), qpcpb.CodeUnspecified)
	for _, p := range []person{alice, bob} {
		got, err := p.resolves("alice")
		if err != nil || string(got.Address) != "there" || got.ExpiresAt != uint64(h.Wall.Now().Unix()+600) {
			t.Errorf("%s learns %v, %v", p.name, got, err)
		}
	}
	_, stranger := carol.resolves("alice")
	_, unknown := carol.resolves("nobody")
	servicetest.WantCode(t, stranger, qpcpb.CodeEndpointNotFound)
	if stranger.Error() != unknown.Error() {
		t.Errorf("a stranger can tell %q from %q", stranger, unknown)
	}
	h.set(func() { h.blocked[[2]rpc.IdentityKey{servicetest.Key("alice"), servicetest.Key("bob")}] = true })
	_, blocked := bob.resolves("alice")
	servicetest.WantCode(t, blocked, qpcpb.CodeEndpointNotFound)
	if blocked.Error() != unknown.Error() {
		t.Errorf("the blocked can tell %q from %q", blocked, unknown)
	}
	servicetest.WantCode(t, alice.publishes("", 0), qpcpb.CodeUnspecified)
	nobody()
	_, err := bob.PublishEndpoint(servicetest.Within(t), &qpcpb.PublishEndpointRequest{IdentityKey: servicetest.Bytes("alice"), Address: []byte("mine")})
	servicetest.WantCode(t, err, qpcpb.CodeNotYours)
	servicetest.WantCode(t, alice.publishes(strings.Repeat("a", reach.MaxAddress), 1<<32-1), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.publishes(strings.Repeat("a", reach.MaxAddress+1), 0), qpcpb.CodePayloadTooLarge)
}

func TestEndpointsExpire(t *testing.T) {
	for name, test := range map[string]struct {
		ttl  uint32
		want time.Duration
	}{"by default": {0, time.Hour}, "as asked": {90, 90 * time.Second}, "at most": {1<<32 - 1, 24 * time.Hour}} {
		t.Run(name, func(t *testing.T) {
			h := open(t, nil)
			alice := h.person(t, "alice")
			servicetest.WantCode(t, alice.publishes("here", test.ttl), qpcpb.CodeUnspecified)
			h.Wall.Advance(-1000 * time.Hour) // whatever the wall clock does
			h.Service.Advance(test.want - time.Second)
			if _, err := alice.resolves("alice"); err != nil {
				t.Errorf("in its last second: %v", err)
			}
			if more, err := h.reach.Sweep(t.Context()); more || err != nil || h.Count("reach_endpoint") != 1 {
				t.Error("it was swept too soon")
			}
			h.Service.Advance(time.Second)
			_, err := alice.resolves("alice")
			servicetest.WantCode(t, err, qpcpb.CodeEndpointNotFound)
			if more, err := h.reach.Sweep(t.Context()); more || err != nil || h.Count("reach_endpoint") != 0 {
				t.Errorf("not swept: more %v, %v", more, err)
			}
		})
	}
}

func TestTokens(t *testing.T) {
	h := open(t, func(o *reach.Options) { o.Hosts = []string{"push.example", "192.0.2.1"} })
	alice := h.person(t, "alice")
	device := servicetest.Device("alice")
	register := func(platform, token string, device []byte) error {
		_, err := alice.RegisterPushToken(servicetest.Within(t), &qpcpb.RegisterPushTokenRequest{Platform: platform, Token: token, DeviceId: device})
		return err
	}
	for _, test := range []struct {
		platform, token string
		device          []byte
		code            qpcpb.Code
	}{
		{"unifiedpush", "https://push.example/1", device[:], qpcpb.CodeUnspecified},
		{"unifiedpush", "https://Push.Example.:8443/2", device[:], qpcpb.CodeUnspecified},
		{"unifiedpush", "https://192.0.2.1/3", device[:], qpcpb.CodeUnspecified},
		{"fcm", "https://push.example/", device[:], qpcpb.CodeInvalidField},
		{"", "https://push.example/", device[:], qpcpb.CodeInvalidField},
		{"unifiedpush", "http://push.example/", device[:], qpcpb.CodeInvalidField},
		{"unifiedpush", "https://other.example/", device[:], qpcpb.CodePushHostRefused},
		{"unifiedpush", "https://push.example.evil.example/", device[:], qpcpb.CodePushHostRefused},
		{"unifiedpush", "https://push.example/", device[1:], qpcpb.CodeInvalidField},
		{"unifiedpush", "https://push.example/", nil, qpcpb.CodeInvalidField},
		{"unifiedpush", "https://push.example/", make([]byte, 16), qpcpb.CodeDeviceNotFound},
	} {
		servicetest.WantCode(t, register(test.platform, test.token, test.device), test.code)
	}
	if n := h.Count("reach_push_token"); n != 1 {
		t.Errorf("%d tokens stored", n)
	}
	h.Write(func(tx *store.Tx) error { return h.reach.ForgetDeviceTx(tx, servicetest.Key("alice"), device) })
	if n := h.Count("reach_push_token"); n != 0 {
		t.Errorf("%d tokens stay after the device", n)
	}
	bob := h.person(t, "bob")
	for _, p := range []person{alice, bob} {
		servicetest.WantCode(t, p.registers("https://push.example/x"), qpcpb.CodeUnspecified)
		servicetest.WantCode(t, p.publishes("here", 0), qpcpb.CodeUnspecified)
	}
	h.Write(func(tx *store.Tx) error { return h.reach.EraseTx(tx, servicetest.Key("alice")) })
	if tokens, endpoints := h.Count("reach_push_token"), h.Count("reach_endpoint"); tokens != 1 || endpoints != 1 {
		t.Errorf("%d tokens and %d endpoints are left", tokens, endpoints)
	}
	servicetest.WantCode(t, bob.registers(""), qpcpb.CodeUnspecified)
	if n := h.Count("reach_push_token"); n != 0 {
		t.Errorf("%d tokens stay after they were taken back", n)
	}
	h.Accounts.Remove("alice") // deleted while a call is on its way
	servicetest.WantCode(t, alice.publishes("late", 0), qpcpb.CodeUnauthenticated)
}

// pushServer is a push server on a loopback address.
type pushServer struct {
	*httptest.Server
	t    *testing.T
	came chan *http.Request

	mu     sync.Mutex
	status int
	header http.Header
}

func newPushServer(t *testing.T) *pushServer {
	p := &pushServer{t: t, came: make(chan *http.Request, 64), status: http.StatusCreated, header: http.Header{}}
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if len(body) != 0 || err != nil {
			t.Errorf("a wake-up says %q, %v", body, err)
		}
		p.mu.Lock()
		for name, values := range p.header {
			w.Header()[name] = values
		}
		status := p.status
		p.mu.Unlock()
		p.came <- r
		w.WriteHeader(status)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *pushServer) answers(status int, header ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status, p.header = status, http.Header{}
	for i := 0; i < len(header); i += 2 {
		p.header.Set(header[i], header[i+1])
	}
}

func (p *pushServer) wakes() *http.Request {
	p.t.Helper()
	select {
	case r := <-p.came:
		return r
	case <-time.After(patience):
		p.t.Fatal("no wake-up came")
		return nil
	}
}

func (p *pushServer) isQuiet() {
	p.t.Helper()
	select {
	case r := <-p.came:
		p.t.Fatalf("a wake-up came to %s", r.URL)
	case <-time.After(quiet):
	}
}

// at returns an address at the server by a host of any name.
func (p *pushServer) at(host, path string) string {
	u, err := url.Parse(p.URL)
	if err != nil {
		p.t.Fatal(err)
	}
	return "https://" + net.JoinHostPort(host, u.Port()) + path
}

func (p *pushServer) roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(p.Certificate())
	return roots
}

// openFor opens a house that lists hosts, trusts the push server and wakes
// devices in its tests' pace.
func openFor(t *testing.T, p *pushServer, every time.Duration, resolve map[string]string, hosts ...string) house {
	h := open(t, func(o *reach.Options) {
		o.Hosts, o.RootCAs, o.Now = hosts, p.roots(), time.Now
		o.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
			if ip, ok := resolve[host]; ok {
				return []netip.Addr{netip.MustParseAddr(ip)}, nil
			}
			return nil, fmt.Errorf("nobody is called %s", host)
		}
	})
	h.reach.SetPace(every)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { h.reach.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return h
}

func TestWakeUp(t *testing.T) {
	p := newPushServer(t)
	h := openFor(t, p, 50*time.Millisecond, nil, "127.0.0.1") // loopback, since it is listed itself
	alice := h.person(t, "alice")
	h.reach.Wake(servicetest.Key("alice")) // nowhere yet
	p.isQuiet()
	servicetest.WantCode(t, alice.registers(p.at("127.0.0.1", "/up?secret=1")), qpcpb.CodeUnspecified)
	h.reach.Wake(servicetest.Key("alice"))
	r := p.wakes()
	if r.Method != http.MethodPost || r.URL.RequestURI() != "/up?secret=1" || r.Header.Get("TTL") != "86400" || r.Header.Get("Topic") != "qpc" || r.Header.Get("Urgency") != "high" {
		t.Errorf("got %s %s with %v", r.Method, r.URL, r.Header)
	}
	// Many messages within the pace are one wake-up, at its end.
	for range 50 {
		h.reach.Wake(servicetest.Key("alice"))
	}
	p.wakes()
	p.isQuiet()
	h.set(func() { h.online[servicetest.Key("alice")] = true })
	h.reach.Wake(servicetest.Key("alice"))
	p.isQuiet()
	h.set(func() { h.online[servicetest.Key("alice")] = false })
	h.reach.Wake(servicetest.Key("alice"))
	p.wakes()
	servicetest.WantCode(t, alice.registers(""), qpcpb.CodeUnspecified)
	h.reach.Wake(servicetest.Key("alice"))
	p.isQuiet()
	if h.log.String() != "" {
		t.Errorf("the log says %s", h.log)
	}
}

func TestWakeUpsThatFail(t *testing.T) {
	const every = 20 * time.Millisecond
	p := newPushServer(t)
	h := openFor(t, p, every, nil, "127.0.0.1")
	alice := h.person(t, "alice")
	address := p.at("127.0.0.1", "/very-secret")
	servicetest.WantCode(t, alice.registers(address), qpcpb.CodeUnspecified)
	// It is tried again until it works.
	p.answers(http.StatusServiceUnavailable)
	h.reach.Wake(servicetest.Key("alice"))
	p.wakes()
	p.wakes()
	p.answers(http.StatusOK)
	p.wakes()
	p.isQuiet()
	if log := h.log.String(); !strings.Contains(log, "503") || strings.Count(log, "\n") != 1 || strings.Contains(log, "very-secret") {
		t.Errorf("the log says %s", log)
	}
	// A redirect leads nowhere.
	p.answers(http.StatusTemporaryRedirect, "Location", p.at("127.0.0.1", "/elsewhere"), "Retry-After", "3000")
	h.reach.Wake(servicetest.Key("alice"))
	if r := p.wakes(); r.URL.Path != "/very-secret" {
		t.Errorf("came to %s", r.URL)
	}
	p.isQuiet() // for 50 minutes
	// Where the token is gone, it is gone here too.
	bob := h.person(t, "bob")
	for i, status := range []int{http.StatusGone, http.StatusNotFound} {
		servicetest.WantCode(t, bob.registers(fmt.Sprintf("%s/bob%d", address, i)), qpcpb.CodeUnspecified)
		p.answers(status)
		h.reach.Wake(servicetest.Key("bob"))
		p.wakes()
		for deadline := time.Now().Add(patience); h.Count("reach_push_token") != 1; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the token stays after status %d", status)
			}
		}
	}
}

// Where wake-ups must not go, whatever a name or a listed host says.
func TestWhereWakeUpsDoNotGo(t *testing.T) {
	p := newPushServer(t)
	own := ownAddress(t)
	for name, test := range map[string]struct {
		host     string
		resolve  map[string]string
		hosts    []string
		register qpcpb.Code
		log      string
	}{
		"a name that leads to loopback":     {"example.com", map[string]string{"example.com": "127.0.0.1"}, []string{"example.com"}, 0, "address of this machine"},
		"a name for IPv4 loopback in IPv6":  {"example.com", map[string]string{"example.com": "::ffff:127.0.0.1"}, []string{"example.com"}, 0, "address of this machine"},
		"a name for this machine's address": {"example.com", map[string]string{"example.com": own}, []string{"example.com"}, 0, "address of this machine"},
		"a name for a link-local address":   {"example.com", map[string]string{"example.com": "169.254.7.7"}, []string{"example.com"}, 0, "address of this machine"},
		"a name for nobody":                 {"example.com", map[string]string{"example.com": "0.0.0.0"}, []string{"example.com"}, 0, "address of this machine"},
		"a name that is none":               {"example.com", nil, []string{"example.com"}, 0, "nobody is called"},
		"a host that is not listed":         {"127.0.0.1", nil, []string{"example.com"}, qpcpb.CodePushHostRefused, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := openFor(t, p, time.Minute, test.resolve, test.hosts...)
			alice := h.person(t, "alice")
			servicetest.WantCode(t, alice.registers(p.at(test.host, "/up")), test.register)
			h.reach.Wake(servicetest.Key("alice"))
			p.isQuiet()
			for deadline := time.Now().Add(patience); !strings.Contains(h.log.String(), test.log); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the log says %q", h.log)
				}
			}
		})
	}
	t.Run("listed together with its address", func(t *testing.T) {
		h := openFor(t, p, time.Minute, map[string]string{"example.com": "127.0.0.1"}, "example.com", "127.0.0.1")
		servicetest.WantCode(t, h.person(t, "alice").registers(p.at("example.com", "/up")), qpcpb.CodeUnspecified)
		h.reach.Wake(servicetest.Key("alice"))
		p.wakes()
	})
	t.Run("a certificate of somebody else", func(t *testing.T) {
		h := openFor(t, p, time.Minute, map[string]string{"other.example": "127.0.0.1"}, "other.example", "127.0.0.1")
		servicetest.WantCode(t, h.person(t, "alice").registers(p.at("other.example", "/up")), qpcpb.CodeUnspecified)
		h.reach.Wake(servicetest.Key("alice"))
		p.isQuiet()
	})
	t.Run("unlisted since", func(t *testing.T) {
		h := openFor(t, p, time.Minute, nil, "192.0.2.1")
		h.person(t, "alice")
		h.Write(func(tx *store.Tx) error {
			_, err := tx.Exec(`INSERT INTO reach_push_token VALUES (?, ?, ?)`, servicetest.Bytes("alice"), servicetest.Device("alice"), p.at("127.0.0.1", "/up"))
			return err
		})
		h.reach.Wake(servicetest.Key("alice"))
		p.isQuiet()
		if n := h.Count("reach_push_token"); n != 1 {
			t.Error("the token is gone, though the owner may list the host again")
		}
	})
}

// ownAddress is an address of this machine that is neither loopback nor
// link-local, or loopback where there is none.
func ownAddress(t *testing.T) string {
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && n.IP.IsGlobalUnicast()
	})
	if i < 0 {
		return "127.0.0.1"
	}
	return all[i].(*net.IPNet).IP.String()
}

// A host that does not answer holds up nobody else, and the end of the server
// not either.
func TestSlowHost(t *testing.T) {
	p := newPushServer(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	h := openFor(t, p, time.Minute, nil, "127.0.0.1")
	servicetest.WantCode(t, h.person(t, "alice").registers("https://"+silent.Addr().String()+"/"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, h.person(t, "bob").registers(p.at("127.0.0.1", "/bob")), qpcpb.CodeUnspecified)
	h.reach.Wake(servicetest.Key("alice"))
	time.Sleep(20 * time.Millisecond)
	h.reach.Wake(servicetest.Key("bob"))
	if r := p.wakes(); r.URL.Path != "/bob" {
		t.Errorf("woke %s", r.URL)
	}
}
