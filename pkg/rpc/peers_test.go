package rpc

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// peerPipe connects as another server.
func peerPipe(t *testing.T, s *Server, domain string) transport.Conn {
	client, server := rpctest.Pipe(rpctest.Options{})
	done := make(chan struct{})
	go func() { s.ServePeer(server, domain); close(done) }()
	t.Cleanup(func() {
		_ = client.Close(transport.CloseNormal, "")
		<-done
	})
	return client
}

// What is repeated within a message in a request counts too.
func TestNestedFieldsAreCounted(t *testing.T) {
	s := newTestServer(t, ServerOptions{})
	seen := 0
	s.Register(qpcpb.MethodProxyRotateKeys, func(_ context.Context, r proto.Message) (proto.Message, error) {
		seen = len(r.(*qpcpb.ProxyRotateKeysRequest).GetRequest().GetAddMembers())
		return &qpcpb.RotateKeysResponse{}, nil
	})
	conn := peerPipe(t, s, "b.example")
	for name, test := range map[string]struct {
		members int
		status  qpcpb.Status
	}{
		"a bomb":         {1_000_000, qpcpb.StatusBadRequest},
		"one too many":   {maxFields, qpcpb.StatusBadRequest}, // with the field around them
		"as many as may": {maxFields - 1, qpcpb.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			inner := bytes.Repeat(append(protowire.AppendTag(nil, 6, protowire.BytesType), 2, 1, 2), test.members)
			payload := protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), inner)
			seen = 0
			got := exchange(t, conn, append(header(qpcpb.MethodProxyRotateKeys, 1, uint32(len(payload))), payload...))
			if got.status != test.status || test.status == qpcpb.StatusOK && seen != test.members {
				t.Errorf("got %v %s, the handler saw %d", got.status, got.code, seen)
			}
		})
	}
}

// Peers and clients have places of their own for calls under way.
func TestPeersAndClientsKeepTheirPlaces(t *testing.T) {
	s := newTestServer(t, ServerOptions{})
	release := make(chan struct{})
	var under sync.WaitGroup
	s.Register(qpcpb.MethodFederationHealth, func(ctx context.Context, _ proto.Message) (proto.Message, error) {
		if DomainOf(ctx) == "slow.example" {
			under.Done()
			<-release
		}
		return &qpcpb.FederationHealthResponse{}, nil
	})
	s.Register(qpcpb.MethodHealth, func(context.Context, proto.Message) (proto.Message, error) { return &qpcpb.HealthResponse{}, nil })
	slow, other := NewClient(peerPipe(t, s, "slow.example")), NewClient(peerPipe(t, s, "b.example"))
	client := NewClient(pipe(t, s, rpctest.Options{}))
	peerHealth := func(c *Client) error {
		_, err := qpcpb.NewFederationClient(c).FederationHealth(within(t), &qpcpb.FederationHealthRequest{})
		return err
	}
	clientHealth := func() error {
		_, err := qpcpb.NewHealthClient(client).Health(within(t), &qpcpb.HealthRequest{})
		return err
	}
	var calls sync.WaitGroup
	under.Add(maxRunningOfPeers)
	for range maxRunningOfPeers {
		calls.Go(func() {
			if err := peerHealth(slow); err != nil {
				t.Error(err)
			}
		})
	}
	under.Wait()
	wantCode(t, peerHealth(other), qpcpb.CodeBusy)
	if err := clientHealth(); err != nil || s.Running() != maxRunningOfPeers {
		t.Errorf("a client beside busy peers: %v; %d calls run", err, s.Running())
	}
	close(release)
	calls.Wait()

	s.mu.Lock()
	s.running = maxRunning
	s.mu.Unlock()
	wantCode(t, clientHealth(), qpcpb.CodeBusy)
	if err := peerHealth(other); err != nil {
		t.Errorf("a peer beside busy clients: %v", err)
	}
	s.mu.Lock()
	s.running = 0
	s.mu.Unlock()
}
