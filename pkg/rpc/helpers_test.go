package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of a test in real time.
const patience = 10 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

var (
	alice = Principal{Identity: IdentityKey{1}, Username: "alice", Session: [32]byte{1}}
	admin = Principal{Identity: IdentityKey{2}, Username: "admin", Session: [32]byte{2}, Admin: true}
)

// errLookup stands for a storage that cannot be read.
var errLookup = errors.New("the disk is on fire")

// lookup is the ResumeSession of the tests: the token is the name.
func lookup(_ context.Context, token []byte) (Principal, error) {
	switch string(token) {
	case "alice":
		return alice, nil
	case "admin":
		return admin, nil
	case "broken":
		return Principal{}, fmt.Errorf("%w: %w", ErrCannotLook, errLookup)
	}
	return Principal{}, errors.New("no such session")
}

// newTestServer returns a server with toy handlers for a few rows of the
// table: Health answers who calls, Enqueue echoes its payload as the proof.
func newTestServer(t testing.TB, o ServerOptions) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if o.ResumeSession == nil {
		o.ResumeSession = lookup
	}
	s := NewServer(o)
	who := func(ctx context.Context, _ proto.Message) (proto.Message, error) {
		name := "nobody"
		if p := PrincipalOf(ctx); p != nil {
			name = p.Username
		}
		return &qpcpb.HealthResponse{Status: name}, nil
	}
	s.Register(qpcpb.MethodHealth, who)
	s.Register(qpcpb.MethodEnqueue, func(_ context.Context, r proto.Message) (proto.Message, error) {
		return &qpcpb.EnqueueResponse{DeliveryProof: r.(*qpcpb.EnqueueRequest).Payload}, nil
	})
	s.Register(qpcpb.MethodBanUser, func(context.Context, proto.Message) (proto.Message, error) {
		return &qpcpb.BanUserResponse{Success: true}, nil
	})
	return s
}

// pipe serves one connection in memory until the test ends.
func pipe(t testing.TB, s *Server, o rpctest.Options) *rpctest.Conn {
	client, server := rpctest.Pipe(o)
	var serving sync.WaitGroup
	serving.Go(func() { s.ServeConn(server) })
	t.Cleanup(func() {
		_ = client.Close(transport.CloseNormal, "")
		s.Close()
		serving.Wait()
	})
	return client
}

// listen serves a loopback address and returns how to dial it.
func listen(t testing.TB, s *Server) transport.DialOptions {
	t.Helper()
	dir := t.TempDir()
	certificates, err := transport.LoadOrCreate(filepath.Join(dir, "cert.der"), filepath.Join(dir, "key.der"),
		transport.DefaultNames("router", nil), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := transport.Listen(within(t), transport.ServerOptions{
		Addresses: []string{"127.0.0.1:0"}, Certificates: certificates, Secret: transport.Secret{1},
	})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept(context.Background())
			if err != nil {
				return
			}
			serving.Go(func() { s.ServeConn(conn) })
		}
	})
	t.Cleanup(func() {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
		s.Close()
		serving.Wait()
	})
	return transport.DialOptions{Address: listener.Addrs()[0].String(), Trust: transport.TrustPin(certificates.Pin())}
}

func dial(t testing.TB, o transport.DialOptions) transport.Conn {
	t.Helper()
	conn, err := transport.Dial(within(t), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(transport.CloseNormal, "") })
	return conn
}

// request returns a whole request frame.
func request(method qpcpb.MethodID, id uint32, message proto.Message) []byte {
	payload, err := proto.Marshal(message)
	if err != nil {
		panic(err)
	}
	return append(frame.AppendRequestHeader(nil, uint16(method), id, uint32(len(payload))), payload...)
}

// answer is a response as it came.
type answer struct {
	status qpcpb.Status
	id     uint32
	code   string
	body   []byte
}

// parseAnswer reads exactly one well-formed response.
func parseAnswer(b []byte) (a answer, err error) {
	r := bytes.NewReader(b)
	header, err := frame.ReadResponseHeader(r)
	if err != nil {
		return a, err
	}
	a = answer{status: qpcpb.Status(header.Status), id: header.RequestID}
	if a.body, err = frame.ReadPayload(r, header.Length, frame.MaxPayload, nil); err != nil {
		return a, err
	}
	if a.status != qpcpb.StatusOK {
		e := parseError(header.Status, a.body)
		a.code = e.Word
		if e.Code == qpcpb.CodeUnspecified || e.Code.Status() != a.status || e.Message == "" {
			err = errors.New("the error payload is not one of ours: " + e.Error())
		}
	}
	return a, err
}

// open opens a stream and writes b, then FIN when fin is set.
func open(t testing.TB, conn transport.Conn, b []byte, fin bool) transport.Stream {
	t.Helper()
	stream, err := conn.OpenStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	// A server that refuses early makes these fail; its answer counts.
	_, _ = stream.Write(b)
	if fin {
		_ = stream.Close()
	}
	return stream
}

// finish reads the answer of a stream.
func finish(t testing.TB, stream transport.Stream) answer {
	t.Helper()
	b, err := io.ReadAll(stream)
	if err != nil {
		t.Fatalf("reading the answer: %v (after % x)", err, b)
	}
	a, err := parseAnswer(b)
	if err != nil {
		t.Fatalf("% x: %v", b, err)
	}
	return a
}

// exchange sends one whole stream and reads its answer.
func exchange(t testing.TB, conn transport.Conn, b []byte) answer {
	t.Helper()
	return finish(t, open(t, conn, b, true))
}

func wantCode(t testing.TB, err error, code qpcpb.Code) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code || e.Status != code.Status() {
		t.Fatalf("got %v, want %s", err, code.Word())
	}
}

// whoami calls Health and returns who the server believes the caller to be.
func whoami(t testing.TB, c *Client) string {
	t.Helper()
	var response qpcpb.HealthResponse
	if err := c.Call(within(t), qpcpb.MethodHealth, &qpcpb.HealthRequest{}, &response); err != nil {
		t.Fatal(err)
	}
	return response.Status
}

func wantClosed(t testing.TB, conn transport.Conn, code transport.CloseCode) {
	t.Helper()
	select {
	case <-conn.Context().Done():
	case <-time.After(patience):
		t.Fatal("the connection stays open")
	}
	got, reason, remote, ok := transport.CloseError(context.Cause(conn.Context()))
	if !ok || got != code || !remote {
		t.Fatalf("closed with %v %q (remote %v, ok %v), want %v", got, reason, remote, ok, code)
	}
}

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
