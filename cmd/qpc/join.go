package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/home"
	"github.com/quicprochat/qpcd/pkg/invite"
	"github.com/quicprochat/qpcd/pkg/transport"
	"github.com/quicprochat/qpcd/pkg/username"
)

const (
	// maxLinkInput bounds what is read of a link on standard input, in bytes:
	// more than any link, so that one too long is seen as such.
	maxLinkInput = 4096
	// joinPatience bounds the attempt at one address of a link. The others may
	// be of another network and answer nothing.
	joinPatience = 5 * time.Second
)

type joinCmd struct {
	Link       string `arg:"" help:"The link, in quotes, or - to read it from standard input."`
	Name       string `arg:"" optional:"" help:"The name to be known by: letters, digits, '.', '_' and '-'. Asked for unless given."`
	DeviceName string `placeholder:"NAME" help:"What your other devices call this one; the machine's name unless given."`
}

func (cmd *joinCmd) Run(ctx context.Context, a *app) error {
	if a.cli.CACert != "" {
		return usageError{errors.New("--ca-cert does not go with join: the link says which key to trust")}
	}
	link, err := cmd.link(a)
	if err != nil {
		return err
	}
	name, err := cmd.name(a, link)
	if err != nil {
		return err
	}
	server, err := a.meet(ctx, link)
	if err != nil {
		return err
	}
	p, err := a.home.Profile(server, name)
	if err != nil {
		return err
	}
	if link.Username == "" || !p.Exists() || p.Unfinished() {
		return a.register(ctx, p, link.Code, cmd.DeviceName)
	}
	return cmd.renew(ctx, a, p, link)
}

// renew registers a name anew whose account is on this machine.
func (cmd *joinCmd) renew(ctx context.Context, a *app, p home.Profile, link invite.Link) error {
	old, err := a.openStore(ctx, p) // nobody has it open
	if err != nil {
		return err
	}
	if err := old.Close(); err != nil {
		return err
	}
	dir, undo, err := p.SetAside(time.Now())
	if err != nil {
		return err
	}
	if err := a.register(ctx, p, link.Code, cmd.DeviceName); err != nil {
		if p.Exists() { // it may have been made, and the next command goes on with it
			return err
		}
		return errors.Join(err, undo())
	}
	fmt.Fprintf(a.out, "What the old account had on this machine is kept in\n  %s\n", dir)
	return nil
}

// link reads the link.
func (cmd *joinCmd) link(a *app) (invite.Link, error) {
	text := cmd.Link
	if text == "-" {
		read, err := interruptible(a.stop, func() ([]byte, error) { return io.ReadAll(io.LimitReader(a.in, maxLinkInput)) })
		if err != nil {
			return invite.Link{}, fmt.Errorf("reading the link: %w", err)
		}
		text = string(read)
	}
	link, err := invite.Parse(text)
	if err != nil {
		return link, withHint(usageError{err}, "put the link in quotes, since a shell takes & and ? for itself")
	}
	return link, nil
}

// name is the name to register.
func (cmd *joinCmd) name(a *app, link invite.Link) (string, error) {
	name := cmd.Name
	switch {
	case link.Username == "" && name == "":
		answer, err := a.ask("The name to be known by: ")
		if isType[usageError](err) {
			return "", withHint(err, "give the name after the link: qpc join LINK NAME")
		}
		if err != nil {
			return "", err
		}
		name = strings.TrimSpace(answer)
	case name == "":
		name = link.Username
	}
	folded, err := username.Fold(name)
	if err != nil {
		return "", err
	}
	if link.Username != "" && folded != link.Username {
		return "", usageError{fmt.Errorf("this link is for %s, not for %s", link.Username, folded)}
	}
	return folded, nil
}

// meet finds the server of a link, at the first of its addresses (or the one
// given with --server) where the key is the link's, and remembers that key.
func (a *app) meet(ctx context.Context, link invite.Link) (transport.Address, error) {
	addresses := link.Addresses
	if a.server != "" {
		address, err := transport.ParseAddress(a.server)
		if err != nil {
			return address, usageError{err}
		}
		addresses = []transport.Address{address}
	}
	var failed error
	for _, address := range addresses {
		err := a.tryPin(ctx, address, link.Pin)
		if err == nil {
			return address, a.home.Servers().Remember(address.String(), link.Pin)
		}
		// That another server answers there tells more than that none does.
		if failed == nil || isType[*unreachableError](failed) && !isType[*unreachableError](err) {
			failed = err
		}
	}
	return transport.Address{}, failed
}

// tryPin connects to an address and looks whether the key is the right one.
func (a *app) tryPin(ctx context.Context, address transport.Address, pin transport.Pin) error {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	conn, err := transport.Dial(ctx, transport.DialOptions{
		Address: address.String(), ServerName: a.cli.ServerName, Trust: transport.TrustPin(pin),
	})
	switch {
	case err == nil:
		return conn.Close(transport.CloseNormal, "")
	case isType[*transport.ErrPinChanged](err):
		return fmt.Errorf("the server at %s has another key than the link says: it is not the one that you were invited to; ask for a new link", address)
	}
	return &unreachableError{server: address.String(), cause: err}
}
