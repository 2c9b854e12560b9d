package group_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/group"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOneChannelPerPairAndOneCreator(t *testing.T) {
	h := open(t, rand.Reader)
	alice, bob, carol := h.person(t, "alice"), h.person(t, "bob"), h.person(t, "carol")
	first, wasNew := alice.opens("bob")
	if !wasNew || first == (rpc.ChannelID{}) {
		t.Errorf("the first call: %s, new %v", first, wasNew)
	}
	for i, again := range []func() (rpc.ChannelID, bool){
		func() (rpc.ChannelID, bool) { return bob.opens("alice") },
		func() (rpc.ChannelID, bool) { return alice.opens("bob") },
	} {
		if id, wasNew := again(); id != first || wasNew {
			t.Errorf("call %d: %s, new %v; want %s, false", i+2, id, wasNew, first)
		}
	}
	if other, wasNew := carol.opens("bob"); other == first || !wasNew {
		t.Errorf("another pair: %s, new %v", other, wasNew)
	}
	if n := h.Count("group_channel"); n != 2 {
		t.Errorf("%d channels stored, want 2", n)
	}
}

func TestBothAtOnceAgree(t *testing.T) {
	h := open(t, rand.Reader)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	type result struct {
		got *qpcpb.CreateChannelResponse
		err error
	}
	results := make(chan result)
	ctx := servicetest.Within(t)
	const calls = 16
	for i := range calls {
		caller, peer := alice, "bob"
		if i%2 == 1 {
			caller, peer = bob, "alice"
		}
		go func() {
			got, err := caller.CreateChannel(ctx, &qpcpb.CreateChannelRequest{PeerKey: servicetest.Bytes(peer)})
			results <- result{got, err}
		}()
	}
	ids, creators := map[string]bool{}, 0
	for range calls {
		r := <-results
		if r.err != nil {
			t.Error(r.err)
			continue
		}
		ids[string(r.got.ChannelId)] = true
		if r.got.WasNew {
			creators++
		}
	}
	if len(ids) != 1 || creators != 1 {
		t.Errorf("%d ids and %d creators, want one of each", len(ids), creators)
	}
}

func TestRefusals(t *testing.T) {
	h := open(t, rand.Reader)
	alice := h.person(t, "alice")
	for name, test := range map[string]struct {
		peer []byte
		code qpcpb.Code
	}{
		"oneself": {servicetest.Bytes("alice"), qpcpb.CodeInvalidField},
		"nobody":  {servicetest.Bytes("nobody"), qpcpb.CodeUserNotFound},
		"empty":   {nil, qpcpb.CodeInvalidField},
		"short":   {make([]byte, 31), qpcpb.CodeInvalidField},
		"long":    {make([]byte, 33), qpcpb.CodeInvalidField},
	} {
		_, err := alice.create(test.peer)
		t.Run(name, func(t *testing.T) { servicetest.WantCode(t, err, test.code) })
	}
	h.Accounts.Add("bob")
	h.Accounts.Remove("alice") // deleted while a call is on its way
	_, err := alice.create(servicetest.Bytes("bob"))
	servicetest.WantCode(t, err, qpcpb.CodeUnauthenticated)
	if n := h.Count("group_channel"); n != 0 {
		t.Errorf("refused calls left %d channels", n)
	}
}

func TestBrokenRandomnessMakesNoChannel(t *testing.T) {
	h := open(t, io.LimitReader(rand.Reader, 24)) // one id and a half
	alice := h.person(t, "alice")
	h.Accounts.Add("bob")
	h.Accounts.Add("carol")
	alice.opens("bob")
	_, err := alice.create(servicetest.Bytes("carol"))
	servicetest.WantCode(t, err, qpcpb.CodeInternal)
	if n := h.Count("group_channel"); n != 1 {
		t.Errorf("%d channels stored", n)
	}
}

func TestChannelLimitOfBothSides(t *testing.T) {
	h := open(t, rand.Reader)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	h.Accounts.Add("carol")
	fill := func(name string, n int) {
		h.Write(func(tx *store.Tx) error {
			key := servicetest.Key(name)
			for i := range n {
				// Others on both sides of the key, so that both halves count.
				other := bytes.Repeat([]byte{byte(i%2) * 0xff}, 32)
				binary.BigEndian.PutUint32(other[28:], uint32(i))
				low, high := key[:], other
				if bytes.Compare(low, high) > 0 {
					low, high = high, low
				}
				id := servicetest.Device(fmt.Sprint(name, i))
				if _, err := tx.Exec(`INSERT INTO group_channel VALUES (?, ?, ?)`, id, low, high); err != nil {
					return err
				}
			}
			return nil
		})
	}
	fill("alice", group.MaxChannels-1)
	last, wasNew := alice.opens("bob")
	if !wasNew {
		t.Error("the last channel is not new")
	}
	_, err := alice.create(servicetest.Bytes("carol"))
	servicetest.WantCode(t, err, qpcpb.CodeQuotaExceeded)
	_, err = h.person(t, "carol").create(servicetest.Bytes("alice"))
	servicetest.WantCode(t, err, qpcpb.CodeQuotaExceeded)
	if id, wasNew := alice.opens("bob"); id != last || wasNew {
		t.Error("at the limit a channel that exists is not returned")
	}
	bob.opens("carol")
	contacts, err := h.group.Contacts(t.Context(), servicetest.Key("alice"))
	if err != nil || len(contacts) != group.MaxChannels {
		t.Errorf("%d contacts, %v", len(contacts), err)
	}
}

func TestMembersContactsErase(t *testing.T) {
	h := open(t, rand.Reader)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	h.Accounts.Add("carol")
	h.Accounts.Add("dave")
	ab, _ := alice.opens("bob")
	alice.opens("carol")
	bc, _ := bob.opens("carol")
	key := servicetest.Key

	for name, test := range map[string]struct {
		channel           rpc.ChannelID
		sender, recipient string
		code              qpcpb.Code
	}{
		"both in it":            {ab, "alice", "bob", qpcpb.CodeUnspecified},
		"the other way":         {ab, "bob", "alice", qpcpb.CodeUnspecified},
		"one's other devices":   {ab, "alice", "alice", qpcpb.CodeUnspecified},
		"no such channel":       {rpc.ChannelID{9}, "alice", "bob", qpcpb.CodeChannelNotFound},
		"sender outside":        {ab, "carol", "bob", qpcpb.CodeChannelNotFound},
		"recipient outside":     {ab, "alice", "carol", qpcpb.CodeChannelAccessDenied},
		"both outside":          {ab, "carol", "dave", qpcpb.CodeChannelNotFound},
		"sender of another one": {bc, "alice", "bob", qpcpb.CodeChannelNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			err := h.DB.Read(t.Context(), func(tx *store.Tx) error {
				return h.group.BothMembersTx(tx, test.channel, key(test.sender), key(test.recipient))
			})
			servicetest.WantCode(t, err, test.code)
		})
	}

	contacts := func(of string, want ...string) {
		t.Helper()
		got, err := h.group.Contacts(t.Context(), key(of))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Errorf("%s has %d contacts, want %d", of, len(got), len(want))
		}
		for _, name := range want {
			if !slices.Contains(got, key(name)) {
				t.Errorf("%s is no contact of %s", name, of)
			}
		}
	}
	contacts("alice", "bob", "carol")
	contacts("bob", "alice", "carol")
	contacts("dave")

	h.Write(func(tx *store.Tx) error { return h.group.EraseTx(tx, key("alice")) })
	contacts("alice")
	contacts("bob", "carol")
	err := h.DB.Read(t.Context(), func(tx *store.Tx) error {
		gone, err := h.group.MembersTx(tx, ab)
		stays, err2 := h.group.MembersTx(tx, bc)
		if len(gone) != 0 || len(stays) != 2 {
			t.Errorf("members after erasing: %v, %v", gone, stays)
		}
		return errors.Join(err, err2)
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := h.Count("group_channel"); n != 1 {
		t.Errorf("%d channels left, want 1", n)
	}
}

// The one in the middle is the high key of one channel and the low key of the
// other.
func TestEraseRemovesBothSides(t *testing.T) {
	h := open(t, rand.Reader)
	names := []string{"alice", "bob", "carol"}
	slices.SortFunc(names, func(a, b string) int { return bytes.Compare(servicetest.Bytes(a), servicetest.Bytes(b)) })
	h.Accounts.Add(names[0])
	h.Accounts.Add(names[2])
	middle := h.person(t, names[1])
	middle.opens(names[0])
	middle.opens(names[2])
	h.Write(func(tx *store.Tx) error { return h.group.EraseTx(tx, servicetest.Key(names[1])) })
	if n := h.Count("group_channel"); n != 0 {
		t.Errorf("%d channels left", n)
	}
}
