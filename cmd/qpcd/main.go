// Command qpcd is the quicprochat server. It only assembles: pkg/config reads
// the settings, pkg/server builds the house and runs it, and what is left here
// turns words into commands, signals into calls and errors into exit codes.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/term"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/daemon"
	"github.com/quicprochat/qpcd/cmd/qpcd/internal/fingerprint"
	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/server"
	"github.com/quicprochat/qpcd/pkg/store"
)

// version is set by a release build: -ldflags "-X main.version=0.1.0".
var version = "dev"

// flagJSON is the one flag that is no setting.
const flagJSON = "--json"

// A command is what the first word asks for. A nil run is answered before the
// configuration is looked at, so that it works with a broken one.
type command struct {
	name, does string
	json       bool // takes flagJSON
	run        func(cfg *config.Config, out *os.File, asJSON bool) error
}

func commands() []command {
	return []command{
		{name: "", does: "run the server; SIGTERM or SIGINT ends it after the calls under way, a second one at once, SIGHUP reads the certificate again", run: serve},
		{name: "check-config", does: "show every setting as it applies and where it comes from, or all that is wrong", json: true, run: checkConfig},
		{name: "fingerprint", does: "show the certificate's fingerprint in hex, in words and as a QR code for clients", json: true, run: showFingerprint},
		{name: "version", does: "print the version, as --version does"},
		{name: "help", does: "print this text, as --help does"},
	}
}

func main() {
	err := run(os.Args[1:], os.Stdout)
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintln(os.Stderr, "qpcd:", strings.TrimSuffix(line, "\n"))
		}
	}
	os.Exit(exitCode(err))
}

func run(args []string, out *os.File) error {
	if slices.Contains(args, "--version") || len(args) > 0 && args[0] == "version" {
		_, err := fmt.Fprintln(out, versionText())
		return err
	}
	cfg, words, err := config.Load(config.Sources{Args: args, Environ: os.Environ(), Pass: []string{flagJSON}})
	asJSON := slices.Contains(words, flagJSON)
	words = slices.DeleteFunc(words, func(w string) bool { return w == flagJSON })
	name := strings.Join(words, " ")
	i := slices.IndexFunc(commands(), func(c command) bool { return c.name == name })
	switch {
	case errors.Is(err, config.ErrHelp), name == "help":
		return usage(out)
	case err != nil && name == "check-config" && asJSON:
		return errors.Join(usageError{err}, writeJSON(out, map[string]any{"valid": false, "problems": strings.Split(err.Error(), "\n")}))
	case err != nil: // before the words: the value of an unknown flag is left among them
		return usageError{err}
	case i < 0:
		return usageError{fmt.Errorf("%q is no command of qpcd; qpcd --help lists all", name)}
	case asJSON && !commands()[i].json:
		return usageError{fmt.Errorf("%s goes with check-config and fingerprint only", flagJSON)}
	}
	return commands()[i].run(cfg, out, asJSON)
}

func usage(w io.Writer) error {
	var b strings.Builder
	b.WriteString("qpcd is the quicprochat server.\n\nUsage: qpcd [COMMAND] [FLAG...]\n\nCommands:\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "  qpcd %-13s %s\n", c.name, c.does)
	}
	fmt.Fprintf(&b, "\nFlags:\n  %s\n      Print JSON, with check-config and fingerprint.\n", flagJSON)
	if err := config.Usage(&b); err != nil {
		return err
	}
	b.WriteString("\nExit codes:\n")
	for _, e := range exits() {
		fmt.Fprintf(&b, "  %d  %s\n", e.code, e.when)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func serve(cfg *config.Config, _ *os.File, _ bool) error {
	return daemon.Run(cfg, versionText(), os.Stderr)
}

func checkConfig(cfg *config.Config, out *os.File, asJSON bool) error {
	if !asJSON {
		for _, warning := range cfg.Warnings {
			fmt.Fprintln(os.Stderr, "warning:", warning)
		}
		return cfg.WriteEffective(out)
	}
	settings := map[string]any{}
	for _, e := range cfg.Effective() {
		settings[e.Name] = map[string]any{"values": append([]string{}, e.Values...), "from": e.Origin.String()}
	}
	return writeJSON(out, map[string]any{"valid": true, "settings": settings, "warnings": append([]string{}, cfg.Warnings...)})
}

func showFingerprint(cfg *config.Config, out *os.File, asJSON bool) error {
	addrs, _ := net.InterfaceAddrs() // without them, the server's name must do
	f, err := fingerprint.Read(cfg, addrs)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", server.ErrCertificate, err)
	case asJSON:
		return writeJSON(out, f)
	}
	return f.WriteText(out, term.IsTerminal(int(out.Fd())))
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// versionText is the version alone: OpenWrt's package tests compare it whole.
func versionText() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "dev" && strings.HasPrefix(info.Main.Version, "v") {
		return info.Main.Version[1:]
	}
	return version
}

// usageError is what the operator can mend in the command line or the settings.
type usageError struct{ error }

// exits is the one table of exit codes. Scripts rely on them: never reuse one.
// The row without a test is for every other error.
func exits() []exit {
	kind := func(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }
	return []exit{
		{0, "stopped cleanly", kind(nil)},
		{1, "failed while running, or stopped at once by a second signal", nil},
		{2, "wrong usage or configuration", func(err error) bool { return errors.As(err, new(usageError)) }},
		{3, "the database is of a newer version of qpcd", kind(store.ErrNewer)},
		{4, "the database is a file of another program", kind(store.ErrForeign)},
		{5, "the database is in use by another process", kind(store.ErrLocked)},
		{6, "the data directory cannot be written", kind(store.ErrNotWritable)},
		{7, "the database is damaged", kind(store.ErrCorrupt)},
		{8, "an address cannot be listened on", func(err error) bool {
			op := (*net.OpError)(nil)
			return errors.As(err, &op) && op.Op == "listen"
		}},
		{9, "the certificate cannot be used, or there is none yet", kind(server.ErrCertificate)},
	}
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
