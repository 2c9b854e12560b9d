package auth

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"github.com/quicprochat/qpcd/pkg/invite"
	"github.com/quicprochat/qpcd/pkg/limit"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// ErrNoSession reports a token that stands for no session. It wraps
// rpc.ErrSessionRefused, which is what the dispatcher wants to hear.
var ErrNoSession = fmt.Errorf("no such session: %w", rpc.ErrSessionRefused)

func hashToken(token []byte) [32]byte { return sha256.Sum256(token) }

// source is the address that a call counts against.
func source(ctx context.Context) netip.Addr {
	if p := rpc.PeerOf(ctx); p != nil {
		return limit.Source(p.RemoteAddr().Addr())
	}
	return netip.Addr{}
}

// OpaqueRegisterStart answers the first message of a registration, alike for
// names that are free and names that are taken.
func (s *Service) OpaqueRegisterStart(ctx context.Context, r *qpcpb.OpaqueRegisterStartRequest) (*qpcpb.OpaqueRegisterStartResponse, error) {
	folded, err := fold(r.Username)
	if err != nil {
		return nil, err
	}
	if s.options.Registration == RegistrationClosed {
		// A name may still be registered anew, and which one shows only at the
		// end, as with names that are taken.
		open, err := s.resetOpen(ctx)
		if err != nil {
			return nil, fmt.Errorf("looking for a reset: %w", err)
		}
		if !open {
			return nil, closedError()
		}
	}
	if wait, ok := s.registrations.Take(source(ctx), 1); !ok {
		return nil, registrationsError(wait)
	}
	response, err := s.registrationResponse(ctx, folded, r.Request)
	if err != nil {
		return nil, err
	}
	return &qpcpb.OpaqueRegisterStartResponse{Response: response}, nil
}

func closedError() error {
	return rpc.Errorf(qpcpb.CodeRegistrationClosed, "this server takes no new accounts")
}

// registrationResponse answers the first message of a registration of a name,
// new or again. It counts as an attempt at the name's password, since its
// answer is the OPRF under the same key as a login's.
func (s *Service) registrationResponse(ctx context.Context, folded string, request []byte) ([]byte, error) {
	if wait, ok := s.failures.attempt(folded, source(ctx), scopeName); !ok {
		return nil, attemptsError(wait)
	}
	response, err := s.options.Opaque.RegistrationResponse(request, []byte(folded))
	if err != nil {
		return nil, opaqueError("request", err)
	}
	return response, nil
}

// OpaqueRegisterFinish makes the account.
func (s *Service) OpaqueRegisterFinish(ctx context.Context, r *qpcpb.OpaqueRegisterFinishRequest) (*qpcpb.OpaqueRegisterFinishResponse, error) {
	folded, err := fold(r.Username)
	if err != nil {
		return nil, err
	}
	identity, err := rpc.ParseIdentityKey("identity_key", r.IdentityKey)
	if err != nil {
		return nil, err
	}
	if err := s.options.Opaque.CheckRegistrationUpload(r.Upload); err != nil {
		return nil, opaqueError("upload", err)
	}
	switch {
	case len(r.IdentityProof) > 0:
		if !proof.VerifyIdentity(identity[:], folded, r.Upload, r.IdentityProof) {
			return nil, rpc.Errorf(qpcpb.CodeIdentityProofInvalid, "identity_proof is not by this identity key over this name and upload")
		}
	case s.options.RequireIdentityProof:
		return nil, rpc.Errorf(qpcpb.CodeIdentityProofRequired, "this server wants proof of the identity key; update your client")
	}
	var code *[32]byte
	if r.Invite != "" {
		hash := invite.Hash(r.Invite)
		code = &hash
	}
	switch {
	case code != nil:
	case s.options.Registration == RegistrationClosed:
		return nil, closedError()
	case s.options.Registration == RegistrationInvite:
		return nil, rpc.Errorf(qpcpb.CodeInviteRequired, "this server wants an invite; ask its owner for one")
	}
	if wait, ok := s.finishes.Take(source(ctx), 1); !ok {
		return nil, registrationsError(wait)
	}
	var superseded *rpc.IdentityKey
	err = s.options.DB.Write(ctx, func(tx *store.Tx) (err error) {
		superseded, err = s.registerTx(tx, folded, identity, r.Upload, code)
		return err
	})
	switch {
	case errors.Is(err, errNameTaken):
		return nil, rpc.Errorf(qpcpb.CodeNameTaken, "the name is taken; choose another")
	case errors.Is(err, errIdentityTaken):
		return nil, rpc.Errorf(qpcpb.CodeIdentityTaken, "this identity key has an account already")
	case errors.Is(err, errInvite) && s.options.Registration == RegistrationClosed:
		return nil, closedError()
	case errors.Is(err, errInvite):
		return nil, rpc.Errorf(qpcpb.CodeInviteInvalid, "the invite is used up or has expired; ask for a new one")
	case err != nil:
		return nil, fmt.Errorf("storing an account: %w", err)
	}
	if superseded != nil {
		s.options.Sessions.EndSessions(ctx, *superseded, func(*rpc.Principal) bool { return true },
			transport.CloseSessionRevoked, "the account was registered anew")
	}
	s.failures.succeeded(folded, source(ctx), scopeName)
	return &qpcpb.OpaqueRegisterFinishResponse{Success: true}, nil
}

// OpaqueLoginStart answers KE1 with KE2, for an unknown name from a fake
// record (RFC 9807, section 10.9).
func (s *Service) OpaqueLoginStart(ctx context.Context, r *qpcpb.OpaqueLoginStartRequest) (*qpcpb.OpaqueLoginStartResponse, error) {
	folded, err := fold(r.Username)
	if err != nil {
		return nil, err
	}
	if wait, ok := s.failures.attempt(folded, source(ctx), scopeLogin); !ok {
		return nil, attemptsError(wait)
	}
	record, err := s.record(ctx, folded)
	if err != nil {
		return nil, fmt.Errorf("reading an account: %w", err)
	}
	response, state, err := s.options.Opaque.LoginResponse(s.options.Rand, record, []byte(folded), r.Request)
	if err != nil {
		return nil, opaqueError("request", err)
	}
	if !s.pending.put(rpc.PeerOf(ctx), pendingLogin{folded: folded, state: state, record: sha256.Sum256(record)}) {
		return nil, rpc.Errorf(qpcpb.CodeBusy, "too many logins are under way; try again").After(pendingFor)
	}
	return &qpcpb.OpaqueLoginStartResponse{Response: response}, nil
}

// OpaqueLoginFinish checks KE3, makes a session and authenticates the
// connection.
func (s *Service) OpaqueLoginFinish(ctx context.Context, r *qpcpb.OpaqueLoginFinishRequest) (*qpcpb.OpaqueLoginFinishResponse, error) {
	folded, err := fold(r.Username)
	if err != nil {
		return nil, err
	}
	identity, err := rpc.ParseIdentityKey("identity_key", r.IdentityKey)
	if err != nil {
		return nil, err
	}
	device, hasDevice, err := rpc.ParseDeviceID("device_id", r.DeviceId)
	if err != nil {
		return nil, err
	}
	peer := rpc.PeerOf(ctx)
	login, ok := s.pending.take(peer, folded)
	if !ok {
		return nil, rpc.Errorf(qpcpb.CodeLoginExpired, "no login of this name is under way on this connection; start again")
	}
	if _, err := login.state.Finish(r.Finalization); err != nil {
		if errors.Is(err, opaque.ErrMalformed) {
			return nil, opaqueError("finalization", err)
		}
		peer.RefuseCredentials()
		return nil, credentialsError()
	}
	token := make([]byte, tokenLength)
	if _, err := io.ReadFull(s.options.Rand, token); err != nil {
		return nil, fmt.Errorf("making a session token: %w", err)
	}
	principal := rpc.Principal{
		Identity: identity, Username: folded, Session: hashToken(token),
		Device: device, HasDevice: hasDevice, Admin: s.admins[identity],
	}
	var surplus [][32]byte
	err = s.options.DB.Write(ctx, func(tx *store.Tx) (err error) {
		surplus, err = s.loginTx(tx, principal, login.record)
		// Authenticated before any later write can end this session: whatever
		// ends it finds the connection.
		tx.AfterCommit(func() { peer.Authenticate(principal) })
		return err
	})
	if errors.Is(err, ErrNoAccount) || errors.Is(err, errStale) {
		peer.RefuseCredentials()
		return nil, credentialsError()
	}
	if err != nil {
		return nil, fmt.Errorf("storing a session: %w", err)
	}
	s.failures.succeeded(folded, source(ctx), scopeLogin)
	if len(surplus) > 0 {
		s.options.Sessions.EndSessions(ctx, identity, func(p *rpc.Principal) bool {
			return slices.Contains(surplus, p.Session)
		}, transport.CloseSessionRevoked, "too many sessions; this one was the least used")
	}
	return &qpcpb.OpaqueLoginFinishResponse{SessionToken: token}, nil
}

// Logout ends the caller's session, or all of them.
func (s *Service) Logout(ctx context.Context, r *qpcpb.LogoutRequest) (*qpcpb.LogoutResponse, error) {
	caller := rpc.PrincipalOf(ctx)
	err := s.options.DB.Write(store.Freeing(ctx), func(tx *store.Tx) error {
		if r.AllSessions {
			if _, err := tx.Exec(deleteOtherSessions, caller.Identity, caller.Session); err != nil {
				return err
			}
		}
		_, err := tx.Exec(deleteSession, caller.Session)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ending a session: %w", err)
	}
	s.options.Sessions.EndSessions(ctx, caller.Identity, func(p *rpc.Principal) bool {
		return r.AllSessions || p.Session == caller.Session
	}, transport.CloseSessionRevoked, "logged out")
	return &qpcpb.LogoutResponse{Success: true}, nil
}

// ChangePasswordStart answers the first message of a new registration of the
// caller's name.
func (s *Service) ChangePasswordStart(ctx context.Context, r *qpcpb.ChangePasswordStartRequest) (*qpcpb.ChangePasswordStartResponse, error) {
	response, err := s.registrationResponse(ctx, rpc.PrincipalOf(ctx).Username, r.Request)
	if err != nil {
		return nil, err
	}
	return &qpcpb.ChangePasswordStartResponse{Response: response}, nil
}

// ChangePasswordFinish replaces the caller's OPAQUE record and ends all other
// sessions.
func (s *Service) ChangePasswordFinish(ctx context.Context, r *qpcpb.ChangePasswordFinishRequest) (*qpcpb.ChangePasswordFinishResponse, error) {
	caller := rpc.PrincipalOf(ctx)
	if err := s.options.Opaque.CheckRegistrationUpload(r.Upload); err != nil {
		return nil, opaqueError("upload", err)
	}
	err := s.options.DB.Write(ctx, func(tx *store.Tx) error { return s.changePasswordTx(tx, caller, r.Upload) })
	if errors.Is(err, ErrNoSession) {
		return nil, rpc.Errorf(qpcpb.CodeUnauthenticated, "your session has ended; log in again")
	}
	if err != nil {
		return nil, fmt.Errorf("changing a password: %w", err)
	}
	s.failures.succeeded(caller.Username, source(ctx), scopeName)
	s.options.Sessions.EndSessions(ctx, caller.Identity, func(p *rpc.Principal) bool {
		return p.Session != caller.Session
	}, transport.CloseSessionRevoked, "the password was changed")
	return &qpcpb.ChangePasswordFinishResponse{Success: true}, nil
}

// DeleteAccount removes the caller from every domain.
func (s *Service) DeleteAccount(ctx context.Context, _ *qpcpb.DeleteAccountRequest) (*qpcpb.DeleteAccountResponse, error) {
	caller := rpc.PrincipalOf(ctx)
	err := s.options.DB.Write(store.Freeing(ctx), func(tx *store.Tx) error { return s.eraseTx(tx, caller.Identity) })
	if errors.Is(err, ErrNoAccount) {
		return nil, rpc.Errorf(qpcpb.CodeUserNotFound, "the account is deleted already")
	}
	if err != nil {
		return nil, rpc.Errorf(qpcpb.CodeAccountDeletionFailed, "the account could not be deleted; nothing was removed").Because(err)
	}
	s.options.Sessions.EndSessions(ctx, caller.Identity, func(*rpc.Principal) bool { return true },
		transport.CloseSessionRevoked, "the account was deleted")
	return &qpcpb.DeleteAccountResponse{Success: true}, nil
}
