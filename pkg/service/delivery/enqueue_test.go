package delivery_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

func TestOneMessageOverQUIC(t *testing.T) {
	h := open(t)
	h.Open()
	alice, bob := h.overQUIC("alice"), h.overQUIC("bob")
	received := uint64(h.Wall.Now().Unix())
	if got := alice.sends("bob", "hi", id("1")); got.Seq != 1 || got.Duplicate {
		t.Errorf("got seq %d, duplicate %v", got.Seq, got.Duplicate)
	}
	event := message(t, bob.Event(), qpcpb.EventMessageAvailable, new(qpcpb.MessageAvailable))
	want := &qpcpb.Envelope{Seq: 1, Data: []byte("hi"), ReceivedAt: received}
	if event.Seq != 1 || len(event.ChannelId) != 0 || !proto.Equal(event.Envelope, want) {
		t.Errorf("got event %v, want one with %v", event, want)
	}
	if got := bob.peek(&qpcpb.PeekRequest{}); len(got) != 1 || !proto.Equal(got[0], want) {
		t.Errorf("got %v, want %v", got, want)
	}
	bob.acks("", nil, 1)
	bob.sees("", nil, "")
	alice.quiet()
}

func TestEventCarriesEnvelopesUpTo32KiB(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	room := h.channel("room", "alice", "bob")
	for _, size := range []int{push.MaxEnvelope, push.MaxEnvelope + 1} {
		got := alice.sends("bob", string(make([]byte, size)), in(room))
		event := message(t, bob.Event(), qpcpb.EventMessageAvailable, new(qpcpb.MessageAvailable))
		if event.Seq != got.Seq || !bytes.Equal(event.ChannelId, room) || (event.Envelope != nil) != (size <= push.MaxEnvelope) {
			t.Errorf("%d bytes: seq %d, with envelope %v", size, event.Seq, event.Envelope != nil)
		}
	}
}

func TestSeqRisesForEver(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	h.person("carol")
	room := h.channel("room", "alice", "bob")
	for want := uint64(1); want <= 3; want++ {
		for _, change := range []func(*qpcpb.EnqueueRequest){in(nil), in(room)} {
			if got := alice.sends("bob", "x", change); got.Seq != want {
				t.Errorf("got seq %d, want %d", got.Seq, want)
			}
		}
		switch want {
		case 1:
			bob.acks("", nil, 99)
			bob.acks("", room, 1)
		case 2:
			h.Service.Advance(8 * day)
			h.sweep()
			h.restart()
		}
	}
	if got := alice.sends("carol", "x"); got.Seq != 1 {
		t.Errorf("another recipient starts at %d, want 1", got.Seq)
	}
	if got := bob.sends("bob", "note"); got.Seq != 4 {
		t.Errorf("a note to oneself has seq %d, want 4", got.Seq)
	}
	h.checkCounters()
}

func TestDuplicates(t *testing.T) {
	h := open(t)
	alice, bob, carol := h.person("alice"), h.person("bob"), h.person("carol")
	room := h.channel("room", "alice", "bob", "carol")
	first := alice.sends("bob", "hi", id("1"))
	again := func(what string) {
		t.Helper()
		// Another payload changes nothing: the proof is of the first.
		got := alice.sends("bob", "changed", id("1"))
		if !got.Duplicate || got.Seq != first.Seq || !bytes.Equal(got.DeliveryProof, first.DeliveryProof) {
			t.Errorf("%s: got %v, want the first answer with duplicate", what, got)
		}
	}
	again("at once")
	bob.sees("", nil, "1:hi")
	bob.acks("", nil, 1)
	again("acknowledged")
	h.restart()
	again("after a restart")
	bob.sees("", nil, "")
	h.Wall.Advance(100 * day)
	h.Service.Advance(retention - time.Second)
	h.sweep()
	again("just within the retention time")

	for what, got := range map[string]*qpcpb.EnqueueResponse{
		"another sender":    carol.sends("bob", "hi", id("1")),
		"another recipient": alice.sends("carol", "hi", id("1")),
		"another channel":   alice.sends("bob", "hi", id("1"), in(room)),
		"another id":        alice.sends("bob", "hi", id("2")),
	} {
		if got.Duplicate {
			t.Errorf("%s: taken for a duplicate", what)
		}
	}
	for range 2 {
		if got := alice.sends("bob", "hi"); got.Duplicate {
			t.Error("a message without id is taken for a duplicate")
		}
	}
	h.Service.Advance(time.Second)
	last := alice.sends("bob", "anew", id("1"))
	if last.Duplicate || last.Seq <= first.Seq {
		t.Errorf("after the retention time: got %v", last)
	}
	h.checkCounters()
}

func TestDuplicateTimeIsTheRetentionEvenForShortMessages(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	alice.sends("bob", "hi", id("1"), ttl(10))
	h.Service.Advance(time.Hour)
	if got := alice.sends("bob", "hi", id("1"), ttl(10)); !got.Duplicate {
		t.Error("the repetition of an expired message is stored")
	}
	bob.sees("", nil, "")
}

func TestBlockedSenderCannotTell(t *testing.T) {
	h := open(t, func(l *delivery.Limits) { l.QueueMessages = 3 })
	alice, bob, mallory := h.person("alice"), h.person("bob"), h.person("mallory")
	room := h.channel("room", "mallory", "bob")
	h.blocks("bob", "mallory")

	if got := mallory.sends("bob", "spam", id("1")); got.Seq != 1 || got.Duplicate {
		t.Errorf("got %v", got)
	}
	if got := mallory.sends("bob", "spam", id("1")); got.Seq != 1 || !got.Duplicate {
		t.Errorf("the repetition got %v", got)
	}
	mallory.sends("bob", "spam", in(room))
	if got := mallory.sends("bob", "typing", func(r *qpcpb.EnqueueRequest) { r.Ephemeral = true }); got.Seq != 0 || got.DeliveryProof != nil {
		t.Errorf("an ephemeral one got %v", got)
	}
	alice.sends("bob", "hi")
	event := message(t, bob.Event(), qpcpb.EventMessageAvailable, new(qpcpb.MessageAvailable))
	if string(event.Envelope.GetData()) != "hi" {
		t.Errorf("bob is told of %v", event)
	}
	bob.quiet()
	bob.sees("", nil, "2:hi") // a gap, nothing more
	bob.sees("", room, "")

	// A full queue is full for everybody.
	alice.sends("bob", "2")
	alice.sends("bob", "3")
	_, err := mallory.enqueue(&qpcpb.EnqueueRequest{RecipientKey: bob.key})
	servicetest.WantCode(t, err, qpcpb.CodeQueueFull)
	h.checkCounters()
}

func TestWhoMayBeWrittenTo(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	h.person("bob")
	room, others := h.channel("room", "alice", "carol"), h.channel("others", "bob", "carol")
	for _, ephemeral := range []bool{false, true} {
		for _, test := range []struct {
			what string
			r    *qpcpb.EnqueueRequest
			want qpcpb.Code
		}{
			{"nobody", &qpcpb.EnqueueRequest{RecipientKey: servicetest.Bytes("nobody")}, qpcpb.CodeUserNotFound},
			{"no such channel", &qpcpb.EnqueueRequest{RecipientKey: servicetest.Bytes("bob"), ChannelId: make([]byte, 16)}, qpcpb.CodeChannelNotFound},
			{"others' channel", &qpcpb.EnqueueRequest{RecipientKey: servicetest.Bytes("bob"), ChannelId: others}, qpcpb.CodeChannelNotFound},
			{"not in the channel", &qpcpb.EnqueueRequest{RecipientKey: servicetest.Bytes("bob"), ChannelId: room}, qpcpb.CodeChannelAccessDenied},
			{"short key", &qpcpb.EnqueueRequest{RecipientKey: make([]byte, 31)}, qpcpb.CodeInvalidField},
			{"long key", &qpcpb.EnqueueRequest{RecipientKey: make([]byte, 33)}, qpcpb.CodeInvalidField},
			{"no key", &qpcpb.EnqueueRequest{}, qpcpb.CodeInvalidField},
			{"short channel", &qpcpb.EnqueueRequest{RecipientKey: servicetest.Bytes("bob"), ChannelId: make([]byte, 15)}, qpcpb.CodeInvalidField},
			{"short message id", &qpcpb.EnqueueRequest{RecipientKey: servicetest.Bytes("bob"), MessageId: make([]byte, 15)}, qpcpb.CodeInvalidField},
		} {
			t.Run(fmt.Sprintf("%s, ephemeral %v", test.what, ephemeral), func(t *testing.T) {
				test.r.Ephemeral = ephemeral
				_, err := alice.enqueue(test.r)
				servicetest.WantCode(t, err, test.want)
			})
		}
	}
	for _, table := range []string{"delivery_party", "delivery_queue", "delivery_message", "delivery_receipt"} {
		if n := h.Count(table); n != 0 {
			t.Errorf("refused messages left %d rows in %s", n, table)
		}
	}
}

func TestSizes(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	room := h.channel("room", "alice", "bob")
	const most = frame.MaxPayload - 1<<10
	for _, size := range []int{0, 1, most} {
		payload := bytes.Repeat([]byte{'x'}, size)
		alice.sends("bob", string(payload), in(room))
		got := bob.fetch(&qpcpb.FetchRequest{ChannelId: room})
		if len(got) != 1 || !bytes.Equal(got[0].Data, payload) {
			t.Fatalf("%d bytes did not come through", size)
		}
	}
	for _, r := range []*qpcpb.EnqueueRequest{
		{RecipientKey: bob.key, Payload: make([]byte, most+1)},
		{RecipientKey: bob.key, Payload: make([]byte, push.MaxEnvelope+1), Ephemeral: true},
	} {
		_, err := alice.enqueue(r)
		servicetest.WantCode(t, err, qpcpb.CodePayloadTooLarge)
	}
	h.checkCounters()
}

func TestTimeToLive(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	alice.sends("bob", "short", ttl(60))
	alice.sends("bob", "default")
	alice.sends("bob", "cut", ttl(1<<32-1))
	h.Wall.Advance(1000 * day) // no jump of the wall clock counts
	h.sweep()
	h.Service.Advance(59 * time.Second)
	h.sweep()
	bob.sees("", nil, "1:short 2:default 3:cut")
	h.Service.Advance(time.Second)
	bob.sees("", nil, "2:default 3:cut") // over, swept or not
	if n := h.Count("delivery_message"); n != 3 {
		t.Errorf("%d messages before the sweep", n)
	}
	h.sweep()
	h.checkCounters()
	h.Wall.Advance(-2000 * day)
	h.Service.Advance(retention - 61*time.Second)
	h.restart()
	h.sweep()
	bob.sees("", nil, "2:default 3:cut")
	h.Service.Advance(time.Second)
	h.sweep()
	bob.sees("", nil, "")
	if n := h.Count("delivery_message"); n != 0 {
		t.Errorf("%d messages after the sweep", n)
	}
	h.checkCounters()
}

func TestClockBefore1970(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	h.Wall.Advance(-time.Duration(h.Wall.Now().Unix()+3600) * time.Second)
	alice.sends("bob", "hi")
	if got := bob.peek(&qpcpb.PeekRequest{}); len(got) != 1 || got[0].ReceivedAt != 0 {
		t.Errorf("got %v", got)
	}
}

func TestEphemeral(t *testing.T) {
	h := open(t)
	h.Open()
	alice, bob, desk := h.overQUIC("alice"), h.overQUIC("bob"), h.overQUIC("bob")
	h.person("carol")
	room := h.channel("room", "alice", "bob")
	got := alice.sends("bob", "typing", in(room), id("1"), func(r *qpcpb.EnqueueRequest) { r.Ephemeral = true })
	if got.Seq != 0 || len(got.DeliveryProof) != 0 || got.Duplicate {
		t.Errorf("got %v, want an empty answer", got)
	}
	for _, p := range []person{bob, desk} {
		event := message(t, p.Event(), qpcpb.EventEphemeral, new(qpcpb.Ephemeral))
		if want := (&qpcpb.Ephemeral{SenderKey: alice.key, ChannelId: room, Payload: []byte("typing")}); !proto.Equal(event, want) {
			t.Errorf("got %v, want %v", event, want)
		}
	}
	h.Accounts.Add("offline")
	alice.sends("offline", "typing", func(r *qpcpb.EnqueueRequest) { r.Ephemeral = true })
	for _, table := range []string{"delivery_party", "delivery_queue", "delivery_message", "delivery_receipt"} {
		if n := h.Count(table); n != 0 {
			t.Errorf("ephemeral messages left %d rows in %s", n, table)
		}
	}
}

func TestFullQueue(t *testing.T) {
	h := open(t, func(l *delivery.Limits) { l.QueueMessages, l.QueueBytes = 3, 100 })
	alice, bob := h.person("alice"), h.person("bob")
	h.person("carol")
	room := h.channel("room", "alice", "bob")
	full := func(size int, channel []byte) {
		t.Helper()
		_, err := alice.enqueue(&qpcpb.EnqueueRequest{RecipientKey: bob.key, Payload: make([]byte, size), ChannelId: channel})
		servicetest.WantCode(t, err, qpcpb.CodeQueueFull)
	}
	alice.sends("bob", "1", id("1"))
	alice.sends("bob", "2", in(room)) // all queues count together
	alice.sends("bob", "3")
	full(0, nil)
	full(0, room)
	if got := alice.sends("bob", "1", id("1")); !got.Duplicate {
		t.Error("a repetition is refused by a full queue")
	}
	alice.sends("carol", "others have room")
	bob.acks("", nil, 1)
	if got := alice.sends("bob", "4"); got.Seq != 3 {
		t.Errorf("got seq %d, want 3: what was refused has none", got.Seq)
	}
	bob.acks("", nil, 99)
	bob.acks("", room, 99)
	alice.sends("bob", string(make([]byte, 60)))
	full(41, nil)
	alice.sends("bob", string(make([]byte, 40)))
	full(1, nil)
	alice.sends("bob", "") // exactly full
	h.checkCounters()
}

func TestSendRate(t *testing.T) {
	h := open(t, func(l *delivery.Limits) { l.SendRate, l.SendBurst = 10, 20 })
	alice, bob := h.person("alice"), h.person("bob")
	for range 20 {
		alice.sends("bob", "x")
	}
	for _, ephemeral := range []bool{false, true} {
		_, err := alice.enqueue(&qpcpb.EnqueueRequest{RecipientKey: bob.key, Ephemeral: ephemeral})
		servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
		var answer *rpc.Error
		if errors.As(err, &answer); answer.RetryAfter != 100*time.Millisecond {
			t.Errorf("told to wait for %v, want 100ms", answer.RetryAfter)
		}
	}
	bob.sends("alice", "others may")
	h.Wall.Advance(100 * time.Millisecond)
	alice.sends("bob", "x")
	// A batch counts once for each recipient.
	h.Wall.Advance(time.Second)
	batch := &qpcpb.BatchEnqueueRequest{}
	for i := range 11 {
		h.Accounts.Add(fmt.Sprint("r", i))
		batch.RecipientKeys = append(batch.RecipientKeys, servicetest.Bytes(fmt.Sprint("r", i)))
	}
	_, err := alice.BatchEnqueue(servicetest.Within(t), batch)
	servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
	batch.RecipientKeys = batch.RecipientKeys[:10]
	if _, err := alice.BatchEnqueue(servicetest.Within(t), batch); err != nil {
		t.Fatal(err)
	}
	_, err = alice.enqueue(&qpcpb.EnqueueRequest{RecipientKey: bob.key})
	servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
}

func TestBatch(t *testing.T) {
	h := open(t, func(l *delivery.Limits) { l.QueueMessages = 2 })
	alice, bob, carol, dave := h.person("alice"), h.person("bob"), h.person("carol"), h.person("dave")
	room := h.channel("room", "alice", "bob", "carol", "eve", "frank")
	h.Accounts.Add("eve")
	h.Accounts.Add("frank")
	h.blocks("eve", "alice")
	bob.sends("bob", "full")
	bob.sends("bob", "full")
	h.registers("carol", "phone")

	request := &qpcpb.BatchEnqueueRequest{
		ChannelId: room, MessageId: messageID("1"),
		RecipientKeys: [][]byte{bob.key, carol.key, dave.key, servicetest.Bytes("nobody"), servicetest.Bytes("eve"), servicetest.Bytes("frank")},
		Payloads:      [][]byte{[]byte("to bob"), []byte("to carol"), []byte("to dave"), nil, []byte("to eve"), {}},
	}
	const full, denied, notFound = uint32(qpcpb.StatusResourceExhausted), uint32(qpcpb.StatusForbidden), uint32(qpcpb.StatusNotFound)
	want := []struct {
		status uint32
		seq    uint64
	}{{full, 0}, {0, 1}, {denied, 0}, {notFound, 0}, {0, 1}, {0, 1}}
	for round := range 2 {
		got, err := alice.BatchEnqueue(servicetest.Within(t), request)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Results) != len(want) || len(got.Seqs) != len(want) {
			t.Fatalf("got %d results and %d seqs for %d recipients", len(got.Results), len(got.Seqs), len(want))
		}
		for i, w := range want {
			r := got.Results[i]
			if r.Status != w.status || r.Seq != w.seq || got.Seqs[i] != w.seq || r.Duplicate != (round == 1 && w.seq != 0) {
				t.Errorf("round %d, recipient %d: got %v and seq %d, want %v", round, i, r, got.Seqs[i], w)
			}
			if w.seq != 0 {
				h.checkProof(&qpcpb.EnqueueRequest{RecipientKey: request.RecipientKeys[i], ChannelId: room, MessageId: request.MessageId, Payload: request.Payloads[i]}, r.Seq, r.DeliveryProof)
			} else if len(r.DeliveryProof) != 0 {
				t.Errorf("recipient %d: a proof of nothing", i)
			}
		}
	}
	carol.sees("", room, "1:to carol")
	bob.sees("", room, "")
	if n := h.Count("delivery_message"); n != 4 {
		t.Errorf("there are %d messages, want 4", n)
	}
	h.checkCounters()

	// One payload for all, and ephemeral to all.
	shared := &qpcpb.BatchEnqueueRequest{RecipientKeys: [][]byte{carol.key, dave.key}, Payload: []byte("all")}
	if got, err := alice.BatchEnqueue(servicetest.Within(t), shared); err != nil || got.Seqs[0] != 1 || got.Seqs[1] != 1 {
		t.Fatalf("got %v and %v", got, err)
	}
	dave.sees("", nil, "1:all")
	shared.Ephemeral = true
	shared.RecipientKeys = append(shared.RecipientKeys, servicetest.Bytes("nobody"))
	got, err := alice.BatchEnqueue(servicetest.Within(t), shared)
	if err != nil || len(got.Seqs) != 3 || got.Seqs[0] != 0 || got.Results[0].Status != 0 || got.Results[2].Status != notFound || len(got.Results[0].DeliveryProof) != 0 {
		t.Errorf("ephemeral: got %v and %v", got, err)
	}
	message(t, dave.Event(), qpcpb.EventMessageAvailable, new(qpcpb.MessageAvailable))
	message(t, dave.Event(), qpcpb.EventEphemeral, new(qpcpb.Ephemeral))
}

func TestBatchForm(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	recipients := func(n int) (keys [][]byte) {
		for i := range n {
			keys = append(keys, servicetest.Bytes(fmt.Sprint("r", i)))
			h.Accounts.Add(fmt.Sprint("r", i))
		}
		return keys
	}
	two := recipients(2)
	for _, test := range []struct {
		what string
		r    *qpcpb.BatchEnqueueRequest
		want qpcpb.Code
	}{
		{"nobody", &qpcpb.BatchEnqueueRequest{Payload: []byte("x")}, qpcpb.CodeInvalidField},
		{"256", &qpcpb.BatchEnqueueRequest{RecipientKeys: recipients(256), Payload: []byte("x")}, qpcpb.CodeUnspecified},
		{"257", &qpcpb.BatchEnqueueRequest{RecipientKeys: recipients(257), Payload: []byte("x")}, qpcpb.CodeInvalidField},
		{"both", &qpcpb.BatchEnqueueRequest{RecipientKeys: two, Payload: []byte("x"), Payloads: [][]byte{{1}, {2}}}, qpcpb.CodeInvalidField},
		{"too few payloads", &qpcpb.BatchEnqueueRequest{RecipientKeys: two, Payloads: [][]byte{{1}}}, qpcpb.CodeInvalidField},
		{"too many payloads", &qpcpb.BatchEnqueueRequest{RecipientKeys: two, Payloads: [][]byte{{1}, {2}, {3}}}, qpcpb.CodeInvalidField},
		{"empty payload", &qpcpb.BatchEnqueueRequest{RecipientKeys: two}, qpcpb.CodeUnspecified},
		{"twice", &qpcpb.BatchEnqueueRequest{RecipientKeys: [][]byte{two[0], two[1], two[0]}}, qpcpb.CodeInvalidField},
		{"short key", &qpcpb.BatchEnqueueRequest{RecipientKeys: [][]byte{two[0], two[1][:31]}}, qpcpb.CodeInvalidField},
		{"short id", &qpcpb.BatchEnqueueRequest{RecipientKeys: two, MessageId: make([]byte, 15)}, qpcpb.CodeInvalidField},
		{"too large", &qpcpb.BatchEnqueueRequest{RecipientKeys: two, Payload: make([]byte, delivery.MaxPayload+1)}, qpcpb.CodePayloadTooLarge},
		{"one too large", &qpcpb.BatchEnqueueRequest{RecipientKeys: two, Payloads: [][]byte{{1}, make([]byte, delivery.MaxPayload+1)}}, qpcpb.CodePayloadTooLarge},
		{"too large to be ephemeral", &qpcpb.BatchEnqueueRequest{RecipientKeys: two, Ephemeral: true, Payload: make([]byte, push.MaxEnvelope+1)}, qpcpb.CodePayloadTooLarge},
	} {
		t.Run(test.what, func(t *testing.T) {
			before := h.Count("delivery_message")
			_, err := alice.BatchEnqueue(servicetest.Within(t), test.r)
			servicetest.WantCode(t, err, test.want)
			if n := h.Count("delivery_message") - before; test.want != qpcpb.CodeUnspecified && n != 0 {
				t.Errorf("a refused batch stored %d messages", n)
			} else if test.want == qpcpb.CodeUnspecified && n != len(test.r.RecipientKeys) {
				t.Errorf("%d messages were stored for %d recipients", n, len(test.r.RecipientKeys))
			}
		})
	}
}

// A large payload for many is several transactions; all of it arrives.
func TestLargeBatch(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	request := &qpcpb.BatchEnqueueRequest{Payload: make([]byte, 1<<20)}
	for i := range 7 {
		h.Accounts.Add(fmt.Sprint("r", i))
		request.RecipientKeys = append(request.RecipientKeys, servicetest.Bytes(fmt.Sprint("r", i)))
	}
	got, err := alice.BatchEnqueue(servicetest.Within(t), request)
	if err != nil {
		t.Fatal(err)
	}
	for i, seq := range got.Seqs {
		if seq != 1 {
			t.Errorf("recipient %d got seq %d", i, seq)
		}
	}
	if n := h.Count("delivery_message"); n != 7 {
		t.Errorf("%d messages were stored, want 7", n)
	}
	h.checkCounters()
}

func TestErase(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	room := h.channel("room", "alice", "bob")
	h.registers("alice", "phone")
	alice.sends("bob", "to bob", id("1"))
	bob.sends("alice", "to alice", id("1"))
	bob.sends("alice", "in the room", in(room))
	alice.acks("phone", nil, 1)
	bob.sends("alice", "again")

	h.Write(func(tx *store.Tx) error { return h.svc.EraseTx(tx, servicetest.Key("alice")) })
	h.Accounts.Remove("alice")
	for table, want := range map[string]int{
		"delivery_party": 1, "delivery_queue": 1, "delivery_message": 1, "delivery_receipt": 0, "delivery_cursor": 0,
	} {
		if n := h.Count(table); n != want {
			t.Errorf("%s has %d rows left, want %d", table, n, want)
		}
	}
	bob.sees("", nil, "1:to bob") // what is sent is the recipient's
	h.checkCounters()

	// A call that was on its way when the account went leaves nothing behind.
	_, err := alice.enqueue(&qpcpb.EnqueueRequest{RecipientKey: bob.key, MessageId: messageID("2")})
	servicetest.WantCode(t, err, qpcpb.CodeUnauthenticated)
	if n := h.Count("delivery_party"); n != 1 {
		t.Errorf("a deleted sender has come back: %d parties", n)
	}
	// Who comes back starts anew.
	h.Accounts.Add("alice")
	if got := bob.sends("alice", "welcome back", id("1")); got.Seq != 1 || got.Duplicate {
		t.Errorf("got %v", got)
	}
	alice.sees("", nil, "1:welcome back")
}

func TestSweepIsBounded(t *testing.T) {
	h := open(t)
	alice := h.person("alice")
	h.person("bob")
	alice.sends("bob", "first", id("0"))
	h.Write(func(tx *store.Tx) error {
		for i := range 1199 {
			if _, err := tx.Exec("INSERT INTO delivery_message (id, bucket, queue_id, seq, received_at, valid_until, payload) VALUES (?1, ?1 >> 8, (SELECT id FROM delivery_queue), ?1, 0, 0, ?2)", i+2, []byte("xy")); err != nil {
				return err
			}
			if _, err := tx.Exec("INSERT INTO delivery_receipt (message_id, sender_id, queue_id, seq, payload_hash, valid_until) VALUES (?, 99, 99, 1, ?, 0)", messageID(fmt.Sprint(i)), make([]byte, 32)); err != nil {
				return err
			}
		}
		return nil
	})
	more, err := h.svc.Sweep(t.Context())
	if err != nil || !more {
		t.Fatalf("got more %v and %v after the first of several sweeps", more, err)
	}
	if n := h.Count("delivery_message"); n < 500 || n == 1200 {
		t.Errorf("one sweep brought 1,200 messages to %d", n)
	}
	h.checkCounters()
	h.Service.Advance(retention) // the first receipt, which is still valid, holds up no other for ever
	h.sweep()                    // the rest of the round that is under way
	h.sweep()                    // and one from the beginning
	h.checkCounters()
	for _, table := range []string{"delivery_message", "delivery_receipt"} {
		if n := h.Count(table); n != 0 {
			t.Errorf("%s has %d rows left", table, n)
		}
	}
}
