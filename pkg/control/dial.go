package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// dialPatience is how long a connection is tried for when the queue of the
	// socket is full, which the kernel tells at once; dialPause is the time
	// between two tries.
	dialPatience = 10 * time.Second
	dialPause    = 20 * time.Millisecond
)

// Dial connects to the server whose control socket is at path. The connection
// carries one call. The error wraps ErrNotRunning when nobody answers, and
// ErrNotAllowed when this user may not ask.
func Dial(ctx context.Context, path string) (transport.Conn, error) {
	if err := checkPath(path); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	for {
		connected, err := new(net.Dialer).DialContext(ctx, "unix", path)
		switch {
		case err == nil:
			return newConn(connected.(*net.UnixConn)), nil
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("%w on the control socket %s; start qpcd, or name its settings as it has them (--config, --data-dir or --control-socket)", ErrNotRunning, path)
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("the control socket %s: %w; run this as root", path, ErrNotAllowed)
		case !errors.Is(err, syscall.EAGAIN):
			return nil, fmt.Errorf("the control socket %s: %w", path, err)
		}
		select {
		case <-time.After(dialPause):
		case <-ctx.Done():
			return nil, fmt.Errorf("the control socket %s: %w", path, err)
		}
	}
}

// Client calls the server whose control socket is at Path, with a connection
// for each call. It implements qpcpb.Caller and is safe for concurrent use.
type Client struct{ Path string }

var _ qpcpb.Caller = Client{}

// Call makes one call. An answer that is not OK is an *rpc.Error; see Dial for
// a server that does not answer.
func (c Client) Call(ctx context.Context, method qpcpb.MethodID, request, response proto.Message) error {
	conn, err := Dial(ctx, c.Path)
	if err != nil {
		return err
	}
	defer conn.Close(transport.CloseNormal, "")
	return rpc.NewClient(conn).Call(ctx, method, request, response)
}
