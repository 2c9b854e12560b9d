package federation

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// stall is a place whose messages wait because the peer refuses them for now.
type stall struct {
	until   time.Time
	backoff backoff
}

// sender is the state of one peer's send. Only its goroutine uses it, but for
// what mu guards while lanes are under way.
type sender struct {
	*peer
	mu     sync.Mutex
	stalls map[place]*stall // of places with rows, so that MaxQueued bounds it
}

// send sends what waits for the peer until ctx ends.
func (p *peer) send(ctx context.Context) {
	s := &sender{peer: p, stalls: make(map[place]*stall)}
	var pause backoff
	for ctx.Err() == nil {
		sent, err := s.round(ctx)
		var wait time.Duration
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait = pause.afterFailure(err)
			p.service.options.Log.Debug("what is for a peer waits", "peer", p.domain, "for", wait, "error", err)
		case sent:
			pause.reset()
			continue
		default:
			pause.reset()
			wait = s.untilNext()
		}
		if s.rest(ctx, wait, err != nil) {
			pause.reset()
		}
	}
}

// untilNext is how long to rest when nothing can be sent: until a place that
// waits is tried again, or the connection may be closed.
func (s *sender) untilNext() time.Duration {
	wait := idleAfter
	for _, at := range s.stalls {
		wait = min(wait, at.until.Sub(s.service.options.Now()))
	}
	return max(wait, 10*time.Millisecond)
}

// rest waits for something to do. After a failure new messages do not end it,
// only time or the peer; it reports whether that was the peer.
func (s *sender) rest(ctx context.Context, wait time.Duration, failed bool) (called bool) {
	rows := s.rowsWait
	if failed {
		rows = nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
		s.dropIdle()
	case <-rows:
	case <-s.hasCalled:
		for _, at := range s.stalls {
			at.until = time.Time{}
		}
		return true
	}
	return false
}

// round sends one wave, and reports whether there was one. An error says that
// the peer as a whole has to wait.
func (s *sender) round(ctx context.Context) (sent bool, err error) {
	select {
	case <-s.rowsWait: // what has been announced is seen now
	default:
	}
	w, err := s.next(ctx)
	if err != nil || len(w.rows) == 0 {
		return false, err
	}
	if w.bytes > waveBytes {
		if err := s.service.large.Acquire(ctx, 1); err != nil {
			return false, err
		}
		defer s.service.large.Release(1)
	}
	dialling, cancel := context.WithTimeout(ctx, askTimeout)
	client, err := s.connect(dialling, true)
	cancel()
	if err != nil {
		return false, err
	}
	if err := s.fill(ctx, w); err != nil {
		return false, err
	}
	outcome, err := s.deliver(ctx, client, w)
	if done := s.settle(ctx, w, outcome); done != nil {
		err = errors.Join(err, done)
	}
	return err == nil, err
}

// next picks the next wave: the oldest rows, without those whose place waits.
func (s *sender) next(ctx context.Context) (*wave, error) {
	w := &wave{}
	now, present := s.service.options.Now(), make(map[place]bool)
	err := s.service.options.DB.Read(ctx, func(tx *store.Tx) error {
		for after := int64(0); ; {
			rows, err := readRows(tx, s.domain, after, s.service.options.DB.ServiceTime(), pageRows)
			if err != nil {
				return err
			}
			for _, r := range rows {
				after = r.id
				at := s.stalls[r.place()]
				if at != nil {
					present[r.place()] = true
				}
				if r.kind == kindMessage && at != nil && now.Before(at.until) {
					continue
				}
				if !w.take(r) {
					return nil
				}
			}
			if len(rows) < pageRows {
				// All has been looked at: places without rows are forgotten.
				for at := range s.stalls {
					if !present[at] {
						delete(s.stalls, at)
					}
				}
				return nil
			}
		}
	})
	return w, err
}

// fill reads the payloads of a wave, and the names of its senders. A row that
// has gone meanwhile leaves the wave.
func (s *sender) fill(ctx context.Context, w *wave) error {
	return s.service.options.DB.Read(ctx, func(tx *store.Tx) error {
		kept := w.rows[:0]
		for _, r := range w.rows {
			err := tx.QueryRow(sqlPayload, r.id, r.token).Scan(&r.payload)
			if errors.Is(err, store.ErrNoRows) {
				continue
			}
			if err != nil {
				return fmt.Errorf("read a message to %s: %w", s.domain, err)
			}
			if r.kind == kindMessage && len(r.sender) > 0 {
				if r.senderName, _, err = s.service.options.Accounts.UsernameTx(tx, rpc.IdentityKey(r.sender)); err != nil {
					return err
				}
			}
			kept = append(kept, r)
		}
		w.rows = kept
		return nil
	})
}

// outcomes are the verdicts on the rows of a wave; a row without one was not
// sent.
type outcomes struct {
	mu   sync.Mutex
	rows map[*row]verdict
}

func (o *outcomes) set(r *row, v verdict) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rows[r] = v
}

// deliver sends a wave. The error is the first that makes the peer wait.
func (s *sender) deliver(ctx context.Context, client *rpc.Client, w *wave) (*outcomes, error) {
	out := &outcomes{rows: make(map[*row]verdict, len(w.rows))}
	calls := qpcpb.NewFederationClient(client)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(lanesAtOnce)
	for _, lane := range w.lanes() {
		group.Go(func() error {
			for _, batch := range batches(lane) {
				if err := s.deliverBatch(ctx, calls, batch, out); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	if answer := (*rpc.Error)(nil); err != nil && !errors.As(err, &answer) {
		// Whether the calls arrived is not known; a new connection tells.
		s.drop(client, "a call failed")
	}
	return out, err
}

// deliverBatch sends messages of one sender in one channel, or one row of
// another kind.
func (s *sender) deliverBatch(ctx context.Context, calls qpcpb.FederationClient, batch []*row, out *outcomes) error {
	if len(batch) > 1 {
		seqs, err := s.relayBatch(ctx, calls, batch)
		if err == nil {
			rest := batch[:0:0]
			for i, r := range batch {
				if seqs[i] == 0 {
					rest = append(rest, r) // alone it is told why
					continue
				}
				out.set(r, arrived)
			}
			batch = rest
		} else if judge(batch[0], err) == failed {
			return err
		}
	}
	held := make(map[place]bool)
	for _, r := range batch {
		if held[r.place()] {
			continue
		}
		err := s.call(ctx, calls, r)
		v := judge(r, err)
		switch v {
		case failed:
			return err
		case waiting:
			held[r.place()] = true
			s.wait(r.place())
		case refused:
			s.service.options.Log.Info("a peer refuses a message for good; it is dropped", "peer", s.domain, "kind", r.kind, "error", err)
		case arrived:
			s.goOn(r.place())
		}
		out.set(r, v)
	}
	return nil
}

// wait puts a place off.
func (s *sender) wait(at place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	put := s.stalls[at]
	if put == nil {
		put = &stall{}
		s.stalls[at] = put
	}
	put.until = s.service.options.Now().Add(put.backoff.pause())
}

// goOn ends the waiting of a place.
func (s *sender) goOn(at place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.stalls, at)
}

// ttl is how long a row has left, in seconds.
func (s *Service) ttl(r *row) uint32 {
	return uint32(min(max(r.validUntil-s.options.DB.ServiceTime(), 1), 1<<32-1))
}

// relayBatch sends messages of one sender in one channel.
func (s *sender) relayBatch(ctx context.Context, calls qpcpb.FederationClient, batch []*row) ([]uint64, error) {
	first := batch[0]
	request := &qpcpb.RelayBatchEnqueueRequest{
		Auth: s.service.auth(), ChannelId: first.channel, SenderKey: first.sender, SenderName: first.senderName,
	}
	for _, r := range batch {
		request.RecipientKeys = append(request.RecipientKeys, r.recipient)
		request.Payloads = append(request.Payloads, r.payload)
		request.MessageIds = append(request.MessageIds, r.token[:])
		request.TtlsSecs = append(request.TtlsSecs, s.service.ttl(r))
	}
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	response, err := calls.RelayBatchEnqueue(ctx, request)
	if err != nil {
		return nil, err
	}
	if len(response.Seqs) != len(batch) {
		return nil, fmt.Errorf("%w: it answered %d messages with %d numbers", rpc.ErrProtocol, len(batch), len(response.Seqs))
	}
	return response.Seqs, nil
}

// call sends one row.
func (s *sender) call(ctx context.Context, calls qpcpb.FederationClient, r *row) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	switch r.kind {
	case kindMessage:
		response, err := calls.RelayEnqueue(ctx, &qpcpb.RelayEnqueueRequest{
			Auth: s.service.auth(), RecipientKey: r.recipient, Payload: r.payload, ChannelId: r.channel,
			TtlSecs: s.service.ttl(r), MessageId: r.token[:], SenderKey: r.sender, SenderName: r.senderName,
		})
		if response.GetDuplicate() {
			s.service.counters.repeated.Add(1)
		}
		return err
	case kindState:
		state := &qpcpb.GroupState{}
		if err := proto.Unmarshal(r.payload, state); err != nil {
			return rpc.Errorf(qpcpb.CodeMalformed, "the state of a group does not parse: %v", err)
		}
		_, err := calls.RelayGroupState(ctx, &qpcpb.RelayGroupStateRequest{Auth: s.service.auth(), State: state})
		return err
	case kindLeave:
		_, err := calls.ProxyRemoveMember(ctx, &qpcpb.ProxyRemoveMemberRequest{
			Auth: s.service.auth(), SenderKey: r.sender,
			Request: &qpcpb.RemoveMemberRequest{GroupId: r.channel, IdentityKey: r.sender},
		})
		return err
	}
	return rpc.Errorf(qpcpb.CodeMalformed, "nothing is sent of kind %d", r.kind)
}

// settle removes the rows that are done with.
func (s *sender) settle(ctx context.Context, w *wave, out *outcomes) error {
	var sent, dropped uint64
	var done []*row
	out.mu.Lock()
	for _, r := range w.rows {
		switch out.rows[r] {
		case arrived:
			sent++
		case refused:
			dropped++
		default:
			continue
		}
		done = append(done, r)
	}
	out.mu.Unlock()
	s.peer.mu.Lock()
	s.stuck = len(s.stalls)
	s.peer.mu.Unlock()
	if len(done) == 0 {
		return nil
	}
	// Past the end of ctx too: what is acknowledged need not be sent again.
	err := s.service.options.DB.Write(store.Freeing(context.WithoutCancel(ctx)), func(tx *store.Tx) error {
		for _, r := range done {
			result, err := tx.Exec(sqlDelete, r.id, r.token)
			if err != nil {
				return fmt.Errorf("remove what has been sent to %s: %w", s.domain, err)
			}
			if result.RowsAffected > 0 {
				s.service.loads.change(tx, s.domain, r, -1)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("removing what has been sent: %w", err)
	}
	s.service.counters.sent.Add(sent)
	s.service.counters.refused.Add(dropped)
	return nil
}

// sendEphemeral sends ephemeral messages while there is a connection.
func (p *peer) sendEphemeral(ctx context.Context) {
	for {
		var m Message
		select {
		case m = <-p.ephemeral:
		case <-ctx.Done():
			return
		}
		client := p.live()
		if client == nil {
			continue
		}
		name, err := p.service.nameOf(ctx, m.Sender)
		if err == nil && m.ID == (rpc.MessageID{}) {
			m.ID, err = p.service.token()
		}
		if err != nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, ephemeralTimeout)
		_, err = qpcpb.NewFederationClient(client).RelayEnqueue(call, &qpcpb.RelayEnqueueRequest{
			Auth: p.service.auth(), RecipientKey: m.Recipient[:], Payload: m.Payload, ChannelId: m.Channel,
			MessageId: m.ID[:], SenderKey: m.Sender[:], SenderName: name, Ephemeral: true,
		})
		cancel()
		if err != nil {
			p.service.options.Log.Debug("an ephemeral message is lost", "peer", p.domain, "error", err)
		}
	}
}

// nameOf returns the username of somebody who lives here.
func (s *Service) nameOf(ctx context.Context, identity rpc.IdentityKey) (name string, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		name, _, err = s.options.Accounts.UsernameTx(tx, identity)
		return err
	})
	return name, err
}
