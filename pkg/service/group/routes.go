package group

import (
	"context"
	"fmt"
	"io"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

var (
	_ qpcpb.ChannelServer = (*Service)(nil)
	_ qpcpb.GroupServer   = (*Service)(nil)
)

// CreateChannel returns the channel of the caller and a peer, making it when
// there is none (method 400).
func (s *Service) CreateChannel(ctx context.Context, request *qpcpb.CreateChannelRequest) (*qpcpb.CreateChannelResponse, error) {
	peer, err := rpc.ParseIdentityKey("peer_key", request.PeerKey)
	if err != nil {
		return nil, err
	}
	caller := rpc.PrincipalOf(ctx).Identity
	if peer == caller {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "peer_key is your own; a channel needs somebody else")
	}
	var id rpc.ChannelID
	if _, err := io.ReadFull(s.options.Random, id[:]); err != nil {
		return nil, fmt.Errorf("make a channel id: %w", err)
	}
	wasNew := false
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		id, wasNew, err = s.createTx(tx, id, caller, peer)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.CreateChannelResponse{ChannelId: id[:], WasNew: wasNew}, nil
}

// createTx returns the channel of a pair, which gets the id fresh when it is
// new and both live here.
func (s *Service) createTx(tx *store.Tx, fresh rpc.ChannelID, caller, peer rpc.IdentityKey) (id rpc.ChannelID, wasNew bool, err error) {
	// The caller's account may have been deleted while the call was on its way;
	// nobody would remove the channel then.
	if err := s.existsTx(tx, caller, deletedError()); err != nil {
		return id, false, err
	}
	address, err := s.addressTx(tx, peer, "peer_key")
	if err != nil {
		return id, false, err
	}
	low, high := sorted(caller, peer)
	if id, ok, err := findChannel(tx, low, high); err != nil || ok {
		return id, false, err
	}
	if err := roomForChannelTx(tx, caller, peer); err != nil {
		return id, false, err
	}
	if address != "" {
		id = derivedChannel(low, high)
		return id, true, openDerived(tx, id, low, high)
	}
	return fresh, true, insertChannel(tx, fresh, low, high)
}

// roomForChannelTx refuses a channel more when either side has too many.
func roomForChannelTx(tx *store.Tx, caller, peer rpc.IdentityKey) error {
	for _, identity := range []rpc.IdentityKey{caller, peer} {
		n, err := countChannels(tx, identity)
		if err != nil {
			return err
		}
		if n < MaxChannels {
			continue
		}
		if identity == caller {
			return rpc.Errorf(qpcpb.CodeQuotaExceeded, "you have %d channels, the most that one may; use those there are", n)
		}
		return rpc.Errorf(qpcpb.CodeQuotaExceeded, "the peer can take no more channels")
	}
	return nil
}

// existsTx returns otherwise unless the identity has an account.
func (s *Service) existsTx(tx *store.Tx, identity rpc.IdentityKey, otherwise *rpc.Error) error {
	ok, err := s.options.Accounts.ExistsTx(tx, identity)
	if err != nil {
		return err
	}
	if !ok {
		return otherwise
	}
	return nil
}

// addressTx returns where an identity lives: user@domain, or empty for this
// server. USER_NOT_FOUND: nobody has met it.
func (s *Service) addressTx(tx *store.Tx, identity rpc.IdentityKey, field string) (address string, err error) {
	ok, err := s.options.Accounts.ExistsTx(tx, identity)
	if err == nil && !ok && s.options.Remote != nil {
		address, ok, err = s.options.Remote.AddressTx(tx, identity)
	}
	if err == nil && !ok {
		err = rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here has the identity %s", field)
	}
	return address, err
}

func deletedError() *rpc.Error {
	return rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted; register to use the server again")
}

func notFoundError() *rpc.Error {
	return rpc.Errorf(qpcpb.CodeChannelNotFound, "no group of yours has this id")
}

// callerOf returns who calls within a session.
func callerOf(ctx context.Context) caller {
	p := rpc.PrincipalOf(ctx)
	return caller{identity: p.Identity, device: p.Device, hasDevice: p.HasDevice}
}

// mineTx returns a group of the caller. Its home is this server for a caller of
// another one.
func (s *Service) mineTx(tx *store.Tx, c caller, id rpc.ChannelID) (*roster, error) {
	r, err := readRoster(tx, id)
	if err != nil {
		return nil, err
	}
	if r == nil || r.find(c.identity) < 0 || c.remote && r.home != "" {
		return nil, notFoundError()
	}
	return r, nil
}

// replaceTx stores a change of a group of this server and tells the others of
// it.
func (s *Service) replaceTx(tx *store.Tx, before, after *roster) error {
	if err := saveRoster(tx, before, after); err != nil {
		return err
	}
	return s.announceTx(tx, before, after)
}

// atHome calls a method of a group's home for a user of this server, who has
// found a copy.
func atHome[Request, Response any](ctx context.Context, s *Service, c caller, home string, request Request,
	method func(Remote, context.Context, string, rpc.IdentityKey, Request) (Response, error),
) (response Response, err error) {
	if s.options.Remote == nil {
		return response, rpc.Errorf(qpcpb.CodeDomainUnknown, "this group lives on %s, with which this server does not federate any more; you can leave it", home)
	}
	return method(s.options.Remote, ctx, home, c.identity, request)
}

// UpdateGroupMetadata makes a group, or replaces its metadata and adds members
// (method 411).
//
// Of a group that exists empty metadata with members to add leaves the metadata
// as it is; without, it empties it. Who is a member already stays one. Somebody
// who has blocked the caller is added like anybody else: anything else would
// tell the caller of the block.
func (s *Service) UpdateGroupMetadata(ctx context.Context, request *qpcpb.UpdateGroupMetadataRequest) (*qpcpb.UpdateGroupMetadataResponse, error) {
	return s.updateGroupMetadata(ctx, callerOf(ctx), request)
}

func (s *Service) updateGroupMetadata(ctx context.Context, c caller, request *qpcpb.UpdateGroupMetadataRequest) (*qpcpb.UpdateGroupMetadataResponse, error) {
	id, err := parseGroup(request.GroupId)
	if err != nil {
		return nil, err
	}
	if len(request.Metadata) > MaxMetadata {
		return nil, rpc.Errorf(qpcpb.CodePayloadTooLarge, "metadata has %d bytes where %d are allowed", len(request.Metadata), MaxMetadata)
	}
	add, err := parseKeys("add_members", request.AddMembers)
	if err != nil {
		return nil, err
	}
	var after *roster
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		before, err := s.toUpdateTx(tx, c, id)
		if err != nil {
			return err
		}
		after = before.next()
		if before.home != "" {
			return nil // its home does it
		}
		if before.rowid == 0 {
			if err := s.joinTx(tx, after, c.identity, c.identity); err != nil {
				return err
			}
			after.settle()
		}
		for _, identity := range add {
			if err := s.joinTx(tx, after, identity, c.identity); err != nil {
				return err
			}
		}
		if len(request.Metadata) > 0 || len(add) == 0 {
			after.metadata = request.Metadata
		}
		if len(after.members) == len(before.members) && string(after.metadata) == string(before.metadata) {
			return nil // a repetition
		}
		return s.replaceTx(tx, before, after)
	})
	switch {
	case err != nil:
		return nil, err
	case after.home != "":
		return atHome(ctx, s, c, after.home, request, Remote.UpdateGroupMetadata)
	}
	return &qpcpb.UpdateGroupMetadataResponse{Success: true, Epoch: after.epoch}, nil
}

// toUpdateTx returns a group of the caller, or one without members that it may
// make.
func (s *Service) toUpdateTx(tx *store.Tx, c caller, id rpc.ChannelID) (*roster, error) {
	r, err := s.mineTx(tx, c, id)
	if c.remote || rpc.CodeOf(err) != qpcpb.CodeChannelNotFound {
		return r, err
	}
	// Not a group of the caller's; perhaps nobody's.
	if other, err := readRoster(tx, id); err != nil || other != nil {
		return nil, orNotFound(err)
	}
	// A channel's queues must not be written through a group of the same id.
	if pair, err := readMembers(tx, id); err != nil || len(pair) > 0 {
		return nil, orNotFound(err)
	}
	return &roster{id: id}, s.existsTx(tx, c.identity, deletedError())
}

// orNotFound returns the storage's error if there is one.
func orNotFound(err error) error {
	if err != nil {
		return err
	}
	return notFoundError()
}

// joinTx adds an identity to a group, unless it is a member.
func (s *Service) joinTx(tx *store.Tx, r *roster, identity, by rpc.IdentityKey) error {
	if r.find(identity) >= 0 {
		return nil
	}
	if len(r.members) >= MaxMembers {
		return rpc.Errorf(qpcpb.CodeGroupFull, "a group has at most %d members", MaxMembers)
	}
	address, err := s.addressTx(tx, identity, "of one of add_members")
	if err != nil {
		return err
	}
	n, err := countGroups(tx, identity)
	switch {
	case err != nil:
		return err
	case n >= MaxGroups && identity == by:
		return rpc.Errorf(qpcpb.CodeQuotaExceeded, "you are in %d groups, the most that one may; leave one first", n)
	case n >= MaxGroups:
		return rpc.Errorf(qpcpb.CodeQuotaExceeded, "one of add_members can take no more groups")
	}
	joined := max(0, s.options.Now().Unix()) // a clock before 1970 has no place on the wire
	r.add(member{identity: identity, joinedAt: joined, address: address})
	return nil
}

// RemoveMember removes a member of a group: the owner anybody, anybody itself
// (method 410). It does not change the epoch: a member who stays commits the
// removal with RotateKeys. Removing somebody who is no member succeeds, so that
// the owner may repeat the call.
func (s *Service) RemoveMember(ctx context.Context, request *qpcpb.RemoveMemberRequest) (*qpcpb.RemoveMemberResponse, error) {
	return s.removeMember(ctx, callerOf(ctx), request)
}

func (s *Service) removeMember(ctx context.Context, c caller, request *qpcpb.RemoveMemberRequest) (*qpcpb.RemoveMemberResponse, error) {
	id, err := parseGroup(request.GroupId)
	if err != nil {
		return nil, err
	}
	identity, err := rpc.ParseIdentityKey("identity_key", request.IdentityKey)
	if err != nil {
		return nil, err
	}
	home := ""
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		before, err := s.mineTx(tx, c, id)
		if err != nil {
			return err
		}
		if home = before.home; home != "" {
			return nil
		}
		if identity != c.identity && !before.members[before.find(c.identity)].owner {
			return ownerError()
		}
		if before.find(identity) < 0 {
			return nil
		}
		return s.replaceTx(tx, before, before.without(identity))
	})
	if err != nil {
		return nil, err
	}
	if home == "" {
		return &qpcpb.RemoveMemberResponse{Success: true}, nil
	}
	response, err := atHome(ctx, s, c, home, request, Remote.RemoveMember)
	if rpc.CodeOf(err) != qpcpb.CodeDomainUnknown || identity != c.identity {
		return response, err
	}
	// Nobody will ever tell this copy of a change again; one can leave it.
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		before, err := s.mineTx(tx, c, id)
		if err != nil {
			return err
		}
		return leaveCopy(tx, before, identity)
	})
	return &qpcpb.RemoveMemberResponse{Success: err == nil}, err
}

func ownerError() *rpc.Error {
	return rpc.Errorf(qpcpb.CodeOwnerRequired, "only the owner of a group removes others; ask them to")
}

// ListGroupMembers returns a group of the caller's as it stands (method 412).
func (s *Service) ListGroupMembers(ctx context.Context, request *qpcpb.ListGroupMembersRequest) (*qpcpb.ListGroupMembersResponse, error) {
	id, err := parseGroup(request.GroupId)
	if err != nil {
		return nil, err
	}
	var response *qpcpb.ListGroupMembersResponse
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		r, err := s.mineTx(tx, callerOf(ctx), id)
		if err != nil {
			return err
		}
		response = &qpcpb.ListGroupMembersResponse{Metadata: r.metadata, Epoch: r.epoch}
		for _, m := range r.members {
			name, err := s.nameTx(tx, m)
			if err != nil {
				return err
			}
			response.Members = append(response.Members, &qpcpb.GroupMember{
				IdentityKey: m.identity[:], Username: name, JoinedAt: uint64(m.joinedAt), Owner: m.owner,
			})
		}
		return nil
	})
	return response, err
}

// nameTx returns what a member is called: its username here, user@domain
// elsewhere. What this server knows of an address itself goes before what the
// home of a group says.
func (s *Service) nameTx(tx *store.Tx, m member) (string, error) {
	if m.address == "" {
		name, _, err := s.options.Names.UsernameTx(tx, m.identity)
		return name, err
	}
	if s.options.Remote != nil {
		if address, ok, err := s.options.Remote.AddressTx(tx, m.identity); err != nil || ok {
			return address, err
		}
	}
	return m.address, nil
}
