package moderation

import (
	"context"
	"slices"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

var _ qpcpb.ModerationServer = (*Service)(nil)

// ReportMessage stores a report.
func (s *Service) ReportMessage(ctx context.Context, request *qpcpb.ReportMessageRequest) (*qpcpb.ReportMessageResponse, error) {
	conversation, inOne, err := rpc.ParseChannelID("conversation_id", request.ConversationId)
	if err != nil {
		return nil, err
	}
	switch n := len(request.EncryptedReport); {
	case n == 0:
		return nil, rpc.Errorf(qpcpb.CodeReportEmpty, "the report is empty; say what it is about")
	case n > MaxReport:
		return nil, rpc.Errorf(qpcpb.CodePayloadTooLarge, "the report has %d bytes where %d are allowed; report less of the conversation", n, MaxReport)
	}
	r := report{reporter: rpc.PrincipalOf(ctx).Identity, content: request.EncryptedReport, at: s.options.Now().Unix()}
	if inOne {
		r.conversation = conversation[:]
	}
	accepted := false
	err = s.options.DB.Write(ctx, func(tx *store.Tx) (err error) {
		accepted, err = s.reportTx(tx, r)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.ReportMessageResponse{Accepted: accepted}, nil
}

// reportTx stores a report unless nobody could read it.
func (s *Service) reportTx(tx *store.Tx, r report) (bool, error) {
	// An account that was deleted while the call was on its way must not leave
	// a report behind that names it.
	ok, err := s.options.Accounts.ExistsTx(tx, r.reporter)
	if err != nil {
		return false, err
	}
	if !ok {
		return false, rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted; register to use the server again")
	}
	readers, err := s.readersTx(tx)
	if err != nil || len(readers) == 0 {
		return false, err
	}
	own, all, err := countReports(tx, r.reporter)
	if err != nil {
		return false, err
	}
	switch {
	case own >= MaxReportsOfOne:
		return false, rpc.Errorf(qpcpb.CodeReportLimit, "%d reports of yours are kept, the most that may be; speak to the server's owner", own)
	case all >= MaxReports:
		return false, rpc.Errorf(qpcpb.CodeReportLimit, "the server keeps as many reports as it can; speak to its owner")
	}
	return true, insertReport(tx, r, s.options.DB.ServiceTime()+int64(reportsKeptFor/time.Second))
}

// ListReportKeys returns whom to encrypt a report to.
func (s *Service) ListReportKeys(ctx context.Context, _ *qpcpb.ListReportKeysRequest) (*qpcpb.ListReportKeysResponse, error) {
	response := &qpcpb.ListReportKeysResponse{}
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		readers, err := s.readersTx(tx)
		for _, key := range readers {
			response.IdentityKeys = append(response.IdentityKeys, key[:])
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// readersTx returns the admins that have an account, at most MaxReportKeys.
func (s *Service) readersTx(tx *store.Tx) (readers []rpc.IdentityKey, err error) {
	for _, admin := range s.options.Admins {
		if len(readers) == MaxReportKeys {
			break
		}
		exists, err := s.options.Accounts.ExistsTx(tx, admin)
		if err != nil {
			return nil, err
		}
		if exists {
			readers = append(readers, admin)
		}
	}
	return readers, nil
}

// ListReports returns a page of reports.
func (s *Service) ListReports(ctx context.Context, request *qpcpb.ListReportsRequest) (*qpcpb.ListReportsResponse, error) {
	limit := pageSize(request.Limit)
	if err := rpc.ReserveMemory(ctx, limit*(MaxReport+reportEntry)); err != nil {
		return nil, err
	}
	var reports []report
	err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		reports, err = readReports(tx, s.options.DB.ServiceTime(), limit, request.Offset)
		return err
	})
	if err != nil {
		return nil, err
	}
	response := &qpcpb.ListReportsResponse{Reports: make([]*qpcpb.ReportEntry, len(reports))}
	for i, r := range reports {
		response.Reports[i] = &qpcpb.ReportEntry{
			Id: r.id, EncryptedReport: r.content, ConversationId: r.conversation,
			ReporterIdentity: r.reporter[:], Timestamp: wireTime(time.Unix(r.at, 0)),
		}
	}
	return response, nil
}

// BanUser bans an identity and ends its sessions.
func (s *Service) BanUser(ctx context.Context, request *qpcpb.BanUserRequest) (*qpcpb.BanUserResponse, error) {
	identity, err := rpc.ParseIdentityKey("identity_key", request.IdentityKey)
	if err != nil {
		return nil, err
	}
	if err := checkReason(request.Reason); err != nil {
		return nil, err
	}
	// At the control socket there is no caller to protect from oneself.
	if caller := rpc.PrincipalOf(ctx); caller != nil && caller.Identity == identity {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "identity_key is your own; you cannot ban yourself")
	}
	if slices.Contains(s.options.Admins, identity) {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "identity_key is an admin's; take it off the admin list first")
	}
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		exists, err := s.options.Accounts.ExistsTx(tx, identity)
		if err != nil {
			return err
		}
		if !exists {
			return rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here by that identity; check it")
		}
		if _, again, err := readBan(tx, identity, s.options.DB.ServiceTime()); err != nil {
			return err
		} else if n, err := countBans(tx); err != nil {
			return err
		} else if n >= MaxBans && !again {
			return rpc.Errorf(qpcpb.CodeQuotaExceeded, "%d identities are banned, the most that may be; end some bans, or delete accounts", n)
		}
		b := row{identity: identity, reason: request.Reason, at: s.options.Now().Unix(), until: banEnd(s.options.DB.ServiceTime(), request.DurationSecs)}
		if err := putBan(tx, b); err != nil {
			return err
		}
		return s.options.Accounts.EndSessionsTx(ctx, tx, identity, transport.CloseBanned, banned+because(request.Reason))
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.BanUserResponse{Success: true}, nil
}

// UnbanUser ends a ban.
func (s *Service) UnbanUser(ctx context.Context, request *qpcpb.UnbanUserRequest) (*qpcpb.UnbanUserResponse, error) {
	identity, err := rpc.ParseIdentityKey("identity_key", request.IdentityKey)
	if err != nil {
		return nil, err
	}
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		found, err := deleteBan(tx, identity, s.options.DB.ServiceTime())
		if err == nil && !found {
			err = rpc.Errorf(qpcpb.CodeBanNotFound, "this identity is not banned")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.UnbanUserResponse{Success: true}, nil
}

// ListBanned returns the bans in force.
func (s *Service) ListBanned(ctx context.Context, _ *qpcpb.ListBannedRequest) (*qpcpb.ListBannedResponse, error) {
	var rows []row
	err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		rows, err = readBans(tx, s.options.DB.ServiceTime())
		return err
	})
	if err != nil {
		return nil, err
	}
	response := &qpcpb.ListBannedResponse{Users: make([]*qpcpb.BannedUserEntry, len(rows))}
	for i, r := range rows {
		ban := s.ban(r)
		response.Users[i] = &qpcpb.BannedUserEntry{
			IdentityKey: ban.Identity[:], Reason: ban.Reason,
			BannedAt: wireTime(ban.BannedAt), ExpiresAt: wireTime(ban.ExpiresAt),
		}
	}
	return response, nil
}

// ban shows a stored ban by the wall clock of now: what service time has left
// of it.
func (s *Service) ban(r row) Ban {
	b := Ban{Identity: r.identity, Reason: r.reason, BannedAt: time.Unix(r.at, 0)}
	if r.until != 0 {
		left := time.Duration(r.until-s.options.DB.ServiceTime()) * time.Second
		b.ExpiresAt = s.options.Now().Add(left)
	}
	return b
}
