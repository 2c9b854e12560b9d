package client_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// A liar stands where the server does and changes its answers.
type liar struct {
	t    *testing.T
	mu   sync.Mutex
	lies map[qpcpb.MethodID]lie
	told map[qpcpb.MethodID]int // lies told so far
}

// A lie is another answer to a request, or an error.
type lie func(request, response []byte) ([]byte, qpcpb.Code)

func newLiar(t *testing.T) *liar {
	return &liar{t: t, lies: make(map[qpcpb.MethodID]lie), told: make(map[qpcpb.MethodID]int)}
}

// about makes the liar change answers to a method; nil lets it be.
func (l *liar) about(method qpcpb.MethodID, f lie) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lies[method] = f
}

func (l *liar) times(method qpcpb.MethodID) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told[method]
}

// change is a lie that changes the decoded answer.
func change[M any, P interface {
	*M
	proto.Message
}](t *testing.T, f func(P)) lie {
	return func(_, response []byte) ([]byte, qpcpb.Code) {
		m := P(new(M))
		if err := proto.Unmarshal(response, m); err != nil {
			t.Error(err)
		}
		f(m)
		changed, err := proto.Marshal(m)
		if err != nil {
			t.Error(err)
		}
		return changed, qpcpb.CodeUnspecified
	}
}

// refuse is a lie that answers with an error.
func refuse(code qpcpb.Code) lie {
	return func(_, _ []byte) ([]byte, qpcpb.Code) { return nil, code }
}

// between puts the liar on a connection.
func (l *liar) between(conn transport.Conn) transport.Conn { return &liarConn{conn, l} }

type liarConn struct {
	transport.Conn
	liar *liar
}

func (c *liarConn) OpenStream(ctx context.Context) (transport.Stream, error) {
	s, err := c.Conn.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	return &liarStream{Stream: s, liar: c.liar}, nil
}

// liarStream lets the request pass, and reads the answer whole before it gives
// it on.
type liarStream struct {
	transport.Stream
	liar    *liar
	request []byte
	answer  io.Reader
}

func (s *liarStream) Write(b []byte) (int, error) {
	s.request = append(s.request, b...)
	return s.Stream.Write(b)
}

func (s *liarStream) Read(b []byte) (int, error) {
	if s.answer == nil {
		method := qpcpb.MethodID(0)
		if resumption := s.ID() == 0 && s.request[0] == 1; !resumption {
			method = qpcpb.MethodID(binary.BigEndian.Uint16(s.request))
		}
		s.liar.mu.Lock()
		f := s.liar.lies[method]
		s.liar.mu.Unlock()
		if s.answer = s.Stream; f != nil {
			whole, err := io.ReadAll(s.Stream)
			if err != nil {
				return 0, err
			}
			s.answer = bytes.NewReader(s.lie(f, whole))
			s.liar.mu.Lock()
			s.liar.told[method]++
			s.liar.mu.Unlock()
		}
	}
	return s.answer.Read(b)
}

func (s *liarStream) lie(f lie, whole []byte) []byte {
	r := bytes.NewReader(whole)
	header, err := frame.ReadResponseHeader(r)
	if err != nil {
		s.liar.t.Error(err)
		return whole
	}
	payload := whole[len(whole)-r.Len():]
	changed, code := f(s.request[frame.RequestHeaderSize:], payload)
	status := uint8(qpcpb.StatusOK)
	if code != qpcpb.CodeUnspecified {
		status = uint8(code.Status())
		if changed, err = proto.Marshal(&qpcpb.Error{Code: code.Word(), Message: "so it is"}); err != nil {
			s.liar.t.Error(err)
		}
	}
	return append(frame.AppendResponseHeader(nil, status, header.RequestID, uint32(len(changed))), changed...)
}
