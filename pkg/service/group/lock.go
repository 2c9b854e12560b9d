package group

import (
	"context"
	"errors"
	"slices"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// RotateKeys is the commit lock of a group (method 413, PROTOCOL 7.7; RFC 9420,
// section 14). If epoch is the current one, then in one transaction:
//
//   - The commit is queued, on the channel of the group's id, for every member,
//     those who are removed too, so that their clients learn of it. The caller
//     gets it as well when it has devices beside the one that calls.
//   - Who is in remove_members leaves: the owner may name anybody, anybody
//     itself. Naming somebody who has left already, whose leaf is committed away
//     here, is open to all.
//   - Who is in add_members joins and gets its Welcome into its inbox, and not
//     the commit. One who is a member already gets the Welcome too: it is for a
//     new device of theirs.
//   - The epoch rises by one, and GroupEpoch is pushed to the members.
//
// Otherwise nothing changes, and the answer has accepted false and the current
// epoch.
//
// With payloads, recipient_keys names exactly those who are members at that
// moment. The caller's own entry may be left out; when it is there, it is
// queued.
//
// The same request by the same caller, while it is remembered, is answered like
// the first time and does nothing, even when the caller has left meanwhile.
//
// A member whose queue is full to twice its limits misses the commit: who has
// been away for so long has to be added again.
func (s *Service) RotateKeys(ctx context.Context, request *qpcpb.RotateKeysRequest) (*qpcpb.RotateKeysResponse, error) {
	return s.rotateKeys(ctx, callerOf(ctx), request)
}

func (s *Service) rotateKeys(ctx context.Context, c caller, request *qpcpb.RotateKeysRequest) (*qpcpb.RotateKeysResponse, error) {
	t, err := parseRotation(request)
	if err != nil {
		return nil, err
	}
	if wait, ok := s.rotations.Take(c.identity, 1); !ok {
		return nil, rpc.Errorf(qpcpb.CodeRateLimited, "you are changing groups too fast; wait before the next commit").After(wait)
	}
	var answer *qpcpb.RotateKeysResponse
	home := ""
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		answer, home, err = s.rotateTx(tx, c, t)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case home != "":
		return atHome(ctx, s, c, home, request, Remote.RotateKeys)
	}
	return answer, nil
}

// rotateTx answers a RotateKeys, or returns the home of the group when that is
// elsewhere. A refusal comes before the first write.
func (s *Service) rotateTx(tx *store.Tx, c caller, t rotation) (answer *qpcpb.RotateKeysResponse, home string, err error) {
	before, err := readRoster(tx, t.group)
	if err != nil {
		return nil, "", err
	}
	if before == nil {
		return nil, "", notFoundError()
	}
	if repeated, err := isRepeated(tx, before, c.identity, t); err != nil || repeated {
		return &qpcpb.RotateKeysResponse{Accepted: true, Epoch: t.epoch + 1}, "", err
	}
	own := before.find(c.identity)
	switch {
	case own < 0 || c.remote && before.home != "":
		return nil, "", notFoundError()
	case before.home != "":
		return nil, before.home, nil
	case before.epoch != t.epoch:
		return &qpcpb.RotateKeysResponse{Epoch: before.epoch}, "", nil
	}
	others, err := s.otherDevicesTx(tx, c)
	if err != nil {
		return nil, "", err
	}
	commits, err := t.commits(before, c.identity, others)
	if err != nil {
		return nil, "", err
	}
	after := before.next()
	after.epoch++
	for _, identity := range t.remove {
		if identity != c.identity && !before.members[own].owner && before.find(identity) >= 0 {
			return nil, "", ownerError()
		}
		after.remove(identity)
	}
	after.settle()
	for _, identity := range t.add {
		if err := s.joinTx(tx, after, identity, c.identity); err != nil {
			return nil, "", err
		}
	}
	after.settle()

	// Those who leave get the commit while their servers still have them in the
	// group; the others after their servers know of those who join.
	leaves := func(p commitTo) bool { return after.find(p.to.identity) < 0 }
	for _, p := range commits {
		if leaves(p) {
			if err := s.postTx(tx, c, p.to, &t.group, p.payload); err != nil {
				return nil, "", err
			}
		}
	}
	if err := s.replaceTx(tx, before, after); err != nil {
		return nil, "", err
	}
	for _, p := range commits {
		if !leaves(p) {
			if err := s.postTx(tx, c, p.to, &t.group, p.payload); err != nil {
				return nil, "", err
			}
		}
	}
	for i, identity := range t.add {
		if err := s.postTx(tx, c, after.members[after.find(identity)], nil, t.welcomes[i]); err != nil {
			return nil, "", err
		}
	}
	if len(after.members) > 0 {
		if err := rememberCommit(tx, after, c.identity, t); err != nil {
			return nil, "", err
		}
	}
	s.tellEpochTx(tx, after)
	return &qpcpb.RotateKeysResponse{Accepted: true, Epoch: after.epoch}, "", nil
}

// postTx queues a commit in the group's channel, or a Welcome in the inbox when
// there is none.
func (s *Service) postTx(tx *store.Tx, c caller, to member, channel *rpc.ChannelID, payload []byte) error {
	if to.address != "" {
		// Its server may be no peer any more. A queue here would be nobody's.
		if _, err := s.addressTx(tx, to.identity, ""); rpc.CodeOf(err) == qpcpb.CodeUserNotFound {
			return nil
		} else if err != nil {
			return err
		}
	}
	p := Posting{Sender: c.identity, Recipient: to.identity, Payload: payload}
	if channel != nil {
		p.Channel, p.InChannel = *channel, true
	}
	err := s.options.Post.PostTx(tx, p)
	if refused := (*rpc.Error)(nil); errors.As(err, &refused) {
		return nil // one server that does not answer must not stop everybody
	}
	return err
}

// otherDevicesTx reports whether the caller has devices beside the one that
// calls. Those of a user of another server are not known, so there may be.
func (s *Service) otherDevicesTx(tx *store.Tx, c caller) (bool, error) {
	if c.remote {
		return true, nil
	}
	devices, err := s.options.Devices.ListTx(tx, c.identity)
	return slices.ContainsFunc(devices, func(d rpc.DeviceID) bool { return !c.hasDevice || d != c.device }), err
}
