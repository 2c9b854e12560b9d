package group

import (
	"context"
	"fmt"
	"io"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

var _ qpcpb.ChannelServer = (*Service)(nil)

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
// new.
func (s *Service) createTx(tx *store.Tx, fresh rpc.ChannelID, caller, peer rpc.IdentityKey) (id rpc.ChannelID, wasNew bool, err error) {
	// The caller's account may have been deleted while the call was on its way;
	// nobody would remove the channel then.
	if err := s.existsTx(tx, caller, rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted; register to use the server again")); err != nil {
		return id, false, err
	}
	if err := s.existsTx(tx, peer, rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here has the identity peer_key")); err != nil {
		return id, false, err
	}
	low, high := sorted(caller, peer)
	if id, ok, err := findChannel(tx, low, high); err != nil || ok {
		return id, false, err
	}
	for _, identity := range []rpc.IdentityKey{caller, peer} {
		n, err := countChannels(tx, identity)
		if err != nil {
			return id, false, err
		}
		if n < MaxChannels {
			continue
		}
		if identity == caller {
			return id, false, rpc.Errorf(qpcpb.CodeQuotaExceeded, "you have %d channels, the most that one may; use those there are", n)
		}
		return id, false, rpc.Errorf(qpcpb.CodeQuotaExceeded, "the peer can take no more channels")
	}
	return fresh, true, insertChannel(tx, fresh, low, high)
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
