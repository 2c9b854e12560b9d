package server

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// FuzzDispatch sends any payload to any method, as somebody logged in. The
// answer is well-formed and never INTERNAL, and a payload that is no protobuf
// is refused as such.
func FuzzDispatch(f *testing.F) {
	s := newStage(f)
	rows := rows()
	for _, info := range qpcpb.Methods() {
		f.Add(uint16(info.ID), []byte{})
		if row, served := rows[info.ID]; served {
			c := s.user
			if row.who != nil {
				c = row.who(s)
			}
			f.Add(uint16(info.ID), marshal(f, row.valid(s, c)))
		}
	}
	f.Add(uint16(0), []byte("x"))
	f.Add(uint16(0x0100), []byte{0, 32})
	f.Add(uint16(1100), []byte{})
	u := s.settle(person("fuzzer"))
	f.Fuzz(func(t *testing.T, method uint16, payload []byte) {
		s.t = t              // what is opened here ends here
		s.sleep(time.Minute) // so that no limit of rate hides anything
		c := s.pipe()
		if c.Resume(within(t), u.token) != nil { // logged out, or deleted
			c = s.pipe().resume(s.settle(u))
		}
		id := qpcpb.MethodID(method)
		a, err := ask(c, id, payload)
		switch {
		case errors.Is(err, context.DeadlineExceeded) && id == qpcpb.MethodFetchWait:
		case err != nil:
			if c.Conn().Context().Err() == nil {
				t.Errorf("%v: %v", id, err)
			}
		case a.status == qpcpb.StatusInternal:
			t.Errorf("%v: %s", id, a.body)
		case a.status == qpcpb.StatusOK:
			info := qpcpb.LookupMethod(id)
			if proto.Unmarshal(payload, info.NewRequest()) != nil {
				t.Errorf("%v takes what is no protobuf", id)
			}
			if err := proto.Unmarshal(a.body, info.NewResponse()); err != nil {
				t.Errorf("%v: the answer does not parse: %v", id, err)
			}
		}
	})
}

// ask makes one call within a moment, in which every method but FetchWait
// answers.
func ask(c *client, id qpcpb.MethodID, payload []byte) (answer, error) {
	limit := patience
	if id == qpcpb.MethodFetchWait {
		limit = 20 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	stream, err := c.Conn().OpenStream(ctx)
	if err != nil {
		return answer{}, err
	}
	defer context.AfterFunc(ctx, func() {
		stream.CancelRead(0)
		stream.CancelWrite(0)
	})()
	_, _ = stream.Write(framed(id, payload)) // the server may refuse it before its end
	_ = stream.Close()
	a, err := read(stream)
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return a, err
}
