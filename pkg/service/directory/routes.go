package directory

import (
	"context"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/username"
)

var _ qpcpb.DirectoryServer = (*Service)(nil)

// userNotFound is the answer for a name or identity without an account.
func userNotFound() error {
	return rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here by that name or identity; check it, or ask them to register")
}

// ResolveUser returns the identity of a name, with a proof that the binding is
// in the transparency log where there is one (method 500).
func (s *Service) ResolveUser(ctx context.Context, request *qpcpb.ResolveUserRequest) (*qpcpb.ResolveUserResponse, error) {
	who, err := s.parseName(request.Username)
	if err != nil {
		return nil, rpc.Errorf(qpcpb.CodeInvalidUsername, "%v", err)
	}
	if who.Domain != "" {
		identity, proof, err := s.options.Remote.ResolveUser(ctx, who)
		if err != nil {
			return nil, err
		}
		return &qpcpb.ResolveUserResponse{IdentityKey: identity[:], InclusionProof: proof}, nil
	}
	folded := who.User
	response := &qpcpb.ResolveUserResponse{}
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		account, ok, err := s.options.Accounts.FindByNameTx(tx, folded)
		if err != nil {
			return err
		}
		if !ok {
			return userNotFound()
		}
		response.IdentityKey = account.Identity[:]
		if s.options.Prover != nil {
			response.InclusionProof, err = s.options.Prover.InclusionProofTx(tx, account.Username, account.Identity)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// ResolveIdentity returns the name of an identity (method 501).
func (s *Service) ResolveIdentity(ctx context.Context, request *qpcpb.ResolveIdentityRequest) (*qpcpb.ResolveIdentityResponse, error) {
	identity, err := rpc.ParseIdentityKey("identity_key", request.IdentityKey)
	if err != nil {
		return nil, err
	}
	var account Account
	err = s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		account, err = s.findTx(tx, identity)
		return err
	})
	if rpc.CodeOf(err) == qpcpb.CodeUserNotFound && s.options.Remote != nil {
		address, ok, remote := s.options.Remote.AddressOf(ctx, identity)
		if remote != nil || ok {
			return &qpcpb.ResolveIdentityResponse{Username: address}, remote
		}
	}
	if err != nil {
		return nil, err
	}
	return &qpcpb.ResolveIdentityResponse{Username: account.Username}, nil
}

// parseName reads a name, and leaves the domain out where it is this server's
// own.
func (s *Service) parseName(name string) (username.Address, error) {
	if s.options.Remote == nil {
		folded, err := username.Fold(name)
		return username.Address{User: folded}, err
	}
	who, err := username.ParseAddress(name)
	if who.Domain == s.options.Remote.Domain() {
		who.Domain = ""
	}
	return who, err
}

// findTx returns the account of an identity, or USER_NOT_FOUND.
func (s *Service) findTx(tx *store.Tx, identity rpc.IdentityKey) (Account, error) {
	account, ok, err := s.options.Accounts.FindByKeyTx(tx, identity)
	if err == nil && !ok {
		err = userNotFound()
	}
	return account, err
}

// ListUsers returns users by name, a page at a time (method 1020).
func (s *Service) ListUsers(ctx context.Context, request *qpcpb.ListUsersRequest) (*qpcpb.ListUsersResponse, error) {
	if len(request.Prefix) > maxPrefix || len(request.After) > maxPrefix {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "prefix and after are at most %d characters, as names are", username.MaxLength)
	}
	prefix, after, limit := foldPart(request.Prefix), foldPart(request.After), pageSize(request.Limit)
	if err := rpc.ReserveMemory(ctx, limit*userEntry); err != nil {
		return nil, err
	}
	var accounts []Account
	err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		accounts, err = s.options.Accounts.ListTx(tx, prefix, after, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	response := &qpcpb.ListUsersResponse{Users: make([]*qpcpb.User, len(accounts))}
	for i, account := range accounts {
		response.Users[i] = &qpcpb.User{
			Username:    account.Username,
			IdentityKey: account.Identity[:],
			Online:      s.options.Presence.Online(account.Identity),
			LastSeen:    uint64(max(0, account.LastSeenAt)), // a clock before 1970
		}
	}
	return response, nil
}

// BlockUser makes the server drop what somebody sends to the caller (method
// 1021).
func (s *Service) BlockUser(ctx context.Context, request *qpcpb.BlockUserRequest) (*qpcpb.BlockUserResponse, error) {
	if err := s.change(ctx, request.IdentityKey, s.blockTx); err != nil {
		return nil, err
	}
	return &qpcpb.BlockUserResponse{Success: true}, nil
}

// UnblockUser undoes BlockUser (method 1022).
func (s *Service) UnblockUser(ctx context.Context, request *qpcpb.UnblockUserRequest) (*qpcpb.UnblockUserResponse, error) {
	if err := s.change(ctx, request.IdentityKey, deleteBlock); err != nil {
		return nil, err
	}
	return &qpcpb.UnblockUserResponse{Success: true}, nil
}

// change runs a change of the caller's blocks, once both sides are known to
// exist.
func (s *Service) change(ctx context.Context, field []byte, do func(tx *store.Tx, caller, other rpc.IdentityKey) error) error {
	other, err := rpc.ParseIdentityKey("identity_key", field)
	if err != nil {
		return err
	}
	caller := rpc.PrincipalOf(ctx).Identity
	if other == caller {
		return rpc.Errorf(qpcpb.CodeInvalidField, "identity_key is your own; you cannot block yourself")
	}
	return s.options.DB.Write(ctx, func(tx *store.Tx) error {
		// The caller's account may have been deleted while the call was on its
		// way; nobody would remove the block then.
		_, ok, err := s.options.Accounts.FindByKeyTx(tx, caller)
		if err != nil {
			return err
		}
		if !ok {
			return rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted; register to use the server again")
		}
		if err := s.knownTx(tx, other); err != nil {
			return err
		}
		return do(tx, caller, other)
	})
}

// knownTx returns USER_NOT_FOUND for an identity that lives neither here nor,
// as far as is known, elsewhere.
func (s *Service) knownTx(tx *store.Tx, identity rpc.IdentityKey) error {
	_, err := s.findTx(tx, identity)
	if rpc.CodeOf(err) != qpcpb.CodeUserNotFound || s.options.Remote == nil {
		return err
	}
	if _, ok, remote := s.options.Remote.HomeTx(tx, identity); remote != nil || ok {
		return remote
	}
	return err
}

func (s *Service) blockTx(tx *store.Tx, blocker, blocked rpc.IdentityKey) error {
	if already, err := readBlock(tx, blocker, blocked); err != nil || already {
		return err
	}
	n, err := countBlocks(tx, blocker)
	if err != nil {
		return err
	}
	if n >= MaxBlocks {
		return rpc.Errorf(qpcpb.CodeBlockLimit, "you have blocked %d identities, the most that one may; unblock some first", n)
	}
	return insertBlock(tx, blocker, blocked)
}
