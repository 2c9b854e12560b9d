// Package owner holds the commands of qpcd that ask the running server: each
// makes a call or two on the control socket and prints the answer, as a table
// for people or as JSON for scripts.
//
// The JSON of a command is the answer of its method (protos/qpc/v1/control.proto)
// with every field there, keys and ids in hexadecimal and times in Unix seconds.
package owner

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/term"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/pkg/control"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

const (
	// maxAnswer bounds what is read of somebody's answer, in bytes.
	maxAnswer = 256
	// pageSize is how many accounts or reports are asked for at once.
	pageSize = 200
)

// caller makes calls to the server that the settings name.
func caller(c *command.Call) qpcpb.Caller { return control.Client{Path: c.Config.ControlSocket} }

func stub(c *command.Call) qpcpb.ControlClient { return qpcpb.NewControlClient(caller(c)) }

// answer prints the answer to a call: as JSON if that is wanted, else by text.
func answer[M proto.Message](c *command.Call, m M, err error, text func(w io.Writer, m M) error) error {
	switch {
	case err != nil:
		return err
	case c.JSON():
		return command.WriteJSON(c.Out, object(m.ProtoReflect()))
	}
	return text(c.Out, m)
}

// done is the text of an answer that has nothing to tell.
func done[M proto.Message](format string, args ...any) func(io.Writer, M) error {
	return func(w io.Writer, _ M) error {
		_, err := fmt.Fprintf(w, format+"\n", args...)
		return err
	}
}

// confirm asks before something that cannot be undone, unless --yes was said.
func confirm(c *command.Call, question, word string) error {
	if c.Is("yes") {
		return nil
	}
	if !term.IsTerminal(int(c.In.Fd())) {
		return command.Misuse{Err: errors.New("this cannot be undone and nobody is there to be asked; say --yes")}
	}
	fmt.Fprintf(c.Err, "%s\nType %s to go on: ", question, word)
	line, err := bufio.NewReader(io.LimitReader(c.In, maxAnswer)).ReadString('\n')
	if err != nil && line == "" {
		return fmt.Errorf("nothing was changed: reading the answer: %w", err)
	}
	if strings.TrimSpace(line) != word {
		return fmt.Errorf("that was not %s; nothing was changed", word)
	}
	return nil
}

// accounts returns all accounts whose name begins with prefix.
func accounts(ctx context.Context, c *command.Call, prefix string) (*qpcpb.ListAccountsResponse, error) {
	all, after := new(qpcpb.ListAccountsResponse), ""
	for {
		page, err := stub(c).ListAccounts(ctx, &qpcpb.ListAccountsRequest{Prefix: prefix, After: after, Limit: pageSize})
		if err != nil {
			return nil, err
		}
		all.Accounts = append(all.Accounts, page.Accounts...)
		if len(page.Accounts) < pageSize {
			return all, nil
		}
		after = page.Accounts[len(page.Accounts)-1].Username
	}
}

// account returns one account.
func account(ctx context.Context, c *command.Call, name string) (*qpcpb.GetAccountResponse, error) {
	return stub(c).GetAccount(ctx, &qpcpb.GetAccountRequest{Username: name})
}

// names returns the name of every identity key that has an account.
func names(ctx context.Context, c *command.Call) (map[string]string, error) {
	all, err := accounts(ctx, c, "")
	if err != nil {
		return nil, err
	}
	found := make(map[string]string, len(all.Accounts))
	for _, a := range all.Accounts {
		found[string(a.IdentityKey)] = a.Username
	}
	return found, nil
}
