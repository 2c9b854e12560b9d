package server

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// serverKey is what delivery proofs are verified with.
func (h *house) serverKey() []byte {
	h.t.Helper()
	var seed []byte
	err := h.s.db.Read(within(h.t), func(tx *store.Tx) error {
		return tx.QueryRow(selectSecret, "signing").Scan(&seed)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
}

// Two people register, log in and write to each other; the server is stopped
// in the middle of it and started again.
func TestStoryWithARestart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	h := open(t, dir, nil)
	if !h.s.CertificateCreated() {
		t.Error("the first start made no certificate")
	}
	pin, key := h.s.Pin(), h.serverKey()
	alice, bob := person("alice"), person("bob")
	a, b := h.dial(""), h.dial("")
	var signing sync.WaitGroup
	signing.Go(func() { a.signUp(alice) })
	signing.Go(func() { b.signUp(bob) })
	signing.Wait()

	channel, err := qpcpb.NewChannelClient(a).CreateChannel(within(t), &qpcpb.CreateChannelRequest{PeerKey: bob.key[:]})
	if err != nil || !channel.WasNew {
		t.Fatal(channel, err)
	}
	enqueue := func(c *client, text string) *qpcpb.EnqueueResponse {
		t.Helper()
		id := sha256.Sum256([]byte(text))
		r, err := qpcpb.NewDeliveryClient(c).Enqueue(within(t), &qpcpb.EnqueueRequest{
			RecipientKey: bob.key[:], ChannelId: channel.ChannelId, Payload: []byte(text), MessageId: id[:16],
		})
		if err != nil {
			t.Fatal(err)
		}
		if !proof.VerifyDelivery(key, proof.Delivery{
			Recipient: bob.key, Channel: channel.ChannelId, Seq: r.Seq, MessageID: rpc.MessageID(id[:16]), PayloadHash: sha256.Sum256([]byte(text)),
		}, r.DeliveryProof) {
			t.Errorf("the proof of %q does not verify", text)
		}
		return r
	}
	first, second := enqueue(a, "one"), enqueue(a, "two")
	if first.Seq != 1 || second.Seq != 2 || first.Duplicate || second.Duplicate {
		t.Errorf("got %v, %v", first, second)
	}
	var told qpcpb.MessageAvailable
	if err := proto.Unmarshal(b.event(qpcpb.EventMessageAvailable), &told); err != nil || told.Seq != 1 ||
		!bytes.Equal(told.ChannelId, channel.ChannelId) || string(told.Envelope.GetData()) != "one" {
		t.Errorf("bob is told %v, %v", &told, err)
	}

	// Calls under way when the server stops are answered.
	waited := make(chan error, 1)
	go func() {
		r, err := qpcpb.NewDeliveryClient(a).FetchWait(within(t), &qpcpb.FetchWaitRequest{RecipientKey: alice.key[:], TimeoutMs: 60_000})
		if err == nil && len(r.Payloads) > 0 {
			err = errors.New("it got a message")
		}
		waited <- err
	}()
	for h.s.calls.Running() == 0 {
		time.Sleep(time.Millisecond)
	}
	begun := time.Now()
	h.stop()
	if took := time.Since(begun); took > drainTimeout/2 {
		t.Errorf("stopping took %v", took)
	}
	if err := <-waited; err != nil {
		t.Error("the call under way:", err)
	}
	for _, c := range []*client{a, b} {
		var draining qpcpb.Draining
		if err := proto.Unmarshal(c.event(qpcpb.EventDraining), &draining); err != nil || draining.Seconds == 0 {
			t.Errorf("told %v, %v", &draining, err)
		}
		c.wantClosed(transport.CloseNormal)
	}

	h = open(t, dir, nil)
	if h.s.Pin() != pin || h.s.CertificateCreated() || !bytes.Equal(h.serverKey(), key) {
		t.Error("the server has other keys after the restart")
	}
	a, b = h.dial("").resume(alice), h.dial("").resume(bob)
	if again := enqueue(a, "two"); again.Seq != 2 || !again.Duplicate || !bytes.Equal(again.DeliveryProof, second.DeliveryProof) {
		t.Errorf("the repeated message got %v", again)
	}
	if third := enqueue(a, "three"); third.Seq != 3 || third.Duplicate {
		t.Errorf("the next message got %v", third)
	}
	peek, err := qpcpb.NewDeliveryClient(b).Peek(within(t), &qpcpb.PeekRequest{RecipientKey: bob.key[:], AllChannels: true})
	if err != nil || len(peek.Payloads) != 3 {
		t.Fatal(peek, err)
	}
	for i, text := range []string{"one", "two", "three"} {
		if e := peek.Payloads[i]; string(e.Data) != text || e.Seq != uint64(i+1) || !bytes.Equal(e.ChannelId, channel.ChannelId) {
			t.Errorf("message %d is %v", i, e)
		}
	}
	if _, err := qpcpb.NewDeliveryClient(b).Ack(within(t), &qpcpb.AckRequest{RecipientKey: bob.key[:], ChannelId: channel.ChannelId, SeqUpTo: 3}); err != nil {
		t.Error(err)
	}
	if peek, err = qpcpb.NewDeliveryClient(b).Peek(within(t), &qpcpb.PeekRequest{RecipientKey: bob.key[:], AllChannels: true}); err != nil || len(peek.Payloads) != 0 {
		t.Error(peek, err)
	}
	// Logging out ends the session on all its connections, and the token.
	if r, err := qpcpb.NewAuthClient(a).Logout(within(t), &qpcpb.LogoutRequest{}); err != nil || !r.Success {
		t.Error(r, err)
	}
	a.event(qpcpb.EventSessionEnded)
	a.wantClosed(transport.CloseSessionRevoked)
	if err := h.dial("").Resume(within(t), alice.token); !errors.Is(err, rpc.ErrSessionRefused) {
		t.Errorf("the token after the logout: %v", err)
	}
}

func TestDrainingRefusesNewCalls(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	h := open(t, t.TempDir(), nil, func(s *Server) {
		s.calls.Register(qpcpb.MethodReportMessage, func(context.Context, proto.Message) (proto.Message, error) {
			<-release
			return &qpcpb.ReportMessageResponse{Accepted: true}, nil
		})
	})
	alice := h.settle(person("alice"))
	c, late := h.dial("").resume(alice), h.dial("")
	answered := make(chan error, 1)
	go func() {
		answered <- c.Call(within(t), qpcpb.MethodReportMessage, &qpcpb.ReportMessageRequest{}, &qpcpb.ReportMessageResponse{})
	}()
	for h.s.calls.Running() == 0 {
		time.Sleep(time.Millisecond)
	}
	stopped := make(chan struct{})
	go func() { h.stop(); close(stopped) }()
	c.event(qpcpb.EventDraining)
	var err error
	for { // the event comes a moment before the first refusal
		if _, err = qpcpb.NewHealthClient(late).Health(within(t), &qpcpb.HealthRequest{}); err != nil {
			break
		}
	}
	wantCode(t, err, qpcpb.CodeDraining)
	close(release)
	if err := <-answered; err != nil {
		t.Error("the call under way:", err)
	}
	<-stopped
	late.wantClosed(transport.CloseNormal)
}

// A server that cannot read its storage does not tell clients that their
// sessions have ended.
func TestSessionsOutliveAStorageThatFails(t *testing.T) {
	t.Parallel()
	h := open(t, t.TempDir(), nil)
	alice := h.settle(person("alice"))
	if err := h.s.db.Close(); err != nil {
		t.Fatal(err)
	}
	c := h.dial("")
	if err := c.Resume(within(t), alice.token); err == nil || errors.Is(err, rpc.ErrSessionRefused) {
		t.Errorf("got %v", err)
	}
	if _, err := qpcpb.NewHealthClient(c).Health(within(t), &qpcpb.HealthRequest{}); err != nil {
		t.Error(err)
	}
}
