package group_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/group"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

// A group from its first day to its last, with a restart in between.
func TestLifeOfAGroup(t *testing.T) {
	h := open(t, rand.Reader)
	alice, bob, carol, dave := h.person(t, "alice"), h.person(t, "bob"), h.person(t, "carol"), h.person(t, "dave")

	alice.seesNothing("trip")
	alice.updates("trip", "summer")
	alice.sees("trip", "0 summer: alice*")
	bob.seesNothing("trip")

	// The first commit of a group has nobody to be told of it.
	alice.rotates(adding(rotation("trip", 0, ""), "bob", "carol"), true, 1)
	h.wantPosted(t, welcomeTo("bob"), welcomeTo("carol"))
	for _, p := range []person{alice, bob, carol} {
		p.sees("trip", "1 summer: alice* bob carol")
	}
	// Any member adds and commits.
	bob.rotates(adding(rotation("trip", 1, "two"), "dave"), true, 2)
	h.wantPosted(t, commitTo("alice", "two"), commitTo("carol", "two"), welcomeTo("dave"))
	carol.updates("trip", "winter")
	carol.updates("trip", "", "bob") // a member already, and the metadata stays
	h.wantPosted(t)
	dave.sees("trip", "2 winter: alice* bob carol dave")

	h.restart()
	dave.sees("trip", "2 winter: alice* bob carol dave")

	// Who is removed learns of it.
	alice.rotates(removing(rotation("trip", 2, "three"), "bob"), true, 3)
	h.wantPosted(t, commitTo("bob", "three"), commitTo("carol", "three"), commitTo("dave", "three"))
	bob.seesNothing("trip")
	// The owner leaves; the removal is another's commit.
	alice.removes("trip", "alice")
	alice.seesNothing("trip")
	dave.sees("trip", "3 winter: carol* dave")
	dave.rotates(removing(rotation("trip", 3, "four"), "alice"), true, 4)
	h.wantPosted(t, commitTo("carol", "four"))
	dave.updates("trip", "")
	carol.sees("trip", "4 : carol* dave")

	carol.removes("trip", "dave")
	carol.removes("trip", "dave") // the answer was lost
	carol.removes("trip", "carol")
	for _, table := range []string{"group_group", "group_member", "group_commit"} {
		if n := h.Count(table); n != 0 {
			t.Errorf("%d rows of %s left", n, table)
		}
	}
	dave.updates("trip", "again") // the id is nobody's now
	dave.sees("trip", "0 again: dave*")
}

func TestGroupRefusals(t *testing.T) {
	h := open(t, rand.Reader)
	alice, bob, dave := h.person(t, "alice"), h.person(t, "bob"), h.person(t, "dave")
	h.Accounts.Add("carol")
	alice.updates("trip", "summer", "bob", "carol")
	alice.rotates(rotation("trip", 0, "one"), true, 1)
	channel, _ := alice.opens("bob")
	h.mail.take()
	const (
		invalid, tooLarge, notFound = qpcpb.CodeInvalidField, qpcpb.CodePayloadTooLarge, qpcpb.CodeChannelNotFound
		owner                       = qpcpb.CodeOwnerRequired
	)
	update := func(by person, change func(*qpcpb.UpdateGroupMetadataRequest)) func() error {
		return func() error {
			r := &qpcpb.UpdateGroupMetadataRequest{GroupId: groupID("trip"), Metadata: []byte("new"), AddMembers: keysOf([]string{"dave"})}
			change(r)
			_, err := by.groups.UpdateGroupMetadata(servicetest.Within(t), r)
			return err
		}
	}
	rotate := func(by person, change func(*qpcpb.RotateKeysRequest)) func() error {
		return func() error {
			r := rotation("trip", 1, "two")
			change(r)
			_, err := by.groups.RotateKeys(servicetest.Within(t), r)
			return err
		}
	}
	single := func(r *qpcpb.RotateKeysRequest, to ...string) {
		r.Commit, r.RecipientKeys = nil, keysOf(to)
		for range to {
			r.Payloads = append(r.Payloads, []byte("x"))
		}
	}
	for name, test := range map[string]struct {
		call func() error
		code qpcpb.Code
	}{
		"list without id": {func() error {
			_, err := alice.groups.ListGroupMembers(t.Context(), &qpcpb.ListGroupMembersRequest{})
			return err
		}, invalid},
		"list as stranger": {func() error { _, err := dave.list("trip"); return err }, notFound},
		"list unknown":     {func() error { _, err := alice.list("other"); return err }, notFound},

		"remove from unknown":    {func() error { return alice.remove("other", "alice") }, notFound},
		"remove as stranger":     {func() error { return dave.remove("trip", "dave") }, notFound},
		"remove one as stranger": {func() error { return dave.remove("trip", "bob") }, notFound},
		"remove as no owner":     {func() error { return bob.remove("trip", "carol") }, owner},
		"remove the owner":       {func() error { return bob.remove("trip", "alice") }, owner},
		"remove nobody":          {func() error { return bob.remove("trip", "nobody") }, owner},

		"take an id":          {update(dave, func(*qpcpb.UpdateGroupMetadataRequest) {}), notFound},
		"take a channel's id": {update(alice, func(r *qpcpb.UpdateGroupMetadataRequest) { r.GroupId = channel[:] }), notFound},
		"add nobody's key":    {update(alice, func(r *qpcpb.UpdateGroupMetadataRequest) { r.AddMembers = keysOf([]string{"dave", "nobody"}) }), qpcpb.CodeUserNotFound},
		"add to a new group": {update(dave, func(r *qpcpb.UpdateGroupMetadataRequest) {
			r.GroupId, r.AddMembers = groupID("new"), keysOf([]string{"nobody"})
		}), qpcpb.CodeUserNotFound},
		"add short":                {update(alice, func(r *qpcpb.UpdateGroupMetadataRequest) { r.AddMembers = [][]byte{make([]byte, 31)} }), invalid},
		"add too many":             {update(alice, func(r *qpcpb.UpdateGroupMetadataRequest) { r.AddMembers = make([][]byte, 257) }), invalid},
		"metadata of a wrong size": {update(alice, func(r *qpcpb.UpdateGroupMetadataRequest) { r.Metadata = make([]byte, group.MaxMetadata+1) }), tooLarge},
		"update without id":        {update(alice, func(r *qpcpb.UpdateGroupMetadataRequest) { r.GroupId = nil }), invalid},

		"rotate unknown":            {rotate(alice, func(r *qpcpb.RotateKeysRequest) { r.GroupId = groupID("other") }), notFound},
		"rotate as stranger":        {rotate(dave, func(*qpcpb.RotateKeysRequest) {}), notFound},
		"rotate as stranger, stale": {rotate(dave, func(r *qpcpb.RotateKeysRequest) { r.Epoch = 0 }), notFound},
		"no commit":                 {rotate(alice, func(r *qpcpb.RotateKeysRequest) { r.Commit = nil }), invalid},
		"both":                      {rotate(alice, func(r *qpcpb.RotateKeysRequest) { single(r, "bob", "carol"); r.Commit = []byte("x") }), invalid},
		"commit and names":          {rotate(alice, func(r *qpcpb.RotateKeysRequest) { r.RecipientKeys = keysOf([]string{"bob", "carol"}) }), invalid},
		"one lacks":                 {rotate(alice, func(r *qpcpb.RotateKeysRequest) { single(r, "bob") }), invalid},
		"one lacks, with self":      {rotate(alice, func(r *qpcpb.RotateKeysRequest) { single(r, "bob", "alice") }), invalid},
		"one too many":              {rotate(alice, func(r *qpcpb.RotateKeysRequest) { single(r, "bob", "carol", "dave") }), invalid},
		"one added":                 {rotate(alice, func(r *qpcpb.RotateKeysRequest) { adding(r, "dave"); single(r, "bob", "carol", "dave") }), invalid},
		"one removed lacks":         {rotate(alice, func(r *qpcpb.RotateKeysRequest) { removing(r, "carol"); single(r, "bob") }), invalid},
		"one twice":                 {rotate(alice, func(r *qpcpb.RotateKeysRequest) { single(r, "bob", "carol", "bob") }), invalid},
		"too few payloads":          {rotate(alice, func(r *qpcpb.RotateKeysRequest) { single(r, "bob", "carol"); r.Payloads = r.Payloads[:1] }), invalid},
		"too many payloads": {rotate(alice, func(r *qpcpb.RotateKeysRequest) {
			single(r, "bob", "carol")
			r.Payloads = append(r.Payloads, []byte("x"))
		}), invalid},
		"an empty payload":         {rotate(alice, func(r *qpcpb.RotateKeysRequest) { single(r, "bob", "carol"); r.Payloads[1] = nil }), invalid},
		"a welcome lacks":          {rotate(alice, func(r *qpcpb.RotateKeysRequest) { adding(r, "dave").Welcomes = nil }), invalid},
		"a welcome too many":       {rotate(alice, func(r *qpcpb.RotateKeysRequest) { r.Welcomes = [][]byte{{1}} }), invalid},
		"an empty welcome":         {rotate(alice, func(r *qpcpb.RotateKeysRequest) { adding(r, "dave").Welcomes[0] = nil }), invalid},
		"in and out":               {rotate(alice, func(r *qpcpb.RotateKeysRequest) { removing(adding(r, "bob"), "bob") }), invalid},
		"rotate adds nobody's key": {rotate(alice, func(r *qpcpb.RotateKeysRequest) { adding(r, "nobody") }), qpcpb.CodeUserNotFound},
		"removes as no owner":      {rotate(bob, func(r *qpcpb.RotateKeysRequest) { removing(r, "carol") }), owner},
		"removes the owner":        {rotate(bob, func(r *qpcpb.RotateKeysRequest) { removing(r, "alice") }), owner},
		"a commit too large":       {rotate(alice, func(r *qpcpb.RotateKeysRequest) { r.Commit = make([]byte, 4<<20-1000) }), tooLarge},
	} {
		err := test.call()
		t.Run(name, func(t *testing.T) { servicetest.WantCode(t, err, test.code) })
	}
	alice.sees("trip", "1 summer: alice* bob carol")
	h.wantPosted(t)
	if n := h.Count("group_group"); n != 1 {
		t.Errorf("refused calls left %d groups", n)
	}
	h.Accounts.Remove("dave") // deleted while a call is on its way
	servicetest.WantCode(t, update(dave, func(r *qpcpb.UpdateGroupMetadataRequest) { r.GroupId = groupID("new") })(), qpcpb.CodeUnauthenticated)
}

func TestPayloadsOneForEach(t *testing.T) {
	h := open(t, rand.Reader)
	alice := h.person(t, "alice")
	for _, name := range []string{"bob", "carol", "dave"} {
		h.Accounts.Add(name)
	}
	alice.updates("trip", "x", "bob", "carol")
	single := func(epoch uint64, to ...string) *qpcpb.RotateKeysRequest {
		r := rotation("trip", epoch, "")
		r.RecipientKeys = keysOf(to)
		for _, name := range to {
			r.Payloads = append(r.Payloads, []byte("for "+name))
		}
		return r
	}
	alice.rotates(single(0, "carol", "bob"), true, 1)
	h.wantPosted(t, commitTo("bob", "for bob"), commitTo("carol", "for carol"))
	alice.rotates(single(1, "carol", "alice", "bob"), true, 2)
	h.wantPosted(t, commitTo("alice", "for alice"), commitTo("bob", "for bob"), commitTo("carol", "for carol"))
	// Those who leave are named, those who join are not.
	alice.rotates(adding(removing(single(2, "carol", "bob"), "bob"), "dave"), true, 3)
	h.wantPosted(t, commitTo("bob", "for bob"), commitTo("carol", "for carol"), welcomeTo("dave"))
	alice.sees("trip", "3 x: alice* carol dave")
}

// The caller's other devices follow by the commit, and a new device enters by a
// Welcome though its owner is a member already.
func TestDevicesOfTheCaller(t *testing.T) {
	h := open(t, rand.Reader)
	phone, desk := servicetest.Device("phone"), servicetest.Device("desk")
	h.Accounts.Add("alice")
	onPhone := h.on(t, "alice", h.ConnectAs(rpc.Principal{Identity: servicetest.Key("alice"), Username: "alice", Device: phone, HasDevice: true}))
	anywhere := h.person(t, "alice")
	onPhone.updates("trip", "x")
	onPhone.rotates(rotation("trip", 0, "one"), true, 1)
	h.wantPosted(t)
	h.devices.register("alice", phone)
	onPhone.rotates(rotation("trip", 1, "two"), true, 2)
	h.wantPosted(t)
	anywhere.rotates(rotation("trip", 2, "three"), true, 3)
	h.wantPosted(t, commitTo("alice", "three"))
	h.devices.register("alice", desk)
	onPhone.rotates(adding(rotation("trip", 3, "four"), "alice", "alice"), true, 4)
	h.wantPosted(t, commitTo("alice", "four"), welcomeTo("alice"), welcomeTo("alice"))
	onPhone.sees("trip", "4 x: alice*")
}

// Of all who commit in one epoch one wins; the others are told the epoch, and
// nobody gets their commits.
func TestOneCommitAnEpoch(t *testing.T) {
	h := open(t, rand.Reader)
	names := []string{"alice", "bob", "carol", "dave"}
	var members []person
	for _, name := range names {
		members = append(members, h.person(t, name))
	}
	members[0].updates("trip", "x", names[1:]...)
	for epoch := uint64(0); epoch < 10; epoch++ {
		type result struct {
			by     string
			answer *qpcpb.RotateKeysResponse
			err    error
		}
		results, start := make(chan result), make(chan struct{})
		ctx := servicetest.Within(t)
		for _, p := range members {
			go func() {
				<-start
				answer, err := p.groups.RotateKeys(ctx, rotation("trip", epoch, "by "+p.name))
				results <- result{p.name, answer, err}
			}()
		}
		close(start)
		winner := ""
		for range members {
			r := <-results
			switch {
			case r.err != nil:
				t.Error(r.err)
			case r.answer.Epoch != epoch+1:
				t.Errorf("%s is told epoch %d in %d", r.by, r.answer.Epoch, epoch)
			case r.answer.Accepted && winner != "":
				t.Errorf("both %s and %s won epoch %d", winner, r.by, epoch)
			case r.answer.Accepted:
				winner = r.by
			}
		}
		var want []string
		for _, name := range names {
			if name != winner {
				want = append(want, commitTo(name, "by "+winner))
			}
		}
		h.wantPosted(t, want...)
	}
}

func TestLostAnswer(t *testing.T) {
	h := open(t, rand.Reader)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	h.Accounts.Add("carol")
	alice.updates("trip", "x", "bob")
	first := adding(rotation("trip", 0, "one"), "carol")
	alice.rotates(first, true, 1)
	h.mail.take()
	h.restart()
	alice.rotates(first, true, 1)
	bob.rotates(first, false, 1) // not bob's
	alice.rotates(adding(rotation("trip", 0, "another"), "carol"), false, 1)
	leaving := removing(rotation("trip", 1, "two"), "alice")
	alice.rotates(leaving, true, 2)
	h.wantPosted(t, commitTo("bob", "two"), commitTo("carol", "two"))
	alice.rotates(leaving, true, 2) // out already
	servicetest.WantCode(t, alice.remove("trip", "alice"), qpcpb.CodeChannelNotFound)
	bob.sees("trip", "2 x: bob* carol")

	// It is remembered for 64 epochs.
	old := rotation("trip", 2, "three")
	bob.rotates(old, true, 3)
	for epoch := uint64(3); epoch < 66; epoch++ {
		h.Wall.Advance(time.Second)
		bob.rotates(rotation("trip", epoch, "more"), true, epoch+1)
	}
	h.Wall.Advance(time.Minute)
	bob.rotates(old, true, 3)
	bob.rotates(rotation("trip", 66, "more"), true, 67)
	bob.rotates(old, false, 67)
	if n := h.Count("group_commit"); n != 64 {
		t.Errorf("%d commits remembered", n)
	}
	bob.rotates(rotation("trip", 1<<64-1, "from the future"), false, 67)
}

func TestEpochIsPushed(t *testing.T) {
	h := open(t, rand.Reader)
	alice, bob, carol := h.person(t, "alice"), h.person(t, "bob"), h.person(t, "carol")
	alice.updates("trip", "x", "bob")
	alice.rotates(removing(adding(rotation("trip", 0, "one"), "carol"), "bob"), true, 1)
	for _, p := range []person{alice, carol} {
		e := p.conn.Event()
		var got qpcpb.GroupEpoch
		if err := proto.Unmarshal(e.Payload, &got); err != nil || e.Kind != qpcpb.EventGroupEpoch || got.Epoch != 1 || string(got.GroupId) != string(groupID("trip")) {
			t.Errorf("%s is told %v %v (%v)", p.name, e.Kind, &got, err)
		}
	}
	alice.rotates(rotation("trip", 0, "late"), false, 1) // nothing to tell
	alice.rotates(rotation("trip", 1, "two"), true, 2)
	var got qpcpb.GroupEpoch
	if err := proto.Unmarshal(alice.conn.Event().Payload, &got); err != nil || got.Epoch != 2 {
		t.Errorf("told %v (%v)", &got, err)
	}
	select {
	case e := <-bob.conn.Events:
		t.Errorf("bob, who is out, is told %v", e.Kind)
	default:
	}
}

func TestGroupOf256(t *testing.T) {
	h := build(t, rand.Reader)
	alice := h.inMemory(t, "alice")
	var many []string
	for i := range group.MaxMembers - 1 {
		many = append(many, fmt.Sprint("member", i))
		h.Accounts.Add(many[i])
	}
	h.Accounts.Add("late")
	alice.updates("crowd", "x", many[:100]...)
	alice.rotates(adding(rotation("crowd", 0, "one"), many[50:]...), true, 1)
	if n := len(h.mail.take()); n != 100+205 {
		t.Errorf("%d posted", n)
	}
	_, err := alice.update("crowd", "", "late")
	servicetest.WantCode(t, err, qpcpb.CodeGroupFull)
	_, err = alice.rotate(adding(rotation("crowd", 1, "two"), "late"))
	servicetest.WantCode(t, err, qpcpb.CodeGroupFull)
	alice.updates("crowd", "", many...) // all there
	alice.rotates(removing(adding(rotation("crowd", 1, "two"), "late"), many[7]), true, 2)
	if n := len(h.mail.take()); n != 255+1 {
		t.Errorf("%d posted", n)
	}
	if got, err := alice.list("crowd"); err != nil || len(got.Members) != 256 || got.Members[255].Username != nameOf(servicetest.Key("late")) {
		t.Errorf("%d members, %v", len(got.GetMembers()), err)
	}
	// One commit for all is bounded in all.
	large := rotation("crowd", 2, strings.Repeat("x", 8<<20/255))
	alice.rotates(large, true, 3)
	large = rotation("crowd", 3, strings.Repeat("x", 8<<20/255+1))
	_, err = alice.rotate(large)
	servicetest.WantCode(t, err, qpcpb.CodePayloadTooLarge)
}

func TestGroupLimitOfAnIdentity(t *testing.T) {
	h := build(t, rand.Reader)
	alice, bob := h.inMemory(t, "alice"), h.inMemory(t, "bob")
	for i := range group.MaxGroups {
		alice.updates(fmt.Sprint("group", i), "x")
	}
	_, err := alice.update("more", "x")
	servicetest.WantCode(t, err, qpcpb.CodeQuotaExceeded)
	alice.updates("group7", "y")
	bob.updates("bobs", "x")
	_, err = bob.update("bobs", "x", "alice")
	servicetest.WantCode(t, err, qpcpb.CodeQuotaExceeded)
	_, err = bob.rotate(adding(rotation("bobs", 0, "one"), "alice"))
	servicetest.WantCode(t, err, qpcpb.CodeQuotaExceeded)
	bob.sees("bobs", "0 x: bob*")
	alice.removes("group7", "alice")
	bob.updates("bobs", "", "alice")
}

func TestRotationsAreLimited(t *testing.T) {
	h := build(t, rand.Reader)
	alice, bob := h.inMemory(t, "alice"), h.inMemory(t, "bob")
	alice.updates("trip", "x", "bob")
	for i := range uint64(60) {
		alice.rotates(rotation("trip", i, "x"), true, i+1)
	}
	_, err := alice.rotate(rotation("trip", 60, "x"))
	servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
	bob.rotates(rotation("trip", 60, "x"), true, 61)
	h.Wall.Advance(time.Second)
	alice.rotates(rotation("trip", 61, "x"), true, 62)
}

// A member whose queue takes nothing does not hold up the others; a storage
// that fails leaves nothing.
func TestQueuesThatFail(t *testing.T) {
	h := build(t, rand.Reader)
	alice, bob := h.inMemory(t, "alice"), h.inMemory(t, "bob")
	h.Accounts.Add("carol")
	alice.updates("trip", "x", "bob", "carol")
	h.mail.breaks(servicetest.Key("bob"), nil)
	alice.rotates(rotation("trip", 0, "one"), true, 1)
	h.wantPosted(t, commitTo("carol", "one"))
	h.mail.breaks(rpc.IdentityKey{}, errors.New("the disk"))
	_, err := alice.rotate(removing(rotation("trip", 1, "two"), "bob"))
	servicetest.WantCode(t, err, qpcpb.CodeInternal)
	h.mail.breaks(rpc.IdentityKey{}, nil)
	bob.sees("trip", "1 x: alice* bob carol")
	if n := h.Count("group_commit"); n != 1 {
		t.Errorf("%d commits remembered", n)
	}
}

func TestWritingInAGroup(t *testing.T) {
	h := build(t, rand.Reader)
	alice := h.inMemory(t, "alice")
	for _, name := range []string{"bob", "carol", "dave"} {
		h.Accounts.Add(name)
	}
	alice.updates("trip", "x", "bob", "carol")
	alice.removes("trip", "carol")
	for name, test := range map[string]struct {
		id                []byte
		sender, recipient string
		code              qpcpb.Code
	}{
		"both in it":        {groupID("trip"), "alice", "bob", qpcpb.CodeUnspecified},
		"the other way":     {groupID("trip"), "bob", "alice", qpcpb.CodeUnspecified},
		"other devices":     {groupID("trip"), "bob", "bob", qpcpb.CodeUnspecified},
		"unknown":           {groupID("other"), "alice", "bob", qpcpb.CodeChannelNotFound},
		"sender outside":    {groupID("trip"), "dave", "bob", qpcpb.CodeChannelNotFound},
		"sender has left":   {groupID("trip"), "carol", "bob", qpcpb.CodeChannelNotFound},
		"recipient outside": {groupID("trip"), "alice", "carol", qpcpb.CodeChannelAccessDenied},
		"both outside":      {groupID("trip"), "carol", "dave", qpcpb.CodeChannelNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			err := h.DB.Read(t.Context(), func(tx *store.Tx) error {
				return h.group.BothMembersTx(tx, rpc.ChannelID(test.id), servicetest.Key(test.sender), servicetest.Key(test.recipient))
			})
			servicetest.WantCode(t, err, test.code)
		})
	}
	if contacts, err := h.group.Contacts(t.Context(), servicetest.Key("alice")); err != nil || len(contacts) != 0 {
		t.Errorf("members of a group are contacts: %v, %v", contacts, err)
	}
}

func TestEraseLeavesGroups(t *testing.T) {
	h := build(t, rand.Reader)
	alice, bob := h.inMemory(t, "alice"), h.inMemory(t, "bob")
	h.Accounts.Add("carol")
	alice.updates("trip", "x", "bob", "carol")
	alice.rotates(rotation("trip", 0, "one"), true, 1)
	bob.rotates(rotation("trip", 1, "two"), true, 2)
	bob.updates("bobs", "y", "alice")
	alice.updates("alone", "z")
	h.Write(func(tx *store.Tx) error { return h.group.EraseTx(tx, servicetest.Key("alice")) })
	bob.sees("trip", "2 x: bob* carol")
	bob.sees("bobs", "0 y: bob*")
	for table, want := range map[string]int{"group_group": 2, "group_member": 3, "group_commit": 1} {
		if n := h.Count(table); n != want {
			t.Errorf("%d rows of %s, want %d", n, table, want)
		}
	}
}
