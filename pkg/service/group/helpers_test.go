package group_test

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/group"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

// here is the domain of the house.
const here = "here.example"

type house struct {
	*servicetest.House
	group   *group.Service
	options group.Options
	routes  qpcpb.Registrar
	mail    *mail
	devices *devices
	remote  *remote
}

func open(t *testing.T, random io.Reader) *house {
	h := build(t, random)
	h.Open()
	return h
}

// build makes a house that serves in memory only.
func build(t *testing.T, random io.Reader) *house { return buildOn(t, here, random) }

// buildOn makes the house of a domain.
func buildOn(t *testing.T, domain string, random io.Reader) *house {
	h := &house{House: servicetest.New(t), mail: &mail{}, devices: &devices{}}
	h.remote = &remote{mail: h.mail, addresses: make(map[rpc.IdentityKey]string), states: make(map[string][]*qpcpb.GroupState)}
	h.routes = h.Replaceable()
	h.options = group.Options{
		Accounts: h.Accounts, Names: names{h.Accounts}, Devices: h.devices, Post: h.mail, Push: h.Hub, Remote: h.remote,
		Domain: domain, Now: h.Wall.Now, Random: random,
	}
	h.start()
	return h
}

// start makes the service, anew after a restart.
func (h *house) start() {
	h.options.DB = h.DB
	h.group = group.New(h.options)
	qpcpb.RegisterChannelServer(h.routes, h.group)
	qpcpb.RegisterGroupServer(h.routes, h.group)
}

func (h *house) restart() {
	h.RestartDB()
	h.start()
}

// names calls everybody by the key.
type names struct{ accounts *servicetest.Accounts }

func nameOf(identity rpc.IdentityKey) string { return "u" + identity.String()[:8] }

func (n names) UsernameTx(tx *store.Tx, identity rpc.IdentityKey) (string, bool, error) {
	ok, err := n.accounts.ExistsTx(tx, identity)
	return nameOf(identity), ok, err
}

// devices are those that are registered.
type devices struct {
	mu    sync.Mutex
	known map[rpc.IdentityKey][]rpc.DeviceID
}

func (d *devices) register(name string, device rpc.DeviceID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known == nil {
		d.known = make(map[rpc.IdentityKey][]rpc.DeviceID)
	}
	d.known[servicetest.Key(name)] = append(d.known[servicetest.Key(name)], device)
}

func (d *devices) ListTx(_ *store.Tx, identity rpc.IdentityKey) ([]rpc.DeviceID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known[identity], nil
}

// mail keeps what is posted, and in a line with it what other servers are told.
type mail struct {
	mu   sync.Mutex
	log  []string
	full rpc.IdentityKey // whose queues take nothing
	fail error
}

// breaks makes the mail refuse what is for one, or fail in all.
func (m *mail) breaks(full rpc.IdentityKey, fail error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.full, m.fail = full, fail
}

func (m *mail) note(tx *store.Tx, line string) {
	tx.AfterCommit(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.log = append(m.log, line)
	})
}

func (m *mail) PostTx(tx *store.Tx, p group.Posting) error {
	m.mu.Lock()
	full, fail := m.full == p.Recipient, m.fail
	m.mu.Unlock()
	if fail != nil {
		return fail
	}
	if full {
		return rpc.Errorf(qpcpb.CodeQueueFull, "no room")
	}
	m.note(tx, posted(p.Recipient, p.InChannel, p.Payload))
	return nil
}

func posted(to rpc.IdentityKey, inChannel bool, payload []byte) string {
	where := "inbox"
	if inChannel {
		where = "group"
	}
	return fmt.Sprintf("%s %s %s", payload, where, nameOf(to))
}

// take returns what was noted since the last call.
func (m *mail) take() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	log := m.log
	m.log = nil
	return log
}

// person is somebody with a connection.
type person struct {
	qpcpb.ChannelClient
	groups qpcpb.GroupClient
	conn   *servicetest.Client
	name   string
	h      *house
	t      testing.TB
}

func (h *house) person(t testing.TB, name string) person {
	return h.on(t, name, h.Connect(name))
}

// inMemory is a person without a network.
func (h *house) inMemory(t testing.TB, name string) person {
	h.Accounts.Add(name)
	return h.on(t, name, h.InMemoryAs(rpc.Principal{Identity: servicetest.Key(name), Username: name}))
}

func (h *house) on(t testing.TB, name string, c *servicetest.Client) person {
	return person{qpcpb.NewChannelClient(c), qpcpb.NewGroupClient(c), c, name, h, t}
}

func (p person) create(peer []byte) (*qpcpb.CreateChannelResponse, error) {
	return p.CreateChannel(servicetest.Within(p.t), &qpcpb.CreateChannelRequest{PeerKey: peer})
}

// opens creates a channel that must come to be.
func (p person) opens(with string) (rpc.ChannelID, bool) {
	p.t.Helper()
	got, err := p.create(servicetest.Bytes(with))
	if err != nil {
		p.t.Fatal(err)
	}
	return rpc.ChannelID(got.ChannelId), got.WasNew
}

func keysOf(names []string) (keys [][]byte) {
	for _, name := range names {
		keys = append(keys, servicetest.Bytes(name))
	}
	return keys
}

// groupID returns a group id, always the same for a name.
func groupID(name string) []byte {
	id := servicetest.Device("group " + name)
	return id[:]
}

func (p person) update(g, metadata string, add ...string) (*qpcpb.UpdateGroupMetadataResponse, error) {
	return p.groups.UpdateGroupMetadata(servicetest.Within(p.t), &qpcpb.UpdateGroupMetadataRequest{
		GroupId: groupID(g), Metadata: []byte(metadata), AddMembers: keysOf(add),
	})
}

func (p person) updates(g, metadata string, add ...string) {
	p.t.Helper()
	if got, err := p.update(g, metadata, add...); err != nil || !got.Success {
		p.t.Fatalf("%v, %v", got, err)
	}
}

func (p person) remove(g, who string) error {
	got, err := p.groups.RemoveMember(servicetest.Within(p.t), &qpcpb.RemoveMemberRequest{
		GroupId: groupID(g), IdentityKey: servicetest.Bytes(who),
	})
	if err == nil && !got.Success {
		p.t.Error("no success and no error")
	}
	return err
}

func (p person) removes(g, who string) {
	p.t.Helper()
	if err := p.remove(g, who); err != nil {
		p.t.Fatal(err)
	}
}

func (p person) list(g string) (*qpcpb.ListGroupMembersResponse, error) {
	return p.groups.ListGroupMembers(servicetest.Within(p.t), &qpcpb.ListGroupMembersRequest{GroupId: groupID(g)})
}

// sees checks a group as a person lists it: "epoch metadata: members", the
// owner with a star.
func (p person) sees(g, want string) {
	p.t.Helper()
	got, err := p.list(g)
	if err != nil {
		p.t.Fatal(err)
	}
	line := fmt.Sprintf("%d %s:", got.Epoch, got.Metadata)
	for _, m := range got.Members {
		line += " " + p.h.known(m)
	}
	if line != want {
		p.t.Errorf("%s sees %q, want %q", p.name, line, want)
	}
}

// seesNothing checks that a group is none to a person.
func (p person) seesNothing(g string) {
	p.t.Helper()
	_, err := p.list(g)
	servicetest.WantCode(p.t, err, qpcpb.CodeChannelNotFound)
}

// people are the names that tests use.
var people = []string{"alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "root", "remo", "rita", "rolf"}

// known returns the name of a member in a test.
func (h *house) known(m *qpcpb.GroupMember) string {
	i := slices.IndexFunc(people, func(name string) bool { return string(servicetest.Bytes(name)) == string(m.IdentityKey) })
	name := "somebody"
	if i >= 0 {
		name = people[i]
	}
	if m.Username != nameOf(rpc.IdentityKey(m.IdentityKey)) { // of another server
		name += "(" + m.Username + ")"
	}
	if m.Owner {
		name += "*"
	}
	return name
}

// rotation is a RotateKeys that says what it adds and removes.
func rotation(g string, epoch uint64, commit string) *qpcpb.RotateKeysRequest {
	return &qpcpb.RotateKeysRequest{GroupId: groupID(g), Epoch: epoch, Commit: []byte(commit)}
}

func adding(r *qpcpb.RotateKeysRequest, who ...string) *qpcpb.RotateKeysRequest {
	r.AddMembers = keysOf(who)
	for _, name := range who {
		r.Welcomes = append(r.Welcomes, []byte("hi "+name))
	}
	return r
}

func removing(r *qpcpb.RotateKeysRequest, who ...string) *qpcpb.RotateKeysRequest {
	r.RemoveMembers = keysOf(who)
	return r
}

func (p person) rotate(r *qpcpb.RotateKeysRequest) (*qpcpb.RotateKeysResponse, error) {
	return p.groups.RotateKeys(servicetest.Within(p.t), r)
}

// rotates checks the answer: accepted, and the epoch.
func (p person) rotates(r *qpcpb.RotateKeysRequest, accepted bool, epoch uint64) {
	p.t.Helper()
	got, err := p.rotate(r)
	if err != nil {
		p.t.Fatal(err)
	}
	if got.Accepted != accepted || got.Epoch != epoch {
		p.t.Errorf("accepted %v, epoch %d; want %v, %d", got.Accepted, got.Epoch, accepted, epoch)
	}
}

// wantPosted checks what was posted since the last look, in any order.
func (h *house) wantPosted(t testing.TB, want ...string) {
	t.Helper()
	got := h.mail.take()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("posted %q, want %q", got, want)
	}
}

// to is a line of the mail for somebody.
func commitTo(name, commit string) string {
	return posted(servicetest.Key(name), true, []byte(commit))
}

func welcomeTo(name string) string {
	return posted(servicetest.Key(name), false, []byte("hi "+name))
}
