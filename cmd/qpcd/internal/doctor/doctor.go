// Package doctor holds the command `qpcd doctor`: a table of checks of what a
// server needs of its machine, each with what to do when it is missing. The
// running server is asked for what only it knows.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/control"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// A Level says how bad a finding is.
type Level string

// The levels.
const (
	OK      Level = "ok"
	Warning Level = "warning" // works, and may not for long
	Error   Level = "error"   // does not work
)

// A Finding is what a check has found.
type Finding struct {
	Check  string `json:"check"`
	Level  Level  `json:"level"`
	Detail string `json:"detail"`
	Advice string `json:"advice"` // what to do; "" when all is well
}

// ErrUnwell is the end of a doctor who has found an error.
var ErrUnwell = errors.New("something keeps the server from working; see above")

// patient is what the checks look at.
type patient struct {
	cfg     *config.Config
	now     time.Time
	running bool // its control socket answers, or its database is in use
	log     *slog.Logger
	told    []*qpcpb.Finding // by the running server
	asked   error            // why the running server told nothing; nil when it has, or none runs
}

// A check looks at one thing.
type check struct {
	name string
	run  func(ctx context.Context, p *patient) Finding
}

// checks is the table, in the order of the report.
func checks() []check {
	return []check{
		{"server", checkServer},
		{"disk", checkDisk},
		{"clock", checkClock},
		{"ports", checkPorts},
		{"buffers", checkBuffers},
		{"certificate", checkCertificate},
		{"database", checkDatabase},
		{"memory", checkMemory},
		{"restores", checkLeftovers},
	}
}

// Run makes every check and prints what it finds. It ends with ErrUnwell when
// there is an error among it.
func Run(ctx context.Context, c *command.Call) error {
	p := &patient{cfg: c.Config, now: time.Now(), log: slog.New(slog.DiscardHandler)}
	p.ask(ctx)
	findings := examine(ctx, p)
	var err error
	if c.JSON() {
		err = command.WriteJSON(c.Out, map[string]any{"findings": findings})
	} else {
		err = writeText(c.Out, findings)
	}
	for _, f := range findings {
		if f.Level == Error {
			return errors.Join(err, ErrUnwell)
		}
	}
	return err
}

// ask lets the running server tell.
func (p *patient) ask(ctx context.Context) {
	if p.cfg.ControlSocket == "" {
		return
	}
	answer, err := qpcpb.NewControlClient(control.Client{Path: p.cfg.ControlSocket}).Diagnose(ctx, &qpcpb.DiagnoseRequest{})
	switch {
	case errors.Is(err, control.ErrNotRunning):
	case err != nil:
		p.running, p.asked = true, err
	default:
		p.running, p.told = true, answer.Findings
	}
}

// examine makes the checks, and puts what the server tells beside them.
func examine(ctx context.Context, p *patient) (all []Finding) {
	for _, c := range checks() {
		f := c.run(ctx, p)
		if f.Detail != "" {
			f.Check = c.name
			all = append(all, f)
		}
		for _, told := range p.told {
			if told.Check == c.name {
				all = append(all, toFinding(told))
			}
		}
	}
	for _, told := range p.told {
		if !hasCheck(told.Check) {
			all = append(all, toFinding(told))
		}
	}
	return all
}

func hasCheck(name string) bool {
	for _, c := range checks() {
		if c.name == name {
			return true
		}
	}
	return false
}

func toFinding(f *qpcpb.Finding) Finding {
	return Finding{Check: f.Check, Level: Level(f.Level), Detail: f.Detail, Advice: f.Advice}
}

func writeText(w io.Writer, findings []Finding) error {
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.Level, f.Check, f.Detail)
		if f.Advice != "" {
			fmt.Fprintf(table, "\t\t→ %s\n", f.Advice)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func ok(format string, args ...any) Finding {
	return Finding{Level: OK, Detail: fmt.Sprintf(format, args...)}
}

func bad(level Level, advice, format string, args ...any) Finding {
	return Finding{Level: level, Advice: advice, Detail: fmt.Sprintf(format, args...)}
}

// checkServer tells whether the server runs, and can be asked.
func checkServer(_ context.Context, p *patient) Finding {
	switch {
	case p.asked != nil:
		return bad(Error, "run this as root; if the server hangs, its log says more", "it cannot be asked on %s: %v", p.cfg.ControlSocket, p.asked)
	case p.running:
		return ok("it runs and answers on %s", p.cfg.ControlSocket)
	case p.cfg.ControlSocket == "":
		return bad(Warning, "set control_socket, so that qpcd's commands can ask the server", "there is no control socket to ask it on")
	}
	return bad(Warning, "start it, if it should run", "it does not run: nobody answers on %s", p.cfg.ControlSocket)
}
