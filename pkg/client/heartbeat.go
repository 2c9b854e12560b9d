package client

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

const (
	// heartbeatPeriod is how often the client asks whether the server still
	// knows the connection. A server that was killed and came back says
	// nothing on its own, so this is how late a client that only waits
	// notices it.
	heartbeatPeriod = 5 * time.Second
	// heartbeatTimeout is how long the answer may take.
	heartbeatTimeout = 20 * time.Second
	// heartbeatPadding makes the request larger than the 42 bytes up to which
	// quic-go (v0.64.1, protocol.MinStatelessResetSize) answers nothing at
	// all to a connection it does not know. QUIC's own keep-alive is smaller,
	// so with it alone a restart shows only at the idle timeout.
	heartbeatPadding = 64
	// paddingField is a field that no HealthRequest has, and servers ignore.
	paddingField = 15
)

// heartbeat makes a dead connection known soon.
func (c *Client) heartbeat(ctx context.Context, l *link) error {
	request := &qpcpb.HealthRequest{}
	padding := protowire.AppendTag(nil, paddingField, protowire.BytesType)
	request.ProtoReflect().SetUnknown(protowire.AppendBytes(padding, make([]byte, heartbeatPadding)))
	beat := time.NewTicker(heartbeatPeriod)
	defer beat.Stop()
	for {
		select {
		case <-beat.C:
		case <-ctx.Done():
			return nil
		}
		asking, cancel := context.WithTimeout(ctx, heartbeatTimeout)
		_, err := qpcpb.NewHealthClient(l.rpc).Health(asking, request)
		cancel()
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("the server does not answer: %w", err)
		}
	}
}
