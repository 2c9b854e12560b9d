// Command qpcd is the quicprochat server, and the tool of its owner. It only
// assembles: the tables of commands, flags and exit codes stand here, and what
// they do in internal/ and pkg/.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/backup"
	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/cmd/qpcd/internal/daemon"
	"github.com/quicprochat/qpcd/cmd/qpcd/internal/doctor"
	"github.com/quicprochat/qpcd/cmd/qpcd/internal/owner"
	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/control"
	"github.com/quicprochat/qpcd/pkg/server"
	"github.com/quicprochat/qpcd/pkg/store"
)

// version is set by a release build: -ldflags "-X main.version=0.1.0".
var version = "dev"

//go:generate go test . -run ^TestRunningPageIsCurrent$ -update

// commands is the one table of commands: --help and docs/running.md are made
// of it.
func commands() []command.Command {
	return []command.Command{
		{Name: "", Does: "run the server; SIGTERM or SIGINT ends it after the calls under way, a second one at once, SIGHUP reads the certificate again", Example: "qpcd --data-dir /srv/qpcd", Run: serve},
		{Name: "check-config", Flags: "json", Does: "show every setting as it applies and where it comes from, or all that is wrong", Example: "qpcd check-config", Run: checkConfig},
		{Name: "fingerprint", Flags: "json", Does: "show the certificate's fingerprint in hex, in words and as a QR code for clients", Example: "qpcd fingerprint", Run: showFingerprint},
		{Name: "status", Flags: "json", Does: "tell how the running server is: clients, queues, storage, certificate, last error", Example: "qpcd status", Run: owner.Status},
		{Name: "users list", Args: "[PREFIX]", Flags: "json", Does: "list the accounts, or those whose name begins with PREFIX", Example: "qpcd users list", Run: owner.UsersList},
		{Name: "users show", Args: "NAME", Flags: "json", Does: "show an account with its devices", Example: "qpcd users show alice", Run: owner.UsersShow},
		{Name: "users delete", Args: "NAME", Flags: "yes free-name json", Does: "delete an account, as its holder could", Example: "qpcd users delete mallory --yes", Run: owner.UsersDelete},
		{Name: "users reset-password", Args: "NAME", Flags: "valid json", Does: "make a one-time code with which NAME can be registered anew, with a new password and key; the account works as before until the code is used", Example: "qpcd users reset-password alice --valid 2h", Run: owner.UsersResetPassword},
		{Name: "invites create", Flags: "valid note json", Does: "make a one-time code for a new account, with a link and a QR code for `qpc join`", Example: "qpcd invites create --valid 7d --note 'for grandmother'", Run: owner.InvitesCreate},
		{Name: "invites list", Flags: "json", Does: "list the codes that are neither used nor expired", Example: "qpcd invites list", Run: owner.InvitesList},
		{Name: "invites revoke", Args: "ID", Flags: "json", Does: "make a code worthless", Example: "qpcd invites revoke 0a1b2c3d", Run: owner.InvitesRevoke},
		{Name: "bans list", Flags: "json", Does: "list who is banned", Example: "qpcd bans list", Run: owner.BansList},
		{Name: "bans add", Args: "NAME", Flags: "for reason json", Does: "ban somebody, for good unless --for is given", Example: "qpcd bans add mallory --for 7d --reason spam", Run: owner.BansAdd},
		{Name: "bans remove", Args: "NAME", Flags: "json", Does: "end a ban", Example: "qpcd bans remove mallory", Run: owner.BansRemove},
		{Name: "reports list", Flags: "json", Does: "list the reports; what they say is encrypted for the admins, who read it with qpc", Example: "qpcd reports list", Run: owner.ReportsList},
		{Name: "devices list", Args: "NAME", Flags: "json", Does: "list the devices of an account", Example: "qpcd devices list alice", Run: owner.DevicesList},
		{Name: "devices revoke", Args: "NAME ID", Flags: "json", Does: "end a device of an account; the first digits of its id do", Example: "qpcd devices revoke alice 3f2a", Run: owner.DevicesRevoke},
		{Name: "peers add", Args: "DOMAIN ADDRESS PIN", Flags: "json", Does: "federate with another server, whose owner tells its pin (`qpcd fingerprint`), or change its address and pin", Example: "qpcd peers add garden.example 192.0.2.7:5001 0123…cdef", Run: owner.PeersAdd},
		{Name: "peers list", Flags: "json", Does: "list the servers that this one federates with", Example: "qpcd peers list", Run: owner.PeersList},
		{Name: "peers remove", Args: "DOMAIN", Flags: "yes json", Does: "end the federation with a server, and drop what waits for it", Example: "qpcd peers remove garden.example --yes", Run: owner.PeersRemove},
		{Name: "peers test", Args: "DOMAIN", Flags: "json", Does: "call a peer and tell how that went", Example: "qpcd peers test garden.example", Run: owner.PeersTest},
		{Name: "log verify", Flags: "json", Does: "compute the transparency log anew from its leaves and compare", Example: "qpcd log verify", Run: owner.LogVerify},
		{Name: "cert new", Flags: "json", Does: "give the server a new certificate key; clients that know the old one follow, since it signs the new one", Example: "qpcd cert new", Run: owner.CertNew},
		{Name: "backup", Args: "FILE", Flags: "encrypt passphrase-file json", Does: "save database, keys and files of the server into FILE, running or not; - is standard output", Example: "qpcd backup /mnt/usb/qpcd.backup --passphrase-file /root/backup-passphrase", Run: backup.Backup},
		{Name: "restore", Args: "FILE", Flags: "passphrase-file json", Does: "put a saved state in the place of the present one, which is kept beside it; the server must be stopped", Example: "qpcd restore /mnt/usb/qpcd.backup", Run: backup.Restore},
		{Name: "doctor", Flags: "json", Does: "look at disk, clock, ports, buffers, certificate, database and memory, and say what to do; ends with 1 when something keeps the server from working", Example: "qpcd doctor", Run: doctor.Run},
		{Name: "version", Does: "print the version, as --version does", Example: "qpcd version"},
		{Name: "help", Does: "print this text, as --help does", Example: "qpcd help"},
	}
}

// flags is the one table of flags that are no settings. A command takes those
// that its row names.
func flags() []command.Flag {
	return []command.Flag{
		{Name: command.JSON, Does: "Print JSON."},
		{Name: "yes", Does: "Do not ask."},
		{Name: "free-name", Does: "Let the name be registered again at once, instead of after 30 days; also that of an account deleted earlier."},
		{Name: "valid", Value: "DURATION", Does: "How long the code is valid, such as 2h or 7d; a reset is for a day, an invite for 7 days unless given.", Check: command.CheckDuration},
		{Name: "note", Value: "TEXT", Does: "A note for your list, at most 100 characters."},
		{Name: "for", Value: "DURATION", Does: "How long the ban lasts.", Check: command.CheckDuration},
		{Name: "reason", Value: "TEXT", Does: "What the banned are told."},
		{Name: backup.FlagEncrypt, Does: "Ask for a passphrase, and encrypt with it."},
		{Name: backup.FlagPassphraseFile, Value: "FILE", Does: "Encrypt, or decrypt, with the first line of FILE as passphrase."},
	}
}

// exits is the one table of exit codes. Scripts rely on them: never reuse one.
// The row without a test is for every other error.
func exits() []exit {
	kind := func(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }
	return []exit{
		{0, "stopped cleanly", kind(nil)},
		{1, "failed while running, or stopped at once by a second signal", nil},
		{2, "wrong usage or configuration", func(err error) bool { return errors.As(err, new(command.Misuse)) }},
		{3, "the database is of a newer version of qpcd", kind(store.ErrNewer)},
		{4, "the database is a file of another program", kind(store.ErrForeign)},
		{5, "the database is in use by another process", kind(store.ErrLocked)},
		{6, "the data directory cannot be written", kind(store.ErrNotWritable)},
		{7, "the database is damaged", kind(store.ErrCorrupt)},
		{8, "an address or the control socket cannot be listened on", func(err error) bool {
			op := (*net.OpError)(nil)
			return errors.As(err, &op) && op.Op == "listen"
		}},
		{9, "the certificate cannot be used, or there is none yet", kind(server.ErrCertificate)},
		{10, "no server is running that could be asked", kind(control.ErrNotRunning)},
	}
}

func main() {
	err := run(os.Args[1:])
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintln(os.Stderr, "qpcd:", strings.TrimSuffix(line, "\n"))
		}
	}
	os.Exit(exitCode(err))
}

func run(args []string) error {
	if slices.Contains(args, "--version") || len(args) > 0 && args[0] == "version" {
		_, err := fmt.Fprintln(os.Stdout, versionText())
		return err
	}
	cfg, rest, err := config.Load(config.Sources{Args: args, Environ: os.Environ(), Pass: command.Pass(flags())})
	c, misused := command.Parse(rest, commands(), flags())
	c.Config, c.In, c.Out, c.Err, c.Version = cfg, os.Stdin, os.Stdout, os.Stderr, versionText()
	switch {
	case errors.Is(err, config.ErrHelp), misused == nil && c.Command.Run == nil:
		return usage(os.Stdout)
	case err != nil && c.Command.Name == "check-config" && c.JSON():
		return errors.Join(command.Misuse{Err: err}, command.WriteJSON(os.Stdout, map[string]any{"valid": false, "problems": strings.Split(err.Error(), "\n")}))
	case err != nil: // before the words: the value of an unknown flag is left among them
		return command.Misuse{Err: err}
	case misused != nil:
		return command.Misuse{Err: misused}
	}
	return c.Command.Run(context.Background(), c)
}

func serve(_ context.Context, c *command.Call) error {
	return daemon.Run(c.Config, c.Version, c.Err)
}

func usage(w io.Writer) error {
	var b strings.Builder
	b.WriteString("qpcd is the quicprochat server, and the tool of its owner.\n\nUsage: qpcd [COMMAND] [FLAG...]\n\nCommands:\n")
	command.WriteUsage(&b, commands(), flags())
	if err := config.Usage(&b); err != nil {
		return err
	}
	b.WriteString("\nExit codes:\n")
	for _, e := range exits() {
		fmt.Fprintf(&b, "  %2d  %s\n", e.code, e.when)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// versionText is the version alone: OpenWrt's package tests compare it whole.
func versionText() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "dev" && strings.HasPrefix(info.Main.Version, "v") {
		return info.Main.Version[1:]
	}
	return version
}

type exit struct {
	code int
	when string
	is   func(error) bool
}

func exitCode(err error) int {
	for _, e := range exits() {
		if e.is != nil && e.is(err) {
			return e.code
		}
	}
	return 1
}
