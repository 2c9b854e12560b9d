package control

import (
	"context"
	"fmt"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// missing is the answer where this server lacks a part.
func missing(part string) error {
	return rpc.Errorf(qpcpb.CodeUnimplemented, "this server has no %s", part)
}

// ListAccounts returns a page of accounts by name (method 1110).
func (s *Service) ListAccounts(ctx context.Context, request *qpcpb.ListAccountsRequest) (*qpcpb.ListAccountsResponse, error) {
	limit := int(request.Limit)
	if limit <= 0 || limit > maxPage {
		limit = maxPage
	}
	response := new(qpcpb.ListAccountsResponse)
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		accounts, err := s.options.Accounts.ListTx(tx, request.Prefix, request.After, limit)
		if err != nil {
			return err
		}
		for _, a := range accounts {
			summary, _, err := s.summaryTx(tx, a)
			if err != nil {
				return err
			}
			response.Accounts = append(response.Accounts, summary)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing accounts: %w", err)
	}
	return response, nil
}

// ban is the ban of an account, as far as there is one.
type ban struct {
	reason    string
	expiresAt uint64
}

// summaryTx gathers what the domains know of an account.
func (s *Service) summaryTx(tx *store.Tx, a Account) (*qpcpb.AccountSummary, ban, error) {
	summary := &qpcpb.AccountSummary{
		Username: a.Username, IdentityKey: a.Identity[:], RegisteredAt: a.RegisteredAt, LastSeen: a.LastSeenAt,
		Online: s.options.Presence.Online(a.Identity), Admin: a.Admin,
	}
	devices, err := s.options.Devices.DetailsTx(tx, a.Identity)
	if err != nil {
		return nil, ban{}, err
	}
	summary.Devices = uint32(len(devices))
	if summary.QueuedMessages, summary.QueuedBytes, err = s.options.Queues.WaitingTx(tx, a.Identity); err != nil {
		return nil, ban{}, err
	}
	if s.options.Blobs != nil {
		if summary.BlobBytes, err = s.options.Blobs.UsageOfTx(tx, a.Identity); err != nil {
			return nil, ban{}, err
		}
	}
	var b ban
	if s.options.BanTx != nil {
		summary.Banned, b.reason, b.expiresAt, err = s.options.BanTx(tx, a.Identity)
	}
	return summary, b, err
}

// GetAccount returns one account with its devices (method 1111).
func (s *Service) GetAccount(ctx context.Context, request *qpcpb.GetAccountRequest) (*qpcpb.GetAccountResponse, error) {
	response := new(qpcpb.GetAccountResponse)
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		account, err := s.options.Accounts.FindByNameTx(tx, request.Username)
		if err != nil {
			return err
		}
		var b ban
		if response.Account, b, err = s.summaryTx(tx, account); err != nil {
			return err
		}
		response.BanReason, response.BanExpiresAt = b.reason, b.expiresAt
		response.Devices, err = s.options.Devices.DetailsTx(tx, account.Identity)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading an account: %w", err)
	}
	return response, nil
}

// RemoveAccount deletes an account (method 1112).
func (s *Service) RemoveAccount(ctx context.Context, request *qpcpb.RemoveAccountRequest) (*qpcpb.RemoveAccountResponse, error) {
	if err := s.options.Accounts.Remove(ctx, request.Username, request.FreeName); err != nil {
		return nil, err
	}
	return &qpcpb.RemoveAccountResponse{Success: true}, nil
}

// RemoveAccountDevice ends a device of an account (method 1114).
func (s *Service) RemoveAccountDevice(ctx context.Context, request *qpcpb.RemoveAccountDeviceRequest) (*qpcpb.RemoveAccountDeviceResponse, error) {
	id, ok, err := rpc.ParseDeviceID("device_id", request.DeviceId)
	if err == nil && !ok {
		err = rpc.Errorf(qpcpb.CodeInvalidField, "device_id is empty where 16 bytes are wanted")
	}
	if err != nil {
		return nil, err
	}
	var account Account
	err = s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		account, err = s.options.Accounts.FindByNameTx(tx, request.Username)
		return err
	})
	if err == nil {
		err = s.options.Devices.Revoke(ctx, account.Identity, id)
	}
	if err != nil {
		return nil, err
	}
	return &qpcpb.RemoveAccountDeviceResponse{Success: true}, nil
}

// ResetPassword makes a code that registers a name anew (method 1113).
func (s *Service) ResetPassword(ctx context.Context, request *qpcpb.ResetPasswordRequest) (*qpcpb.ResetPasswordResponse, error) {
	invite, code, err := s.options.Accounts.ResetPassword(ctx, request.Username, time.Duration(request.ValidSecs)*time.Second)
	if err != nil {
		return nil, err
	}
	return &qpcpb.ResetPasswordResponse{Code: code, ExpiresAt: invite.ExpiresAt, Link: s.options.Link(code, invite.Username)}, nil
}

func (i Invite) wire() *qpcpb.Invite {
	return &qpcpb.Invite{Id: i.ID, Note: i.Note, CreatedAt: i.CreatedAt, ExpiresAt: i.ExpiresAt, Username: i.Username}
}

// CreateInvite makes a code for a new account (method 1120).
func (s *Service) CreateInvite(ctx context.Context, request *qpcpb.CreateInviteRequest) (*qpcpb.CreateInviteResponse, error) {
	invite, code, err := s.options.Accounts.CreateInvite(ctx, time.Duration(request.ValidSecs)*time.Second, request.Note)
	if err != nil {
		return nil, err
	}
	return &qpcpb.CreateInviteResponse{Invite: invite.wire(), Code: code, Link: s.options.Link(code, "")}, nil
}

// ListInvites returns the open codes (method 1121).
func (s *Service) ListInvites(ctx context.Context, _ *qpcpb.ListInvitesRequest) (*qpcpb.ListInvitesResponse, error) {
	invites, err := s.options.Accounts.Invites(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing invites: %w", err)
	}
	response := new(qpcpb.ListInvitesResponse)
	for _, i := range invites {
		response.Invites = append(response.Invites, i.wire())
	}
	return response, nil
}

// RevokeInvite makes a code worthless (method 1122).
func (s *Service) RevokeInvite(ctx context.Context, request *qpcpb.RevokeInviteRequest) (*qpcpb.RevokeInviteResponse, error) {
	if err := s.options.Accounts.RevokeInvite(ctx, request.Id); err != nil {
		return nil, err
	}
	return &qpcpb.RevokeInviteResponse{Success: true}, nil
}

// VerifyLog computes the transparency log anew (method 1150), one at a time: it
// reads every leaf.
func (s *Service) VerifyLog(ctx context.Context, _ *qpcpb.VerifyLogRequest) (*qpcpb.VerifyLogResponse, error) {
	if s.options.VerifyLog == nil {
		return nil, missing("transparency log")
	}
	if !s.verifying.TryLock() {
		return nil, rpc.Errorf(qpcpb.CodeAlreadyRunning, "the log is being verified already; wait for that")
	}
	defer s.verifying.Unlock()
	size, root, problems, err := s.options.VerifyLog(ctx)
	if err != nil {
		return nil, err
	}
	return &qpcpb.VerifyLogResponse{TreeSize: size, RootHash: root[:], Problems: problems}, nil
}

// Diagnose looks for what keeps the server from working well (method 1101).
func (s *Service) Diagnose(ctx context.Context, request *qpcpb.DiagnoseRequest) (*qpcpb.DiagnoseResponse, error) {
	if s.options.Diagnose == nil {
		return nil, missing("doctor")
	}
	return s.options.Diagnose(ctx, request)
}

// RotateCertificate makes a new certificate key (method 1170).
func (s *Service) RotateCertificate(ctx context.Context, request *qpcpb.RotateCertificateRequest) (*qpcpb.RotateCertificateResponse, error) {
	if s.options.RotateCertificate == nil {
		return nil, missing("certificate of its own")
	}
	return s.options.RotateCertificate(ctx, request)
}

// AddPeer adds a server to federate with (method 1140).
func (s *Service) AddPeer(ctx context.Context, request *qpcpb.AddPeerRequest) (*qpcpb.AddPeerResponse, error) {
	if s.options.Peers == nil {
		return nil, missing("federation")
	}
	return s.options.Peers.AddPeer(ctx, request)
}

// ListPeers returns the servers that this one federates with (method 1141).
func (s *Service) ListPeers(ctx context.Context, request *qpcpb.ListPeersRequest) (*qpcpb.ListPeersResponse, error) {
	if s.options.Peers == nil {
		return nil, missing("federation")
	}
	return s.options.Peers.ListPeers(ctx, request)
}

// RemovePeer ends the federation with a server (method 1142).
func (s *Service) RemovePeer(ctx context.Context, request *qpcpb.RemovePeerRequest) (*qpcpb.RemovePeerResponse, error) {
	if s.options.Peers == nil {
		return nil, missing("federation")
	}
	return s.options.Peers.RemovePeer(ctx, request)
}

// TestPeer calls a peer and tells how that went (method 1143).
func (s *Service) TestPeer(ctx context.Context, request *qpcpb.TestPeerRequest) (*qpcpb.TestPeerResponse, error) {
	if s.options.Peers == nil {
		return nil, missing("federation")
	}
	return s.options.Peers.TestPeer(ctx, request)
}

// PrepareBackup makes a copy of the database for a backup (method 1160).
func (s *Service) PrepareBackup(ctx context.Context, request *qpcpb.PrepareBackupRequest) (*qpcpb.PrepareBackupResponse, error) {
	if s.options.Backup == nil {
		return nil, missing("backup")
	}
	return s.options.Backup.PrepareBackup(ctx, request)
}

// FinishBackup removes that copy (method 1161).
func (s *Service) FinishBackup(ctx context.Context, request *qpcpb.FinishBackupRequest) (*qpcpb.FinishBackupResponse, error) {
	if s.options.Backup == nil {
		return nil, missing("backup")
	}
	return s.options.Backup.FinishBackup(ctx, request)
}
