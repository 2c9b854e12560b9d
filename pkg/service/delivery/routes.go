package delivery

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// Enqueue stores a message for a recipient, or hands an ephemeral one to their
// connections.
func (s *Service) Enqueue(ctx context.Context, r *qpcpb.EnqueueRequest) (*qpcpb.EnqueueResponse, error) {
	m, err := s.parse(ctx, r.RecipientKey, r.ChannelId, r.MessageId, r.TtlSecs)
	if err != nil {
		return nil, err
	}
	if r.Ephemeral {
		if err := checkSize(r.Payload, push.MaxEnvelope); err != nil {
			return nil, err
		}
	} else if err := checkSize(r.Payload, MaxPayload); err != nil {
		return nil, err
	}
	if err := s.takeRate(m.sender, 1); err != nil {
		return nil, err
	}
	m.payload = r.Payload
	if r.Ephemeral {
		return &qpcpb.EnqueueResponse{}, s.sendEphemeral(ctx, m)
	}
	m.payloadHash = sha256.Sum256(r.Payload)
	var stored outcome
	proof := make(chan []byte, 1)
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		stored, err = s.enqueueTx(tx, m)
		if err == nil {
			// The proof is made while the commit waits for the disk. It leaves
			// only when that has succeeded.
			signed := stored
			go func() { proof <- s.proofOf(m, signed) }() // ends by itself, in microseconds
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing a message: %w", err)
	}
	return &qpcpb.EnqueueResponse{Seq: stored.seq, DeliveryProof: <-proof, Duplicate: stored.duplicate}, nil
}

// BatchEnqueue stores a message for each of up to 256 recipients. A recipient
// that is refused does not stop the others.
func (s *Service) BatchEnqueue(ctx context.Context, r *qpcpb.BatchEnqueueRequest) (*qpcpb.BatchEnqueueResponse, error) {
	messages, err := s.parseBatch(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := s.takeRate(rpc.PrincipalOf(ctx).Identity, len(messages)); err != nil {
		return nil, err
	}
	outcomes := make([]outcome, len(messages))
	refusals := make([]*rpc.Error, len(messages))
	if r.Ephemeral {
		for i, m := range messages {
			if err := s.sendEphemeral(ctx, m); err != nil && !errors.As(err, &refusals[i]) {
				return nil, err
			}
		}
	} else {
		for start := 0; start < len(messages); {
			end := batchStep(messages, start)
			err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
				for i := start; i < end; i++ {
					var err error
					// A refusal comes before the first write for its recipient,
					// so that the others are stored.
					if outcomes[i], err = s.enqueueTx(tx, messages[i]); err != nil && !errors.As(err, &refusals[i]) {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return nil, fmt.Errorf("storing a batch: %w", err)
			}
			start = end
		}
	}
	response := &qpcpb.BatchEnqueueResponse{}
	for i, m := range messages {
		result := &qpcpb.EnqueueResult{}
		switch {
		case refusals[i] != nil:
			result.Status = uint32(refusals[i].Status)
		case !r.Ephemeral:
			result.Seq, result.Duplicate = outcomes[i].seq, outcomes[i].duplicate
			result.DeliveryProof = s.proofOf(m, outcomes[i])
		}
		response.Seqs = append(response.Seqs, result.Seq)
		response.Results = append(response.Results, result)
	}
	return response, nil
}

// parseBatch checks the form of a batch.
func (s *Service) parseBatch(ctx context.Context, r *qpcpb.BatchEnqueueRequest) ([]message, error) {
	n := len(r.RecipientKeys)
	switch {
	case n == 0 || n > maxRecipients:
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "recipient_keys has %d entries where 1 to %d are allowed", n, maxRecipients)
	case len(r.Payloads) != 0 && len(r.Payload) != 0:
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "give either payload or payloads")
	case len(r.Payloads) != 0 && len(r.Payloads) != n:
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "payloads has %d entries for %d recipients", len(r.Payloads), n)
	}
	most := MaxPayload
	if r.Ephemeral {
		most = push.MaxEnvelope
	}
	messages := make([]message, n)
	seen := make(map[rpc.IdentityKey]bool, n)
	var shared [32]byte
	if len(r.Payloads) == 0 {
		shared = sha256.Sum256(r.Payload)
	}
	for i, recipient := range r.RecipientKeys {
		m, err := s.parse(ctx, recipient, r.ChannelId, r.MessageId, r.TtlSecs)
		if err != nil {
			return nil, err
		}
		if seen[m.to.recipient] {
			return nil, rpc.Errorf(qpcpb.CodeInvalidField, "recipient_keys names one recipient twice")
		}
		seen[m.to.recipient] = true
		m.payload, m.payloadHash = r.Payload, shared
		if len(r.Payloads) != 0 {
			m.payload, m.payloadHash = r.Payloads[i], sha256.Sum256(r.Payloads[i])
		}
		if err := checkSize(m.payload, most); err != nil {
			return nil, err
		}
		messages[i] = m
	}
	return messages, nil
}

// parse checks the fields that Enqueue and BatchEnqueue share.
func (s *Service) parse(ctx context.Context, recipient, channel, id []byte, ttl uint32) (m message, err error) {
	m.sender = rpc.PrincipalOf(ctx).Identity
	if m.to.recipient, err = rpc.ParseIdentityKey("recipient_key", recipient); err != nil {
		return m, err
	}
	if m.to.id, m.to.inChannel, err = rpc.ParseChannelID("channel_id", channel); err != nil {
		return m, err
	}
	if m.id, m.hasID, err = rpc.ParseMessageID("message_id", id); err != nil {
		return m, err
	}
	m.validFor = int64(s.options.Limits.Retention / time.Second)
	if ttl != 0 {
		m.validFor = min(m.validFor, int64(ttl))
	}
	return m, nil
}

func (s *Service) takeRate(sender rpc.IdentityKey, n int) error {
	if wait, ok := s.senders.Take(sender, n); !ok {
		return rpc.Errorf(qpcpb.CodeRateLimited, "you are sending too fast; wait before the next message").After(wait)
	}
	return nil
}

// sendEphemeral hands a message to the recipient's live connections. To a
// sender whom they have blocked it looks the same.
func (s *Service) sendEphemeral(ctx context.Context, m message) error {
	var blocked bool
	var home string
	err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		blocked, home, err = s.mayReachTx(tx, m)
		return err
	})
	if err != nil || blocked {
		return err
	}
	if home != "" {
		s.options.Remote.RelayEphemeral(home, Relay{
			Sender: m.sender, Recipient: m.to.recipient, Channel: m.to.channel(), Payload: m.payload, ID: m.id,
		})
		return nil
	}
	s.options.Push.Send(m.to.recipient, push.Event{Kind: qpcpb.EventEphemeral, Message: &qpcpb.Ephemeral{
		SenderKey: m.sender[:], ChannelId: m.to.channel(), Payload: m.payload,
	}})
	return nil
}

// Fetch returns messages and removes them.
func (s *Service) Fetch(ctx context.Context, r *qpcpb.FetchRequest) (*qpcpb.FetchResponse, error) {
	p, err := parsePage(ctx, r.RecipientKey, r.ChannelId, r.DeviceId, r.AllChannels, r.Limit)
	if err != nil {
		return nil, err
	}
	envelopes, err := s.fetch(ctx, p)
	return &qpcpb.FetchResponse{Payloads: envelopes}, err
}

// FetchWait is Fetch that waits for a message when there is none.
func (s *Service) FetchWait(ctx context.Context, r *qpcpb.FetchWaitRequest) (*qpcpb.FetchWaitResponse, error) {
	p, err := parsePage(ctx, r.RecipientKey, r.ChannelId, r.DeviceId, r.AllChannels, r.Limit)
	if err != nil {
		return nil, err
	}
	// The waiter is there before the first look, so that no message slips
	// between the two.
	woken, ok := s.waiters.add(p.identity)
	if !ok {
		return nil, rpc.Errorf(qpcpb.CodeBusy, "too many calls wait for your messages").After(time.Second)
	}
	defer s.waiters.remove(p.identity, woken)
	end := time.NewTimer(min(time.Duration(min(r.TimeoutMs, uint64(maxWait.Milliseconds())))*time.Millisecond, maxWait))
	defer end.Stop()
	for {
		envelopes, err := s.fetch(ctx, p)
		if err != nil || len(envelopes) > 0 {
			return &qpcpb.FetchWaitResponse{Payloads: envelopes}, err
		}
		select {
		case <-woken:
		case <-end.C:
			return &qpcpb.FetchWaitResponse{}, nil
		case <-s.waiters.drained:
			return &qpcpb.FetchWaitResponse{}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Peek returns messages and leaves them.
func (s *Service) Peek(ctx context.Context, r *qpcpb.PeekRequest) (*qpcpb.PeekResponse, error) {
	p, err := parsePage(ctx, r.RecipientKey, r.ChannelId, r.DeviceId, r.AllChannels, r.Limit)
	if err != nil {
		return nil, err
	}
	if r.AllChannels && r.AfterSeq != 0 {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "after_seq counts within one channel; leave it out with all_channels")
	}
	p.afterSeq = r.AfterSeq
	envelopes, err := s.peek(ctx, p)
	return &qpcpb.PeekResponse{Payloads: envelopes}, err
}

// Ack removes messages up to a sequence number, for one device or for all.
func (s *Service) Ack(ctx context.Context, r *qpcpb.AckRequest) (*qpcpb.AckResponse, error) {
	p, err := parsePage(ctx, r.RecipientKey, r.ChannelId, r.DeviceId, false, 0)
	if err != nil {
		return nil, err
	}
	err = s.options.DB.Write(store.Freeing(ctx), func(tx *store.Tx) error { return s.ackTx(tx, p, r.SeqUpTo) })
	if err != nil {
		return nil, fmt.Errorf("acknowledging messages: %w", err)
	}
	return &qpcpb.AckResponse{Success: true}, nil
}

// parsePage checks the fields that all reading methods share.
func parsePage(ctx context.Context, recipient, channel, device []byte, allChannels bool, limit uint32) (p page, err error) {
	if p.identity, err = rpc.ParseIdentityKey("recipient_key", recipient); err != nil {
		return p, err
	}
	if p.identity != rpc.PrincipalOf(ctx).Identity {
		return p, rpc.Errorf(qpcpb.CodeNotYours, "you can only read your own queue")
	}
	id, inChannel, err := rpc.ParseChannelID("channel_id", channel)
	if err != nil {
		return p, err
	}
	if allChannels && inChannel {
		return p, rpc.Errorf(qpcpb.CodeInvalidField, "give either channel_id or all_channels")
	}
	p.channel = []byte{}
	if inChannel {
		p.channel = id[:]
	}
	if p.device, p.hasDevice, err = rpc.ParseDeviceID("device_id", device); err != nil {
		return p, err
	}
	p.allChannels, p.limit = allChannels, pageLimit(limit)
	return p, nil
}
