package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// figure is a row of the table.
type figure struct {
	section, name string
	value         float64
	unit          string
	detail        string // what else was seen: quantiles, processor time
	goal          *goal
	limits        []limit
}

// goal is what a figure should reach.
type goal struct {
	value  float64
	atMost bool // else at least
}

func atLeast(v float64) *goal { return &goal{value: v} }
func atMost(v float64) *goal  { return &goal{value: v, atMost: true} }

// limit is what the figure would be if qpcd cost nothing, measured in the same
// run.
type limit struct {
	name  string
	value float64
}

func (f figure) measured() string { return number(f.value) + " " + f.unit }

// goalText says whether the goal is met.
func (f figure) goalText() string {
	if f.goal == nil {
		return ""
	}
	met, sign := f.value >= f.goal.value, "≥"
	if f.goal.atMost {
		met, sign = f.value <= f.goal.value, "≤"
	}
	verdict := "met"
	if !met {
		verdict = "MISSED"
	}
	return fmt.Sprintf("%s %s: %s", sign, number(f.goal.value), verdict)
}

// limitText lists the limits, and ratioText the figure as a multiple of each.
func (f figure) limitText() string {
	var all []string
	for _, l := range f.limits {
		all = append(all, number(l.value)+" ("+l.name+")")
	}
	return strings.Join(all, "; ")
}

func (f figure) ratioText() string {
	var all []string
	for _, l := range f.limits {
		if l.value == 0 {
			all = append(all, "-")
			continue
		}
		all = append(all, fmt.Sprintf("%.2f", f.value/l.value))
	}
	return strings.Join(all, "; ")
}

// number writes three significant digits, and thousands apart.
func number(v float64) string {
	switch {
	case v >= 1000:
		digits := fmt.Sprintf("%.0f", v)
		for i := len(digits) - 3; i > 0; i -= 3 {
			digits = digits[:i] + "," + digits[i:]
		}
		return digits
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func columns() []string {
	return []string{"what", "measured", "also", "goal", "limit in this run", "ratio to it"}
}

func (f figure) cells() []string {
	return []string{f.name, f.measured(), f.detail, f.goalText(), f.limitText(), f.ratioText()}
}

// writeText writes the table for a terminal.
func writeText(w io.Writer, m machine, figures []figure) error {
	fmt.Fprintf(w, "%s\n", m)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	section := ""
	for _, f := range figures {
		if f.section != section {
			section = f.section
			fmt.Fprintf(t, "\n%s\n%s\n", strings.ToUpper(section), strings.Join(columns(), "\t"))
		}
		fmt.Fprintln(t, strings.Join(f.cells(), "\t"))
	}
	return t.Flush()
}

// markdown is the generated part of the page.
func markdown(m machine, figures []figure) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Measured by `%s`: %s.\n", command, m)
	section := ""
	for _, f := range figures {
		if f.section != section {
			section = f.section
			fmt.Fprintf(&b, "\n### %s\n\n| %s |\n|%s\n", section, strings.Join(columns(), " | "), strings.Repeat("---|", len(columns())))
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(f.cells(), " | "))
	}
	return b.Bytes()
}

// command is how the page says that it was made.
const command = "go run ./internal/bench"

// The marks between which the page is generated. What stands outside of them
// is written by hand and stays.
const (
	beginMark = "<!-- bench: begin; written by `go run ./internal/bench`, do not edit -->"
	endMark   = "<!-- bench: end -->"
)

var errNoMarks = errors.New("the page has no place for the table: it needs the two bench marks, one after the other")

// splice puts the generated part between the marks.
func splice(page, generated []byte) ([]byte, error) {
	before, rest, ok := bytes.Cut(page, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return nil, errNoMarks
	}
	return bytes.Join([][]byte{before, []byte(beginMark + "\n\n"), generated, []byte("\n" + endMark), after}, nil), nil
}

func rewritePage(path string, m machine, figures []figure) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("rewriting the table: %w", err)
	}
	if page, err = splice(page, markdown(m, figures)); err != nil {
		return fmt.Errorf("rewriting the table in %s: %w", path, err)
	}
	if err := os.WriteFile(path, page, 0o644); err != nil {
		return fmt.Errorf("rewriting the table: %w", err)
	}
	return nil
}

// quantiles are the median and the slow end of a load.
func quantiles(l load) string {
	return fmt.Sprintf("p50 %s ms, p99 %s ms", number(milliseconds(l.quantile(0.5))), number(milliseconds(l.quantile(0.99))))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// perCall is processor time in microseconds for each piece of work.
func perCall(cpu time.Duration, l load) float64 {
	return float64(cpu) / float64(time.Microsecond) / float64(max(len(l.times), 1))
}

// plural counts a thing.
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// errOf returns the first error there is.
func errOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
