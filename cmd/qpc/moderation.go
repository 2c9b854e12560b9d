package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

type blockCmd struct {
	Name string `arg:"" help:"Whom to block."`
}

func (cmd *blockCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, cmd.Name, func(s *session, peer client.Contact) error {
		if err := s.Block(ctx, peer.Identity); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "What %s sends does not arrive any more; %s is not told.\nTo undo it: qpc unblock %s\n", peer.Name, peer.Name, peer.Name)
		return nil
	})
}

type unblockCmd struct {
	Name string `arg:"" help:"Whom to hear from again."`
}

func (cmd *unblockCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, cmd.Name, func(s *session, peer client.Contact) error {
		if err := s.Unblock(ctx, peer.Identity); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "What %s sends from now on arrives again.\n", peer.Name)
		return nil
	})
}

// with runs f with the session and somebody who is looked up by name.
func (a *app) with(ctx context.Context, name string, f func(*session, client.Contact) error) error {
	s, err := a.open(ctx, name)
	if err != nil {
		return err
	}
	defer s.close()
	peer, err := s.LookUp(ctx, name)
	if err != nil {
		return err
	}
	return f(s, peer)
}

type reportCmd struct {
	Name    string `arg:"" help:"Whose message."`
	Message string `arg:"" optional:"" help:"The message's number or the beginning of its id, as history --json has them; their last one unless given."`
	Reason  string `placeholder:"TEXT" help:"What is wrong with it."`
}

func (cmd *reportCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, cmd.Name)
	if err != nil {
		return err
	}
	defer s.close()
	peer, err := s.known(ctx, cmd.Name)
	if err != nil {
		return err
	}
	message, err := s.findMessage(ctx, peer, cmd.Message)
	if err != nil {
		return err
	}
	if err := s.ReportMessage(ctx, message, cmd.Reason); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "The message of %s is reported, with a few before it. Only the server's admins can read that.\n", peer.Name)
	return nil
}

// findMessage returns a message of somebody by its number or the beginning of
// its id, or their last one.
func (s *session) findMessage(ctx context.Context, peer client.Contact, which string) (found client.Message, err error) {
	n := 0
	number, numberErr := strconv.ParseUint(which, 10, 64)
	err = s.History(ctx, peer.Identity, 0, func(m client.Message) bool {
		switch {
		case which == "" && !m.Mine:
			found, n = m, 1
		case which == "":
		case numberErr == nil && m.No == number:
			found, n = m, 1
			return false
		case strings.HasPrefix(fmt.Sprintf("%x", m.ID[:]), strings.ToLower(which)):
			found = m
			n++
		}
		return true
	})
	if err == nil && n != 1 {
		err = withHint(fmt.Errorf("%d messages of the conversation with %s are meant", n, peer.Name), "qpc history %s --json shows their numbers and ids", peer.Name)
	}
	return found, err
}

// adminCmd is for those whose identity is in the server's admin list.
type adminCmd struct {
	Reports adminReportsCmd `cmd:"" help:"Read what was reported."`
	Bans    adminBansCmd    `cmd:"" help:"List who is banned."`
	Ban     adminBanCmd     `cmd:"" help:"Keep somebody out, for a time or for good."`
	Unban   adminUnbanCmd   `cmd:"" help:"Let somebody in again."`
}

type adminBanCmd struct {
	Name   string        `arg:"" help:"Whom to ban."`
	For    time.Duration `placeholder:"TIME" help:"For how long, such as 72h; for good unless given."`
	Reason string        `placeholder:"TEXT" help:"What the banned one is told."`
}

func (cmd *adminBanCmd) Run(ctx context.Context, a *app) error {
	if cmd.For < 0 {
		return usageError{errors.New("--for is a time from now on, such as 72h")}
	}
	return a.with(ctx, cmd.Name, func(s *session, peer client.Contact) error {
		if err := s.Ban(ctx, peer.Identity, cmd.Reason, cmd.For); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s is banned. To undo it: qpc admin unban %s\n", peer.Name, peer.Name)
		return nil
	})
}

type adminUnbanCmd struct {
	Name string `arg:"" help:"Whose ban to end."`
}

func (cmd *adminUnbanCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, cmd.Name, func(s *session, peer client.Contact) error {
		if err := s.Unban(ctx, peer.Identity); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s may log in again.\n", peer.Name)
		return nil
	})
}

type adminBansCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

type banJSON struct {
	Name        string     `json:"name,omitempty"`
	IdentityKey string     `json:"identity_key"`
	Reason      string     `json:"reason,omitempty"`
	BannedAt    *time.Time `json:"banned_at,omitempty"`
	ExpiresAt   *time.Time `json:"expires_at,omitempty"` // absent for good
}

func (cmd *adminBansCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	bans, err := s.Banned(ctx)
	if err != nil {
		return err
	}
	names, err := s.usernames(ctx, len(bans) > 0)
	if err != nil {
		return err
	}
	if cmd.JSON {
		all := make([]banJSON, len(bans))
		for i, b := range bans {
			all[i] = banJSON{Name: names[b.Identity], IdentityKey: b.Identity.String(), Reason: b.Reason, BannedAt: when(b.Since), ExpiresAt: when(b.Until)}
		}
		return a.json(all)
	}
	rows := [][]string{{"NAME", "SINCE", "UNTIL", "REASON"}}
	for _, b := range bans {
		until := "for good"
		if !b.Until.IsZero() {
			until = b.Until.Local().Format("2006-01-02 15:04")
		}
		rows = append(rows, []string{displayName(names[b.Identity], b.Identity), b.Since.Local().Format("2006-01-02 15:04"), until, forTerminal(b.Reason)})
	}
	return a.table(rows)
}

// names returns the names of everybody on the server, when they are wanted.
func (s *session) usernames(ctx context.Context, wanted bool) (map[rpc.IdentityKey]string, error) {
	names := make(map[rpc.IdentityKey]string)
	if !wanted {
		return names, nil
	}
	users, err := s.Users(ctx)
	for _, u := range users {
		names[u.Identity] = u.Name
	}
	return names, err
}

type adminReportsCmd struct {
	JSON bool `name:"json" help:"Print JSON, one object for each report."`
}

type reportJSON struct {
	ID          uint64     `json:"id"`
	Reporter    string     `json:"reporter"`
	ReporterKey string     `json:"reporter_key"`
	At          *time.Time `json:"at,omitempty"`
	Problem     string     `json:"problem,omitempty"`
	client.Report
}

func (cmd *adminReportsCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	reports, err := s.Reports(ctx)
	if err != nil {
		return err
	}
	names, err := s.usernames(ctx, len(reports) > 0)
	if err != nil {
		return err
	}
	for _, r := range reports {
		reporter := displayName(names[r.Reporter], r.Reporter)
		if cmd.JSON {
			if err := a.json(reportJSON{ID: r.ID, Reporter: reporter, ReporterKey: r.Reporter.String(), At: when(r.At), Problem: r.Problem, Report: r.Report}); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(a.out, "Report %d by %s, %s\n", r.ID, reporter, r.At.Local().Format("2006-01-02 15:04"))
		if r.Problem != "" {
			fmt.Fprintf(a.out, "  (%s)\n", r.Problem)
			continue
		}
		accused := accusedName(r.Report, names)
		if r.Report.Reason != "" {
			fmt.Fprintf(a.out, "  reason: %s\n", oneLine(r.Report.Reason))
		}
		for _, m := range r.Report.Context {
			a.reportedLine(" ", m, reporter, accused)
		}
		a.reportedLine(">", r.Report.Message, reporter, accused)
	}
	if len(reports) > 0 && !cmd.JSON {
		a.note("a report is its reporter's word; nothing in it proves what was written")
	}
	return nil
}

// reportedLine prints a message of a report; a mark stands before the one that
// was reported.
func (a *app) reportedLine(mark string, m client.ReportedMessage, reporter, accused string) {
	from, text := accused, m.Text
	if m.ByReporter {
		from = reporter
	}
	if m.File != "" {
		text += " (file " + m.File + ")"
	}
	if m.Cut {
		text += " …"
	}
	fmt.Fprintf(a.out, "  %s %s: %s\n", mark, from, oneLine(text))
}

// oneLine shows a text of a stranger in one line.
func oneLine(s string) string { return strings.Join(strings.Fields(forTerminal(s)), " ") }

// accusedName is how the accused is called: by the name that the server has for
// the key, since the reporter may write any.
func accusedName(r client.Report, names map[rpc.IdentityKey]string) string {
	for key, name := range names {
		if key.String() == r.Reported {
			return name
		}
	}
	return "unknown-" + forTerminal(r.Reported[:min(8, len(r.Reported))])
}
