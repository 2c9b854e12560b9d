package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// probeTimeout bounds the question whether somebody answers on a socket. A
	// full queue answers nothing, and means that somebody is there.
	probeTimeout = time.Second
	// acceptPause keeps a shortage of file descriptors from becoming a busy
	// loop.
	acceptPause = 50 * time.Millisecond
)

// A Listener is the server's end of the control socket.
type Listener struct {
	path  string
	log   *slog.Logger
	unix  *net.UnixListener
	file  os.FileInfo // the socket in the file system
	serve func(transport.Conn)
	slots chan struct{}

	mu      sync.Mutex
	conns   map[*conn]bool
	closing bool
	running sync.WaitGroup
}

// Listen makes the socket. serve is called with each connection, on a goroutine
// of its own, and the connection ends when it returns; rpc.Server.ServeLocal
// fits. The errors of a path that cannot be used are *net.OpError with the Op
// "listen", as those of other addresses.
func Listen(ctx context.Context, path string, log *slog.Logger, serve func(transport.Conn)) (*Listener, error) {
	l := &Listener{path: path, log: log, serve: serve, slots: make(chan struct{}, maxConnections), conns: make(map[*conn]bool)}
	if err := l.open(ctx); err != nil {
		if op := (*net.OpError)(nil); !errors.As(err, &op) {
			err = &net.OpError{Op: "listen", Net: "unix", Addr: &net.UnixAddr{Name: path, Net: "unix"}, Err: err}
		}
		return nil, fmt.Errorf("the control socket: %w", err)
	}
	return l, nil
}

func (l *Listener) open(ctx context.Context) error {
	if err := checkPath(l.path); err != nil {
		return err
	}
	if err := removeStale(ctx, l.path); err != nil {
		return err
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		// The file gets the rights that the socket has when it is bound, less
		// the umask: there is no moment in which it is wider, and the umask,
		// which belongs to the whole process, stays as it is.
		if controlErr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); controlErr != nil {
			return controlErr
		}
		return err
	}}
	listener, err := config.Listen(ctx, "unix", l.path)
	if err != nil {
		return err
	}
	l.unix = listener.(*net.UnixListener)
	// By itself it would remove whatever has the name when it closes.
	l.unix.SetUnlinkOnClose(false)
	if l.file, err = os.Lstat(l.path); err != nil {
		return errors.Join(err, l.unix.Close())
	}
	if mode := l.file.Mode(); mode.Perm()&0o077 != 0 {
		return errors.Join(fmt.Errorf("it has the rights %v, which are too wide", mode.Perm()), l.unix.Close(), os.Remove(l.path))
	}
	return nil
}

// removeStale removes a socket on which nobody answers. The storage's lock
// keeps two servers with one data directory from doing this at once.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return errors.New("there is a file of that name, and it is no socket; choose another control_socket or remove it")
	}
	dialer := net.Dialer{Timeout: probeTimeout}
	probe, err := dialer.DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(ErrInUse, probe.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w, or it cannot be asked: %v", ErrInUse, err)
	}
	return os.Remove(path)
}

// Addr returns the path of the socket.
func (l *Listener) Addr() string { return l.path }

// Run serves connections until Close or Stop, and returns when the last one has
// ended.
func (l *Listener) Run() {
	defer l.running.Wait()
	for {
		// A place first: who finds none waits in the kernel's queue.
		l.slots <- struct{}{}
		accepted, err := l.unix.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			<-l.slots
			return
		}
		if err != nil {
			<-l.slots
			l.log.Warn("a connection of the control socket is not accepted", "error", err)
			time.Sleep(acceptPause)
			continue
		}
		c := newConn(accepted)
		if !l.add(c) {
			_ = c.Close(0, "")
			<-l.slots
			continue
		}
		l.running.Go(func() {
			defer func() { <-l.slots }()
			defer l.drop(c)
			l.one(c)
		})
	}
}

// one serves a connection.
func (l *Listener) one(c *conn) {
	uid, err := peerUID(c.unix)
	switch {
	case err != nil:
		l.log.Warn("a connection of the control socket does not say whose it is", "error", err)
	case !mayEnter(uid, os.Geteuid()):
		l.log.Warn("a user who may not was refused at the control socket", "uid", uid)
	default:
		l.serve(c)
	}
}

// mayEnter is the rule of who may use the socket of a server that runs as own.
func mayEnter(uid, own int) bool { return uid == 0 || uid == own }

func (l *Listener) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return false
	}
	l.conns[c] = true
	return true
}

func (l *Listener) drop(c *conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
	_ = c.Close(0, "") // the other side may be gone
}

// Stop takes no new connections and removes the socket. Those that are being
// served go on. More than once is fine.
func (l *Listener) Stop() {
	l.mu.Lock()
	stopped := l.closing
	l.closing = true
	l.mu.Unlock()
	if stopped {
		return
	}
	// By now another server may have put its own there.
	if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.file) {
		if err := os.Remove(l.path); err != nil {
			l.log.Warn("the control socket is left behind", "error", err)
		}
	}
	_ = l.unix.Close() // what waits in the queue ends with it
}

// Close is Stop, and ends the connections too.
func (l *Listener) Close() {
	l.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.Close(0, "")
	}
}
