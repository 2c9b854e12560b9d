package group_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"log/slog"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/group"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

// realMail is the mail of the server: the queues of delivery.
type realMail struct{ queues *delivery.Service }

func (m *realMail) PostTx(tx *store.Tx, p group.Posting) error {
	return m.queues.PostTx(tx, delivery.Posting(p))
}

// bobBlocksAlice is who blocks whom.
type bobBlocksAlice struct{}

func (bobBlocksAlice) BlockedTx(_ *store.Tx, blocker, blocked rpc.IdentityKey) (bool, error) {
	return blocker == servicetest.Key("bob") && blocked == servicetest.Key("alice"), nil
}

// Commits and Welcomes lie in the queues where clients look for them, in the
// order of the epochs, and pass a block; chat passes to members only, and what
// a blocked member sends is dropped.
func TestCommitsInTheQueues(t *testing.T) {
	h := open(t, rand.Reader)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	post := &realMail{}
	h.options.Post, h.options.Remote = post, nil
	h.start()
	post.queues = delivery.New(delivery.Options{
		DB: h.DB, Log: slog.New(slog.DiscardHandler), Now: h.Wall.Now, Key: key,
		Accounts: h.Accounts, Blocks: bobBlocksAlice{}, Channels: h.group, Devices: h.devices, Push: h.Hub,
		Limits: delivery.Limits{Retention: time.Hour, QueueMessages: 100, QueueBytes: 1 << 20, SendRate: 100, SendBurst: 100},
	})
	qpcpb.RegisterDeliveryServer(h.routes, post.queues)
	alice, bob, carol := h.person(t, "alice"), h.person(t, "bob"), h.person(t, "carol")
	queue := func(p person, channel []byte, want ...string) {
		t.Helper()
		got, err := qpcpb.NewDeliveryClient(p.conn).Fetch(servicetest.Within(t), &qpcpb.FetchRequest{
			RecipientKey: servicetest.Bytes(p.name), ChannelId: channel,
		})
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, e := range got.Payloads {
			texts = append(texts, string(e.Data))
		}
		if len(texts) != len(want) {
			t.Fatalf("%s finds %q, want %q", p.name, texts, want)
		}
		for i := range want {
			if texts[i] != want[i] {
				t.Errorf("%s finds %q, want %q", p.name, texts, want)
			}
		}
	}
	send := func(from person, to, text string) error {
		_, err := qpcpb.NewDeliveryClient(from.conn).Enqueue(servicetest.Within(t), &qpcpb.EnqueueRequest{
			RecipientKey: servicetest.Bytes(to), ChannelId: groupID("trip"), Payload: []byte(text),
		})
		return err
	}
	alice.updates("trip", "x")
	alice.rotates(adding(rotation("trip", 0, ""), "bob"), true, 1)
	alice.rotates(adding(rotation("trip", 1, "two"), "carol"), true, 2)
	servicetest.WantCode(t, send(alice, "bob", "dropped"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, send(carol, "bob", "hello"), qpcpb.CodeUnspecified)
	carol.rotates(rotation("trip", 2, "three"), true, 3)
	bob.removes("trip", "bob")
	servicetest.WantCode(t, send(bob, "carol", "too late"), qpcpb.CodeChannelNotFound)
	servicetest.WantCode(t, send(carol, "bob", "too late"), qpcpb.CodeChannelAccessDenied)

	queue(bob, nil, "hi bob")
	queue(bob, groupID("trip"), "two", "hello", "three")
	queue(carol, nil, "hi carol")
	queue(carol, groupID("trip"))
	queue(alice, groupID("trip"), "three")
}
