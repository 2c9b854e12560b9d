package group

import (
	"context"
	"math"
	"slices"
	"strings"

	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/username"
)

// Remote reaches the other servers; federation.Service is one. A domain is in
// lower case and never this server's own.
type Remote interface {
	// AddressTx returns user@domain of an identity that lives on another
	// server; ok is false for one that lives here or that nobody has met. It
	// and delivery.Remote's HomeTx agree.
	AddressTx(tx *store.Tx, identity rpc.IdentityKey) (address string, ok bool, err error)
	// AnnounceGroupTx puts the state of a group of this server into the durable
	// outbox of each domain, in order with the messages that are relayed there.
	// It does not refuse, however full the outbox is: a newer state replaces an
	// older one that has not left yet.
	AnnounceGroupTx(tx *store.Tx, domains []string, state *qpcpb.GroupState) error
	// LeaveTx puts into the durable outbox of a group's home that a user of
	// this server, whose account has been deleted, has left the group: the
	// RemoveMember that the user can call no more.
	LeaveTx(tx *store.Tx, home string, group rpc.ChannelID, identity rpc.IdentityKey) error

	// RotateKeys, UpdateGroupMetadata and RemoveMember call a group's home for
	// a user of this server. Their errors are answers to that user; the code is
	// DOMAIN_UNKNOWN when this server no longer federates with the home.
	RotateKeys(ctx context.Context, home string, caller rpc.IdentityKey, request *qpcpb.RotateKeysRequest) (*qpcpb.RotateKeysResponse, error)
	UpdateGroupMetadata(ctx context.Context, home string, caller rpc.IdentityKey, request *qpcpb.UpdateGroupMetadataRequest) (*qpcpb.UpdateGroupMetadataResponse, error)
	RemoveMember(ctx context.Context, home string, caller rpc.IdentityKey, request *qpcpb.RemoveMemberRequest) (*qpcpb.RemoveMemberResponse, error)
}

// RotateKeysFor is RotateKeys for a member of another server. The caller has
// made sure that the identity is a user of the server that asks. Only groups
// whose home is here are reached.
func (s *Service) RotateKeysFor(ctx context.Context, identity rpc.IdentityKey, request *qpcpb.RotateKeysRequest) (*qpcpb.RotateKeysResponse, error) {
	return s.rotateKeys(ctx, caller{identity: identity, remote: true}, request)
}

// UpdateGroupMetadataFor is UpdateGroupMetadata for a member of another server,
// as RotateKeysFor. It makes no group: a group's home is its maker's.
func (s *Service) UpdateGroupMetadataFor(ctx context.Context, identity rpc.IdentityKey, request *qpcpb.UpdateGroupMetadataRequest) (*qpcpb.UpdateGroupMetadataResponse, error) {
	return s.updateGroupMetadata(ctx, caller{identity: identity, remote: true}, request)
}

// RemoveMemberFor is RemoveMember for a member of another server, as
// RotateKeysFor.
func (s *Service) RemoveMemberFor(ctx context.Context, identity rpc.IdentityKey, request *qpcpb.RemoveMemberRequest) (*qpcpb.RemoveMemberResponse, error) {
	return s.removeMember(ctx, caller{identity: identity, remote: true}, request)
}

// OpenChannelTx makes the channel of sender, who lives on another server, and
// recipient, who lives here, when a message has come that names it. It does
// nothing when the channel exists. CHANNEL_NOT_FOUND: the id is not the one
// that the two keys give. USER_NOT_FOUND: the recipient has no account.
// QUOTA_EXCEEDED: either is in MaxChannels channels.
//
// The recipient's own call of CreateChannel is answered later with was_new
// false: the other side has started the MLS group.
func (s *Service) OpenChannelTx(tx *store.Tx, id rpc.ChannelID, sender, recipient rpc.IdentityKey) error {
	low, high := sorted(sender, recipient)
	if low == high || id != derivedChannel(low, high) {
		return rpc.Errorf(qpcpb.CodeChannelNotFound, "no channel of the two has this id; the id of theirs is made of their keys")
	}
	if err := s.existsTx(tx, recipient, rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here has this identity key")); err != nil {
		return err
	}
	if _, ok, err := findChannel(tx, low, high); err != nil || ok {
		return err
	}
	if err := roomForChannelTx(tx, sender, recipient); err != nil {
		return err
	}
	return openDerived(tx, id, low, high)
}

// ApplyStateTx takes what the home of a group says of it. An older state, or
// the same again, changes nothing. The home's word counts for who is a member
// and for nothing else: whether somebody lives here is known here, and what the
// home says of the addresses of others is shown to people when this server does
// not know better, and used for nothing.
//
// Members who are said to live here and do not are left out, and those who are
// in MaxGroups groups already: so a peer stores no more than 256 groups for
// each user. A state without members who live here removes the copy.
//
// ORIGIN_MISMATCH: the group lives elsewhere, or its id is a channel's.
// INVALID_FIELD, PAYLOAD_TOO_LARGE: the state has no form that a home gives it.
func (s *Service) ApplyStateTx(tx *store.Tx, home string, state *qpcpb.GroupState) error {
	after, err := parseState(home, state)
	if err != nil {
		return err
	}
	before, err := readRoster(tx, after.id)
	if err != nil {
		return err
	}
	pair, err := readMembers(tx, after.id)
	if err != nil {
		return err
	}
	switch {
	case home == "", home == s.options.Domain, len(pair) > 0, before != nil && before.home != home:
		return rpc.Errorf(qpcpb.CodeOriginMismatch, "this group does not live on the server that tells of it")
	case before != nil && before.version >= after.version:
		return nil
	case before == nil:
		before = &roster{id: after.id, home: home}
	}
	kept := after.members[:0]
	for _, m := range after.members {
		ok, err := s.placeTx(tx, before, &m)
		if err != nil {
			return err
		}
		if ok {
			kept = append(kept, m)
		}
	}
	after.rowid, after.members = before.rowid, kept
	if after.local() == 0 {
		if before.rowid == 0 {
			return nil
		}
		after.members = nil
	}
	if err := saveRoster(tx, before, after); err != nil {
		return err
	}
	if after.epoch > before.epoch {
		s.tellEpochTx(tx, after)
	}
	return nil
}

// placeTx finds out whether a member of a copy lives here, and whether to
// believe in it at all.
func (s *Service) placeTx(tx *store.Tx, before *roster, m *member) (ok bool, err error) {
	here, err := s.options.Accounts.ExistsTx(tx, m.identity)
	if err != nil || !here {
		// An account that has been deleted must not come back by a state that
		// was on its way.
		return err == nil && domainOf(m.address) != s.options.Domain, err
	}
	m.address = ""
	if before.find(m.identity) >= 0 {
		return true, nil
	}
	n, err := countGroups(tx, m.identity)
	return n < MaxGroups, err
}

// parseState checks the form of a state.
func parseState(home string, state *qpcpb.GroupState) (*roster, error) {
	id, ok, err := rpc.ParseChannelID("group_id", state.GetGroupId())
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "group_id is missing")
	case state.Version == 0 || state.Version > math.MaxInt64 || state.Epoch > math.MaxInt64:
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "version or epoch is out of range")
	case len(state.Metadata) > MaxMetadata:
		return nil, rpc.Errorf(qpcpb.CodePayloadTooLarge, "metadata has %d bytes where %d are allowed", len(state.Metadata), MaxMetadata)
	case len(state.Members) > MaxMembers:
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "members has %d entries where %d are allowed", len(state.Members), MaxMembers)
	}
	r := &roster{id: id, home: home, version: state.Version, epoch: state.Epoch, metadata: state.Metadata}
	owners := 0
	for i, m := range state.Members {
		identity, err := rpc.ParseIdentityKey("members.identity_key", m.GetIdentityKey())
		switch {
		case err != nil:
			return nil, err
		case r.find(identity) >= 0:
			return nil, rpc.Errorf(qpcpb.CodeInvalidField, "members names one identity twice")
		case m.JoinedAt > math.MaxInt64:
			return nil, rpc.Errorf(qpcpb.CodeInvalidField, "members.joined_at is out of range")
		case !validAddress(m.Address):
			return nil, rpc.Errorf(qpcpb.CodeInvalidField, "members.address is not of the form user@domain")
		case m.Owner:
			owners++
		}
		r.members = append(r.members, member{
			identity: identity, place: int64(i + 1), joinedAt: int64(m.JoinedAt), owner: m.Owner, address: m.Address,
		})
	}
	if len(r.members) > 0 && owners != 1 {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "members has %d owners where 1 is wanted", owners)
	}
	return r, nil
}

// validAddress accepts user@domain as servers write it. It is shown on
// terminals, so that nothing else may stand in it.
func validAddress(address string) bool {
	user, domain, _ := strings.Cut(address, "@")
	folded, err := username.Fold(user)
	return len(address) <= maxAddress && err == nil && folded == user && domain != "" &&
		strings.Trim(domain, "abcdefghijklmnopqrstuvwxyz0123456789.-") == "" && !strings.HasPrefix(domain, ".")
}

// domainOf returns the domain of user@domain.
func domainOf(address string) string {
	_, domain, _ := strings.Cut(address, "@")
	return domain
}

// announceTx tells the servers of the members, and of those who were members
// until now, how a group of this server stands.
func (s *Service) announceTx(tx *store.Tx, before, after *roster) error {
	if s.options.Remote == nil {
		return nil
	}
	domains := before.domains(after.domains(nil))
	if len(domains) == 0 {
		return nil
	}
	state := &qpcpb.GroupState{GroupId: after.id[:], Version: after.version, Epoch: after.epoch, Metadata: after.metadata}
	for _, m := range after.members {
		address := m.address
		if address == "" {
			name, _, err := s.options.Names.UsernameTx(tx, m.identity)
			if err != nil {
				return err
			}
			address = name + "@" + s.options.Domain
		}
		state.Members = append(state.Members, &qpcpb.GroupStateMember{
			IdentityKey: slices.Clone(m.identity[:]), Address: address, JoinedAt: uint64(m.joinedAt), Owner: m.owner,
		})
	}
	return s.options.Remote.AnnounceGroupTx(tx, domains, state)
}

// tellEpochTx tells the live connections of the members of a group's epoch,
// after the commit.
func (s *Service) tellEpochTx(tx *store.Tx, r *roster) {
	event := push.Event{Kind: qpcpb.EventGroupEpoch, Message: &qpcpb.GroupEpoch{GroupId: r.id[:], Epoch: r.epoch}}
	members := r.members
	tx.AfterCommit(func() {
		for _, m := range members {
			s.options.Push.Send(m.identity, event) // nobody hears it who is not connected here
		}
	})
}

// HomeTx returns the domain of the server that a group lives on; ok is false
// when it lives here or is not known.
func (s *Service) HomeTx(tx *store.Tx, id rpc.ChannelID) (home string, ok bool, err error) {
	r, err := readRoster(tx, id)
	if err != nil || r == nil {
		return "", false, err
	}
	return r.home, r.home != "", nil
}
