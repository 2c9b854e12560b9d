package interop_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/internal/interop/outside"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test: an emulated router takes up to a second
// for what a processor of its own does in ten milliseconds, and tests of other
// packages may run beside.
const patience = 2 * time.Minute

// machine is where a server runs.
type machine struct {
	name string
	arch string // as scripts/cross/build.sh names it
	// emulator and its arguments; empty: this machine runs it itself.
	emulator []string
	environ  []string
}

// home is the machine that the tests run on.
func home() machine { return machine{name: "home", arch: runtime.GOARCH} }

// build returns the path of qpcd for a machine. It lies in a cache of its own,
// so that it is linked again only after a change.
func (m machine) build(t *testing.T) string {
	t.Helper()
	root := outside.Root(t)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	dist := filepath.Join(cache, "qpcd-interop", strings.ReplaceAll(strings.Trim(root, "/"), "/", "+"))
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "scripts", "cross", "build.sh"), m.arch)
	cmd.Env = append(os.Environ(), "DIST="+dist, "PROGRAMS=qpcd", "VERSION=interop")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building qpcd for %s: %v\n%s", m.arch, err, out)
	}
	return filepath.Join(dist, m.arch, "qpcd")
}

// house is a server process that can be stopped, and started again in its place
// on another machine.
type house struct {
	t    *testing.T
	data string
	addr netip.AddrPort

	cmd *exec.Cmd
	log *logbook
}

func newHouse(t *testing.T) *house {
	h := &house{t: t, data: filepath.Join(t.TempDir(), "server")}
	t.Cleanup(func() {
		if h.cmd != nil {
			_ = h.cmd.Process.Kill()
			_ = h.cmd.Wait()
		}
	})
	return h
}

// start runs a program on a machine, on the address that it had before.
func (h *house) start(m machine, program string) {
	h.t.Helper()
	listen := "127.0.0.1:0"
	if h.addr.IsValid() {
		listen = h.addr.String()
	}
	words := append(append([]string{}, m.emulator...), program,
		"--listen", listen, "--data-dir", h.data, "--registration", "open", "--log-level", "debug")
	h.cmd, h.log = exec.Command(words[0], words[1:]...), &logbook{}
	h.cmd.Env = append(os.Environ(), m.environ...)
	h.cmd.Stderr = h.log
	if err := h.cmd.Start(); err != nil {
		h.t.Fatalf("starting %s: %v", strings.Join(words, " "), err)
	}
	book := h.log
	h.t.Cleanup(func() {
		if h.t.Failed() {
			h.t.Logf("%s said:\n%s", m.name, book)
		}
	})
	line := h.log.wait(h.t, `msg=listening addr=(\S+) .*`)
	addr, err := netip.ParseAddrPort(line[1])
	if err != nil {
		h.t.Fatalf("%q: %v", line[0], err)
	}
	switch {
	case !h.addr.IsValid():
		h.addr = addr // once: people read it as they please
	case h.addr != addr:
		h.t.Fatalf("it listens on %s, want %s", addr, h.addr)
	}
}

// stop asks the server to end, which it must do cleanly.
func (h *house) stop() {
	h.t.Helper()
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func(cmd *exec.Cmd) { ended <- cmd.Wait() }(h.cmd)
	select {
	case err := <-ended:
		if err != nil {
			h.t.Errorf("the server ended with %v; it said:\n%s", err, h.log)
		}
	case <-time.After(patience):
		_ = h.cmd.Process.Kill()
		<-ended
		h.t.Errorf("the server does not end; it said:\n%s", h.log)
	}
	h.cmd = nil
	h.log.quiet(h.t)
	names, err := filepath.Glob(filepath.Join(h.data, "*-shm"))
	if err != nil || len(names) > 0 {
		h.t.Errorf("jffs2 could not hold %q (%v)", names, err)
	}
}

// logbook keeps what a server logs.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// wait waits for a line and returns it with its sub-matches.
func (l *logbook) wait(t *testing.T, pattern string) []string {
	t.Helper()
	line := regexp.MustCompile(pattern + `\n`)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		l.mu.Lock()
		found := line.FindStringSubmatch(l.text.String())
		if l.more == nil {
			l.more = make(chan struct{})
		}
		more := l.more
		l.mu.Unlock()
		if found != nil {
			return found
		}
		select {
		case <-more:
		case <-ctx.Done():
			t.Fatalf("no line %s; the server said:\n%s", pattern, l)
		}
	}
}

// quiet fails the test when the server warned of anything: what goes wrong on a
// foreign machine and is made up for shows only here.
func (l *logbook) quiet(t *testing.T) {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(l.String()))
	for lines.Scan() {
		text := lines.Text()
		for _, bad := range []string{"level=WARN", "level=ERROR", "panic:", "fatal error:", "goroutine "} {
			if strings.Contains(text, bad) {
				t.Error(fmt.Sprint("the server complained: ", text))
			}
		}
	}
}
