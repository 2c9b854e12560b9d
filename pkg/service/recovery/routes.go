package recovery

import (
	"context"
	"crypto/sha256"
	"net/netip"

	"github.com/quicprochat/qpcd/pkg/limit"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

var _ qpcpb.RecoveryServer = (*Service)(nil)

// lookupHash is what a bundle is stored under. Searching for it in an index
// compares in variable time, which says nothing of the token hash itself.
type lookupHash [sha256.Size]byte

func parseTokenHash(field []byte) (lookupHash, error) {
	if len(field) != sha256.Size {
		return lookupHash{}, rpc.Errorf(qpcpb.CodeInvalidField, "token_hash has %d bytes where %d are wanted", len(field), sha256.Size)
	}
	return sha256.Sum256(field), nil
}

func notFound() error {
	return rpc.Errorf(qpcpb.CodeBundleNotFound, "no bundle lies under this hash; check the name and the recovery code")
}

// StoreRecoveryBundle stores a bundle of the caller.
func (s *Service) StoreRecoveryBundle(ctx context.Context, request *qpcpb.StoreRecoveryBundleRequest) (*qpcpb.StoreRecoveryBundleResponse, error) {
	hash, err := parseTokenHash(request.TokenHash)
	if err != nil {
		return nil, err
	}
	switch n := len(request.Bundle); {
	case n == 0:
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "bundle is empty; use DeleteRecoveryBundle to remove one")
	case n > MaxBundle:
		return nil, rpc.Errorf(qpcpb.CodePayloadTooLarge, "bundle has %d bytes where %d are allowed", n, MaxBundle)
	}
	identity := rpc.PrincipalOf(ctx).Identity
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error { return s.storeTx(tx, identity, hash, request.Bundle) })
	if err != nil {
		return nil, err
	}
	return &qpcpb.StoreRecoveryBundleResponse{Success: true}, nil
}

func (s *Service) storeTx(tx *store.Tx, identity rpc.IdentityKey, hash lookupHash, bundle []byte) error {
	// An account that was deleted while the call was on its way must not leave
	// a bundle behind that nobody removes.
	ok, err := s.options.Accounts.ExistsTx(tx, identity)
	if err != nil {
		return err
	}
	if !ok {
		return rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted; register to use the server again")
	}
	replaced, err := replaceBundle(tx, identity, hash, bundle)
	if err != nil || replaced {
		return err
	}
	n, err := countBundles(tx, identity)
	if err != nil {
		return err
	}
	if n >= MaxBundles {
		return rpc.Errorf(qpcpb.CodeBundleLimit, "this identity has %d recovery bundles, the most that it may; delete one first", n)
	}
	return insertBundle(tx, identity, hash, bundle)
}

// FetchRecoveryBundle returns the bundle under a hash, to anybody who knows it.
func (s *Service) FetchRecoveryBundle(ctx context.Context, request *qpcpb.FetchRecoveryBundleRequest) (*qpcpb.FetchRecoveryBundleResponse, error) {
	hash, err := parseTokenHash(request.TokenHash)
	if err != nil {
		return nil, err
	}
	var source netip.Addr
	if p := rpc.PeerOf(ctx); p != nil {
		source = limit.Source(p.RemoteAddr().Addr())
	}
	if wait, ok := s.fetches.Take(source, 1); !ok {
		return nil, rpc.Errorf(qpcpb.CodeRateLimited, "too many recoveries from your address; wait before the next").After(wait)
	}
	if err := rpc.ReserveMemory(ctx, MaxBundle); err != nil {
		return nil, err
	}
	var bundle []byte
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		found := false
		if bundle, found, err = readBundle(tx, hash); err == nil && !found {
			err = notFound()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.FetchRecoveryBundleResponse{Bundle: bundle}, nil
}

// DeleteRecoveryBundle removes a bundle of the caller. Another's is answered
// as one that does not exist.
func (s *Service) DeleteRecoveryBundle(ctx context.Context, request *qpcpb.DeleteRecoveryBundleRequest) (*qpcpb.DeleteRecoveryBundleResponse, error) {
	hash, err := parseTokenHash(request.TokenHash)
	if err != nil {
		return nil, err
	}
	identity := rpc.PrincipalOf(ctx).Identity
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		found, err := deleteBundle(tx, identity, hash)
		if err == nil && !found {
			err = notFound()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.DeleteRecoveryBundleResponse{Success: true}, nil
}
