// Command bench measures qpcd and writes the table of docs/performance.md.
//
//	go run ./internal/bench            a whole run, under three minutes
//	go run ./internal/bench -quick     the same with small counts: does it work?
//	go run ./internal/bench -profile DIR    CPU profiles of the server instead
//
// What is measured is the built qpcd as a process of its own, with a fresh
// database, over QUIC on loopback; this process is its clients. They speak
// through the generated stubs and send random bytes where a real client sends
// ciphertext, so that every figure is the server's and the wire's, and the
// work of end-to-end encryption is not in it.
//
// Each figure stands beside its limit, measured in the same run by the same
// code: what the disk does without SQLite (append a page, fdatasync), and what
// quic-go does without qpcd (the program in internal/bench/bareserver, also a
// process of its own). It is held against the goals of docs/performance.md,
// and the table says so where one is missed.
//
// Three roles share the program, so that nobody has to build a second one: the
// harness; the client with many idle connections ("idle", see idle.go); and a
// qpcd that writes CPU profiles ("serve", see serve.go).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"
)

// wholeRun bounds a run: three times what one takes on two slow cores.
const wholeRun = 10 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, wholeRun)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case roleIdle:
			return runIdle(ctx, args[1:], os.Stdin, os.Stdout)
		case roleServe:
			return runServe(ctx, args[1:], os.Stdin, os.Stderr)
		}
	}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := flags.Bool("quick", false, "small counts: shows that the harness works, not how fast qpcd is; leaves the page alone")
	page := flags.String("doc", "docs/performance.md", "the page whose table is rewritten, from the root of the repository; empty: none")
	data := flags.String("data", "", "the directory for databases, on the disk to be measured; empty: the system's temporary one")
	profile := flags.String("profile", "", "write CPU profiles of the server to this directory, and measure nothing else")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is not understood; see -help", flags.Arg(0))
	}
	b := &bench{plan: wholePlan(), progress: os.Stderr}
	if *quick {
		b.plan, *page = quickPlan(), ""
	}
	return b.run(ctx, *page, *data, *profile, os.Stdout)
}

// bench is one run.
type bench struct {
	plan     plan
	progress io.Writer

	root string // of the repository
	dir  string // everything made here is in it
	bin  binaries

	tokens  [][]byte     // sessions in the database of the deliveries
	disk    map[int]load // by writers
	bare    map[shape]load
	figures []figure
}

// run measures everything and writes the table, to out and into the page.
func (b *bench) run(ctx context.Context, page, data, profile string, out io.Writer) (err error) {
	if b.root, err = repositoryRoot(ctx); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(data, "qpcd-bench-"); err != nil {
		return fmt.Errorf("making a working directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	m := describeMachine(b.dir, time.Now())
	if b.bin, err = b.build(ctx, profile != ""); err != nil {
		return err
	}
	if profile != "" {
		return b.profile(ctx, profile, out)
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	if err := writeText(out, m, b.figures); err != nil {
		return err
	}
	if page == "" {
		return nil
	}
	return rewritePage(b.inRoot(page), m, b.figures)
}

// measure fills the table from top to bottom.
func (b *bench) measure(ctx context.Context) error {
	for _, section := range []struct {
		name string
		run  func(ctx context.Context) error
	}{
		{"limits of disk and quic-go", b.measureLimits},
		{"delivery", b.measureDelivery},
		{"handshakes and logins", b.measureConnecting},
		{"memory", b.measureMemory},
		{"starting", b.measureStarting},
		{"programs", b.measurePrograms},
	} {
		start := time.Now()
		fmt.Fprintf(b.progress, "bench: %s ...\n", section.name)
		if err := section.run(ctx); err != nil {
			return fmt.Errorf("measuring %s: %w", section.name, err)
		}
		fmt.Fprintf(b.progress, "bench: %s: %.1f s\n", section.name, time.Since(start).Seconds())
	}
	return nil
}

// add puts a figure into the table. The goals are for whole runs.
func (b *bench) add(f figure) {
	if b.plan.quick {
		f.goal = nil
	}
	fmt.Fprintf(b.progress, "bench:   %s: %s\n", f.name, strings.TrimSpace(f.measured()))
	b.figures = append(b.figures, f)
}
