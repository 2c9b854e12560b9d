package delivery_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
)

func TestFetchPeekAck(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	for _, text := range []string{"a", "b", "c", "d", "e"} {
		alice.sends("bob", text)
	}
	bob.sees("", nil, "1:a 2:b 3:c 4:d 5:e")
	bob.sees("", nil, "1:a 2:b 3:c 4:d 5:e")
	if got := texts(bob.peek(&qpcpb.PeekRequest{Limit: 2})); got != "1:a 2:b" {
		t.Errorf("a limit of 2 shows %q", got)
	}
	for after, want := range map[uint64]string{2: "3:c 4:d", 4: "5:e", 5: "", 1 << 63: "", 1<<64 - 1: ""} {
		if got := texts(bob.peek(&qpcpb.PeekRequest{Limit: 2, AfterSeq: after})); got != want {
			t.Errorf("after seq %d: %q, want %q", after, got, want)
		}
	}
	bob.acks("", nil, 0)
	bob.sees("", nil, "1:a 2:b 3:c 4:d 5:e")
	bob.acks("", nil, 2)
	bob.acks("", nil, 1)
	bob.sees("", nil, "3:c 4:d 5:e")
	if got := texts(bob.fetch(&qpcpb.FetchRequest{Limit: 2})); got != "3:c 4:d" {
		t.Errorf("fetched %q", got)
	}
	bob.sees("", nil, "5:e")
	bob.acks("", nil, 1<<64-1) // past the end stops at the end
	alice.sends("bob", "f")
	bob.sees("", nil, "6:f")
	h.checkCounters()
}

func TestOnlyOnesOwnQueue(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	room := h.channel("room", "alice", "bob")
	alice.sends("bob", "secret")
	ctx := servicetest.Within(t)
	for _, test := range []struct {
		what                       string
		recipient, channel, device []byte
		all                        bool
		want                       qpcpb.Code
	}{
		{"another's", bob.key, nil, nil, false, qpcpb.CodeNotYours},
		{"another's, all", bob.key, nil, nil, true, qpcpb.CodeNotYours},
		{"no key", nil, nil, nil, false, qpcpb.CodeInvalidField},
		{"long key", append(alice.key[:32:32], 0), nil, nil, false, qpcpb.CodeInvalidField},
		{"short channel", alice.key, make([]byte, 15), nil, false, qpcpb.CodeInvalidField},
		{"short device", alice.key, nil, make([]byte, 15), false, qpcpb.CodeInvalidField},
		{"unknown device", alice.key, nil, make([]byte, 16), false, qpcpb.CodeDeviceNotFound},
		{"channel and all", alice.key, room, nil, true, qpcpb.CodeInvalidField},
	} {
		calls := map[string]func() error{
			"Fetch": func() error {
				_, err := alice.Fetch(ctx, &qpcpb.FetchRequest{RecipientKey: test.recipient, ChannelId: test.channel, DeviceId: test.device, AllChannels: test.all})
				return err
			},
			"FetchWait": func() error {
				_, err := alice.FetchWait(ctx, &qpcpb.FetchWaitRequest{RecipientKey: test.recipient, ChannelId: test.channel, DeviceId: test.device, AllChannels: test.all, TimeoutMs: 60_000})
				return err
			},
			"Peek": func() error {
				_, err := alice.Peek(ctx, &qpcpb.PeekRequest{RecipientKey: test.recipient, ChannelId: test.channel, DeviceId: test.device, AllChannels: test.all})
				return err
			},
		}
		if !test.all {
			calls["Ack"] = func() error {
				_, err := alice.Ack(ctx, &qpcpb.AckRequest{RecipientKey: test.recipient, ChannelId: test.channel, DeviceId: test.device, SeqUpTo: 9})
				return err
			}
		}
		for name, call := range calls {
			t.Run(name+" "+test.what, func(t *testing.T) { servicetest.WantCode(t, call(), test.want) })
		}
	}
	_, err := alice.Peek(ctx, &qpcpb.PeekRequest{RecipientKey: alice.key, AllChannels: true, AfterSeq: 1})
	servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	bob.sees("", nil, "1:secret")
}

func TestPagesOf500(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	var senders sync.WaitGroup
	for range 9 { // side by side, so that they share commits
		senders.Go(func() {
			for range 111 {
				if _, err := alice.enqueue(&qpcpb.EnqueueRequest{RecipientKey: bob.key, Payload: []byte("x")}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	senders.Wait()
	for _, limit := range []uint32{0, 500, 501, 1<<32 - 1} {
		if got := bob.peek(&qpcpb.PeekRequest{Limit: limit}); len(got) != 500 || got[0].Seq != 1 || got[499].Seq != 500 {
			t.Errorf("limit %d shows %d messages", limit, len(got))
		}
	}
	for _, want := range []int{500, 499, 0} {
		if got := bob.fetch(&qpcpb.FetchRequest{AllChannels: want == 500}); len(got) != want {
			t.Errorf("fetched %d messages, want %d", len(got), want)
		}
	}
	h.checkCounters()
}

func TestPagesOf4MiB(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	room := h.channel("room", "alice", "bob")
	const large = delivery.MaxPayload / 2
	alice.sends("bob", strings.Repeat("1", large))
	alice.sends("bob", strings.Repeat("2", large), in(room))
	alice.sends("bob", strings.Repeat("3", delivery.MaxPayload))
	alice.sends("bob", "4")
	alice.sends("bob", strings.Repeat("5", delivery.MaxPayload), in(room))
	for _, want := range []string{"12", "34", "5", ""} {
		request := &qpcpb.FetchRequest{AllChannels: true}
		if want == "34" { // 4 MiB less 1 KiB and one byte fit; two large ones do not
			if got := bob.peek(&qpcpb.PeekRequest{AllChannels: true, Limit: 1}); len(got) != 1 || got[0].Data[0] != '3' {
				t.Fatalf("peek shows %d messages", len(got))
			}
		}
		got := ""
		for _, e := range bob.fetch(request) {
			got += string(e.Data[:1])
		}
		if got != want {
			t.Errorf("a page holds %q, want %q", got, want)
		}
	}
	h.checkCounters()
}

func TestAllChannelsInOrderOfArrival(t *testing.T) {
	h := open(t)
	alice, bob, carol := h.person("alice"), h.person("bob"), h.person("carol")
	red, blue := h.channel("red", "alice", "bob"), h.channel("blue", "carol", "bob")
	h.registers("bob", "phone")
	channels := map[string][]byte{"inbox": nil, "red": red, "blue": blue}
	order := []string{"blue", "inbox", "red", "red", "blue", "inbox", "inbox", "blue"}
	for i, channel := range order {
		sender := alice
		if channel == "blue" {
			sender = carol
		}
		sender.sends("bob", fmt.Sprint(channel, i), in(channels[channel]))
		if i == 3 {
			h.restart()
		}
	}
	shows := func(device, want string) {
		t.Helper()
		got := bob.peek(&qpcpb.PeekRequest{AllChannels: true, DeviceId: deviceID(device)})
		if texts(got) != want {
			t.Errorf("all channels on %q: %q, want %q", device, texts(got), want)
		}
		for _, e := range got {
			for name, channel := range channels {
				if strings.HasPrefix(string(e.Data), name) != (string(channel) == string(e.ChannelId)) {
					t.Errorf("%q comes from channel %x", e.Data, e.ChannelId)
				}
			}
		}
	}
	shows("", "1:blue0 1:inbox1 1:red2 2:red3 2:blue4 2:inbox5 3:inbox6 3:blue7")
	bob.sees("", nil, "1:inbox1 2:inbox5 3:inbox6") // the empty channel is the inbox alone
	bob.sees("", red, "1:red2 2:red3")
	bob.acks("phone", red, 1)
	bob.acks("", blue, 1)
	shows("", "1:inbox1 2:red3 2:blue4 2:inbox5 3:inbox6 3:blue7")
	if got := texts(bob.fetch(&qpcpb.FetchRequest{AllChannels: true, Limit: 3})); got != "1:inbox1 2:red3 2:blue4" {
		t.Errorf("fetched %q", got)
	}
	shows("phone", "2:inbox5 3:inbox6 3:blue7")
	h.checkCounters()
}

func TestDevices(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	room := h.channel("room", "alice", "bob")
	for _, text := range []string{"a", "b", "c"} {
		alice.sends("bob", text)
	}
	h.registers("bob", "phone", "desk")
	bob.sees("phone", nil, "1:a 2:b 3:c") // a new device starts with all that waits
	bob.acks("phone", nil, 2)
	bob.sees("phone", nil, "3:c")
	bob.sees("desk", nil, "1:a 2:b 3:c")
	bob.sees("", nil, "1:a 2:b 3:c")
	bob.acks("phone", nil, 1) // never back
	bob.sees("phone", nil, "3:c")

	bob.acks("desk", nil, 1) // both have the first
	bob.sees("", nil, "2:b 3:c")
	h.restart()
	bob.sees("phone", nil, "3:c")
	if got := texts(bob.fetch(&qpcpb.FetchRequest{DeviceId: deviceID("desk")})); got != "2:b 3:c" {
		t.Errorf("the desk fetched %q", got)
	}
	bob.sees("desk", nil, "")
	bob.sees("phone", nil, "3:c")
	bob.acks("phone", nil, 99) // past the end stops at the end
	alice.sends("bob", "d")
	bob.sees("phone", nil, "4:d")

	h.registers("bob", "tablet")
	bob.sees("tablet", nil, "4:d")
	bob.acks("phone", nil, 4)
	bob.acks("desk", nil, 4)
	bob.sees("tablet", nil, "4:d")
	h.revokes("bob", "tablet") // nobody is left to read it
	bob.sees("", nil, "")
	_, err := bob.Peek(servicetest.Within(t), &qpcpb.PeekRequest{RecipientKey: bob.key, DeviceId: deviceID("tablet")})
	servicetest.WantCode(t, err, qpcpb.CodeDeviceNotFound)

	// Without a device a call acts for all of them.
	alice.sends("bob", "e")
	alice.sends("bob", "f", in(room))
	bob.acks("", nil, 5)
	bob.sees("phone", nil, "")
	bob.sees("desk", room, "1:f")
	if got := texts(bob.fetch(&qpcpb.FetchRequest{AllChannels: true})); got != "1:f" {
		t.Errorf("fetched %q", got)
	}
	bob.sees("desk", room, "")

	// Registered anew, a device is a new one.
	alice.sends("bob", "g")
	bob.acks("phone", nil, 6)
	h.revokes("bob", "phone")
	h.registers("bob", "phone")
	bob.sees("phone", nil, "6:g")
	if n := h.Count("delivery_cursor"); n != 1 {
		t.Errorf("there are %d cursors, want the desk's in the inbox", n)
	}
	h.checkCounters()
}

func TestRevokingTheLastDeviceKeepsWhatItHasNotRead(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	h.registers("bob", "phone")
	alice.sends("bob", "a")
	alice.sends("bob", "b")
	bob.acks("phone", nil, 1)
	h.revokes("bob", "phone")
	bob.sees("", nil, "2:b")
	h.checkCounters()
}

// waits starts a FetchWait and returns where its answer arrives.
func (p person) waits(timeout time.Duration, change ...func(*qpcpb.FetchWaitRequest)) <-chan string {
	answers := make(chan string, 1)
	r := &qpcpb.FetchWaitRequest{RecipientKey: p.key, TimeoutMs: uint64(timeout.Milliseconds())}
	for _, f := range change {
		f(r)
	}
	ctx := p.t.Context()
	go func() {
		got, err := p.FetchWait(ctx, r)
		if err != nil {
			answers <- err.Error()
			return
		}
		answers <- texts(got.Payloads)
	}()
	return answers
}

func TestFetchWait(t *testing.T) {
	// answers within exactly so long.
	check := func(t *testing.T, answers <-chan string, want string, after time.Duration, start time.Time) {
		t.Helper()
		got := <-answers
		if took := time.Since(start); got != want || took != after {
			t.Errorf("got %q after %v, want %q after %v", got, took, want, after)
		}
	}
	for _, test := range []struct {
		name string
		do   func(t *testing.T, h *house, alice, bob person)
	}{
		{"there already", func(t *testing.T, h *house, alice, bob person) {
			alice.sends("bob", "a")
			check(t, bob.waits(time.Minute), "1:a", 0, time.Now())
			bob.sees("", nil, "") // it is a Fetch
		}},
		{"nothing", func(t *testing.T, h *house, alice, bob person) {
			check(t, bob.waits(1500*time.Millisecond), "", 1500*time.Millisecond, time.Now())
		}},
		{"no wait", func(t *testing.T, h *house, alice, bob person) {
			check(t, bob.waits(0), "", 0, time.Now())
		}},
		{"at most a minute", func(t *testing.T, h *house, alice, bob person) {
			check(t, bob.waits(time.Hour), "", time.Minute, time.Now())
			r := func(r *qpcpb.FetchWaitRequest) { r.TimeoutMs = 1<<64 - 1 }
			check(t, bob.waits(0, r), "", time.Minute, time.Now())
		}},
		{"a message wakes", func(t *testing.T, h *house, alice, bob person) {
			start, answers := time.Now(), bob.waits(time.Minute)
			time.Sleep(45 * time.Second) // longer than any other call may take
			alice.sends("bob", "a")
			check(t, answers, "1:a", 45*time.Second, start)
		}},
		{"a message elsewhere does not", func(t *testing.T, h *house, alice, bob person) {
			room := h.channel("room", "alice", "bob")
			h.registers("bob", "phone")
			start, answers := time.Now(), bob.waits(time.Minute)
			everywhere := bob.waits(time.Minute, func(r *qpcpb.FetchWaitRequest) { r.AllChannels, r.DeviceId = true, deviceID("phone") })
			time.Sleep(time.Second)
			alice.sends("bob", "a", in(room))
			alice.sends("alice", "b")
			check(t, everywhere, "1:a", time.Second, start)
			time.Sleep(time.Second)
			alice.sends("bob", "c")
			check(t, answers, "1:c", 2*time.Second, start)
		}},
		{"two devices", func(t *testing.T, h *house, alice, bob person) {
			h.registers("bob", "phone", "desk")
			start := time.Now()
			phone := bob.waits(time.Minute, func(r *qpcpb.FetchWaitRequest) { r.DeviceId = deviceID("phone") })
			desk := bob.waits(time.Minute, func(r *qpcpb.FetchWaitRequest) { r.DeviceId = deviceID("desk") })
			time.Sleep(time.Second)
			alice.sends("bob", "a")
			check(t, phone, "1:a", time.Second, start)
			check(t, desk, "1:a", time.Second, start)
			bob.sees("", nil, "")
		}},
		{"draining", func(t *testing.T, h *house, alice, bob person) {
			start, answers := time.Now(), bob.waits(time.Minute)
			time.Sleep(time.Second)
			h.svc.Drain()
			h.svc.Drain()
			check(t, answers, "", time.Second, start)
			check(t, bob.waits(time.Minute), "", 0, time.Now())
			alice.sends("bob", "a")
			check(t, bob.waits(time.Minute), "1:a", 0, time.Now())
		}},
		{"32 at most", func(t *testing.T, h *house, alice, bob person) {
			start := time.Now()
			var all []<-chan string
			for range 32 {
				all = append(all, bob.waits(time.Minute))
			}
			synctest.Wait()
			_, err := bob.FetchWait(t.Context(), &qpcpb.FetchWaitRequest{RecipientKey: bob.key})
			servicetest.WantCode(t, err, qpcpb.CodeBusy)
			alice.sends("alice", "x")
			check(t, alice.waits(time.Minute), "1:x", 0, start)
			for _, answers := range all {
				check(t, answers, "", time.Minute, start)
			}
			check(t, bob.waits(0), "", 0, time.Now())
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := open(t)
				test.do(t, h, h.person("alice"), h.person("bob"))
			})
		})
	}
}

// No message slips between the look and the wait, whenever it comes.
func TestFetchWaitMissesNothing(t *testing.T) {
	h := open(t)
	alice, bob := h.person("alice"), h.person("bob")
	const n = 200
	go func() {
		for i := range n {
			alice.sends("bob", fmt.Sprint(i))
		}
	}()
	for got := 0; got < n; {
		select {
		case answer := <-bob.waits(time.Minute):
			got += len(strings.Fields(answer))
			if !strings.HasSuffix(answer, fmt.Sprint(":", got-1)) {
				t.Fatalf("got %q, want all up to %d", answer, got-1)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("a FetchWait sleeps although %d messages are to come", n-got)
		}
	}
	h.checkCounters()
}
