package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// house is a server on a control socket. It answers Health, and DeleteAccount,
// a session method that nobody reaches from here.
type house struct {
	*Listener
	t     *testing.T
	calls *rpc.Server
	// hold, when set, makes Health wait until it is closed.
	hold    chan struct{}
	waiting atomic.Int32 // calls of Health under way
	most    atomic.Int32 // the most of them at once
}

func open(t *testing.T) *house {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "qpcd.sock"))
}

func openAt(t *testing.T, path string) *house {
	t.Helper()
	h := &house{t: t}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	h.calls = rpc.NewServer(rpc.ServerOptions{Log: log})
	h.calls.Register(qpcpb.MethodHealth, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
		n := h.waiting.Add(1)
		defer h.waiting.Add(-1)
		for most := h.most.Load(); n > most && !h.most.CompareAndSwap(most, n); most = h.most.Load() {
		}
		if h.hold != nil {
			select {
			case <-h.hold:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return &qpcpb.HealthResponse{Status: "ok"}, nil
	})
	h.calls.Register(qpcpb.MethodDeleteAccount, func(context.Context, proto.Message) (proto.Message, error) {
		t.Error("a session method was reached")
		return &qpcpb.DeleteAccountResponse{}, nil
	})
	var err error
	if h.Listener, err = Listen(t.Context(), path, log, h.calls.ServeLocal); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(h.Run)
	t.Cleanup(func() {
		h.Close()
		running.Wait()
		h.calls.Close()
	})
	return h
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (h *house) health() error {
	response, err := qpcpb.NewHealthClient(Client{h.path}).Health(within(h.t), &qpcpb.HealthRequest{})
	if err == nil && response.Status != "ok" {
		err = fmt.Errorf("answered %v", response)
	}
	return err
}

func (h *house) mustAnswer() {
	h.t.Helper()
	if err := h.health(); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) connect() *net.UnixConn {
	h.t.Helper()
	c, err := net.Dial("unix", h.path)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.UnixConn)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("this never came: " + what)
		}
	}
}

func TestCalls(t *testing.T) {
	h := open(t)
	h.mustAnswer()
	h.mustAnswer()
	for method, want := range map[qpcpb.MethodID]qpcpb.Code{
		qpcpb.MethodDeleteAccount: qpcpb.CodeUnimplemented, // of another side
		qpcpb.MethodRelayEnqueue:  qpcpb.CodeUnimplemented, // of another side
		qpcpb.MethodGetStatus:     qpcpb.CodeUnimplemented, // not served here
		31000:                     qpcpb.CodeUnimplemented,
	} {
		err := Client{h.path}.Call(within(t), method, &qpcpb.HealthRequest{}, &qpcpb.HealthResponse{})
		if rpc.CodeOf(err) != want {
			t.Errorf("method %d: %v", method, err)
		}
	}
	// A request that is refused before it is read is answered all the same,
	// however much of it is on its way.
	large := &qpcpb.EnqueueRequest{Payload: make([]byte, 3<<20)}
	err := Client{h.path}.Call(within(t), qpcpb.MethodHealth, large, &qpcpb.HealthResponse{})
	if rpc.CodeOf(err) != qpcpb.CodePayloadTooLarge {
		t.Errorf("a request too large: %v", err)
	}
}

// A connection carries one call and no pushed event.
func TestOneCallAConnection(t *testing.T) {
	h := open(t)
	conn, err := Dial(within(t), h.path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(0, "")
	client := rpc.NewClient(conn)
	for i, want := range []error{nil, errOneCall} {
		if err := client.Call(within(t), qpcpb.MethodHealth, &qpcpb.HealthRequest{}, &qpcpb.HealthResponse{}); !errors.Is(err, want) {
			t.Errorf("call %d: %v, want %v", i, err, want)
		}
	}
	if err := client.ReceiveEvents(within(t), nil); !errors.Is(err, errOneCall) {
		t.Errorf("events: %v", err)
	}
	// On the wire: two requests on one connection are one with a tail.
	c := h.connect()
	request := frame.AppendRequestHeader(nil, uint16(qpcpb.MethodHealth), 7, 0)
	if _, err := c.Write(append(request, request...)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	if len(answer) < frame.ResponseHeaderSize || qpcpb.Status(answer[0]) != qpcpb.StatusBadRequest {
		t.Errorf("answered % x", answer)
	}
}

func TestSocketRights(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	h := open(t)
	info, err := os.Lstat(h.path)
	if err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Fatalf("the socket is %v, %v", info.Mode(), err)
	}
	h.Stop()
	if _, err := os.Lstat(h.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after the stop: %v", err)
	}
	if err := h.health(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the stop: %v", err)
	}
}

// The rights come with the file: a watcher never sees it wider. Instead of a
// race, the moment itself: bound, and not yet looked after.
func TestNoMomentOfWiderRights(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Fchmod(fd, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("this kernel makes it %v, %v", info.Mode(), err)
	}
}

func TestPathInUse(t *testing.T) {
	dir := t.TempDir()
	listen := func(path string) error {
		l, err := Listen(t.Context(), path, slog.New(slog.DiscardHandler), func(transport.Conn) {})
		if err == nil {
			l.Close()
		}
		return err
	}
	// Left behind by a server that was killed.
	stale := filepath.Join(dir, "stale")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if err := listen(stale); err != nil {
		t.Errorf("a stale socket: %v", err)
	}
	// A live one.
	h := openAt(t, filepath.Join(dir, "live"))
	if err := listen(h.path); !errors.Is(err, ErrInUse) {
		t.Errorf("a live socket: %v", err)
	}
	h.mustAnswer()
	// No socket at all.
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := listen(file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file: %v", err)
	}
	if content, _ := os.ReadFile(file); string(content) != "kept" {
		t.Error("the file was touched")
	}
	// No directory, and no room in sun_path.
	for path, want := range map[string]string{
		filepath.Join(dir, "none", "s"):       "no such file",
		"/" + strings.Repeat("x", maxPath):    "has 108 bytes where 107 are possible; choose a shorter control_socket",
		"./" + strings.Repeat("y", 2*maxPath): "107 are possible",
	} {
		err := listen(path)
		if op := (*net.OpError)(nil); !errors.As(err, &op) || op.Op != "listen" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := Dial(within(t), "/"+strings.Repeat("x", maxPath)); err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("a long path: %v", err)
	}
	for _, path := range []string{stale, filepath.Join(dir, "none", "s")} {
		if _, err := Dial(within(t), path); !errors.Is(err, ErrNotRunning) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// A stop leaves what another server has put in its place.
	if err := os.Remove(h.path); err != nil {
		t.Fatal(err)
	}
	other := openAt(t, h.path)
	h.Stop()
	other.mustAnswer()
}

// TestStranger lets another user of this machine knock. The test runs itself
// again as nobody.
func TestStranger(t *testing.T) {
	const pathOf = "CONTROL_TEST_PATH"
	if path := os.Getenv(pathOf); path != "" {
		response, err := qpcpb.NewHealthClient(Client{path}).Health(within(t), &qpcpb.HealthRequest{})
		fmt.Printf("stranger: %v %v\n", response, err)
		return
	}
	for uid, ok := range map[int]bool{0: true, 1000: true, 1001: false, 65534: false, -1: false} {
		if mayEnter(uid, 1000) != ok {
			t.Errorf("uid %d at a server of 1000", uid)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	dir, err := os.MkdirTemp("", "control") // t.TempDir is root's alone
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "test")
	if err := copyProgram(program); err != nil {
		t.Fatal(err)
	}
	h := openAt(t, filepath.Join(dir, "s"))
	knock := func() string {
		t.Helper()
		cmd := exec.Command(program, "-test.run=^TestStranger$")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), pathOf+"="+h.path, "GOCOVERDIR=")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if out := knock(); !strings.Contains(out, ErrNotAllowed.Error()) {
		t.Errorf("a stranger: %s", out)
	}
	// With the file open to all, the kernel still says who it is.
	if err := os.Chmod(h.path, 0o666); err != nil {
		t.Fatal(err)
	}
	if out := knock(); strings.Contains(out, "status") || !strings.Contains(out, "calling Health") {
		t.Errorf("a stranger got through: %s", out)
	}
	if h.most.Load() != 0 {
		t.Error("a call of a stranger ran")
	}
	h.mustAnswer()
}

func copyProgram(to string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	content, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// A thousand at once are all answered, a bounded number at a time.
func TestManyAtOnce(t *testing.T) {
	h := open(t)
	const many = 1000
	results := make(chan error, many)
	var all sync.WaitGroup
	for range many {
		all.Go(func() { results <- h.health() })
	}
	all.Wait()
	close(results)
	for err := range results {
		if err != nil {
			t.Fatal(err)
		}
	}
	if most := h.most.Load(); most > maxConnections {
		t.Errorf("%d calls at once", most)
	}
}

func TestBoundIsReached(t *testing.T) {
	h := open(t)
	h.hold = make(chan struct{})
	results := make(chan error, 2*maxConnections)
	var all sync.WaitGroup
	for range 2 * maxConnections {
		all.Go(func() { results <- h.health() })
	}
	eventually(t, "a full house", func() bool { return h.waiting.Load() == maxConnections })
	time.Sleep(20 * time.Millisecond) // for one more, if it could get in
	close(h.hold)
	all.Wait()
	close(results)
	for err := range results {
		if err != nil {
			t.Fatal(err)
		}
	}
	if most := h.most.Load(); most != maxConnections {
		t.Errorf("%d calls at once, want %d", most, maxConnections)
	}
}

// Whoever goes away in the middle costs its own connection.
func TestHalfARequest(t *testing.T) {
	h := open(t)
	whole := frame.AppendRequestHeader(nil, uint16(qpcpb.MethodHealth), 7, 0)
	for n := range len(whole) + 1 {
		c := h.connect()
		if _, err := c.Write(whole[:n]); err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 { // ends its half and waits
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(c)
			want := qpcpb.StatusBadRequest
			if n == len(whole) {
				want = qpcpb.StatusOK
			}
			if err != nil || len(answer) == 0 || qpcpb.Status(answer[0]) != want {
				t.Errorf("%d bytes: answered % x, %v", n, answer, err)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	h.mustAnswer()
	eventually(t, "the end of all connections", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.conns) == 0 })
}

// A caller that dies in the middle of its call: the call ends, the server goes
// on.
func TestKilledMidCall(t *testing.T) {
	h := open(t)
	h.hold = make(chan struct{})
	c := h.connect()
	if _, err := c.Write(frame.AppendRequestHeader(nil, uint16(qpcpb.MethodHealth), 7, 0)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the call", func() bool { return h.waiting.Load() == 1 })
	c.Close()
	close(h.hold)
	eventually(t, "its end", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.conns) == 0 })
	h.mustAnswer()
}

// At a stop, what is under way is answered; what begins later finds nobody.
func TestStopAnswersWhatIsUnderWay(t *testing.T) {
	h := open(t)
	h.hold = make(chan struct{})
	result := make(chan error)
	go func() { result <- h.health() }()
	eventually(t, "the call", func() bool { return h.waiting.Load() == 1 })
	idle := h.connect()
	h.Stop()
	h.Stop()
	if err := h.health(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a call after the stop: %v", err)
	}
	close(h.hold)
	if err := <-result; err != nil {
		t.Errorf("the call under way: %v", err)
	}
	h.Close()
	if _, err := io.ReadAll(idle); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("an idle connection: %v", err)
	}
}

func FuzzBytes(f *testing.F) {
	f.Add([]byte{})
	f.Add(frame.AppendRequestHeader(nil, uint16(qpcpb.MethodHealth), 7, 0))
	f.Add(append([]byte{1, 0, 32}, make([]byte, 32)...))
	log := slog.New(slog.DiscardHandler)
	calls := rpc.NewServer(rpc.ServerOptions{Log: log})
	f.Cleanup(calls.Close)
	l, err := Listen(f.Context(), filepath.Join(f.TempDir(), "s"), log, calls.ServeLocal)
	if err != nil {
		f.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(l.Run)
	f.Cleanup(func() { l.Close(); running.Wait() })
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("unix", l.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = c.Write(b) // an early answer may end it
		_ = c.(*net.UnixConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		answer, err := io.ReadAll(c)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if len(answer) < frame.ResponseHeaderSize || answer[0] == byte(qpcpb.StatusOK) {
			t.Fatalf("% x is answered % x", b, answer)
		}
	})
}
