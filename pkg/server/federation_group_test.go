package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// members returns the group as somebody's server tells it: names, with a star at
// the owner, and the epoch.
func (p *resident) members(group []byte) string {
	p.t.Helper()
	got, err := qpcpb.NewGroupClient(p.client).ListGroupMembers(within(p.t), &qpcpb.ListGroupMembersRequest{GroupId: group})
	if err != nil {
		return rpc.CodeOf(err).Word()
	}
	var names []string
	for _, m := range got.Members {
		name := m.Username
		if m.Owner {
			name += "*"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return fmt.Sprintf("%s at %d", strings.Join(names, " "), got.Epoch)
}

func (p *resident) sees(group []byte, want string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%s sees %q, not %q", p.address(), want, p.members(group)), func() bool { return p.members(group) == want })
}

// rotates commits, with a payload that says who and which.
func (p *resident) rotates(group []byte, epoch uint64, text string, add, remove []*resident) bool {
	p.t.Helper()
	request := &qpcpb.RotateKeysRequest{GroupId: group, Epoch: epoch, Commit: []byte(text)}
	for _, r := range add {
		request.AddMembers = append(request.AddMembers, r.key[:])
		request.Welcomes = append(request.Welcomes, []byte("welcome "+r.name))
	}
	for _, r := range remove {
		request.RemoveMembers = append(request.RemoveMembers, r.key[:])
	}
	got, err := qpcpb.NewGroupClient(p.client).RotateKeys(within(p.t), request)
	if err != nil {
		p.t.Fatalf("%s: %v", p.address(), err)
	}
	return got.Accepted
}

func (p *resident) posts(group []byte, text string, to ...*resident) []uint32 {
	p.t.Helper()
	request := &qpcpb.BatchEnqueueRequest{ChannelId: group, Payload: []byte(text), MessageId: random(16)}
	for _, r := range to {
		request.RecipientKeys = append(request.RecipientKeys, r.key[:])
	}
	got, err := qpcpb.NewDeliveryClient(p.client).BatchEnqueue(within(p.t), request)
	if err != nil {
		p.t.Fatal(err)
	}
	var statuses []uint32
	for _, r := range got.Results {
		statuses = append(statuses, r.Status)
	}
	return statuses
}

func TestAGroupOnThreeServers(t *testing.T) {
	t.Parallel()
	a, b, c := newRealm(t, "a.example"), newRealm(t, "b.example"), newRealm(t, "c.example")
	befriend(a, b, c)
	alice, bob, carol := a.resident("alice"), b.resident("bob"), c.resident("carol")
	alice.finds(bob)
	alice.finds(carol)
	group := random(16)
	if _, err := qpcpb.NewGroupClient(alice.client).UpdateGroupMetadata(within(t), &qpcpb.UpdateGroupMetadataRequest{GroupId: group, Metadata: []byte("sealed")}); err != nil {
		t.Fatal(err)
	}

	// alice's server is the group's home. The state is there before the Welcome.
	if !alice.rotates(group, 0, "adds bob and carol", []*resident{bob, carol}, nil) {
		t.Fatal("alice's commit lost")
	}
	bob.reads("welcome bob")
	carol.reads("welcome carol")
	const all = "alice* bob@b.example carol@c.example at 1"
	alice.sees(group, all)
	bob.sees(group, "alice@a.example* bob carol@c.example at 1")
	carol.sees(group, "alice@a.example* bob@b.example carol at 1")

	// carol commits by way of alice's server, to bob too, who knows nothing of
	// carol's server in that: one that has lost the race is told so.
	if !carol.rotates(group, 1, "carol's commit", nil, nil) {
		t.Fatal("carol's commit lost")
	}
	if bob.rotates(group, 1, "bob's commit, too late", nil, nil) {
		t.Fatal("two commits for one epoch")
	}
	alice.reads("carol's commit")
	bob.reads("carol's commit")
	carol.reads("carol's commit") // she may have other devices
	var epoch qpcpb.GroupEpoch
	if err := proto.Unmarshal(bob.event(qpcpb.EventGroupEpoch), &epoch); err != nil || epoch.Epoch == 0 {
		t.Errorf("bob hears of epoch %d, %v", epoch.Epoch, err)
	}

	// Messages go directly, over servers that have never met the sender.
	if got := carol.posts(group, "from carol", alice, bob); !slices.Equal(got, []uint32{0, 0}) {
		t.Errorf("carol's statuses: %v", got)
	}
	alice.reads("from carol")
	bob.reads("from carol")
	bob.sees(group, "alice@a.example* bob carol@c.example at 2")
	name, err := qpcpb.NewDirectoryClient(bob.client).ResolveIdentity(within(t), &qpcpb.ResolveIdentityRequest{IdentityKey: carol.key[:]})
	if err != nil || name.Username != "carol@c.example" {
		t.Errorf("carol is %q to bob, %v", name.GetUsername(), err)
	}

	// b is away while the group goes on: commits and states come in order.
	b.stop()
	for i := uint64(2); i < 8; i++ {
		if !alice.rotates(group, i, fmt.Sprintf("commit %d", i), nil, nil) {
			t.Fatal("alice's commit lost")
		}
		if got := alice.posts(group, fmt.Sprintf("text %d", i), bob, carol); !slices.Equal(got, []uint32{0, 0}) {
			t.Errorf("alice's statuses: %v", got)
		}
	}
	b.start(b.dir)
	bob.again()
	b.wakes(a)
	var want []string
	for i := 2; i < 8; i++ {
		want = append(want, fmt.Sprintf("commit %d", i), fmt.Sprintf("text %d", i))
	}
	bob.reads(want...)
	carol.reads(want...)

	// Who is removed gets the commit that does it, and then nothing.
	if !alice.rotates(group, 8, "removes bob", nil, []*resident{bob}) {
		t.Fatal("alice's commit lost")
	}
	bob.reads("removes bob")
	carol.reads("removes bob")
	eventually(t, "bob's server has forgotten the group", func() bool { return bob.members(group) == qpcpb.CodeChannelNotFound.Word() })
	carol.sees(group, "alice@a.example* carol at 9")

	// carol goes with her account, and her server tells the home.
	if _, err := qpcpb.NewAuthClient(carol.client).DeleteAccount(within(t), &qpcpb.DeleteAccountRequest{}); err != nil {
		t.Fatal(err)
	}
	alice.sees(group, "alice* at 9")
}

// wakes makes another realm notice that this one is back.
func (r *realm) wakes(others ...*realm) {
	r.t.Helper()
	for _, o := range others {
		test, err := r.s.federation.TestPeer(within(r.t), &qpcpb.TestPeerRequest{Domain: o.domain})
		if err != nil || !test.Reachable {
			r.t.Fatalf("%s does not reach %s: %v, %v", r.domain, o.domain, test, err)
		}
	}
}

func TestMembersWhoseServersDoNotKnowEachOther(t *testing.T) {
	t.Parallel()
	a, b, c := newRealm(t, "a.example"), newRealm(t, "b.example"), newRealm(t, "c.example")
	befriend(a, b)
	befriend(a, c)
	alice, bob, carol := a.resident("alice"), b.resident("bob"), c.resident("carol")
	alice.finds(bob)
	alice.finds(carol)
	group := random(16)
	if _, err := qpcpb.NewGroupClient(alice.client).UpdateGroupMetadata(within(t), &qpcpb.UpdateGroupMetadataRequest{GroupId: group, Metadata: []byte("sealed")}); err != nil {
		t.Fatal(err)
	}
	alice.rotates(group, 0, "adds", []*resident{bob, carol}, nil)
	bob.reads("welcome bob")
	carol.reads("welcome carol")
	// The home relays commits, and nobody's messages.
	carol.rotates(group, 1, "carol's commit", nil, nil)
	bob.reads("carol's commit")
	if got := carol.posts(group, "text", alice, bob); got[0] != 0 || got[1] != uint32(qpcpb.StatusNotFound) {
		t.Errorf("carol's statuses: %v", got)
	}
	_, err := carol.enqueue(bob, group, "text")
	wantCode(t, err, qpcpb.CodeDomainUnknown)
	// When they do, it works at once.
	befriend(b, c)
	if got := carol.posts(group, "text", bob); got[0] != 0 {
		t.Errorf("carol's statuses: %v", got)
	}
	bob.reads("text")
}
