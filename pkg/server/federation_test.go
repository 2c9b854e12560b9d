package server

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/keys"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// realm is a server that federates, and that can be stopped and started again
// in its place.
type realm struct {
	*house
	t      *testing.T
	domain string
	listen netip.AddrPort
}

// newRealm starts the server of a domain.
func newRealm(t *testing.T, domain string) *realm {
	t.Helper()
	r := &realm{t: t, domain: domain, listen: netip.MustParseAddrPort("127.0.0.1:0")}
	r.start(t.TempDir())
	r.listen = r.s.Addrs()[0]
	return r
}

func (r *realm) start(dir string) {
	r.t.Helper()
	r.house = open(r.t, dir, func(c *config.Config) {
		c.ServerName, c.Listen = r.domain, []netip.AddrPort{r.listen}
		c.ControlSocket = "" // its path would be too long
	})
}

func (r *realm) restart() {
	r.t.Helper()
	r.stop()
	r.start(r.dir)
}

// knows makes a realm a peer of this one.
func (r *realm) knows(others ...*realm) {
	r.t.Helper()
	for _, o := range others {
		_, err := r.s.federation.AddPeer(within(r.t), &qpcpb.AddPeerRequest{Domain: o.domain, Address: o.listen.String(), Pin: o.s.Pin().String()})
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// befriend makes realms each other's peers.
func befriend(realms ...*realm) {
	for _, r := range realms {
		for _, o := range realms {
			if r != o {
				r.knows(o)
			}
		}
	}
}

// resident is a user of a realm with a connection.
type resident struct {
	*client
	*user
	realm *realm
}

func (r *realm) resident(name string) *resident {
	r.t.Helper()
	u := r.settle(person(name))
	return &resident{client: r.dial("").resume(u), user: u, realm: r}
}

// again is the resident after a restart of the server.
func (p *resident) again() *resident {
	p.client = p.realm.dial("").resume(p.user)
	return p
}

func (p *resident) address() string { return p.name + "@" + p.realm.domain }

// finds looks somebody up and returns the key.
func (p *resident) finds(other *resident) rpc.IdentityKey {
	p.t.Helper()
	got, err := qpcpb.NewDirectoryClient(p.client).ResolveUser(within(p.t), &qpcpb.ResolveUserRequest{Username: other.address()})
	if err != nil {
		p.t.Fatalf("%s does not find %s: %v", p.address(), other.address(), err)
	}
	if rpc.IdentityKey(got.IdentityKey) != other.key {
		p.t.Fatalf("%s finds %x as %s", p.address(), got.IdentityKey, other.address())
	}
	return other.key
}

// opens returns the channel with somebody.
func (p *resident) opens(other *resident) []byte {
	p.t.Helper()
	got, err := qpcpb.NewChannelClient(p.client).CreateChannel(within(p.t), &qpcpb.CreateChannelRequest{PeerKey: other.key[:]})
	if err != nil {
		p.t.Fatal(err)
	}
	return got.ChannelId
}

func (p *resident) enqueue(other *resident, channel []byte, text string) (*qpcpb.EnqueueResponse, error) {
	return qpcpb.NewDeliveryClient(p.client).Enqueue(within(p.t), &qpcpb.EnqueueRequest{
		RecipientKey: other.key[:], ChannelId: channel, Payload: []byte(text), MessageId: random(16),
	})
}

func (p *resident) sends(other *resident, channel []byte, text string) {
	p.t.Helper()
	got, err := p.enqueue(other, channel, text)
	if err != nil || len(got.DeliveryProof) != 96 {
		p.t.Fatalf("%s cannot send to %s: %v, %v", p.address(), other.address(), got, err)
	}
}

// waiting returns what waits for somebody, in all channels, in order.
func (p *resident) waiting() (texts []string) {
	p.t.Helper()
	got, err := qpcpb.NewDeliveryClient(p.client).Peek(within(p.t), &qpcpb.PeekRequest{RecipientKey: p.key[:], AllChannels: true})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, e := range got.Payloads {
		texts = append(texts, string(e.Data))
	}
	return texts
}

// gets waits until exactly these messages wait for somebody, and looks a moment
// later whether it is still so.
func (p *resident) gets(want ...string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%s has %d messages, wants %d", p.address(), len(p.waiting()), len(want)), func() bool { return len(p.waiting()) >= len(want) })
	if got := p.waiting(); !slices.Equal(got, want) {
		p.t.Fatalf("%s has %q, want %q", p.address(), got, want)
	}
}

// reads is gets, and then removes them.
func (p *resident) reads(want ...string) {
	p.t.Helper()
	p.gets(want...)
	if _, err := qpcpb.NewDeliveryClient(p.client).Fetch(within(p.t), &qpcpb.FetchRequest{RecipientKey: p.key[:], AllChannels: true}); err != nil {
		p.t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatal("never: ", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// sent waits until nothing of a realm waits for a domain any more.
func (r *realm) sent(domain string) {
	r.t.Helper()
	eventually(r.t, "the outbox for "+domain+" is empty", func() bool { return r.queued(domain) == 0 })
}

func (r *realm) queued(domain string) uint64 { return r.status(domain).QueuedMessages }

func (r *realm) status(domain string) *qpcpb.PeerStatus {
	r.t.Helper()
	list, err := r.s.federation.ListPeers(within(r.t), &qpcpb.ListPeersRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range list.Peers {
		if p.Domain == domain {
			return p
		}
	}
	r.t.Fatalf("%s does not know %s", r.domain, domain)
	return nil
}

func TestFriendsOnTwoServers(t *testing.T) {
	t.Parallel()
	a, b := newRealm(t, "a.example"), newRealm(t, "b.example")
	befriend(a, b)
	alice, bob := a.resident("alice"), b.resident("bob")

	// What bob has published.
	pkg, hybrid := keyPackage(300), random(keys.HybridKeySize)
	for range 2 {
		if _, err := qpcpb.NewKeyClient(bob.client).UploadKeyPackage(within(t), &qpcpb.UploadKeyPackageRequest{IdentityKey: bob.key[:], Package: pkg}); err != nil {
			t.Fatal(err)
		}
		pkg = keyPackage(400)
	}
	if _, err := qpcpb.NewKeyClient(bob.client).UploadHybridKey(within(t), &qpcpb.UploadHybridKeyRequest{IdentityKey: bob.key[:], HybridPublicKey: hybrid}); err != nil {
		t.Fatal(err)
	}

	// Before they have met, bob is nobody to alice.
	_, err := alice.enqueue(bob, nil, "x")
	wantCode(t, err, qpcpb.CodeUserNotFound)
	alice.finds(bob)
	one, err := qpcpb.NewKeyClient(alice.client).FetchKeyPackage(within(t), &qpcpb.FetchKeyPackageRequest{IdentityKey: bob.key[:]})
	if err != nil || len(one.Package) != 300 {
		t.Errorf("bob's package: %d bytes, %v", len(one.GetPackage()), err)
	}
	each, err := qpcpb.NewKeyClient(alice.client).FetchKeyPackages(within(t), &qpcpb.FetchKeyPackagesRequest{IdentityKey: bob.key[:]})
	if err != nil || len(each.Packages) != 1 || len(each.Packages[0].Package) != 400 || len(each.Packages[0].DeviceId) != 0 {
		t.Errorf("bob's packages: %v, %v", each, err)
	}
	none, err := qpcpb.NewKeyClient(alice.client).FetchKeyPackages(within(t), &qpcpb.FetchKeyPackagesRequest{IdentityKey: bob.key[:]})
	if err != nil || len(none.Packages) != 0 {
		t.Errorf("bob has none left: %v, %v", none, err)
	}
	key, err := qpcpb.NewKeyClient(alice.client).FetchHybridKey(within(t), &qpcpb.FetchHybridKeyRequest{IdentityKey: bob.key[:]})
	if err != nil || string(key.HybridPublicKey) != string(hybrid) {
		t.Errorf("bob's hybrid key: %v", err)
	}
	both, err := qpcpb.NewKeyClient(alice.client).FetchHybridKeys(within(t), &qpcpb.FetchHybridKeysRequest{IdentityKeys: [][]byte{alice.key[:], bob.key[:]}})
	if err != nil || len(both.Keys) != 1 || string(both.Keys[0].IdentityKey) != string(bob.key[:]) {
		t.Errorf("of alice and bob, bob has one: %v, %v", both, err)
	}

	// Both servers derive the same channel. bob's is there with the first message.
	channel := alice.opens(bob)
	alice.sends(bob, channel, "hello bob")
	bob.gets("hello bob")
	var pushed qpcpb.MessageAvailable
	if err := proto.Unmarshal(bob.event(qpcpb.EventMessageAvailable), &pushed); err != nil || string(pushed.Envelope.GetData()) != "hello bob" {
		t.Errorf("pushed: %v, %v", &pushed, err)
	}
	if got := bob.opens(alice); string(got) != string(channel) {
		t.Errorf("bob's channel is %x, alice's %x", got, channel)
	}
	name, err := qpcpb.NewDirectoryClient(bob.client).ResolveIdentity(within(t), &qpcpb.ResolveIdentityRequest{IdentityKey: alice.key[:]})
	if err != nil || name.Username != "alice@a.example" {
		t.Errorf("alice is %q to bob, %v", name.GetUsername(), err)
	}
	bob.sends(alice, channel, "hello alice")
	alice.reads("hello alice")
	bob.reads("hello bob")

	// An inbox, a batch, and a repetition by the client.
	alice.sends(bob, nil, "into the inbox")
	request := &qpcpb.BatchEnqueueRequest{RecipientKeys: [][]byte{bob.key[:], alice.key[:]}, Payload: []byte("both"), MessageId: random(16)}
	for range 2 {
		if _, err := qpcpb.NewDeliveryClient(alice.client).BatchEnqueue(within(t), request); err != nil {
			t.Fatal(err)
		}
	}
	bob.reads("into the inbox", "both")
	alice.reads("both")

	// Names of one's own server, and of none.
	for name, code := range map[string]qpcpb.Code{
		"alice@A.example": qpcpb.CodeUnspecified, "nobody@b.example": qpcpb.CodeUserNotFound, "bob@c.example": qpcpb.CodeDomainUnknown,
		"bob@": qpcpb.CodeInvalidUsername, "@b.example": qpcpb.CodeInvalidUsername, "b b@b.example": qpcpb.CodeInvalidUsername,
	} {
		_, err := qpcpb.NewDirectoryClient(alice.client).ResolveUser(within(t), &qpcpb.ResolveUserRequest{Username: name})
		if rpc.CodeOf(err) != code {
			t.Errorf("%s: got %v, want %v", name, err, code)
		}
	}
	list, err := qpcpb.NewDirectoryClient(alice.client).ListUsers(within(t), &qpcpb.ListUsersRequest{})
	if err != nil || len(list.Users) != 1 {
		t.Errorf("the users of a: %v, %v", list, err)
	}

	// Ephemeral messages go over the connection that is there.
	ephemeral := &qpcpb.EnqueueRequest{RecipientKey: bob.key[:], ChannelId: channel, Payload: []byte("typing"), Ephemeral: true}
	if _, err := qpcpb.NewDeliveryClient(alice.client).Enqueue(within(t), ephemeral); err != nil {
		t.Fatal(err)
	}
	var typing qpcpb.Ephemeral
	if err := proto.Unmarshal(bob.event(qpcpb.EventEphemeral), &typing); err != nil || string(typing.Payload) != "typing" || rpc.IdentityKey(typing.SenderKey) != alice.key {
		t.Errorf("ephemeral: %v, %v", &typing, err)
	}

	// Who is blocked cannot tell, here either.
	if _, err := qpcpb.NewDirectoryClient(bob.client).BlockUser(within(t), &qpcpb.BlockUserRequest{IdentityKey: alice.key[:]}); err != nil {
		t.Fatal(err)
	}
	alice.sends(bob, channel, "blocked")
	a.sent("b.example")
	bob.gets()
	stats := a.s.federation.Stats()
	if stats.Refused != 0 || stats.Sent != 4 {
		t.Errorf("a: %+v", stats)
	}
}

func TestNothingIsLostAndNothingComesTwice(t *testing.T) {
	t.Parallel()
	a, b := newRealm(t, "a.example"), newRealm(t, "b.example")
	befriend(a, b)
	alice, bob := a.resident("alice"), b.resident("bob")
	alice.finds(bob)
	channel := alice.opens(bob)

	const each = 40
	var want []string
	send := func(part string) {
		for i := range each {
			text := fmt.Sprintf("%s %02d", part, i)
			alice.sends(bob, channel, text)
			want = append(want, text)
		}
	}
	send("both up")
	b.stop()
	send("b is down")
	a.restart()
	alice.again()
	send("a has restarted")
	if a.queued("b.example") < 2*each {
		t.Errorf("%d messages wait", a.queued("b.example"))
	}
	b.start(b.dir)
	bob.again()
	send("b is back")
	// b's restart makes nobody wait for the pause to end: it has nothing to say
	// itself, so that its owner's test is what wakes a.
	test, err := b.s.federation.TestPeer(within(t), &qpcpb.TestPeerRequest{Domain: "a.example"})
	if err != nil || !test.Reachable || test.Status != "ok" || test.RoundTripMs == 0 {
		t.Errorf("got %v, %v", test, err)
	}
	a.sent("b.example")
	bob.gets(want...)
	if got := b.s.federation.Stats(); got.Received-got.Discarded < 3*each {
		t.Errorf("b: %+v", got)
	}
}

func TestWhatAPeerMayNotDo(t *testing.T) {
	t.Parallel()
	a, b, c := newRealm(t, "a.example"), newRealm(t, "b.example"), newRealm(t, "c.example")
	befriend(a, b, c)
	alice, bob, carol := a.resident("alice"), b.resident("bob"), c.resident("carol")
	alice.finds(bob)
	alice.finds(carol)
	// The test speaks as b.
	calls := qpcpb.NewFederationClient(a.peerDial(t, b.s.certs))
	auth := &qpcpb.FederationAuth{Origin: "b.example"}
	relay := func(change func(*qpcpb.RelayEnqueueRequest)) *qpcpb.RelayEnqueueRequest {
		r := &qpcpb.RelayEnqueueRequest{
			Auth: auth, RecipientKey: alice.key[:], Payload: []byte("x"), MessageId: random(16), SenderKey: bob.key[:], SenderName: "bob",
		}
		if change != nil {
			change(r)
		}
		return r
	}
	recorded := relay(nil)
	first, err := calls.RelayEnqueue(within(t), recorded)
	if err != nil || first.Seq != 1 || first.Duplicate {
		t.Fatalf("got %v, %v", first, err)
	}
	for name, test := range map[string]struct {
		change func(*qpcpb.RelayEnqueueRequest)
		code   qpcpb.Code
	}{
		"in the name of another server":      {func(r *qpcpb.RelayEnqueueRequest) { r.Auth = &qpcpb.FederationAuth{Origin: "c.example"} }, qpcpb.CodeOriginMismatch},
		"in no name":                         {func(r *qpcpb.RelayEnqueueRequest) { r.Auth = nil }, qpcpb.CodeOriginMismatch},
		"for a user of a third server":       {func(r *qpcpb.RelayEnqueueRequest) { r.SenderKey, r.SenderName = carol.key[:], "carol" }, qpcpb.CodeOriginMismatch},
		"for a user of the called server":    {func(r *qpcpb.RelayEnqueueRequest) { r.SenderKey, r.SenderName = alice.key[:], "alice" }, qpcpb.CodeOriginMismatch},
		"to a user of a third server":        {func(r *qpcpb.RelayEnqueueRequest) { r.RecipientKey = carol.key[:] }, qpcpb.CodeUserNotFound},
		"to one of its own":                  {func(r *qpcpb.RelayEnqueueRequest) { r.RecipientKey = bob.key[:] }, qpcpb.CodeUserNotFound},
		"in a channel of others":             {func(r *qpcpb.RelayEnqueueRequest) { r.ChannelId = random(16) }, qpcpb.CodeChannelNotFound},
		"as the home of a group that is not": {func(r *qpcpb.RelayEnqueueRequest) { r.SenderKey, r.SenderName, r.ChannelId = nil, "", random(16) }, qpcpb.CodeChannelNotFound},
		"without a message id":               {func(r *qpcpb.RelayEnqueueRequest) { r.MessageId = nil }, qpcpb.CodeInvalidField},
		"with a name that is none":           {func(r *qpcpb.RelayEnqueueRequest) { r.SenderName = "bob@b.example" }, qpcpb.CodeInvalidField},
		"ephemeral, for a stranger":          {func(r *qpcpb.RelayEnqueueRequest) { r.Ephemeral, r.SenderKey = true, random(32) }, qpcpb.CodeOriginMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := calls.RelayEnqueue(within(t), relay(test.change))
			wantCode(t, err, test.code)
		})
	}
	for name, call := range map[string]func() error{
		"reading a queue": func() error {
			_, err := qpcpb.NewDeliveryClient(a.peerDial(t, b.s.certs)).Peek(within(t), &qpcpb.PeekRequest{RecipientKey: alice.key[:]})
			return err
		},
		"asking the health": func() error {
			_, err := qpcpb.NewHealthClient(a.peerDial(t, b.s.certs)).Health(within(t), &qpcpb.HealthRequest{})
			return err
		},
		"relaying as a client": func() error {
			_, err := qpcpb.NewFederationClient(alice.client).RelayEnqueue(within(t), recorded)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { wantCode(t, call(), qpcpb.CodeUnimplemented) })
	}

	// The same again, and the same by a server that has recorded it.
	again, err := calls.RelayEnqueue(within(t), recorded)
	if err != nil || again.Seq != 1 || !again.Duplicate {
		t.Errorf("again: %v, %v", again, err)
	}
	again, err = qpcpb.NewFederationClient(a.peerDial(t, b.s.certs)).RelayEnqueue(within(t), recorded)
	if err != nil || again.Seq != 1 || !again.Duplicate {
		t.Errorf("on a new connection: %v, %v", again, err)
	}
	_, err = qpcpb.NewFederationClient(a.peerDial(t, c.s.certs)).RelayEnqueue(within(t), recorded)
	wantCode(t, err, qpcpb.CodeOriginMismatch)
	alice.gets("x")

	// A batch in which some are refused; of one recipient, all after it.
	batch, err := calls.RelayBatchEnqueue(within(t), &qpcpb.RelayBatchEnqueueRequest{
		Auth: auth, SenderKey: bob.key[:], SenderName: "bob", RecipientKeys: [][]byte{alice.key[:], carol.key[:], alice.key[:]},
		Payloads: [][]byte{[]byte("1"), []byte("2"), []byte("3")}, MessageIds: [][]byte{random(16), random(16), random(16)}, TtlsSecs: []uint32{60, 60, 0},
	})
	if err != nil || !slices.Equal(batch.Seqs, []uint64{2, 0, 3}) {
		t.Errorf("batch: %v, %v", batch, err)
	}
	alice.gets("x", "1", "3")
}

// peerDial connects as another server.
func (r *realm) peerDial(t *testing.T, certs *transport.CertificateStore) *rpc.Client {
	t.Helper()
	conn, err := transport.Dial(within(t), transport.DialOptions{
		Address: r.listen.String(), Trust: transport.TrustPin(r.s.Pin()), ALPN: transport.FederationALPN, Certificates: certs,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(transport.CloseNormal, "") })
	return rpc.NewClient(conn)
}

func TestPeersThatAreNotWhatTheyShouldBe(t *testing.T) {
	t.Parallel()
	a, b, liar := newRealm(t, "a.example"), newRealm(t, "b.example"), newRealm(t, "liar.example")
	alice, bob := a.resident("alice"), b.resident("bob")
	test := func(domain, want string) {
		t.Helper()
		got, err := a.s.federation.TestPeer(within(t), &qpcpb.TestPeerRequest{Domain: domain})
		if err != nil || got.Reachable || !strings.Contains(got.Detail, want) {
			t.Errorf("%s: got %v, %v, want %q", domain, got, err, want)
		}
	}
	add := func(domain string, at *realm, pin transport.Pin) {
		t.Helper()
		if _, err := a.s.federation.AddPeer(within(t), &qpcpb.AddPeerRequest{Domain: domain, Address: at.listen.String(), Pin: pin.String()}); err != nil {
			t.Fatal(err)
		}
	}
	resolve := func(name string, code qpcpb.Code) {
		t.Helper()
		_, err := qpcpb.NewDirectoryClient(alice.client).ResolveUser(within(t), &qpcpb.ResolveUserRequest{Username: name})
		if rpc.CodeOf(err) != code || code == qpcpb.CodeUnspecified && err != nil {
			t.Errorf("%s: got %v, want %v", name, err, code)
		}
	}

	// One that has not added us, one with another certificate, one that is not
	// there, one that says it is somebody else.
	add("b.example", b, b.s.Pin())
	test("b.example", "its owner has to add this server as a peer")
	b.knows(a)
	_, err := a.s.federation.TestPeer(within(t), &qpcpb.TestPeerRequest{Domain: "b.example"})
	if err != nil {
		t.Fatal(err)
	}
	add("b.example", b, transport.Pin{1})
	test("b.example", "its pin is "+b.s.Pin().String())
	resolve("bob@b.example", qpcpb.CodePeerUnreachable)
	b.stop()
	add("b.example", b, b.s.Pin())
	test("b.example", "is qpcd running there?")
	b.start(b.dir)

	liar.knows(a)
	add("c.example", liar, liar.s.Pin())
	test("c.example", `says that it is "liar.example"`)
	resolve("bob@c.example", qpcpb.CodeOriginMismatch)
	eventually(t, "the owner is told", func() bool {
		return strings.Contains(a.log.String(), `level=ERROR msg="a peer is not what it should be; nothing is sent to it" peer=c.example`)
	})

	// It is b again, with the right pin.
	if got, err := a.s.federation.TestPeer(within(t), &qpcpb.TestPeerRequest{Domain: "b.example"}); err != nil || !got.Reachable {
		t.Errorf("got %v, %v", got, err)
	}
	resolve("bob@b.example", qpcpb.CodeUnspecified)
	alice.sends(bob, nil, "at last")
	bob.again().gets("at last")

	// A pin stands for one domain; one's own name and a second section are none.
	for name, test := range map[string]struct {
		request *qpcpb.AddPeerRequest
		code    qpcpb.Code
	}{
		"the pin of another": {&qpcpb.AddPeerRequest{Domain: "d.example", Address: "d", Pin: b.s.Pin().String()}, qpcpb.CodePeerExists},
		"itself":             {&qpcpb.AddPeerRequest{Domain: "A.example", Address: "d", Pin: transport.Pin{2}.String()}, qpcpb.CodeInvalidField},
		"no domain":          {&qpcpb.AddPeerRequest{Domain: "", Address: "d", Pin: transport.Pin{2}.String()}, qpcpb.CodeInvalidField},
		"no address":         {&qpcpb.AddPeerRequest{Domain: "d", Address: ":0", Pin: transport.Pin{2}.String()}, qpcpb.CodeInvalidField},
		"no pin":             {&qpcpb.AddPeerRequest{Domain: "d", Address: "d", Pin: "00"}, qpcpb.CodeInvalidField},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.s.federation.AddPeer(within(t), test.request)
			wantCode(t, err, test.code)
		})
	}
	_, err = a.s.federation.TestPeer(within(t), &qpcpb.TestPeerRequest{Domain: "nowhere"})
	wantCode(t, err, qpcpb.CodePeerNotFound)
	_, err = a.s.federation.RemovePeer(within(t), &qpcpb.RemovePeerRequest{Domain: "nowhere"})
	wantCode(t, err, qpcpb.CodePeerNotFound)
}

func TestRemovedPeers(t *testing.T) {
	t.Parallel()
	a, b := newRealm(t, "a.example"), newRealm(t, "b.example")
	befriend(a, b)
	alice, bob := a.resident("alice"), b.resident("bob")
	alice.finds(bob)
	bob.finds(alice)
	standing := b.peerDial(t, a.s.certs)
	b.stop()
	for range 3 {
		alice.sends(bob, nil, "x")
	}
	b.start(b.dir)
	bob.again()

	gone, err := b.s.federation.RemovePeer(within(t), &qpcpb.RemovePeerRequest{Domain: "a.example"})
	if err != nil || gone.DroppedMessages != 0 {
		t.Fatalf("got %v, %v", gone, err)
	}
	_ = standing.Conn().Close(transport.CloseNormal, "")
	_, err = bob.enqueue(alice, nil, "x")
	wantCode(t, err, qpcpb.CodeUserNotFound)
	gone, err = a.s.federation.RemovePeer(within(t), &qpcpb.RemovePeerRequest{Domain: "B.example"})
	if err != nil || gone.DroppedMessages > 3 {
		t.Fatalf("got %v, %v", gone, err)
	}
	for table, rows := range a.dump() {
		if strings.HasPrefix(table, "federation_") && rows != "" {
			t.Errorf("%s has %s", table, rows)
		}
	}
	// And from the beginning.
	befriend(a, b)
	alice.finds(bob)
	alice.sends(bob, nil, "again")
	a.sent("b.example")
	if got := bob.waiting(); got[len(got)-1] != "again" {
		t.Errorf("bob has %q", got)
	}
}

func TestPeersOfTheConfiguration(t *testing.T) {
	t.Parallel()
	b := newRealm(t, "b.example")
	a := &realm{t: t, domain: "a.example"}
	a.house = open(t, t.TempDir(), func(c *config.Config) {
		c.ServerName, c.ControlSocket = "a.example", ""
		c.Peers = []config.Peer{{
			Domain: "b.example", Address: b.listen.String(), Pin: b.s.Pin(),
			Origin: config.Origin{Source: config.FromUCI, Name: "domain", File: "/etc/config/qpcd", Section: "friends", Line: 7},
		}}
	})
	a.listen = a.s.Addrs()[0]
	b.knows(a)
	alice, bob := a.resident("alice"), b.resident("bob")
	alice.finds(bob)
	alice.sends(bob, nil, "hello")
	bob.gets("hello")
	if p := a.status("b.example"); p.Origin != "uci" || p.State != "connected" || p.LastContact == 0 || p.Pin != b.s.Pin().String() {
		t.Errorf("got %v", p)
	}
	const where = "/etc/config/qpcd section 'friends' option 'domain' line 7"
	_, err := a.s.federation.RemovePeer(within(t), &qpcpb.RemovePeerRequest{Domain: "b.example"})
	wantCode(t, err, qpcpb.CodePeerExists)
	if !strings.Contains(err.Error(), where) {
		t.Errorf("it does not say where: %v", err)
	}
	_, err = a.s.federation.AddPeer(within(t), &qpcpb.AddPeerRequest{Domain: "b.example", Address: "elsewhere", Pin: b.s.Pin().String()})
	wantCode(t, err, qpcpb.CodePeerExists)
}

func TestAFullQueueHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	a := newRealm(t, "a.example")
	b := &realm{t: t, domain: "b.example"}
	b.house = open(t, t.TempDir(), func(c *config.Config) {
		c.ServerName, c.ControlSocket, c.QueueMessages = "b.example", "", 5
	})
	b.listen = b.s.Addrs()[0]
	befriend(a, b)
	alice, bob, carol := a.resident("alice"), b.resident("bob"), b.resident("carol")
	alice.finds(bob)
	alice.finds(carol)
	withBob, withCarol := alice.opens(bob), alice.opens(carol)
	var want []string
	for i := range 12 {
		text := fmt.Sprint(i)
		alice.sends(bob, withBob, text)
		want = append(want, text)
	}
	for i := range 4 {
		alice.sends(carol, withCarol, fmt.Sprint(i))
	}
	carol.gets("0", "1", "2", "3")
	// bob reads five at a time, and misses nothing.
	var got []string
	eventually(t, "bob has all", func() bool {
		page, err := qpcpb.NewDeliveryClient(bob.client).Fetch(within(t), &qpcpb.FetchRequest{RecipientKey: bob.key[:], AllChannels: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Payloads {
			got = append(got, string(e.Data))
		}
		return len(got) >= len(want)
	})
	if !slices.Equal(got, want) {
		t.Errorf("bob has read %q", got)
	}
	a.sent("b.example")
}

func TestADeletedAccountTakesItsMessagesAlong(t *testing.T) {
	t.Parallel()
	a, b := newRealm(t, "a.example"), newRealm(t, "b.example")
	befriend(a, b)
	alice, dave, bob := a.resident("alice"), a.resident("dave"), b.resident("bob")
	alice.finds(bob)
	b.stop()
	alice.sends(bob, nil, "from alice")
	dave.sends(bob, nil, "from dave")
	if _, err := qpcpb.NewAuthClient(alice.client).DeleteAccount(within(t), &qpcpb.DeleteAccountRequest{}); err != nil {
		t.Fatal(err)
	}
	hexed := strings.ToUpper(alice.key.String())
	for table, rows := range a.dump() {
		if strings.HasPrefix(table, "federation_") && strings.Contains(rows, hexed) {
			t.Errorf("%s still has alice: %s", table, rows)
		}
	}
	b.start(b.dir)
	bob.again().gets("from dave")
}

func TestASlowPeerHoldsUpNobodyElse(t *testing.T) {
	t.Parallel()
	a, b, slow := newRealm(t, "a.example"), newRealm(t, "b.example"), newRealm(t, "slow.example")
	befriend(a, b, slow)
	alice, bob, sam := a.resident("alice"), b.resident("bob"), slow.resident("sam")
	alice.finds(bob)
	alice.finds(sam)
	// sam's server takes calls and does not answer them: its one writer is held.
	release := make(chan struct{})
	var held sync.WaitGroup
	entered := make(chan struct{})
	held.Go(func() {
		err := slow.s.db.Write(context.Background(), func(*store.Tx) error {
			close(entered)
			<-release
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-entered
	for i := range 20 {
		alice.sends(sam, nil, fmt.Sprint(i))
		alice.sends(bob, nil, fmt.Sprint(i))
	}
	eventually(t, "bob has all", func() bool { return len(bob.waiting()) == 20 })
	if n := a.queued("slow.example"); n != 20 {
		t.Errorf("%d messages wait for the slow one", n)
	}
	close(release)
	held.Wait()
	a.sent("slow.example")
	if n := len(sam.waiting()); n != 20 {
		t.Errorf("sam has %d messages", n)
	}
}

// A server that makes itself a new key stays a peer: the old key has signed it.
func TestAPeerHandsOverToANewKey(t *testing.T) {
	t.Parallel()
	a, b := newRealm(t, "a.example"), newRealm(t, "b.example")
	befriend(a, b)
	alice, bob := a.resident("alice"), b.resident("bob")
	alice.finds(bob)
	old := b.s.Pin()
	if _, err := b.s.RotateCertificate(within(t), &qpcpb.RotateCertificateRequest{}); err != nil {
		t.Fatal(err)
	}
	if b.s.Pin() == old {
		t.Fatal("the key is the old one")
	}
	// b dials a with the new key, and a remembers it over a restart.
	bob.finds(alice)
	eventually(t, "a knows the new key", func() bool { return a.status("b.example").Pin == b.s.Pin().String() })
	a.restart()
	alice.again()
	if got := a.status("b.example").Pin; got != b.s.Pin().String() {
		t.Errorf("after a restart the pin is %s", got)
	}
	alice.sends(bob, nil, "to the new key")
	bob.gets("to the new key")
	// The old key is nobody any more.
	if _, err := a.s.federation.AddPeer(within(t), &qpcpb.AddPeerRequest{Domain: "c.example", Address: "c", Pin: b.s.Pin().String()}); rpc.CodeOf(err) != qpcpb.CodePeerExists {
		t.Errorf("another peer with the new pin: %v", err)
	}
}
