package owner

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

func moderation(c *command.Call) qpcpb.ModerationClient { return qpcpb.NewModerationClient(caller(c)) }

// BansList lists the bans in force. Its JSON is that of the method, with the
// username of each.
func BansList(ctx context.Context, c *command.Call) error {
	m, err := moderation(c).ListBanned(ctx, &qpcpb.ListBannedRequest{})
	if err != nil {
		return err
	}
	known, err := names(ctx, c)
	if err != nil {
		return err
	}
	bans := make([]any, len(m.Users))
	var rows [][]string
	for i, b := range m.Users {
		name := known[string(b.IdentityKey)]
		rows = append(rows, []string{name, clock(b.BannedAt), until(b.ExpiresAt), b.Reason})
		ban := object(b.ProtoReflect())
		ban["username"], bans[i] = name, ban
	}
	if c.JSON() {
		return command.WriteJSON(c.Out, map[string]any{"users": bans})
	}
	return listing(c.Out, []string{"NAME", "SINCE", "UNTIL", "REASON"}, rows, "Nobody is banned.")
}

// BansAdd bans somebody, or changes the ban.
func BansAdd(ctx context.Context, c *command.Call) error {
	found, err := account(ctx, c, c.Args[0])
	if err != nil {
		return err
	}
	m, err := moderation(c).BanUser(ctx, &qpcpb.BanUserRequest{
		IdentityKey: found.Account.IdentityKey, Reason: c.Text("reason"), DurationSecs: uint64(c.Duration("for", 0) / time.Second),
	})
	return answer(c, m, err, func(w io.Writer, _ *qpcpb.BanUserResponse) error {
		how := "for good"
		if c.Is("for") {
			how = "for " + c.Text("for")
		}
		_, err := fmt.Fprintf(w, "%s is banned %s.\n", found.Account.Username, how)
		return err
	})
}

// BansRemove ends a ban.
func BansRemove(ctx context.Context, c *command.Call) error {
	found, err := account(ctx, c, c.Args[0])
	if err != nil {
		return err
	}
	m, err := moderation(c).UnbanUser(ctx, &qpcpb.UnbanUserRequest{IdentityKey: found.Account.IdentityKey})
	return answer(c, m, err, done[*qpcpb.UnbanUserResponse]("%s may log in again.", found.Account.Username))
}

// ReportsList lists the reports. What they say is encrypted for the admins, who
// read it with qpc; here are the facts around it.
func ReportsList(ctx context.Context, c *command.Call) error {
	all := new(qpcpb.ListReportsResponse)
	for {
		page, err := moderation(c).ListReports(ctx, &qpcpb.ListReportsRequest{Limit: pageSize, Offset: uint32(len(all.Reports))})
		if err != nil {
			return err
		}
		all.Reports = append(all.Reports, page.Reports...)
		if len(page.Reports) == 0 {
			break
		}
	}
	known, err := names(ctx, c)
	if err != nil {
		return err
	}
	reports := make([]any, len(all.Reports))
	var rows [][]string
	for i, r := range all.Reports {
		name := known[string(r.ReporterIdentity)]
		rows = append(rows, []string{fmt.Sprint(r.Id), clock(r.Timestamp), name, hex.EncodeToString(r.ConversationId), size(uint64(len(r.EncryptedReport)))})
		report := object(r.ProtoReflect())
		report["reporter"], reports[i] = name, report
	}
	if c.JSON() {
		return command.WriteJSON(c.Out, map[string]any{"reports": reports})
	}
	return listing(c.Out, []string{"ID", "AT", "BY", "CONVERSATION", "SIZE"}, rows, "There are no reports.")
}
