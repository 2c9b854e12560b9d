package main

import (
	"context"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain lets the test binary play the roles that the harness starts itself
// for.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == roleIdle || os.Args[1] == roleServe) {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

const frameOfPage = "# Title\n\n" + beginMark + "\nold\n" + endMark + "\n\nBy hand.\n"

// TestQuickRun is a whole run with small counts.
func TestQuickRun(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and runs the server")
	}
	page := filepath.Join(t.TempDir(), "performance.md")
	if err := os.WriteFile(page, []byte(frameOfPage), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var out strings.Builder
	b := &bench{plan: quickPlan(), progress: io.Discard}
	if err := b.run(ctx, page, t.TempDir(), "", &out); err != nil {
		t.Fatal(err)
	}
	var sections []string
	for _, f := range b.figures {
		if f.value <= 0 && f.section != "Memory" || math.IsNaN(f.value) || math.IsInf(f.value, 0) {
			t.Errorf("%s: %v is no measurement", f.name, f.value)
		}
		if !slices.Contains(sections, f.section) {
			sections = append(sections, f.section)
		}
		if !strings.Contains(out.String(), f.name) {
			t.Errorf("%s is not printed", f.name)
		}
	}
	if want := []string{"Limits", "Delivery", "Connecting", "Memory", "Starting", "Programs"}; !slices.Equal(sections, want) {
		t.Errorf("sections %q, want %q", sections, want)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Title", "By hand.", command, "durable Enqueue, 1 sender", "one-way latency", "nobody connected", "first handshake", "size of qpcd"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if strings.Contains(string(text), "old") {
		t.Error("the old table is still there")
	}
	if left, err := os.ReadDir(b.dir); err == nil {
		t.Errorf("the working directory is still there, with %d entries", len(left))
	}
}

func TestProfile(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the server")
	}
	dir := t.TempDir()
	b := &bench{plan: quickPlan(), progress: io.Discard, dir: t.TempDir()}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var err error
	if b.root, err = repositoryRoot(ctx); err != nil {
		t.Fatal(err)
	}
	if b.bin, err = b.build(ctx, true); err != nil {
		t.Fatal(err)
	}
	if err := b.profile(ctx, dir, io.Discard); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "enqueue-many.pprof"))
	if err != nil || info.Size() == 0 {
		t.Errorf("no profile was written: %v", err)
	}
}

func TestSplice(t *testing.T) {
	for _, test := range []struct {
		name, page, want string
		ok               bool
	}{
		{"between", "a" + beginMark + "old" + endMark + "b", "a" + beginMark + "\n\nnew\n" + endMark + "b", true},
		{"no begin", "a" + endMark, "", false},
		{"no end", "a" + beginMark, "", false},
		{"end first", endMark + beginMark, "", false},
	} {
		got, err := splice([]byte(test.page), []byte("new"))
		if string(got) != test.want || (err == nil) != test.ok {
			t.Errorf("%s: %q, %v; want %q", test.name, got, err, test.want)
		}
	}
	// What was spliced can be spliced again.
	once, err := splice([]byte(frameOfPage), []byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	if twice, err := splice(once, []byte("new")); err != nil || string(twice) != string(once) {
		t.Errorf("the second time: %q, %v; want %q", twice, err, once)
	}
}

func TestFigure(t *testing.T) {
	limits := []limit{{"disk", 200}, {"none", 0}}
	for _, test := range []struct {
		f                  figure
		goal, limit, ratio string
	}{
		{figure{value: 100, goal: atLeast(50), limits: limits}, "≥ 50.0: met", "200 (disk); 0.000 (none)", "0.50; -"},
		{figure{value: 100, goal: atLeast(101)}, "≥ 101: MISSED", "", ""},
		{figure{value: 100, goal: atMost(100)}, "≤ 100: met", "", ""},
		{figure{value: 100, goal: atMost(99)}, "≤ 99.0: MISSED", "", ""},
		{figure{value: 100}, "", "", ""},
	} {
		if test.f.goalText() != test.goal || test.f.limitText() != test.limit || test.f.ratioText() != test.ratio {
			t.Errorf("%v: %q, %q, %q; want %q, %q, %q", test.f, test.f.goalText(), test.f.limitText(), test.f.ratioText(), test.goal, test.limit, test.ratio)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.000", 0.0625: "0.062", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 1234: "1,234", 123456: "123,456", 1234567: "1,234,567"} {
		if got := number(v); got != want {
			t.Errorf("%v is %q, want %q", v, got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	calls := 0
	l, err := repeat(context.Background(), 7, func(context.Context) error { calls++; return nil })
	if err != nil || calls != 7 || len(l.times) != 7 {
		t.Errorf("%d calls, %d times, %v; want 7, 7 and no error", calls, len(l.times), err)
	}
	if _, err := hammer(context.Background(), time.Hour, []work{
		func(context.Context) error { return io.EOF },
		func(ctx context.Context) error { return ctx.Err() }, // ends when the other has failed
	}); err != io.EOF {
		t.Errorf("a worker that fails: %v, want %v", err, io.EOF)
	}
	l = loadOf([]time.Duration{4, 1, 3, 2})
	for q, want := range map[float64]time.Duration{0: 1, 0.5: 3, 0.99: 4, 1: 4} {
		if got := l.quantile(q); got != want {
			t.Errorf("quantile %v is %d, want %d", q, got, want)
		}
	}
	if (load{}).quantile(0.5) != 0 || (load{}).rate() != 0 {
		t.Error("a load of nothing has figures")
	}
}

func TestParse(t *testing.T) {
	fields := parseProc("Name:\tqpcd\nVmRSS:\t   14784 kB\nwrite_bytes: 4096\nno colon\n")
	for name, want := range map[string]int64{"VmRSS": 14784, "write_bytes": 4096} {
		if got, err := fields.number(name); err != nil || got != want {
			t.Errorf("%s is %d, %v; want %d", name, got, err, want)
		}
	}
	if _, err := fields.number("Name"); err == nil {
		t.Error("a name is a number")
	}
	const summary = `% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 99.94    0.089123         120       741           fdatasync
  0.06    0.000050          25         2         1 fsync
------ ----------- ----------- --------- --------- ----------------
100.00    0.089173         120       743         1 total
`
	if got := straceCalls(summary); got != 743 {
		t.Errorf("strace counted %d, want 743", got)
	}
}

func TestProcessThatEnds(t *testing.T) {
	ctx := context.Background()
	never := func(string) bool { return false }
	if _, err := startProcess(ctx, never, "sh", "-c", "echo why; exit 3"); err == nil || !strings.Contains(err.Error(), "why") || !strings.Contains(err.Error(), "3") {
		t.Errorf("a program that ends at once: %v; want its words and its exit code", err)
	}
	if _, err := startProcess(ctx, never, "/nonexistent/program"); err == nil {
		t.Error("a program that is not there started")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := startProcess(ended, never, "sleep", "60"); err == nil {
		t.Error("a program that never is ready was waited for")
	}
}
