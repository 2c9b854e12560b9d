package delivery_test

import (
	"testing"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

// What waits is counted, in all and for each: not what is acknowledged, and not
// what has expired.
func TestTotals(t *testing.T) {
	h := open(t)
	h.Open()
	want := func(messages, bytes, bobs uint64) {
		t.Helper()
		gotMessages, gotBytes, err := h.svc.Totals(t.Context())
		if err != nil || gotMessages != messages || gotBytes != bytes {
			t.Errorf("%d messages, %d bytes, %v wait; want %d and %d", gotMessages, gotBytes, err, messages, bytes)
		}
		err = h.DB.Read(t.Context(), func(tx *store.Tx) (err error) {
			gotMessages, gotBytes, err = h.svc.WaitingTx(tx, servicetest.Key("bob"))
			return err
		})
		if err != nil || gotMessages != bobs || gotBytes != 100*bobs {
			t.Errorf("%d messages, %d bytes, %v wait for bob; want %d", gotMessages, gotBytes, err, bobs)
		}
	}
	want(0, 0, 0)
	h.Accounts.Add("carol")
	alice, bob := qpcpb.NewDeliveryClient(h.Connect("alice")), qpcpb.NewDeliveryClient(h.Connect("bob"))
	send := func(to string, ttl uint32) {
		t.Helper()
		_, err := alice.Enqueue(servicetest.Within(t), &qpcpb.EnqueueRequest{RecipientKey: servicetest.Bytes(to), Payload: make([]byte, 100), TtlSecs: ttl})
		if err != nil {
			t.Fatal(err)
		}
	}
	send("bob", 0)
	send("bob", 0)
	send("carol", 60)
	want(3, 300, 2)
	if _, err := bob.Ack(servicetest.Within(t), &qpcpb.AckRequest{RecipientKey: servicetest.Bytes("bob"), SeqUpTo: 1}); err != nil {
		t.Fatal(err)
	}
	want(2, 200, 1)
	h.Service.Advance(61e9)
	want(1, 100, 1)
}
