// Command qpc is the program people chat with: accounts on this machine, and
// one sub-command for each thing to do with them. What it knows of messages
// and keys is pkg/client; here are words, terminals, files and exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/home"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// version is set by a release build: -ldflags "-X main.version=0.1.0".
var version = "dev"

// defaultServer is where qpcd listens on the same machine.
const defaultServer = "127.0.0.1:5001"

// cli is the command line. Sub-commands are in alphabetical order of what they
// are for: the account, people, messages, the rest.
type cli struct {
	Server       string      `env:"QPC_SERVER" placeholder:"HOST:PORT" help:"The server. An account remembers its own; for a new one it is 127.0.0.1:5001 unless given."`
	CACert       string      `name:"ca-cert" env:"QPC_CA_CERT" placeholder:"FILE" help:"Trust exactly this certificate instead of the key pinned at the first meeting."`
	ServerName   string      `env:"QPC_SERVER_NAME" placeholder:"NAME" help:"The name to ask the server for, and to check against a certificate authority given by --ca-cert."`
	Profile      string      `env:"QPC_PROFILE" placeholder:"NAME" help:"The account to act as. Otherwise the only one, or the one registered or logged in last."`
	Home         string      `env:"QPC_HOME" placeholder:"DIR" help:"Where accounts are kept, ~/.local/share/qpc unless given."`
	PasswordFile string      `env:"QPC_PASSWORD_FILE" placeholder:"FILE" help:"Read the password from the first line of a file instead of the terminal."`
	LogLevel     slog.Level  `default:"warn" placeholder:"LEVEL" help:"The least important lines logged on standard error: debug, info, warn or error (${default})."`
	Version      versionFlag `help:"Print the version."`

	Register      registerCmd      `cmd:"" group:"Account" help:"Make a new account."`
	Join          joinCmd          `cmd:"" group:"Account" help:"Make an account by an invitation link, in one step."`
	Login         loginCmd         `cmd:"" group:"Account" help:"Log in again, after a logout or when the session has ended."`
	Logout        logoutCmd        `cmd:"" group:"Account" help:"End the session of this device. The account and its messages stay here."`
	Passwd        passwdCmd        `cmd:"" group:"Account" help:"Change the password."`
	Whoami        whoamiCmd        `cmd:"" group:"Account" help:"Show which account commands act as."`
	Devices       devicesCmd       `cmd:"" group:"Account" help:"List the devices of the account, or revoke one."`
	Recovery      recoveryCmd      `cmd:"" group:"Account" help:"Make recovery codes, against the loss of this machine or the password."`
	Recover       recoverCmd       `cmd:"" group:"Account" help:"Bring an account back with a recovery code."`
	RevokeKey     revokeKeyCmd     `cmd:"" group:"Account" help:"End the identity key of the account for good, when somebody else may have it."`
	DeleteAccount deleteAccountCmd `cmd:"" group:"Account" help:"Delete the account, on the server and here."`

	Chat    chatCmd    `cmd:"" group:"Messages" help:"Chat with somebody. Without a terminal, each line of input is a message."`
	Send    sendCmd    `cmd:"" group:"Messages" help:"Send a message, with - the whole of standard input as one text, or a file."`
	Group   groupCmd   `cmd:"" group:"Messages" help:"Make groups, and send to them. What is said in them comes with qpc recv."`
	Recv    recvCmd    `cmd:"" group:"Messages" help:"Print the messages that wait, or wait for one."`
	Save    saveCmd    `cmd:"" group:"Messages" help:"List the files that were received, or save some of them."`
	History historyCmd `cmd:"" group:"Messages" help:"Print a conversation."`
	Users   usersCmd   `cmd:"" group:"Messages" help:"List everybody on the server."`
	Verify  verifyCmd  `cmd:"" group:"Messages" help:"Show the safety number to compare with somebody."`
	Block   blockCmd   `cmd:"" group:"Messages" help:"Hear nothing more of somebody."`
	Unblock unblockCmd `cmd:"" group:"Messages" help:"Hear of somebody again."`
	Report  reportCmd  `cmd:"" group:"Messages" help:"Report a message to the server's admins."`

	Status     statusCmd     `cmd:"" group:"More" help:"Show the server, the account and what waits to be sent."`
	Trust      trustCmd      `cmd:"" group:"More" help:"Manage the keys of servers."`
	Admin      adminCmd      `cmd:"" hidden:"" group:"More" help:"For the server's admins: reports and bans."`
	Audit      auditCmd      `cmd:"" group:"More" help:"Compute the server's list of names and keys anew, and compare it with what it has signed."`
	Completion completionCmd `cmd:"" group:"More" help:"Print a completion script for a shell."`
	VersionCmd versionCmd    `cmd:"" name:"version" group:"More" help:"Print the version."`
}

func main() { os.Exit(run(os.Args[1:])) }

// run runs one command and returns the exit code.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: os.Stdin, out: os.Stdout, errs: os.Stderr, stop: ctx.Done()}
	parser, err := newParser(ctx, a)
	if err != nil {
		fmt.Fprintln(a.errs, "qpc:", err)
		return exitFailed
	}
	words, err := parser.Parse(args)
	if err != nil {
		return a.fail(usageError{fmt.Errorf("%w; qpc --help lists commands and flags", err)})
	}
	if err := a.prepare(); err != nil {
		return a.fail(err)
	}
	a.model = words.Model
	return a.fail(words.Run())
}

func newParser(ctx context.Context, a *app) (*kong.Kong, error) {
	return kong.New(&a.cli,
		kong.Name("qpc"),
		kong.Description("Chat over quicprochat, end-to-end encrypted.\n\nStart with: qpc register NAME"),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Help(func(o kong.HelpOptions, words *kong.Context) error {
			if err := kong.DefaultHelpPrinter(o, words); err != nil || words.Selected() != nil {
				return err
			}
			return writeExits(words.Stdout)
		}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(a),
	)
}

// app is what every command works with.
type app struct {
	cli           cli
	in, out, errs *os.File
	home          *home.Home
	log           *slog.Logger
	model         *kong.Application
	server        string          // host:port, when the user named one
	stop          <-chan struct{} // closed by SIGINT or SIGTERM
}

// prepare checks the global flags.
func (a *app) prepare() error {
	dir := a.cli.Home
	if dir == "" {
		var err error
		if dir, err = home.DefaultDir(os.Getenv); err != nil {
			return usageError{err}
		}
	}
	a.home = home.New(dir)
	a.log = slog.New(newLogHandler(a.errs, a.cli.LogLevel))
	if a.cli.Server != "" {
		address, err := transport.ParseAddress(a.cli.Server)
		if err != nil {
			return usageError{err}
		}
		a.server = address.String()
	}
	return nil
}

func newLogHandler(w io.Writer, level slog.Level) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, attr slog.Attr) slog.Attr {
		if len(groups) == 0 && attr.Key == slog.TimeKey {
			return slog.Attr{} // somebody sits in front of it
		}
		return attr
	}})
}

// note tells the user something beside the output.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.errs, "qpc: "+format+"\n", args...)
}

// fail tells of an error and returns the exit code.
func (a *app) fail(err error) int {
	if err == nil {
		return exitOK
	}
	if silent, ok := errors.AsType[*silentError](err); ok {
		return silent.code
	}
	code, text, hint := describe(err)
	a.note("%s", strings.TrimSuffix(text, "\n"))
	if hint != "" {
		fmt.Fprintln(a.errs, "hint:", hint)
	}
	return code
}

type versionFlag bool

// BeforeReset prints the version before kong asks for a command.
func (versionFlag) BeforeReset(words *kong.Context) error {
	fmt.Fprintln(words.Stdout, versionText())
	words.Exit(exitOK)
	return nil
}

type versionCmd struct{}

func (versionCmd) Run(a *app) error {
	_, err := fmt.Fprintln(a.out, versionText())
	return err
}

func versionText() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "dev" && strings.HasPrefix(info.Main.Version, "v") {
		return info.Main.Version[1:]
	}
	return version
}
