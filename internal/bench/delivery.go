package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// The goals of delivery, on two cores, clients and server together.
const (
	goalEnqueueOne  = 3000                         // messages a second
	goalEnqueueMany = 20000                        // messages a second, from 32 senders
	goalDrain       = 50000                        // messages a second
	goalLatency     = 0.4                          // milliseconds, median
	goalWritten     = 1.5*payloadBytes + pageBytes // bytes a message, from 32 senders
)

// eventPatience bounds the wait for one event.
const eventPatience = 10 * time.Second

// measureDelivery sends to recipients who are offline, then drains what waits
// for them, several times over; then it sends to somebody online.
func (b *bench) measureDelivery(ctx context.Context) (err error) {
	h, err := startHouse(ctx, b.dataDir(), b.bin.qpcd)
	if err != nil {
		return err
	}
	defer h.kill()
	p, err := h.people(ctx, b.plan.senders)
	if err != nil {
		return err
	}
	for _, a := range slices.Concat(p.senders, p.recipients) {
		b.tokens = append(b.tokens, a.token)
	}
	n := b.plan.senders
	steps := []func() error{
		func() error { return b.enqueue(ctx, h, p, 1, atLeast(goalEnqueueOne)) },
		func() error { return b.drain(ctx, h, p, 1, "Fetch", fetchAll) },
		func() error { return b.enqueue(ctx, h, p, n, atLeast(goalEnqueueMany)) },
		func() error { return b.drain(ctx, h, p, n, "Peek and Ack", peekAndAckAll) },
		func() error { return b.enqueuePipelined(ctx, h, p) },
		func() error { return b.drain(ctx, h, p, 1, "Peek and Ack", peekAndAckAll) },
		func() error { return b.countSyncs(ctx, h, p, 1) },
		func() error { return b.countSyncs(ctx, h, p, n) },
		func() error { return b.drain(ctx, h, p, n, "Fetch", fetchAll) },
		func() error { return b.latency(ctx, h, p) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	m, err := h.memory()
	if err != nil {
		return err
	}
	b.add(figure{section: "Delivery", name: "resident memory of qpcd at its highest during all this", value: mebibytes(m.peak), unit: "MiB"})
	return h.close()
}

// people are senders, and as many recipients: the first writes to the first.
type people struct {
	senders, recipients []*account
}

func (h *house) people(ctx context.Context, n int) (p people, err error) {
	all, err := h.register(ctx, 2*n)
	if err != nil {
		return p, err
	}
	return people{all[:n], all[n:]}, nil
}

// messages makes requests like a real client's: ids as qpc makes them, whose
// order in time matters to the server's indexes, and bytes that do not
// compress. It belongs to one goroutine.
type messages struct {
	random  *rand.ChaCha8
	request *qpcpb.EnqueueRequest
}

func newMessages(to *account) *messages {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], rand.Uint64())
	return &messages{rand.NewChaCha8(seed), &qpcpb.EnqueueRequest{RecipientKey: to.identity(), Payload: make([]byte, payloadBytes)}}
}

func (m *messages) next() (*qpcpb.EnqueueRequest, error) {
	_, _ = m.random.Read(m.request.Payload) // it never fails
	id, err := e2ee.NewMessageID(m.random, time.Now())
	m.request.MessageId = id[:]
	return m.request, err
}

// sending makes a worker that sends from a connection to a recipient.
func sending(calls *rpc.Client, to *account) work {
	delivery, m := qpcpb.NewDeliveryClient(calls), newMessages(to)
	return func(ctx context.Context) error {
		request, err := m.next()
		if err == nil {
			_, err = delivery.Enqueue(ctx, request)
		}
		return err
	}
}

// sendingAll makes a worker for each of the first n senders, each on a
// connection of its own.
func (h *house) sendingAll(ctx context.Context, p people, n int) (workers []work, hangUpAll func(), err error) {
	clients, hangUpAll, err := h.connectAll(ctx, p.senders[:n])
	if err != nil {
		return nil, nil, err
	}
	for i, c := range clients {
		workers = append(workers, sending(c, p.recipients[i]))
	}
	return workers, hangUpAll, nil
}

// enqueue measures n senders with one call under way each, and what the server
// writes for it.
func (b *bench) enqueue(ctx context.Context, h *house, p people, n int, g *goal) error {
	workers, hangUpAll, err := h.sendingAll(ctx, p, n)
	if err != nil {
		return err
	}
	defer hangUpAll()
	var before, after written
	var failed error
	var cpuBefore time.Duration
	l, err := warmed(ctx, b.plan.rate, workers, func() {
		cpu, err := h.cpu()
		io, err2 := h.written()
		cpuBefore, before, failed = cpu, io, errOf(err, err2)
	})
	if err = errOf(err, failed); err != nil {
		return err
	}
	cpu, err := h.cpu()
	if err != nil {
		return err
	}
	if after, err = h.written(); err != nil {
		return err
	}
	bare := b.bare[shape{n, 1}]
	b.add(figure{section: "Delivery", name: "durable Enqueue, " + plural(n, "sender"), value: l.rate(), unit: "/s", goal: g,
		detail: fmt.Sprintf("%s; %.0f µs of server CPU each", quantiles(l), perCall(cpu-cpuBefore, l)),
		limits: []limit{{"quic-go, " + plural(n, "connection"), bare.rate()}, {"disk, " + plural(n, "file"), b.disk[n].rate()}}})
	perMessage := func(bytes int64) float64 { return float64(bytes) / float64(max(len(l.times), 1)) }
	f := figure{section: "Delivery", name: "bytes written to disk a message, " + plural(n, "sender"), value: perMessage(after.disk - before.disk), unit: "B",
		detail: number(perMessage(after.calls-before.calls)) + " B given to the kernel, sockets included",
		limits: []limit{{"payload and one page", payloadBytes + pageBytes}}}
	if n > 1 {
		f.goal = atMost(goalWritten)
	}
	b.add(f)
	return nil
}

// enqueuePipelined measures one sender with many calls under way.
func (b *bench) enqueuePipelined(ctx context.Context, h *house, p people) error {
	calls, err := h.connect(ctx, p.senders[0])
	if err != nil {
		return err
	}
	defer hangUp(calls)
	var workers []work
	for range b.plan.senders {
		workers = append(workers, sending(calls, p.recipients[0]))
	}
	l, cpu, err := costing(ctx, h.process, b.plan.rate, workers)
	if err != nil {
		return err
	}
	s := shape{1, b.plan.senders}
	b.add(figure{section: "Delivery", name: fmt.Sprintf("durable Enqueue, 1 sender with %d calls under way", s.inFlight), value: l.rate(), unit: "/s",
		detail: fmt.Sprintf("%s; %.0f µs of server CPU each", quantiles(l), perCall(cpu, l)),
		limits: []limit{{"quic-go, the same", b.bare[s].rate()}}})
	return nil
}

// countSyncs counts the server's calls of fdatasync and fsync under strace,
// which slows everything else: the rate is not looked at.
func (b *bench) countSyncs(ctx context.Context, h *house, p people, n int) error {
	workers, hangUpAll, err := h.sendingAll(ctx, p, n)
	if err != nil {
		return err
	}
	defer hangUpAll()
	f := figure{section: "Delivery", name: "fdatasync a message, " + plural(n, "sender"), limits: []limit{{"none shared", 1}}}
	strace, err := exec.LookPath("strace")
	if err != nil {
		fmt.Fprintln(b.progress, "bench: strace is missing; syncs are not counted")
		_, err = hammer(ctx, b.plan.traced, workers)
		return err
	}
	attached := func(line string) bool { return strings.Contains(line, "attached") }
	out := b.inDir("strace")
	tracer, err := startProcess(ctx, attached, strace, "-f", "-c", "-e", "trace=fdatasync,fsync", "-o", out, "-p", strconv.Itoa(h.pid()))
	if err != nil {
		fmt.Fprintf(b.progress, "bench: strace may not look; syncs are not counted: %v\n", err)
		_, err = hammer(ctx, b.plan.traced, workers)
		return err
	}
	l, err := hammer(ctx, b.plan.traced, workers)
	// It detaches, writes its counts, and then ends by the signal.
	if stopErr := tracer.stop(syscall.SIGINT); err == nil && stopErr != nil && !errors.As(stopErr, new(*exec.ExitError)) {
		err = stopErr
	}
	if err != nil {
		return err
	}
	text, err := os.ReadFile(out)
	if err != nil {
		return fmt.Errorf("reading what strace counted: %w", err)
	}
	f.value, f.unit = float64(straceCalls(string(text)))/float64(max(len(l.times), 1)), "syncs"
	f.detail = fmt.Sprintf("under strace, at %s/s", number(l.rate()))
	b.add(f)
	return nil
}

// straceCalls adds up the calls in strace's summary, whose lines are
// "% time, seconds, usecs/call, calls, [errors,] syscall".
func straceCalls(summary string) (calls int) {
	for line := range strings.Lines(summary) {
		fields := strings.Fields(line)
		if len(fields) >= 5 && (fields[len(fields)-1] == "fdatasync" || fields[len(fields)-1] == "fsync") {
			n, _ := strconv.Atoi(fields[3]) // a line of another form counts nothing
			calls += n
		}
	}
	return calls
}

// drainer takes everything out of a recipient's inbox. It returns how many
// messages that were, and how many calls with a page in their answers.
type drainer func(ctx context.Context, calls *rpc.Client, a *account) (messages, pages int, err error)

func fetchAll(ctx context.Context, calls *rpc.Client, a *account) (messages, pages int, err error) {
	delivery := qpcpb.NewDeliveryClient(calls)
	for {
		answer, err := delivery.Fetch(ctx, &qpcpb.FetchRequest{RecipientKey: a.identity(), Limit: fetchPage})
		if err != nil || len(answer.Payloads) == 0 {
			return messages, pages, err
		}
		messages, pages = messages+len(answer.Payloads), pages+1
	}
}

// peekAndAckAll reads as qpc does, for its device.
func peekAndAckAll(ctx context.Context, calls *rpc.Client, a *account) (messages, pages int, err error) {
	delivery := qpcpb.NewDeliveryClient(calls)
	for {
		answer, err := delivery.Peek(ctx, &qpcpb.PeekRequest{RecipientKey: a.identity(), Limit: fetchPage, DeviceId: a.device[:]})
		if err != nil || len(answer.Payloads) == 0 {
			return messages, pages, err
		}
		messages, pages = messages+len(answer.Payloads), pages+1
		last := answer.Payloads[len(answer.Payloads)-1].Seq
		if _, err := delivery.Ack(ctx, &qpcpb.AckRequest{RecipientKey: a.identity(), SeqUpTo: last, DeviceId: a.device[:]}); err != nil {
			return messages, pages, err
		}
	}
}

// drain empties the inboxes of the first n recipients side by side. Its limit
// is quic-go alone with answers of the same size.
func (b *bench) drain(ctx context.Context, h *house, p people, n int, how string, all drainer) error {
	clients, hangUpAll, err := h.connectAll(ctx, p.recipients[:n])
	if err != nil {
		return err
	}
	defer hangUpAll()
	var messages, pages atomic.Int64
	cpuBefore, err := h.cpu()
	if err != nil {
		return err
	}
	var workers []work
	for i, c := range clients {
		workers = append(workers, func(ctx context.Context) error {
			m, g, err := all(ctx, c, p.recipients[i])
			messages.Add(int64(m))
			pages.Add(int64(g))
			return err
		})
	}
	l, err := together(ctx, time.Now(), workers, func(done int) bool { return done < 1 })
	if err != nil {
		return err
	}
	cpu, err := h.cpu()
	if err != nil {
		return err
	}
	count := messages.Load()
	if count == 0 {
		return errors.New("there was nothing to drain")
	}
	limitRate, err := b.drainLimit(ctx, n, int(pages.Load()))
	if err != nil {
		return err
	}
	b.add(figure{section: "Delivery", name: fmt.Sprintf("drain by %s, %s", how, plural(n, "recipient")),
		value: float64(count) / l.elapsed.Seconds(), unit: "/s", goal: atLeast(goalDrain),
		detail: fmt.Sprintf("%s messages; %.1f µs of server CPU each", number(float64(count)), float64((cpu-cpuBefore).Microseconds())/float64(count)),
		limits: []limit{{"quic-go with such answers", limitRate * float64(count) / float64(pages.Load())}}})
	return nil
}

// drainLimit returns how many pages a second quic-go alone carries on n
// connections: as many as the drain had, but no longer than a rate takes.
func (b *bench) drainLimit(ctx context.Context, n, pages int) (float64, error) {
	envelope := &qpcpb.Envelope{Seq: 1 << 16, Data: make([]byte, payloadBytes), ReceivedAt: uint64(time.Now().Unix())}
	size := proto.Size(&qpcpb.FetchResponse{Payloads: slices.Repeat([]*qpcpb.Envelope{envelope}, fetchPage)})
	server, err := startBare(ctx, b.bin.bare)
	if err != nil {
		return 0, err
	}
	defer server.kill()
	var workers []work
	for range n {
		conn, err := dialBare(ctx, server.address, nil)
		if err != nil {
			return 0, err
		}
		defer conn.CloseWithError(0, "")
		workers = append(workers, func(ctx context.Context) error { return bareCall(ctx, conn, uint32(size)) })
	}
	start, each := time.Now(), max(1, pages/n)
	l, err := together(ctx, start, workers, func(done int) bool { return done < each && time.Since(start) < b.plan.rate/2 })
	return l.rate(), err
}

// latency measures the way of one message at a time to somebody online: from
// the call of Enqueue to the event in the recipient's hands, which comes after
// the commit. Its limit is one round trip of quic-go and one fdatasync.
func (b *bench) latency(ctx context.Context, h *house, p people) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sender, err := h.connect(ctx, p.senders[0])
	if err != nil {
		return err
	}
	defer hangUp(sender)
	recipient, err := h.connect(ctx, p.recipients[0])
	if err != nil {
		return err
	}
	defer hangUp(recipient)

	type arrival struct {
		at      time.Time
		message *qpcpb.MessageAvailable
	}
	arrivals := make(chan arrival, 1)
	var receiving sync.WaitGroup
	receiving.Go(func() {
		_ = recipient.ReceiveEvents(ctx, func(event qpcpb.Event, payload []byte) {
			a := arrival{time.Now(), &qpcpb.MessageAvailable{}}
			if event != qpcpb.EventMessageAvailable || proto.Unmarshal(payload, a.message) != nil {
				return
			}
			select {
			case arrivals <- a:
			case <-ctx.Done():
			}
		}) // it ends with ctx
	})
	defer receiving.Wait()
	defer cancel()

	delivery, m := qpcpb.NewDeliveryClient(sender), newMessages(p.recipients[0])
	timeout := time.NewTimer(eventPatience)
	defer timeout.Stop()
	var times []time.Duration
	for range b.plan.latencies {
		request, err := m.next()
		if err != nil {
			return err
		}
		timeout.Reset(eventPatience)
		begin := time.Now()
		if _, err := delivery.Enqueue(ctx, request); err != nil {
			return err
		}
		select {
		case a := <-arrivals:
			if !bytes.Equal(a.message.GetEnvelope().GetData(), request.Payload) {
				return errors.New("the event is of another message")
			}
			times = append(times, a.at.Sub(begin))
		case <-timeout.C:
			return errors.New("no event arrived for a message that was acknowledged")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	l := loadOf(times)
	alone := b.bare[shape{1, 1}].quantile(0.5) + b.disk[1].quantile(0.5)
	b.add(figure{section: "Delivery", name: "one-way latency online, Enqueue to event, median", value: milliseconds(l.quantile(0.5)), unit: "ms", goal: atMost(goalLatency),
		detail: "p99 " + number(milliseconds(l.quantile(0.99))) + " ms", limits: []limit{{"quic-go round trip and fdatasync", milliseconds(alone)}}})
	return nil
}
