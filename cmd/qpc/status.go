package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/home"
	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// statusTimeout bounds the question to the server.
const statusTimeout = 15 * time.Second

type statusCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// statusJSON is the answer of status. Fields of the account are absent when
// there is none.
type statusJSON struct {
	Server struct {
		Address   string `json:"address"`
		Reachable bool   `json:"reachable"`
		Status    string `json:"status,omitempty"`
		Version   string `json:"version,omitempty"`
		Uptime    uint64 `json:"uptime_secs,omitempty"`
		Problem   string `json:"problem,omitempty"`
	} `json:"server"`
	Account *accountStatus `json:"account,omitempty"`
}

type accountStatus struct {
	Name     string `json:"name"`
	Server   string `json:"server"`
	InUse    bool   `json:"in_use"` // by another qpc; then the rest is not known
	LoggedIn bool   `json:"logged_in"`
	Unsent   int    `json:"unsent"`
}

// Run asks the server and looks at the account. It needs no password.
func (cmd *statusCmd) Run(ctx context.Context, a *app) error {
	var s statusJSON
	p, err := a.choose("")
	switch {
	case err == nil:
		s.Server.Address = p.Server
		if s.Account, err = a.accountStatus(ctx, p); err != nil {
			return err
		}
	case errors.Is(err, home.ErrNone) && a.cli.Profile == "":
		s.Server.Address = a.server
		if a.server == "" {
			s.Server.Address = defaultServer
		}
	default:
		return err
	}
	asked := a.health(ctx, &s)
	if err := cmd.print(a, s); err != nil {
		return err
	}
	if asked != nil && !isType[*transport.ErrPinChanged](asked) {
		// The output has said it.
		code, _, _ := describe(asked)
		return &silentError{code: code}
	}
	return asked
}

func (a *app) accountStatus(ctx context.Context, p home.Profile) (*accountStatus, error) {
	account := &accountStatus{Name: p.Name, Server: p.Server}
	s, err := a.openStore(ctx, p)
	if errors.Is(err, store.ErrLocked) {
		account.InUse = true
		return account, nil
	}
	if err != nil {
		return nil, err
	}
	defer s.Close()
	o, err := client.ReadOverview(ctx, s)
	account.LoggedIn, account.Unsent = o.LoggedIn, o.Unsent
	return account, err
}

// health asks the server how it is.
func (a *app) health(ctx context.Context, s *statusJSON) error {
	dial, err := a.dialer(s.Server.Address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		s.Server.Problem = reason(err).Error()
		if unreachable, ok := errors.AsType[*unreachableError](err); ok {
			s.Server.Problem = reason(unreachable.cause).Error()
		}
		return err
	}
	defer conn.Close(transport.CloseNormal, "")
	health, err := qpcpb.NewHealthClient(rpc.NewClient(conn)).Health(ctx, &qpcpb.HealthRequest{})
	if err != nil {
		s.Server.Problem = err.Error()
		return err
	}
	s.Server.Reachable, s.Server.Status, s.Server.Version, s.Server.Uptime = true, health.Status, health.Version, health.UptimeSecs
	return nil
}

func (cmd *statusCmd) print(a *app, s statusJSON) error {
	if cmd.JSON {
		return a.json(s)
	}
	rows := [][]string{{"Server", s.Server.Address}}
	if s.Server.Reachable {
		up := (time.Duration(s.Server.Uptime) * time.Second).String()
		rows = append(rows, []string{"", fmt.Sprintf("reachable: %s, version %s, up for %s", forTerminal(s.Server.Status), forTerminal(s.Server.Version), up)})
	} else {
		rows = append(rows, []string{"", "not reachable: " + s.Server.Problem})
	}
	switch account := s.Account; {
	case account == nil:
		rows = append(rows, []string{"Account", "none here; make one with: qpc register NAME"})
	case account.InUse:
		rows = append(rows, []string{"Account", account.Name + ", in use by another qpc"})
	default:
		session := "logged in"
		if !account.LoggedIn {
			session = "logged out"
		}
		rows = append(rows, []string{"Account", account.Name + ", " + session}, []string{"Unsent", strconv.Itoa(account.Unsent)})
	}
	return a.table(rows)
}

type trustCmd struct {
	Authorities trustAuthoritiesCmd `cmd:"" help:"Verify a server's name by this system's certificate authorities instead of a pinned key, as browsers do."`
	Forget      trustForgetCmd      `cmd:"" help:"Forget the key of a server, so that the next connection trusts the key it meets."`
}

type trustAuthoritiesCmd struct {
	Address string `arg:"" name:"server" help:"The server, as NAME:PORT."`
}

// Run implements qpc trust authorities.
func (cmd *trustAuthoritiesCmd) Run(a *app) error {
	address, err := transport.ParseAddress(cmd.Address)
	if err != nil {
		return usageError{err}
	}
	if err := a.home.Servers().UseAuthorities(address.String()); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "From now on %s must have a valid certificate for that name. Undo it with: qpc trust forget %s\n", address, address)
	return nil
}

type trustForgetCmd struct {
	Address string `arg:"" name:"server" help:"The server, as HOST:PORT."`
}

// Run forgets the key of the server's certificate, and in every account there
// the key that it signs with and the log of names that it had shown.
func (cmd *trustForgetCmd) Run(ctx context.Context, a *app) error {
	address, err := transport.ParseAddress(cmd.Address)
	if err != nil {
		return usageError{err}
	}
	known, err := a.home.Servers().Forget(address.String())
	if err != nil {
		return err
	}
	logs, err := a.forgetLogs(ctx, address.String())
	if err != nil {
		return err
	}
	known = known || logs
	if !known {
		return fmt.Errorf("the server %s was not known; nothing was changed", address)
	}
	fmt.Fprintf(a.out, "The key of %s is forgotten. The next connection pins the key it meets: compare its words.\n", address)
	return nil
}

// forgetLogs makes every account on a server forget its log. It reports whether
// any knew one.
func (a *app) forgetLogs(ctx context.Context, server string) (known bool, err error) {
	profiles, err := a.home.Profiles()
	if err != nil {
		return false, err
	}
	for _, p := range profiles {
		if p.Server != server {
			continue
		}
		s, err := a.openStore(ctx, p)
		if err != nil {
			return known, err
		}
		had, err := client.ForgetLog(ctx, s)
		if err := errors.Join(err, s.Close()); err != nil {
			return known, fmt.Errorf("the account %s: %w", p, err)
		}
		known = known || had
	}
	return known, nil
}
