package federation

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/username"
)

// origin returns the domain of the calling server, which its certificate says
// and the request must say too.
func origin(ctx context.Context, auth *qpcpb.FederationAuth) (string, error) {
	domain := rpc.DomainOf(ctx)
	if domain == "" || auth.GetOrigin() != domain {
		return "", rpc.Errorf(qpcpb.CodeOriginMismatch, "auth.origin is not the domain that your certificate is pinned for")
	}
	return domain, nil
}

func rate(wait time.Duration, ok bool) error {
	if ok {
		return nil
	}
	return rpc.Errorf(qpcpb.CodeRateLimited, "too much of this from your server; wait and try again").After(wait)
}

// incoming is a message from a peer, with the name that its sender has there.
type incoming struct {
	Message
	name string
}

// parseSender checks the fields that say who has sent a message.
func (m *incoming) parseSender(key []byte, name string) (err error) {
	if m.FromHome = len(key) == 0; m.FromHome {
		if name != "" {
			return rpc.Errorf(qpcpb.CodeInvalidField, "sender_name is given without sender_key")
		}
		return nil
	}
	if m.Sender, err = rpc.ParseIdentityKey("sender_key", key); err != nil {
		return err
	}
	if folded, err := username.Fold(name); err != nil || folded != name {
		return rpc.Errorf(qpcpb.CodeInvalidField, "sender_name is not a username as your server stores it")
	}
	m.name = name
	return nil
}

// parse checks the fields of one message.
func (m *incoming) parse(recipient, channel, id, payload []byte, ttl uint32) (err error) {
	if m.Recipient, err = rpc.ParseIdentityKey("recipient_key", recipient); err != nil {
		return err
	}
	c, inChannel, err := rpc.ParseChannelID("channel_id", channel)
	if err != nil {
		return err
	}
	if m.Channel = nil; inChannel {
		m.Channel = c[:]
	}
	given := false
	if m.ID, given, err = rpc.ParseMessageID("message_id", id); err != nil {
		return err
	}
	if !given || m.ID == (rpc.MessageID{}) {
		return rpc.Errorf(qpcpb.CodeInvalidField, "message_id is missing; without it a repetition could not be recognised")
	}
	m.Payload, m.ValidFor = payload, time.Duration(ttl)*time.Second
	return nil
}

// RelayEnqueue stores a message of another server's user (method 900).
func (s *Service) RelayEnqueue(ctx context.Context, r *qpcpb.RelayEnqueueRequest) (*qpcpb.RelayEnqueueResponse, error) {
	domain, err := origin(ctx, r.Auth)
	if err != nil {
		return nil, err
	}
	var m incoming
	if err := m.parseSender(r.SenderKey, r.SenderName); err != nil {
		return nil, err
	}
	if err := m.parse(r.RecipientKey, r.ChannelId, r.MessageId, r.Payload, r.TtlSecs); err != nil {
		return nil, err
	}
	if err := rate(s.relays.Take(domain, 1)); err != nil {
		return nil, err
	}
	if r.Ephemeral {
		return &qpcpb.RelayEnqueueResponse{}, s.receiveEphemeral(ctx, domain, m)
	}
	response := &qpcpb.RelayEnqueueResponse{}
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		response.Seq, response.Duplicate, err = s.receiveTx(tx, domain, m)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing a message of %s: %w", domain, err)
	}
	return response, nil
}

// admitTx checks that a message may come from a domain, and makes the channel
// that it is the first of.
func (s *Service) admitTx(tx *store.Tx, domain string, m incoming) error {
	here, err := s.options.Accounts.ExistsTx(tx, m.Recipient)
	if err != nil {
		return err
	}
	if !here {
		return rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here has this identity key")
	}
	if m.FromHome {
		if len(m.Channel) == 0 {
			return nil
		}
		home, ok, err := s.options.Groups.HomeTx(tx, rpc.ChannelID(m.Channel))
		if err == nil && (!ok || home != domain) {
			err = rpc.Errorf(qpcpb.CodeChannelNotFound, "no group of your server has this id")
		}
		return err
	}
	if err := s.bindTx(tx, m.Sender, binding{domain: domain, username: m.name, standing: vouched}); err != nil {
		return err
	}
	if len(m.Channel) == 0 {
		return nil
	}
	err = s.options.Groups.OpenChannelTx(tx, rpc.ChannelID(m.Channel), m.Sender, m.Recipient)
	if rpc.CodeOf(err) == qpcpb.CodeChannelNotFound {
		return nil // a group's, perhaps: the mailbox finds out
	}
	return err
}

// receiveTx stores one message.
func (s *Service) receiveTx(tx *store.Tx, domain string, m incoming) (seq uint64, duplicate bool, err error) {
	if err := s.admitTx(tx, domain, m); err != nil {
		return 0, false, err
	}
	seq, duplicate, err = s.options.Mailbox.ReceiveTx(tx, domain, m.Message)
	if err == nil {
		tx.AfterCommit(func() {
			s.counters.received.Add(1)
			if duplicate {
				s.counters.discarded.Add(1)
			}
		})
	}
	return seq, duplicate, err
}

// receiveEphemeral hands on what is worth nothing later. It makes no channel and
// remembers nobody.
func (s *Service) receiveEphemeral(ctx context.Context, domain string, m incoming) error {
	if m.FromHome {
		return rpc.Errorf(qpcpb.CodeInvalidField, "an ephemeral message needs a sender_key")
	}
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		here, err := s.options.Accounts.ExistsTx(tx, m.Recipient)
		if err != nil {
			return err
		}
		if !here {
			return rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here has this identity key")
		}
		return s.livesOnTx(tx, m.Sender, domain)
	})
	if err != nil {
		return err
	}
	return s.options.Mailbox.ReceiveEphemeral(ctx, m.Message)
}

// livesOnTx refuses an identity that is not known to live on a domain.
func (s *Service) livesOnTx(tx *store.Tx, identity rpc.IdentityKey, domain string) error {
	home, ok, err := s.HomeTx(tx, identity)
	if err == nil && (!ok || home != domain) {
		err = rpc.Errorf(qpcpb.CodeOriginMismatch, "this identity is not known to live on your server")
	}
	return err
}

// RelayBatchEnqueue stores messages of one user of another server in one
// channel, in order (method 901). One that is refused does not stop the others,
// but for those that go to the same recipient.
func (s *Service) RelayBatchEnqueue(ctx context.Context, r *qpcpb.RelayBatchEnqueueRequest) (*qpcpb.RelayBatchEnqueueResponse, error) {
	domain, err := origin(ctx, r.Auth)
	if err != nil {
		return nil, err
	}
	messages, err := parseBatch(r)
	if err != nil {
		return nil, err
	}
	if err := rate(s.relays.Take(domain, len(messages))); err != nil {
		return nil, err
	}
	response := &qpcpb.RelayBatchEnqueueResponse{Seqs: make([]uint64, len(messages))}
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		held := make(map[rpc.IdentityKey]bool)
		for i, m := range messages {
			if held[m.Recipient] {
				continue
			}
			seq, _, err := s.receiveTx(tx, domain, m)
			var refusal *rpc.Error
			switch {
			case errors.As(err, &refusal):
				held[m.Recipient] = true
				if refusal.Code == qpcpb.CodeOriginMismatch {
					return err // of the sender: so are all
				}
			case err != nil:
				return err
			}
			response.Seqs[i] = seq
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("storing a batch of %s: %w", domain, err)
	}
	return response, nil
}

// parseBatch checks the form of a batch.
func parseBatch(r *qpcpb.RelayBatchEnqueueRequest) ([]incoming, error) {
	n := len(r.RecipientKeys)
	switch {
	case n == 0 || n > MaxRelayBatch:
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "recipient_keys has %d entries where 1 to %d are allowed", n, MaxRelayBatch)
	case len(r.Payloads) != 0 && (len(r.Payloads) != n || len(r.Payload) != 0):
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "give either payload, or payloads with one entry for each recipient")
	case len(r.MessageIds) != 0 && (len(r.MessageIds) != n || len(r.MessageId) != 0):
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "give either message_id, or message_ids with one entry for each recipient")
	case len(r.TtlsSecs) != 0 && (len(r.TtlsSecs) != n || r.TtlSecs != 0):
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "give either ttl_secs, or ttls_secs with one entry for each recipient")
	}
	var sender incoming
	if err := sender.parseSender(r.SenderKey, r.SenderName); err != nil {
		return nil, err
	}
	messages := make([]incoming, n)
	for i := range messages {
		payload, id, ttl := r.Payload, r.MessageId, r.TtlSecs
		if len(r.Payloads) != 0 {
			payload = r.Payloads[i]
		}
		if len(r.MessageIds) != 0 {
			id = r.MessageIds[i]
		}
		if len(r.TtlsSecs) != 0 {
			ttl = r.TtlsSecs[i]
		}
		messages[i] = sender
		if err := messages[i].parse(r.RecipientKeys[i], r.ChannelId, id, payload, ttl); err != nil {
			return nil, err
		}
	}
	return messages, nil
}

// ProxyFetchKeyPackage takes a key package of a user of this server (method
// 902).
func (s *Service) ProxyFetchKeyPackage(ctx context.Context, r *qpcpb.ProxyFetchKeyPackageRequest) (*qpcpb.ProxyFetchKeyPackageResponse, error) {
	domain, err := origin(ctx, r.Auth)
	if err != nil {
		return nil, err
	}
	owner, err := rpc.ParseIdentityKey("identity_key", r.IdentityKey)
	if err != nil {
		return nil, err
	}
	if err := rate(s.packages.Take(packageFetch{domain, owner}, 1)); err != nil {
		return nil, err
	}
	pkg, err := s.options.Keys.KeyPackageFor(ctx, owner)
	if err != nil {
		return nil, err
	}
	return &qpcpb.ProxyFetchKeyPackageResponse{Package: pkg}, nil
}

// ProxyFetchHybridKey returns the hybrid key of a user of this server (method
// 903).
func (s *Service) ProxyFetchHybridKey(ctx context.Context, r *qpcpb.ProxyFetchHybridKeyRequest) (*qpcpb.ProxyFetchHybridKeyResponse, error) {
	domain, err := origin(ctx, r.Auth)
	if err != nil {
		return nil, err
	}
	owner, err := rpc.ParseIdentityKey("identity_key", r.IdentityKey)
	if err != nil {
		return nil, err
	}
	if err := rate(s.asks.Take(domain, 1)); err != nil {
		return nil, err
	}
	key, err := s.options.Keys.HybridKeyFor(ctx, owner)
	if err != nil {
		return nil, err
	}
	return &qpcpb.ProxyFetchHybridKeyResponse{HybridPublicKey: key}, nil
}

// ProxyResolveUser returns the identity of a user of this server, with the proof
// that it is in the log, and that the log continues the one that the caller has
// seen (method 904).
func (s *Service) ProxyResolveUser(ctx context.Context, r *qpcpb.ProxyResolveUserRequest) (*qpcpb.ProxyResolveUserResponse, error) {
	domain, err := origin(ctx, r.Auth)
	if err != nil {
		return nil, err
	}
	folded, err := username.Fold(r.Username)
	if err != nil {
		return nil, rpc.Errorf(qpcpb.CodeInvalidUsername, "%v", err)
	}
	if err := rate(s.asks.Take(domain, 1)); err != nil {
		return nil, err
	}
	response := &qpcpb.ProxyResolveUserResponse{}
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		identity, ok, err := s.options.Accounts.IdentityTx(tx, folded)
		if err != nil {
			return err
		}
		if !ok {
			return rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here by that name")
		}
		response.IdentityKey = identity[:]
		response.InclusionProof, err = s.options.KeyLog.InclusionProofTx(tx, folded, identity)
		return err
	})
	if err != nil {
		return nil, err
	}
	var inclusion qpcpb.InclusionProof
	if err := proto.Unmarshal(response.InclusionProof, &inclusion); err != nil {
		return nil, fmt.Errorf("read an inclusion proof: %w", err)
	}
	// The log only grows, so that this proof needs no transaction with the
	// other. A size beyond it gets none: the caller sees that the log has
	// shrunk.
	if r.KnownSize > 0 && r.KnownSize < inclusion.TreeSize {
		grown, err := s.options.KeyLog.ProveConsistency(ctx, &qpcpb.ProveConsistencyRequest{OldSize: r.KnownSize, NewSize: inclusion.TreeSize})
		if err != nil {
			return nil, err
		}
		response.Consistency = grown.Hashes
	}
	return response, nil
}

// FederationHealth tells who this server is (method 905).
func (s *Service) FederationHealth(context.Context, *qpcpb.FederationHealthRequest) (*qpcpb.FederationHealthResponse, error) {
	return &qpcpb.FederationHealthResponse{
		Status: s.options.Status(), ServerDomain: s.options.Domain, ServerKey: s.options.ServerKey,
	}, nil
}

// RelayGroupState takes the state of a group from its home (method 1200).
func (s *Service) RelayGroupState(ctx context.Context, r *qpcpb.RelayGroupStateRequest) (*qpcpb.RelayGroupStateResponse, error) {
	domain, err := origin(ctx, r.Auth)
	if err != nil {
		return nil, err
	}
	if r.State == nil {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "state is missing")
	}
	if err := rate(s.relays.Take(domain, 1)); err != nil {
		return nil, err
	}
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		if err := s.options.Groups.ApplyStateTx(tx, domain, r.State); err != nil {
			return err
		}
		return s.meetTx(tx, domain, r.State)
	})
	if err != nil {
		return nil, fmt.Errorf("storing the state of a group of %s: %w", domain, err)
	}
	return &qpcpb.RelayGroupStateResponse{Success: true}, nil
}

// meetTx notes where the members of a group live: the home's own users by its
// word, those of third servers by its claim. Who lives here is known.
func (s *Service) meetTx(tx *store.Tx, domain string, state *qpcpb.GroupState) error {
	for _, m := range state.Members {
		who, err := username.ParseAddress(m.Address)
		if err != nil || who.Domain == "" || who.Domain == s.options.Domain {
			continue
		}
		b := binding{domain: who.Domain, username: who.User, standing: claimed}
		if who.Domain == domain {
			b.standing = vouched
		}
		err = s.bindTx(tx, rpc.IdentityKey(m.IdentityKey), b)
		switch code := rpc.CodeOf(err); {
		case err == nil, code == qpcpb.CodeQuotaExceeded:
		case code == qpcpb.CodeOriginMismatch:
			// The group is what its home says; where its members live is not.
		default:
			return err
		}
	}
	return nil
}

// memberOf checks who a peer calls for.
func (s *Service) memberOf(ctx context.Context, auth *qpcpb.FederationAuth, sender []byte) (member rpc.IdentityKey, err error) {
	domain, err := origin(ctx, auth)
	if err != nil {
		return member, err
	}
	if member, err = rpc.ParseIdentityKey("sender_key", sender); err != nil {
		return member, err
	}
	if err := rate(s.asks.Take(domain, 1)); err != nil {
		return member, err
	}
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error { return s.livesOnTx(tx, member, domain) })
	return member, err
}

// forMember answers a method of groups for a user of another server.
func forMember[Request, Response any](ctx context.Context, s *Service, auth *qpcpb.FederationAuth, sender []byte, request *Request,
	method func(context.Context, rpc.IdentityKey, *Request) (*Response, error)) (*Response, error) {
	if request == nil {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "request is missing")
	}
	member, err := s.memberOf(ctx, auth, sender)
	if err != nil {
		return nil, err
	}
	return method(ctx, member, request)
}

// ProxyRotateKeys is RotateKeys for a user of another server (method 1201).
func (s *Service) ProxyRotateKeys(ctx context.Context, r *qpcpb.ProxyRotateKeysRequest) (*qpcpb.RotateKeysResponse, error) {
	return forMember(ctx, s, r.Auth, r.SenderKey, r.Request, s.options.Groups.RotateKeysFor)
}

// ProxyUpdateGroupMetadata is UpdateGroupMetadata for a user of another server
// (method 1202).
func (s *Service) ProxyUpdateGroupMetadata(ctx context.Context, r *qpcpb.ProxyUpdateGroupMetadataRequest) (*qpcpb.UpdateGroupMetadataResponse, error) {
	return forMember(ctx, s, r.Auth, r.SenderKey, r.Request, s.options.Groups.UpdateGroupMetadataFor)
}

// ProxyRemoveMember is RemoveMember for a user of another server (method 1203).
func (s *Service) ProxyRemoveMember(ctx context.Context, r *qpcpb.ProxyRemoveMemberRequest) (*qpcpb.RemoveMemberResponse, error) {
	return forMember(ctx, s, r.Auth, r.SenderKey, r.Request, s.options.Groups.RemoveMemberFor)
}
