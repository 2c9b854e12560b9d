package server

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/store"
)

// A bad is one stream that a caller sends, and the answer to it.
type bad struct {
	name   string
	stream []byte
	want   qpcpb.Code // CodeUnspecified: OK
	id     uint32
}

const requestID = 0xcafe

func framed(method qpcpb.MethodID, payload []byte) []byte {
	return append(frame.AppendRequestHeader(nil, uint16(method), requestID, uint32(len(payload))), payload...)
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// run sends one stream. Time passes between two of them, so that no limit of
// rate is met.
func (s *stage) run(t *testing.T, c *client, b bad) {
	t.Helper()
	s.sleep(s.pace)
	got, err := c.exchange(b.stream)
	if err != nil {
		t.Errorf("%s: %v", b.name, err)
		return
	}
	word := ""
	if len(b.stream) >= 2 {
		if info := qpcpb.LookupMethod(qpcpb.MethodID(binary.BigEndian.Uint16(b.stream))); info != nil && !declared(info, got.code) {
			t.Errorf("%s: %s is answered with %s, which its proto does not say", b.name, info.Name, got.code)
		}
	}
	if b.want != ok {
		word = b.want.Word()
	}
	if got.code != word || got.status != status(b.want) || got.id != b.id {
		t.Errorf("%s: got %v %s to request %#x, want %v %q to %#x (%.200q)", b.name, got.status, got.code, got.id, status(b.want), word, b.id, got.body)
	}
}

// declared reports whether a method may be answered with a code word: what
// docs/methods.md says is what happens.
func declared(info *qpcpb.MethodInfo, word string) bool {
	if word == "" {
		return true
	}
	code := qpcpb.CodeOf(word)
	if code == qpcpb.CodeUnauthenticated || code == qpcpb.CodeAdminRequired {
		return info.Access != qpcpb.Access_ACCESS_PUBLIC || slices.Contains(info.Errors, code)
	}
	return slices.Contains(info.Errors, code) || slices.Contains([]qpcpb.Code{
		qpcpb.CodeMalformed, qpcpb.CodeInvalidField, qpcpb.CodePayloadTooLarge, qpcpb.CodeBusy, qpcpb.CodeDraining,
		qpcpb.CodeDeadlineExceeded, qpcpb.CodeStorageFailed, qpcpb.CodeDiskFull, qpcpb.CodeInternal, qpcpb.CodeUnimplemented,
	}, code)
}

func status(code qpcpb.Code) qpcpb.Status {
	if code == ok {
		return qpcpb.StatusOK
	}
	return code.Status()
}

// refuse sends streams that are to be refused, and sees that the database is
// what it was.
func (s *stage) refuse(t *testing.T, c *client, all ...bad) {
	t.Helper()
	// Looking at everything is slow, so that it is done only where something
	// was committed: a transaction that began before still sees what was there.
	err := s.s.db.Read(t.Context(), func(tx *store.Tx) error {
		var one int
		if err := tx.QueryRow(`SELECT 1 FROM auth_account LIMIT 1`).Scan(&one); err != nil {
			return err
		}
		commits := s.s.db.Stats().Commits
		for _, b := range all {
			s.run(t, c, b)
		}
		if s.s.db.Stats().Commits == commits {
			return nil
		}
		before, err := dumpTx(tx)
		if err != nil {
			return err
		}
		for _, change := range changes(before, s.dump()) {
			t.Errorf("%s: a refused request changed %s", all[0].name, change)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Each method of the protocol as each wrong caller, and with everything that
// can be wrong with a request.
func TestBadInput(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.pace = time.Second
	rows := rows()
	for _, info := range qpcpb.Methods() {
		t.Run(info.Name, func(t *testing.T) {
			row, served := rows[info.ID]
			s.wrongCallers(t, info, served)
			if !served {
				return
			}
			known := info.NewRequest().ProtoReflect().Descriptor().Fields()
			for i := range known.Len() {
				if _, ok := row.fields[known.Get(i).Name()]; !ok {
					t.Errorf("no rule for the field %s", known.Get(i).Name())
				}
			}
			if len(row.fields) != known.Len() {
				t.Errorf("%d rules for %d fields", len(row.fields), known.Len())
			}
			s.pace = 2 * time.Minute
			if row.pace > 0 {
				s.pace = row.pace
			}
			who := row.who
			if who == nil {
				who = func(s *stage) *client { return s.user }
			}
			s.badFrames(t, info, row, who)
			s.badFields(t, info, row, who)
		})
	}
}

// wrongCallers calls a method as everybody who may not.
func (s *stage) wrongCallers(t *testing.T, info qpcpb.MethodInfo, served bool) {
	empty := []bad{{"empty", framed(info.ID, nil), qpcpb.CodeUnimplemented, requestID}}
	callers := map[string]*client{"stranger": s.stranger, "user": s.user, "admin": s.admin}
	for name, c := range callers {
		want := ok // what an empty request gets is another test's matter
		switch {
		case !served, info.Access == qpcpb.Access_ACCESS_PEER, info.Access == qpcpb.Access_ACCESS_LOCAL:
			want = qpcpb.CodeUnimplemented
		case info.Access == qpcpb.Access_ACCESS_PUBLIC, name == "admin":
		case name == "stranger":
			want = qpcpb.CodeUnauthenticated
		case info.Access == qpcpb.Access_ACCESS_ADMIN:
			want = qpcpb.CodeAdminRequired
		}
		if want != ok {
			empty[0].name, empty[0].want = "called by "+name, want
			s.refuse(t, c, empty...)
		}
	}
}

// badFrames sends the valid request cut, lengthened and changed as a whole.
func (s *stage) badFrames(t *testing.T, info qpcpb.MethodInfo, row row, who func(*stage) *client) {
	c := who(s)
	payload := marshal(t, row.valid(s, c))
	whole := framed(info.ID, payload)
	malformed := []bad{
		{"trailing byte", append(bytes.Clone(whole), 0), qpcpb.CodeMalformed, requestID},
		{"trailing copy", append(bytes.Clone(whole), whole...), qpcpb.CodeMalformed, requestID},
		{"field number 0", framed(info.ID, append(bytes.Clone(payload), 0x02, 0)), qpcpb.CodeMalformed, requestID},
		{"an end without a group", framed(info.ID, append(bytes.Clone(payload), 0x0c)), qpcpb.CodeMalformed, requestID},
		{"a length past the end", framed(info.ID, append(bytes.Clone(payload), 0x0a, 0xff, 0xff, 0xff, 0x7f)), qpcpb.CodeMalformed, requestID},
		{"half a varint", framed(info.ID, append(bytes.Clone(payload), 0xff)), qpcpb.CodeMalformed, requestID},
		{"one byte past the largest", frame.AppendRequestHeader(nil, uint16(info.ID), requestID, info.MaxRequest+1), tooLarge, requestID},
		{"the largest number", frame.AppendRequestHeader(nil, uint16(info.ID), requestID, 1<<32-1), tooLarge, requestID},
	}
	for _, n := range []int{0, 1, 9} {
		malformed = append(malformed, bad{"header cut short", whole[:n], qpcpb.CodeMalformed, 0})
	}
	if len(payload) > 0 {
		for _, n := range []int{frame.RequestHeaderSize, frame.RequestHeaderSize + len(payload)/2, len(whole) - 1} {
			malformed = append(malformed, bad{"payload cut short", whole[:n], qpcpb.CodeMalformed, requestID})
		}
	}
	s.refuse(t, c, malformed...)

	unknown := protowire.AppendTag(nil, 9999, protowire.BytesType)
	unknown = protowire.AppendString(unknown, "\xff not for you")
	unknown = protowire.AppendTag(unknown, 19_999, protowire.VarintType)
	unknown = protowire.AppendVarint(unknown, 1<<63)
	c = who(s)
	s.run(t, c, bad{"unknown fields before", framed(info.ID, append(bytes.Clone(unknown), marshal(t, row.valid(s, c))...)), row.answered, requestID})
	c = who(s)
	s.run(t, c, bad{"unknown fields after", framed(info.ID, append(marshal(t, row.valid(s, c)), unknown...)), row.answered, requestID})
	c = who(s)
	s.run(t, c, bad{"valid", framed(info.ID, marshal(t, row.valid(s, c))), row.answered, requestID})
}

// badFields sends the valid request with one field at a time changed.
func (s *stage) badFields(t *testing.T, info qpcpb.MethodInfo, row row, who func(*stage) *client) {
	fields := info.NewRequest().ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		var c *client
		for _, v := range row.fields[fd.Name()] {
			if c == nil || row.who != nil {
				c = who(s)
			}
			m := row.valid(s, c)
			v.set(m.ProtoReflect(), fd)
			b := bad{string(fd.Name()) + ": " + v.name, framed(info.ID, marshal(t, m)), v.want, requestID}
			if len(b.stream)-frame.RequestHeaderSize > int(info.MaxRequest) {
				b.want = tooLarge
			}
			if v.want == ok {
				s.run(t, c, b)
			} else {
				s.refuse(t, c, b)
			}
		}
		if fd.Kind() == protoreflect.StringKind {
			c = who(s)
			s.refuse(t, c, bad{string(fd.Name()) + ": not UTF-8", framed(info.ID, wrongUTF8(marshal(t, row.valid(s, c)), fd)), qpcpb.CodeMalformed, requestID})
		}
	}
}
