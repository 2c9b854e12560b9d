package group_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/group"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

const far, farther = "far.example", "farther.example"

// remote is the other servers as this one knows them.
type remote struct {
	mail      *mail
	addresses map[rpc.IdentityKey]string
	home      *house // that calls are passed to

	mu     sync.Mutex
	states map[string][]*qpcpb.GroupState // what each domain was told
	refuse error
}

// told returns what a domain was told.
func (r *remote) told(domain string) []*qpcpb.GroupState {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.states[domain])
}

// refuses makes passed calls fail.
func (r *remote) refuses(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refuse = err
}

func (r *remote) refusal() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refuse
}

func (r *remote) AddressTx(_ *store.Tx, identity rpc.IdentityKey) (string, bool, error) {
	address, ok := r.addresses[identity]
	return address, ok, nil
}

func (r *remote) AnnounceGroupTx(tx *store.Tx, domains []string, state *qpcpb.GroupState) error {
	for _, domain := range domains {
		var members []string
		for _, m := range state.Members {
			members = append(members, m.Address)
		}
		r.mail.note(tx, fmt.Sprintf("state %d of %d to %s", state.Version, len(members), domain))
		tx.AfterCommit(func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.states[domain] = append(r.states[domain], proto.CloneOf(state))
		})
	}
	return nil
}

func (r *remote) LeaveTx(tx *store.Tx, home string, _ rpc.ChannelID, identity rpc.IdentityKey) error {
	r.mail.note(tx, nameOf(identity)+" leaves "+home)
	return nil
}

func (r *remote) RotateKeys(ctx context.Context, _ string, caller rpc.IdentityKey, request *qpcpb.RotateKeysRequest) (*qpcpb.RotateKeysResponse, error) {
	if err := r.refusal(); err != nil {
		return nil, err
	}
	return r.home.group.RotateKeysFor(ctx, caller, request)
}

func (r *remote) UpdateGroupMetadata(ctx context.Context, _ string, caller rpc.IdentityKey, request *qpcpb.UpdateGroupMetadataRequest) (*qpcpb.UpdateGroupMetadataResponse, error) {
	if err := r.refusal(); err != nil {
		return nil, err
	}
	return r.home.group.UpdateGroupMetadataFor(ctx, caller, request)
}

func (r *remote) RemoveMember(ctx context.Context, _ string, caller rpc.IdentityKey, request *qpcpb.RemoveMemberRequest) (*qpcpb.RemoveMemberResponse, error) {
	if err := r.refusal(); err != nil {
		return nil, err
	}
	return r.home.group.RemoveMemberFor(ctx, caller, request)
}

// two makes two houses that know each other: alice, bob and carol live here,
// remo and rita on far.
func two(t *testing.T) (near, other *house) {
	near = buildOn(t, here, rand.Reader)
	other = buildOn(t, far, rand.Reader)
	for _, name := range []string{"remo", "rita"} {
		other.Accounts.Add(name)
		near.remote.addresses[servicetest.Key(name)] = name + "@" + far
	}
	for _, name := range []string{"alice", "bob", "carol"} {
		near.Accounts.Add(name)
		other.remote.addresses[servicetest.Key(name)] = name + "@" + here
	}
	near.remote.home, other.remote.home = other, near
	return near, other
}

// hears delivers the last state that was announced to a house.
func (h *house) hears(t testing.TB, from *house) {
	t.Helper()
	all := from.remote.told(h.options.Domain)
	if err := h.apply(from.options.Domain, all[len(all)-1]); err != nil {
		t.Fatal(err)
	}
}

func (h *house) apply(home string, state *qpcpb.GroupState) error {
	return h.DB.Write(context.Background(), func(tx *store.Tx) error { return h.group.ApplyStateTx(tx, home, state) })
}

// wantLog checks what was posted and announced, in order.
func (h *house) wantLog(t testing.TB, want ...string) {
	t.Helper()
	if got := h.mail.take(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A group over two servers, with members of both doing everything.
func TestGroupOverTwoServers(t *testing.T) {
	near, other := two(t)
	alice := near.inMemory(t, "alice")
	remo, rita := other.inMemory(t, "remo"), other.inMemory(t, "rita")

	alice.updates("trip", "x", "bob")
	near.wantLog(t) // nobody elsewhere
	alice.rotates(adding(rotation("trip", 0, "one"), "remo"), true, 1)
	near.wantLog(t, "state 2 of 3 to "+far, commitTo("bob", "one"), welcomeTo("remo"))
	alice.sees("trip", "1 x: alice* bob remo(remo@far.example)")
	remo.seesNothing("trip")
	other.hears(t, near)
	remo.sees("trip", "1 x: alice(alice@here.example)* bob(bob@here.example) remo")

	// What a member of the copy calls is done at home. The copy waits for the
	// home's word.
	remo.rotates(adding(rotation("trip", 1, "two"), "rita"), true, 2)
	near.wantLog(t, "state 3 of 4 to "+far, commitTo("alice", "two"), commitTo("bob", "two"), commitTo("remo", "two"), welcomeTo("rita"))
	remo.rotates(rotation("trip", 1, "late"), false, 2)
	other.hears(t, near)
	event := remo.conn.Event()
	for event = remo.conn.Event(); event.Kind != qpcpb.EventGroupEpoch; event = remo.conn.Event() {
	}
	remo.updates("trip", "y")
	servicetest.WantCode(t, rita.remove("trip", "bob"), qpcpb.CodeOwnerRequired)
	near.wantLog(t, "state 4 of 4 to "+far)
	other.hears(t, near)
	rita.sees("trip", "2 y: alice(alice@here.example)* bob(bob@here.example) remo rita")

	// Nobody hears the state that takes them out before the commit that does.
	alice.rotates(removing(rotation("trip", 2, "three"), "rita"), true, 3)
	near.wantLog(t, commitTo("rita", "three"), "state 5 of 3 to "+far, commitTo("bob", "three"), commitTo("remo", "three"))
	other.hears(t, near)
	rita.seesNothing("trip")
	_, err := other.group.RotateKeysFor(t.Context(), servicetest.Key("alice"), rotation("trip", 3, "x"))
	servicetest.WantCode(t, err, qpcpb.CodeChannelNotFound) // far is not its home

	// The last member of a server leaves, and its copy goes.
	remo.removes("trip", "remo")
	near.wantLog(t, "state 6 of 2 to "+far)
	other.hears(t, near)
	if n := other.Count("group_group"); n != 0 {
		t.Errorf("%d copies left", n)
	}
	alice.updates("trip", "z")
	near.wantLog(t)
}

func TestGroupOfOthersOwner(t *testing.T) {
	near, other := two(t)
	alice, remo := near.inMemory(t, "alice"), other.inMemory(t, "remo")
	alice.updates("trip", "x", "remo", "bob")
	alice.removes("trip", "alice") // remo owns, and home stays
	other.hears(t, near)
	remo.sees("trip", "0 x: remo* bob(bob@here.example)")
	remo.removes("trip", "bob")
	other.hears(t, near)
	remo.removes("trip", "remo")
	other.hears(t, near)
	if a, b := near.Count("group_group"), other.Count("group_group"); a+b != 0 {
		t.Errorf("%d and %d groups left", a, b)
	}
}

// Those whose account goes leave the groups of other servers too, whose homes
// are told; those that are at home are told of the change.
func TestEraseOverTwoServers(t *testing.T) {
	near, other := two(t)
	alice, remo := near.inMemory(t, "alice"), other.inMemory(t, "remo")
	alice.updates("trip", "x", "remo", "rita")
	other.hears(t, near)
	near.mail.take()
	erase := func(h *house, name string) {
		h.Accounts.Remove(name)
		h.Write(func(tx *store.Tx) error { return h.group.EraseTx(tx, servicetest.Key(name)) })
	}
	erase(other, "rita")
	other.wantLog(t, nameOf(servicetest.Key("rita"))+" leaves "+here)
	remo.sees("trip", "0 x: alice(alice@here.example)* remo")
	// The home's word, which still knows of rita, does not bring her back.
	alice.updates("trip", "y")
	other.hears(t, near)
	remo.sees("trip", "0 y: alice(alice@here.example)* remo")

	near.mail.take()
	erase(near, "alice")
	near.wantLog(t, "state 3 of 2 to "+far)
	other.hears(t, near)
	remo.sees("trip", "0 y: remo*")
	erase(other, "remo")
	if n := other.Count("group_member"); n != 0 {
		t.Errorf("%d members of copies left", n)
	}
}

// A server that is no peer any more holds up nobody, and nothing is queued here
// for its users.
func TestMemberOfAServerThatIsGone(t *testing.T) {
	near, _ := two(t)
	alice := near.inMemory(t, "alice")
	alice.updates("trip", "x", "bob", "remo")
	near.options.Remote = &remote{mail: near.mail, states: make(map[string][]*qpcpb.GroupState)}
	near.start()
	near.mail.take()
	alice.rotates(rotation("trip", 0, "one"), true, 1)
	near.wantLog(t, "state 2 of 3 to "+far, commitTo("bob", "one"))
	near.options.Remote = nil
	near.start()
	alice.rotates(rotation("trip", 1, "two"), true, 2)
	near.wantLog(t, commitTo("bob", "two"))
	alice.sees("trip", "2 x: alice* bob remo(remo@far.example)")
	alice.rotates(removing(rotation("trip", 2, "three"), "remo"), true, 3)
	alice.sees("trip", "3 x: alice* bob")
}

// When the home is no peer any more, its copy can be left and nothing else.
func TestHomeIsGone(t *testing.T) {
	for _, federating := range []bool{true, false} {
		near, other := two(t)
		alice, remo, rita := near.inMemory(t, "alice"), other.inMemory(t, "remo"), other.inMemory(t, "rita")
		alice.updates("trip", "x", "remo", "rita")
		other.hears(t, near)
		other.remote.refuses(rpc.Errorf(qpcpb.CodePeerUnreachable, "later"))
		servicetest.WantCode(t, remo.remove("trip", "remo"), qpcpb.CodePeerUnreachable)
		other.remote.refuses(rpc.Errorf(qpcpb.CodeDomainUnknown, "who?"))
		if !federating {
			other.options.Remote = nil
			other.start()
		}
		_, err := remo.rotate(rotation("trip", 0, "one"))
		servicetest.WantCode(t, err, qpcpb.CodeDomainUnknown)
		_, err = remo.update("trip", "y")
		servicetest.WantCode(t, err, qpcpb.CodeDomainUnknown)
		servicetest.WantCode(t, remo.remove("trip", "rita"), qpcpb.CodeDomainUnknown)
		remo.removes("trip", "remo")
		remo.seesNothing("trip")
		if federating {
			rita.sees("trip", "0 x: alice(alice@here.example)* rita")
		} else { // as the home has called her
			rita.sees("trip", "0 x: alice("+nameOf(servicetest.Key("alice"))+"@here.example)* rita")
		}
		rita.removes("trip", "rita")
		if n := other.Count("group_group"); n != 0 {
			t.Errorf("%d copies left", n)
		}
	}
}

// What a home may say, and what it may not.
func TestStatesOfOthers(t *testing.T) {
	near, _ := two(t)
	alice := near.inMemory(t, "alice")
	alice.updates("mine", "x")
	channel, _ := alice.opens("bob")
	state := func(change func(*qpcpb.GroupState)) *qpcpb.GroupState {
		s := &qpcpb.GroupState{
			GroupId: groupID("trip"), Version: 7, Epoch: 3, Metadata: []byte("x"),
			Members: []*qpcpb.GroupStateMember{
				{IdentityKey: servicetest.Bytes("remo"), Address: "remo@" + far, JoinedAt: 5, Owner: true},
				{IdentityKey: servicetest.Bytes("alice"), Address: "alice@" + here, JoinedAt: 6},
				{IdentityKey: servicetest.Bytes("rolf"), Address: "rolf@" + farther, JoinedAt: 7},
			},
		}
		change(s)
		return s
	}
	if err := near.apply(far, state(func(*qpcpb.GroupState) {})); err != nil {
		t.Fatal(err)
	}
	const whole = "3 x: remo(remo@far.example)* alice rolf(rolf@farther.example)"
	alice.sees("trip", whole)

	for name, test := range map[string]struct {
		home   string
		change func(*qpcpb.GroupState)
		code   qpcpb.Code
	}{
		"another home":      {farther, func(s *qpcpb.GroupState) { s.Version++ }, qpcpb.CodeOriginMismatch},
		"another, older":    {farther, func(s *qpcpb.GroupState) {}, qpcpb.CodeOriginMismatch},
		"another, gone":     {farther, func(s *qpcpb.GroupState) { s.Version, s.Members = 99, nil }, qpcpb.CodeOriginMismatch},
		"a group of ours":   {far, func(s *qpcpb.GroupState) { s.GroupId, s.Version = groupID("mine"), 99 }, qpcpb.CodeOriginMismatch},
		"a channel":         {far, func(s *qpcpb.GroupState) { s.GroupId = channel[:] }, qpcpb.CodeOriginMismatch},
		"in our name":       {here, func(s *qpcpb.GroupState) { s.GroupId = groupID("new") }, qpcpb.CodeOriginMismatch},
		"without id":        {far, func(s *qpcpb.GroupState) { s.GroupId = nil }, qpcpb.CodeInvalidField},
		"without version":   {far, func(s *qpcpb.GroupState) { s.Version = 0 }, qpcpb.CodeInvalidField},
		"a huge version":    {far, func(s *qpcpb.GroupState) { s.Version = 1 << 63 }, qpcpb.CodeInvalidField},
		"a huge epoch":      {far, func(s *qpcpb.GroupState) { s.Epoch = 1 << 63 }, qpcpb.CodeInvalidField},
		"a huge time":       {far, func(s *qpcpb.GroupState) { s.Members[0].JoinedAt = 1 << 63 }, qpcpb.CodeInvalidField},
		"much metadata":     {far, func(s *qpcpb.GroupState) { s.Metadata = make([]byte, 16<<10+1) }, qpcpb.CodePayloadTooLarge},
		"many members":      {far, func(s *qpcpb.GroupState) { s.Members = make([]*qpcpb.GroupStateMember, 257) }, qpcpb.CodeInvalidField},
		"no member at all":  {far, func(s *qpcpb.GroupState) { s.Members[1] = &qpcpb.GroupStateMember{} }, qpcpb.CodeInvalidField},
		"one twice":         {far, func(s *qpcpb.GroupState) { s.Members[1].IdentityKey = s.Members[0].IdentityKey }, qpcpb.CodeInvalidField},
		"two owners":        {far, func(s *qpcpb.GroupState) { s.Members[1].Owner = true }, qpcpb.CodeInvalidField},
		"no owner":          {far, func(s *qpcpb.GroupState) { s.Members[0].Owner = false }, qpcpb.CodeInvalidField},
		"no domain":         {far, func(s *qpcpb.GroupState) { s.Members[0].Address = "remo" }, qpcpb.CodeInvalidField},
		"two domains":       {far, func(s *qpcpb.GroupState) { s.Members[0].Address = "remo@far@here" }, qpcpb.CodeInvalidField},
		"a terminal's code": {far, func(s *qpcpb.GroupState) { s.Members[0].Address = "remo@far\x1b[2J" }, qpcpb.CodeInvalidField},
		"no folded name":    {far, func(s *qpcpb.GroupState) { s.Members[0].Address = "Remo@far" }, qpcpb.CodeInvalidField},
		"a long domain":     {far, func(s *qpcpb.GroupState) { s.Members[0].Address = "remo@" + strings.Repeat("a", 400) }, qpcpb.CodeInvalidField},
		"an older one":      {far, func(s *qpcpb.GroupState) { s.Version, s.Metadata = 6, []byte("old") }, qpcpb.CodeUnspecified},
		"the same again":    {far, func(s *qpcpb.GroupState) { s.Metadata = []byte("again") }, qpcpb.CodeUnspecified},
		"nobody here":       {far, func(s *qpcpb.GroupState) { s.GroupId, s.Members = groupID("new"), s.Members[:1] }, qpcpb.CodeUnspecified},
		"somebody made up": {far, func(s *qpcpb.GroupState) {
			s.GroupId, s.Members = groupID("new"), s.Members[:1]
			s.Members = append(s.Members, &qpcpb.GroupStateMember{IdentityKey: servicetest.Bytes("erin"), Address: "erin@" + here})
		}, qpcpb.CodeUnspecified},
		"unknown and gone": {far, func(s *qpcpb.GroupState) { s.GroupId, s.Members = groupID("new"), nil }, qpcpb.CodeUnspecified},
	} {
		err := near.apply(test.home, state(test.change))
		t.Run(name, func(t *testing.T) {
			servicetest.WantCode(t, err, test.code)
			alice.sees("trip", whole)
			if n := near.Count("group_group"); n != 2 {
				t.Fatalf("%d groups", n)
			}
		})
	}

	// A key of ours under another address is ours; an address that this server
	// knows better is shown as this server knows it.
	err := near.apply(far, state(func(s *qpcpb.GroupState) {
		s.Version = 8
		s.Members[1].Address = "alice@" + farther
		s.Members[0].Address = "king@" + farther
	}))
	servicetest.WantCode(t, err, qpcpb.CodeUnspecified)
	alice.sees("trip", whole)

	if err := near.apply(far, state(func(s *qpcpb.GroupState) { s.Version, s.Members = 9, nil })); err != nil {
		t.Fatal(err)
	}
	alice.seesNothing("trip")
}

func TestPeersFillNobodysGroups(t *testing.T) {
	near, _ := two(t)
	alice, bob := near.inMemory(t, "alice"), near.inMemory(t, "bob")
	tell := func(g string, members ...string) {
		t.Helper()
		s := &qpcpb.GroupState{GroupId: groupID(g), Version: 1}
		for i, name := range members {
			s.Members = append(s.Members, &qpcpb.GroupStateMember{IdentityKey: servicetest.Bytes(name), Address: name + "@" + here, Owner: i == 0})
		}
		if err := near.apply(far, s); err != nil {
			t.Fatal(err)
		}
	}
	for i := range group.MaxGroups {
		tell(fmt.Sprint("junk", i), "alice")
	}
	tell("one more", "alice")
	alice.seesNothing("one more")
	tell("both", "bob", "alice")
	bob.sees("both", "0 : bob*")
	alice.seesNothing("both")
	if n := near.Count("group_group"); n != group.MaxGroups+1 {
		t.Errorf("%d groups", n)
	}
}

func derived(a, b string) rpc.ChannelID {
	low, high := servicetest.Bytes(a), servicetest.Bytes(b)
	if string(low) > string(high) {
		low, high = high, low
	}
	hash := sha256.Sum256(slices.Concat([]byte("qpc federated channel v1"), low, high))
	return rpc.ChannelID(hash[:16])
}

func TestChannelsOverTwoServers(t *testing.T) {
	near, other := two(t)
	alice, bob := near.inMemory(t, "alice"), near.inMemory(t, "bob")
	remo := other.inMemory(t, "remo")
	openChannel := func(id rpc.ChannelID, sender, recipient string) error {
		return near.DB.Write(t.Context(), func(tx *store.Tx) error {
			return near.group.OpenChannelTx(tx, id, servicetest.Key(sender), servicetest.Key(recipient))
		})
	}
	here, wasNew := alice.opens("remo")
	there, wasNewThere := remo.opens("alice")
	if here != there || here != derived("remo", "alice") || !wasNew || !wasNewThere {
		t.Errorf("%s %v here, %s %v there", here, wasNew, there, wasNewThere)
	}
	if again, wasNew := alice.opens("remo"); again != here || wasNew {
		t.Error("the same channel is new again")
	}
	_, err := alice.create(servicetest.Bytes("rolf")) // nobody has met rolf
	servicetest.WantCode(t, err, qpcpb.CodeUserNotFound)

	// A message opens it for somebody who has never asked.
	id := derived("remo", "bob")
	for name, test := range map[string]struct {
		id                rpc.ChannelID
		sender, recipient string
		code              qpcpb.Code
	}{
		"another id":    {here, "remo", "bob", qpcpb.CodeChannelNotFound},
		"other people":  {id, "rita", "bob", qpcpb.CodeChannelNotFound},
		"nobody":        {derived("remo", "erin"), "remo", "erin", qpcpb.CodeUserNotFound},
		"oneself":       {derived("bob", "bob"), "bob", "bob", qpcpb.CodeChannelNotFound},
		"there already": {here, "remo", "alice", qpcpb.CodeUnspecified},
	} {
		err := openChannel(test.id, test.sender, test.recipient)
		t.Run(name, func(t *testing.T) { servicetest.WantCode(t, err, test.code) })
	}
	// Somebody has taken the id for a group, with bob in it.
	carol := near.inMemory(t, "carol")
	if _, err := carol.groups.UpdateGroupMetadata(t.Context(), &qpcpb.UpdateGroupMetadataRequest{GroupId: id[:], AddMembers: keysOf([]string{"bob"})}); err != nil {
		t.Fatal(err)
	}
	servicetest.WantCode(t, openChannel(id, "remo", "bob"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, openChannel(id, "remo", "bob"), qpcpb.CodeUnspecified)
	if n := near.Count("group_group"); n != 0 {
		t.Errorf("%d groups in the way", n)
	}
	if got, wasNew := bob.opens("remo"); got != id || wasNew {
		t.Errorf("bob gets %s, new %v", got, wasNew)
	}
	err = near.DB.Read(t.Context(), func(tx *store.Tx) error {
		return near.group.BothMembersTx(tx, id, servicetest.Key("bob"), servicetest.Key("remo"))
	})
	servicetest.WantCode(t, err, qpcpb.CodeUnspecified)
}
