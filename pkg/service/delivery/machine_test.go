package delivery_test

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

// model is what a recipient's queues should hold, in the simplest form: all
// messages ever stored, and for each who still has to read it.
type model struct {
	messages []*modelled // in order of arrival
	devices  []string
	lastSeq  map[string]uint64 // by channel
	sent     map[string]modelledReceipt
}

type modelled struct {
	channel, text string
	seq           uint64
	until         int64           // service time
	acked         map[string]bool // by device
	gone          bool
}

type modelledReceipt struct {
	seq   uint64
	until int64
}

// visible returns what a device ("" for a call without one) should be shown of
// a channel, or of all.
func (m *model) visible(device, channel string, all bool, now int64) (shown []*modelled) {
	for _, x := range m.messages {
		if !x.gone && x.until > now && (all || x.channel == channel) && !(device != "" && x.acked[device]) {
			shown = append(shown, x)
		}
	}
	return shown
}

// ack acknowledges a channel up to a seq.
func (m *model) ack(device, channel string, upTo uint64) {
	for _, x := range m.messages {
		if x.channel != channel || x.seq > upTo {
			continue
		}
		if device == "" {
			x.gone = true
		} else {
			x.acked[device] = true
		}
	}
	m.trim()
}

// trim removes what all devices have.
func (m *model) trim() {
	for _, x := range m.messages {
		done := len(m.devices) > 0
		for _, d := range m.devices {
			done = done && x.acked[d]
		}
		x.gone = x.gone || done
	}
}

// TestQueuesAgainstModel runs random histories of one recipient against the
// model: nothing unread is lost, nothing is shown after it was acknowledged,
// order is kept, and the counters are right after every step.
func TestQueuesAgainstModel(t *testing.T) {
	const full = 40
	// A tenth of rapid's default keeps the package quick; -rapid.checks asks
	// for more.
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "rapid.checks" })
	if !asked {
		if err := flag.Set("rapid.checks", "10"); err != nil {
			t.Fatal(err)
		}
	}
	h := open(t, func(l *delivery.Limits) { l.QueueMessages, l.SendRate, l.SendBurst = full, 1e9, 1e9 })
	names := []string{"phone", "desk", "tablet"}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		me, from := fmt.Sprint("reader", run), fmt.Sprint("writer", run)
		reader, writer := h.person(me), h.person(from)
		channels := map[string][]byte{"": nil, "red": h.channel(me+" red", me, from), "blue": h.channel(me+" blue", me, from)}
		m := &model{lastSeq: make(map[string]uint64), sent: make(map[string]modelledReceipt)}
		now := func() int64 { return h.DB.ServiceTime() }
		anyChannel := rapid.SampledFrom([]string{"", "red", "blue"})
		anyDevice := func(t *rapid.T) string {
			return rapid.SampledFrom(append([]string{""}, m.devices...)).Draw(t, "device")
		}
		// same compares an answer with what the model shows.
		same := func(t *rapid.T, got []*qpcpb.Envelope, want []*modelled) {
			if len(got) != len(want) {
				t.Fatalf("got %d messages (%s), want %d", len(got), texts(got), len(want))
			}
			for i, e := range got {
				w := want[i]
				if e.Seq != w.seq || string(e.Data) != w.text || string(e.ChannelId) != string(channels[w.channel]) {
					t.Fatalf("message %d is %d:%s of %x, want %d:%s of %q", i, e.Seq, e.Data, e.ChannelId, w.seq, w.text, w.channel)
				}
			}
		}
		// first cuts to a limit.
		first := func(all []*modelled, limit uint32) []*modelled {
			if limit != 0 && int(limit) < len(all) {
				return all[:limit]
			}
			return all
		}

		rt.Repeat(map[string]func(*rapid.T){
			"enqueue": func(t *rapid.T) {
				channel := anyChannel.Draw(t, "channel")
				r := &qpcpb.EnqueueRequest{
					RecipientKey: reader.key, ChannelId: channels[channel],
					Payload: fmt.Appendf(nil, "text%d%s", len(m.messages), string(make([]byte, rapid.IntRange(0, 50).Draw(t, "size")))),
					TtlSecs: rapid.SampledFrom([]uint32{0, 10, 100}).Draw(t, "ttl"),
				}
				label := channel
				if id := rapid.IntRange(0, 6).Draw(t, "id"); id > 0 {
					r.MessageId = messageID(fmt.Sprint(id))
					label = fmt.Sprint(channel, "/", id)
				}
				got, err := writer.enqueue(r)
				if receipt, ok := m.sent[label]; ok && receipt.until > now() {
					if err != nil || !got.Duplicate || got.Seq != receipt.seq {
						t.Fatalf("a repetition of seq %d got %v and %v", receipt.seq, got, err)
					}
					return
				}
				// What has expired counts until it is swept.
				queued := 0
				for _, x := range m.messages {
					if !x.gone {
						queued++
					}
				}
				if queued >= full {
					if rpc.CodeOf(err) != qpcpb.CodeQueueFull {
						t.Fatalf("got %v from a full queue", err)
					}
					return
				}
				m.lastSeq[channel]++
				if err != nil || got.Duplicate || got.Seq != m.lastSeq[channel] {
					t.Fatalf("got %v and %v, want seq %d", got, err, m.lastSeq[channel])
				}
				h.checkProof(r, got.Seq, got.DeliveryProof)
				life := int64(retention / time.Second)
				if r.TtlSecs != 0 {
					life = int64(r.TtlSecs)
				}
				m.messages = append(m.messages, &modelled{channel: channel, text: string(r.Payload), seq: got.Seq, until: now() + life, acked: make(map[string]bool)})
				if r.MessageId != nil {
					m.sent[label] = modelledReceipt{got.Seq, now() + int64(retention/time.Second)}
				}
			},
			"peek": func(t *rapid.T) {
				device, channel, all := anyDevice(t), anyChannel.Draw(t, "channel"), rapid.Bool().Draw(t, "all")
				r := &qpcpb.PeekRequest{DeviceId: deviceID(device), AllChannels: all, Limit: rapid.Uint32Range(0, 8).Draw(t, "limit")}
				want := m.visible(device, channel, all, now())
				if !all {
					r.ChannelId = channels[channel]
					r.AfterSeq = rapid.Uint64Range(0, 6).Draw(t, "after")
					want = slices.DeleteFunc(want, func(x *modelled) bool { return x.seq <= r.AfterSeq })
				}
				same(t, reader.peek(r), first(want, r.Limit))
			},
			"fetch": func(t *rapid.T) {
				device, channel, all := anyDevice(t), anyChannel.Draw(t, "channel"), rapid.Bool().Draw(t, "all")
				r := &qpcpb.FetchRequest{DeviceId: deviceID(device), AllChannels: all, Limit: rapid.Uint32Range(0, 8).Draw(t, "limit")}
				if !all {
					r.ChannelId = channels[channel]
				}
				want := first(m.visible(device, channel, all, now()), r.Limit)
				same(t, reader.fetch(r), want)
				for _, x := range want {
					m.ack(device, x.channel, x.seq)
				}
			},
			"ack": func(t *rapid.T) {
				device, channel := anyDevice(t), anyChannel.Draw(t, "channel")
				upTo := rapid.Uint64Range(0, 12).Draw(t, "up to")
				reader.acks(device, channels[channel], upTo)
				m.ack(device, channel, min(upTo, m.lastSeq[channel]))
			},
			"register": func(t *rapid.T) {
				device := rapid.SampledFrom(names).Draw(t, "device")
				if !slices.Contains(m.devices, device) {
					h.registers(me, device)
					m.devices = append(m.devices, device)
				}
			},
			"revoke": func(t *rapid.T) {
				if len(m.devices) == 0 {
					t.Skip("no device")
				}
				device := rapid.SampledFrom(m.devices).Draw(t, "device")
				h.revokes(me, device)
				m.devices = slices.DeleteFunc(m.devices, func(d string) bool { return d == device })
				for _, x := range m.messages {
					delete(x.acked, device)
				}
				m.trim()
			},
			"time passes": func(t *rapid.T) {
				h.Service.Advance(rapid.SampledFrom([]time.Duration{time.Second, 9 * time.Second, 95 * time.Second, day}).Draw(t, "time"))
			},
			"the wall clock jumps": func(t *rapid.T) {
				h.Wall.Advance(rapid.SampledFrom([]time.Duration{-365 * day, -time.Hour, time.Hour, 365 * day}).Draw(t, "jump"))
			},
			"sweep": func(t *rapid.T) {
				h.sweep()
				h.sweep()
				for _, x := range m.messages {
					x.gone = x.gone || x.until <= now()
				}
			},
			"restart": func(t *rapid.T) { h.restart() },
			"": func(t *rapid.T) {
				h.checkCounters()
				held := 0
				err := h.DB.Read(h.t.Context(), func(tx *store.Tx) error {
					return tx.QueryRow("SELECT count(*) FROM delivery_message m JOIN delivery_queue q ON q.id = m.queue_id AND m.seq > q.acked_seq JOIN delivery_party p ON p.id = q.party_id WHERE p.identity_key = ?", servicetest.Key(me)).Scan(&held)
				})
				if err != nil {
					t.Fatal(err)
				}
				for _, x := range m.messages {
					if !x.gone {
						held--
					}
				}
				if held != 0 {
					t.Fatalf("the queues hold %+d messages against the model", held)
				}
			},
		})
		// In the end everything that is left comes out, in order.
		same(rt, reader.fetch(&qpcpb.FetchRequest{AllChannels: true}), m.visible("", "", true, now()))
		h.Write(func(tx *store.Tx) error { return h.svc.EraseTx(tx, servicetest.Key(me)) })
		h.checkCounters()
	})
}
