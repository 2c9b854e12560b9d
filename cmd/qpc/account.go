package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/home"
	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

type registerCmd struct {
	Name       string `arg:"" help:"The name to be known by: letters, digits, '.', '_' and '-'."`
	Invite     string `placeholder:"CODE" help:"The invite, where the server asks for one."`
	DeviceName string `placeholder:"NAME" help:"What your other devices call this one; the machine's name unless given."`
}

func (cmd *registerCmd) Run(ctx context.Context, a *app) error {
	server := a.server
	if server == "" {
		server = defaultServer
	}
	address, err := transport.ParseAddress(server)
	if err != nil {
		return usageError{err}
	}
	p, err := a.home.Profile(address, cmd.Name)
	if err != nil {
		return err
	}
	return a.register(ctx, p, cmd.Invite, cmd.DeviceName)
}

// register makes an account on its server and here.
func (a *app) register(ctx context.Context, p home.Profile, invite, device string) error {
	if p.Exists() && !p.Unfinished() {
		return withHint(fmt.Errorf("the account %s is here already", p), "qpc --profile %s chat NAME", p.Name)
	}
	begun := p.Exists()
	password, err := a.newPassword(a.cli.PasswordFile, p.Name)
	if err != nil {
		return err
	}
	if err := p.Begin(); err != nil {
		return err
	}
	s, err := a.openStore(ctx, p)
	if err != nil {
		return err
	}
	o, err := a.options(p, s)
	if err != nil {
		return errors.Join(err, s.Close())
	}
	if device == "" {
		device, _ = os.Hostname() // without one, the client has a word for it
	}
	c, err := client.Register(ctx, o, client.Registration{
		Server: p.Server, Username: p.Name, Password: password, Invite: invite, Device: device,
	})
	closed := s.Close()
	switch {
	case c != nil: // registered, whatever came after it: the next command makes that good
		if err != nil {
			a.log.Warn("the account is not quite ready; the next command finishes it", "error", err)
		}
	case begun && errors.Is(err, e2ee.ErrPassword):
		return withHint(fmt.Errorf("a registration of %s was begun with another password: %w", p, err),
			"repeat it with that one, or remove %s and begin anew", p.Dir())
	case !begun && answered(err):
		return errors.Join(err, p.Remove())
	default:
		return errors.Join(err, closed)
	}
	if err := errors.Join(closed, p.Finish()); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s is registered on %s.\n", p.Name, p.Server)
	fmt.Fprintf(a.out, "Next: qpc users shows who is there, qpc chat NAME talks to them.\n")
	fmt.Fprintf(a.out, "The keys are only on this machine, in\n  %s\n", p.Dir())
	fmt.Fprintf(a.out, "Make recovery codes now, against the loss of it or of the password: qpc recovery setup\n")
	return nil
}

// answered reports whether it is certain that the server made no account: it
// refused, or nothing was sent.
func answered(err error) bool {
	if answer, ok := errors.AsType[*rpc.Error](err); ok {
		switch answer.Status {
		case qpcpb.StatusUnavailable, qpcpb.StatusDeadlineExceeded, qpcpb.StatusInternal, qpcpb.StatusUnauthorized:
			return false // it may have run
		}
		return true
	}
	return isType[*unreachableError](err) || isType[*transport.ErrPinChanged](err)
}

type loginCmd struct {
	Name string `arg:"" optional:"" help:"The account, as --profile has it."`
}

func (cmd *loginCmd) Run(ctx context.Context, a *app) error {
	if cmd.Name != "" {
		a.cli.Profile = cmd.Name
	}
	c, p, password, err := a.openWithPassword(ctx, "logging in as")
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Login(ctx, password); err != nil {
		return err
	}
	if err := p.SetCurrent(); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s is logged in on %s.\n", p.Name, p.Server)
	return nil
}

type logoutCmd struct {
	All bool `help:"End the sessions of all devices of the account."`
}

func (cmd *logoutCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.Logout(ctx, cmd.All); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s is logged out. The account and its messages stay on this machine.\nNext: qpc login %s\n", s.profile.Name, s.profile.Name)
	return nil
}

type passwdCmd struct {
	NewPasswordFile string `placeholder:"FILE" help:"Read the new password from the first line of a file."`
}

func (cmd *passwdCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	password, err := a.newPassword(cmd.NewPasswordFile, s.profile.Name)
	if err != nil {
		return err
	}
	if err := s.ChangePassword(ctx, password); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "The password of %s is changed. Sessions of other devices have ended.\n", s.profile.Name)
	return nil
}

type whoamiCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// whoami is the JSON of whoami, and of the account in status.
type whoami struct {
	Name        string   `json:"name"`
	Server      string   `json:"server"`
	IdentityKey string   `json:"identity_key"`
	Words       []string `json:"words"`
	Directory   string   `json:"directory"`
}

func (cmd *whoamiCmd) Run(ctx context.Context, a *app) error {
	p, err := a.choose("")
	if err != nil {
		return err
	}
	s, err := a.openStore(ctx, p)
	if err != nil {
		return err
	}
	defer s.Close()
	known, err := client.ReadProfile(ctx, s)
	if err != nil {
		return err
	}
	w := whoami{Name: p.Name, Server: p.Server, IdentityKey: known.Identity.String(), Words: keyWords(known.Identity), Directory: p.Dir()}
	if cmd.JSON {
		return a.json(w)
	}
	return a.table([][]string{
		{"Name", w.Name},
		{"Server", w.Server},
		{"Identity key", w.IdentityKey},
		{"in words", joinWords(w.Words)},
		{"Kept in", w.Directory},
	})
}

type deleteAccountCmd struct {
	Yes bool `help:"Do not ask."`
}

func (cmd *deleteAccountCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	if !cmd.Yes {
		answer, err := a.ask(fmt.Sprintf("This deletes the account %s, its keys and all its messages, for good.\nType the name %s to go on: ", s.profile, s.profile.Name))
		if err != nil {
			return err
		}
		if answer != s.profile.Name {
			return errors.New("that was not the name; nothing was deleted")
		}
	}
	if err := s.DeleteAccount(ctx); err != nil {
		return err
	}
	if err := s.profile.Remove(); err != nil && !errors.Is(err, store.ErrClosed) {
		return err
	}
	fmt.Fprintf(a.out, "The account %s is deleted, on the server and here.\n", s.profile)
	return nil
}
