package group

import (
	"math"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// Every field has its place in the digest, so that no two requests that say
// different things are taken for one.
func TestDigestTellsRequestsApart(t *testing.T) {
	seen := make(map[[32]byte]int)
	for i, r := range []*qpcpb.RotateKeysRequest{
		{}, {Epoch: 1}, {GroupId: []byte("a")}, {Commit: []byte("a")}, {GroupId: []byte("a"), Commit: []byte("b")}, {Commit: []byte("ab")},
		{RecipientKeys: [][]byte{{1}}}, {Payloads: [][]byte{{1}}}, {AddMembers: [][]byte{{1}}}, {Welcomes: [][]byte{{1}}}, {RemoveMembers: [][]byte{{1}}},
		{Payloads: [][]byte{{1}, {2}}}, {Payloads: [][]byte{{1, 2}}}, {Payloads: [][]byte{{1, 2}, {}}}, {Payloads: [][]byte{{2}, {1}}},
		{RecipientKeys: [][]byte{{1}}, Payloads: [][]byte{{2}}},
	} {
		digest := digestOf(r)
		if first, ok := seen[digest]; ok {
			t.Errorf("requests %d and %d have one digest", first, i)
		}
		seen[digest] = i
		if digestOf(proto.CloneOf(r)) != digest {
			t.Errorf("request %d has two digests", i)
		}
	}
}

func FuzzParseRotation(f *testing.F) {
	key := func(b byte) []byte { return append(make([]byte, 31), b) }
	for _, r := range []*qpcpb.RotateKeysRequest{
		{},
		{GroupId: make([]byte, 16), Epoch: 3, Commit: []byte("x"), AddMembers: [][]byte{key(1)}, Welcomes: [][]byte{{1}}, RemoveMembers: [][]byte{key(2)}},
		{GroupId: make([]byte, 16), RecipientKeys: [][]byte{key(1), key(2)}, Payloads: [][]byte{{1}, {2}}},
		{GroupId: make([]byte, 16), RecipientKeys: [][]byte{key(1), key(1)}, Payloads: [][]byte{{1}, {2}}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	self, other := rpc.IdentityKey(key(1)), rpc.IdentityKey(key(2))
	group := &roster{members: []member{{identity: self, owner: true}, {identity: other}}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r qpcpb.RotateKeysRequest
		if proto.Unmarshal(b, &r) != nil {
			return
		}
		parsed, err := parseRotation(&r)
		if err != nil {
			if rpc.CodeOf(err) == qpcpb.CodeUnspecified {
				t.Fatalf("no answer: %v", err)
			}
			return
		}
		if len(parsed.add) != len(parsed.welcomes) || len(parsed.recipients) != len(parsed.payloads) {
			t.Fatalf("unequal lists: %+v", parsed)
		}
		commits, err := parsed.commits(group, self, false)
		if err != nil {
			return
		}
		reached := 0
		for _, c := range commits {
			if len(c.payload) == 0 {
				t.Fatal("an empty commit is accepted")
			}
			if c.to.identity == other {
				reached++
			}
		}
		if reached != 1 {
			t.Fatalf("the other member gets the commit %d times", reached)
		}
	})
}

func FuzzParseState(f *testing.F) {
	for _, s := range []*qpcpb.GroupState{
		{},
		{GroupId: make([]byte, 16), Version: 1},
		{GroupId: make([]byte, 16), Version: 1, Members: []*qpcpb.GroupStateMember{{IdentityKey: make([]byte, 32), Address: "alice@home.example", JoinedAt: 1, Owner: true}}},
		{GroupId: make([]byte, 16), Version: 1, Members: []*qpcpb.GroupStateMember{{IdentityKey: make([]byte, 32), Address: "élise@a-b.c", Owner: true}}},
	} {
		b, err := proto.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s qpcpb.GroupState
		if proto.Unmarshal(b, &s) != nil {
			return
		}
		r, err := parseState("home.example", &s)
		if err != nil {
			if rpc.CodeOf(err) == qpcpb.CodeUnspecified {
				t.Fatalf("no answer: %v", err)
			}
			return
		}
		if r.version == 0 || r.version > math.MaxInt64 || r.epoch > math.MaxInt64 {
			t.Fatal("a number that no column holds")
		}
		for _, m := range r.members {
			if domainOf(m.address) == "" || m.joinedAt < 0 {
				t.Fatalf("%+v", m)
			}
			for _, c := range m.address {
				if c < ' ' || c == 0x7f {
					t.Fatalf("a control character in %q", m.address)
				}
			}
		}
	})
}
