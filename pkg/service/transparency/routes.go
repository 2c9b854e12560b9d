package transparency

import (
	"context"
	"fmt"

	"github.com/transparency-dev/merkle/proof"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

var _ qpcpb.TransparencyServer = (*Service)(nil)

// RevokeKey ends an identity key: the caller's own, or by an admin anyone's
// (method 510).
func (s *Service) RevokeKey(ctx context.Context, request *qpcpb.RevokeKeyRequest) (*qpcpb.RevokeKeyResponse, error) {
	identity, err := rpc.ParseIdentityKey("identity_key", request.IdentityKey)
	if err != nil {
		return nil, err
	}
	if !tlog.IsReason(request.Reason) {
		return nil, badReason()
	}
	if caller := rpc.PrincipalOf(ctx); identity != caller.Identity && !caller.Admin {
		return nil, rpc.Errorf(qpcpb.CodeNotYours, "identity_key is another's; only an admin revokes the keys of others")
	}
	var index uint64
	err = s.options.DB.Write(ctx, func(tx *store.Tx) (err error) {
		index, err = s.RevokeTx(tx, identity, request.Reason)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("revoking a key: %w", err)
	}
	return &qpcpb.RevokeKeyResponse{Success: true, LeafIndex: index}, nil
}

// CheckRevocation tells whether an identity key has been revoked (method 511).
func (s *Service) CheckRevocation(ctx context.Context, request *qpcpb.CheckRevocationRequest) (*qpcpb.CheckRevocationResponse, error) {
	identity, err := rpc.ParseIdentityKey("identity_key", request.IdentityKey)
	if err != nil {
		return nil, err
	}
	response := &qpcpb.CheckRevocationResponse{}
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		r, revoked, err := readRevocation(tx, identity)
		response.Revoked, response.Reason, response.RevokedAt = revoked, r.reason, uint64(r.at)
		return err
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// AuditKeyTransparency returns the leaf hashes of a range, the first thousand
// of a longer one (method 520). A range beyond the log is INVALID_FIELD; the
// empty one asks for the size alone.
func (s *Service) AuditKeyTransparency(ctx context.Context, request *qpcpb.AuditKeyTransparencyRequest) (*qpcpb.AuditKeyTransparencyResponse, error) {
	if request.Start > request.End {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "start lies behind end; end is the first leaf that is not wanted")
	}
	count := min(request.End-request.Start, MaxLeaves)
	if err := rpc.ReserveMemory(ctx, int(count)*leafEntry); err != nil {
		return nil, err
	}
	response := &qpcpb.AuditKeyTransparencyResponse{}
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		h, err := s.headTx(tx)
		if err != nil {
			return err
		}
		if request.End > h.size {
			return beyond("end", h.size)
		}
		response.TreeSize, response.Checkpoint = h.size, h.signed
		response.LeafHashes = make([][]byte, 0, count)
		return readLeaves(tx, request.Start, request.Start+count, func(_ uint64, hash []byte) error {
			response.LeafHashes = append(response.LeafHashes, hash)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

func beyond(field string, size uint64) error {
	return rpc.Errorf(qpcpb.CodeInvalidField, "%s lies beyond the log, which has %d leaves; GetCheckpoint tells its size", field, size)
}

// GetCheckpoint returns the signed head of the log and the key that signs it
// (method 1010).
func (s *Service) GetCheckpoint(ctx context.Context, _ *qpcpb.GetCheckpointRequest) (*qpcpb.GetCheckpointResponse, error) {
	response := &qpcpb.GetCheckpointResponse{ServerKey: s.signer.Key()}
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		h, err := s.headTx(tx)
		response.Checkpoint = h.signed
		return err
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// ProveConsistency proves that the log of one size begins with that of a
// smaller one (method 1011). The proof from an empty log, or from a log to
// itself, is empty.
func (s *Service) ProveConsistency(ctx context.Context, request *qpcpb.ProveConsistencyRequest) (*qpcpb.ProveConsistencyResponse, error) {
	if request.OldSize > request.NewSize {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "old_size is larger than new_size")
	}
	response := &qpcpb.ProveConsistencyResponse{}
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		h, err := s.headTx(tx)
		if err != nil {
			return err
		}
		if request.NewSize > h.size {
			return beyond("new_size", h.size)
		}
		nodes, err := proof.Consistency(request.OldSize, request.NewSize)
		if err != nil {
			return err
		}
		response.Hashes, err = proveTx(tx, nodes)
		return err
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}
