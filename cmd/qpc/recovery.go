package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// maxCodeLine bounds the line that a recovery code is read from.
const maxCodeLine = 256

type recoveryCmd struct {
	Status recoveryStatusCmd `cmd:"" default:"withargs" help:"Show whether there are recovery codes."`
	Setup  recoverySetupCmd  `cmd:"" help:"Make eight recovery codes, in place of earlier ones."`
	Remove recoveryRemoveCmd `cmd:"" help:"Make the recovery codes worthless."`
}

type recoveryStatusCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

type recoveryJSON struct {
	SetUp *time.Time `json:"set_up_at,omitempty"`
	Codes int        `json:"codes"`
}

func (cmd *recoveryStatusCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	status, err := s.RecoveryStatus(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return a.json(recoveryJSON{SetUp: when(status.SetUp), Codes: status.Codes})
	}
	if status.SetUp.IsZero() {
		fmt.Fprintf(a.out, "%s has no recovery codes.\nMake some with: qpc recovery setup\n", s.profile.Name)
		return nil
	}
	fmt.Fprintf(a.out, "%s has %d recovery codes, made on %s.\n", s.profile.Name, status.Codes, status.SetUp.Local().Format(time.DateOnly))
	return nil
}

type recoverySetupCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

func (cmd *recoverySetupCmd) Run(ctx context.Context, a *app) error {
	c, p, password, err := a.openWithPassword(ctx, "opening the account")
	if err != nil {
		return err
	}
	defer c.Close()
	codes, err := c.SetUpRecovery(ctx, password)
	if err != nil {
		return err
	}
	texts := make([]string, len(codes))
	for i, code := range codes {
		texts[i] = code.String()
	}
	if cmd.JSON {
		return a.json(map[string][]string{"codes": texts})
	}
	for _, text := range texts {
		fmt.Fprintln(a.out, text)
	}
	fmt.Fprintf(a.errs, `These are the recovery codes of %s, and they are not shown again.
Any one of them brings the account back when this machine or the password is lost:
  qpc --server %s recover %s
Write them down and keep them apart from this machine. Whoever has one has the account.
Earlier codes are worth nothing now.
`, p.Name, p.Server, p.Name)
	return nil
}

type recoveryRemoveCmd struct{}

func (recoveryRemoveCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.RemoveRecovery(ctx); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "The recovery codes of %s are worth nothing now.\n", s.profile.Name)
	return nil
}

type recoverCmd struct {
	Name       string `arg:"" help:"The name of the account."`
	CodeFile   string `placeholder:"FILE" help:"Read the recovery code from the first line of a file instead of the terminal."`
	DeviceName string `placeholder:"NAME" help:"What your other devices call this one; the machine's name unless given."`
}

func (cmd *recoverCmd) Run(ctx context.Context, a *app) error {
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
	if p.Exists() && !p.Unfinished() {
		return withHint(fmt.Errorf("the account %s is here already", p), "if its password is lost, move %s away and try again", p.Dir())
	}
	code, err := cmd.code(a)
	if err != nil {
		return err
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
	device := cmd.DeviceName
	if device == "" {
		device, _ = os.Hostname() // without one, the client has a word for it
	}
	c, err := client.Recover(ctx, o, client.Comeback{Server: p.Server, Username: p.Name, Code: code, Password: password, Device: device})
	closed := s.Close()
	switch {
	case c != nil: // back, whatever came after it: the next command makes that good
		if err != nil {
			a.log.Warn("the account is not quite ready; the next command finishes it", "error", err)
		}
	case begun && errors.Is(err, e2ee.ErrPassword):
		return withHint(fmt.Errorf("a recovery of %s was begun with another password: %w", p, err),
			"repeat it with that one, or remove %s and begin anew", p.Dir())
	case rpc.CodeOf(err) == qpcpb.CodeBundleNotFound:
		err = withHint(err, "codes are worth nothing once newer ones were made; is %s the server?", p.Server)
		fallthrough
	case !begun && (answered(err) || errors.Is(err, client.ErrRecoveryStale)):
		if !begun {
			err = errors.Join(err, p.Remove())
		}
		return err
	default:
		return errors.Join(err, closed)
	}
	if err := errors.Join(closed, p.Finish()); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s is back, with a new password. Other devices of the account have lost access.\n", p.Name)
	fmt.Fprintf(a.out, "Contacts and messages from before were only there; conversations go on from here.\n")
	fmt.Fprintf(a.out, "The recovery codes stay good. If somebody else may have seen one: qpc recovery setup\n")
	return nil
}

// code returns the recovery code, from a file or the terminal.
func (cmd *recoverCmd) code(a *app) (e2ee.RecoveryCode, error) {
	var line string
	if cmd.CodeFile != "" {
		f, err := os.Open(cmd.CodeFile)
		if err != nil {
			return e2ee.RecoveryCode{}, usageError{fmt.Errorf("reading the recovery code: %w", err)}
		}
		defer f.Close()
		if line, err = bufio.NewReader(io.LimitReader(f, maxCodeLine)).ReadString('\n'); err != nil && !errors.Is(err, io.EOF) {
			return e2ee.RecoveryCode{}, usageError{fmt.Errorf("reading the recovery code: %w", err)}
		}
	} else {
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err != nil {
			return e2ee.RecoveryCode{}, withHint(usageError{errors.New("there is no terminal to ask for the recovery code on")}, "give it with --code-file FILE")
		}
		tty.Close()
		if line, err = a.ask("Recovery code: "); err != nil {
			return e2ee.RecoveryCode{}, err
		}
	}
	code, err := e2ee.ParseRecoveryCode(line)
	if err != nil {
		return code, usageError{err}
	}
	return code, nil
}
