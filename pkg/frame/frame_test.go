package frame_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/quicprochat/qpcd/pkg/frame"
)

func TestLayouts(t *testing.T) {
	tests := []struct {
		name string
		got  []byte
		want []byte
	}{
		{"request", frame.AppendRequestHeader(nil, 0x00c8, 0x01020304, 5), []byte{0x00, 0xc8, 1, 2, 3, 4, 0, 0, 0, 5}},
		{"response", frame.AppendResponseHeader(nil, 8, 0x01020304, 5), []byte{8, 1, 2, 3, 4, 0, 0, 0, 5}},
		{"push", frame.AppendPushHeader(nil, 6, 0x00400000), []byte{0, 6, 0, 0x40, 0, 0}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if !bytes.Equal(test.got, test.want) {
				t.Errorf("got % x, want % x", test.got, test.want)
			}
		})
	}
}

func TestReadBackWhatWasAppended(t *testing.T) {
	request, err := frame.ReadRequestHeader(bytes.NewReader(frame.AppendRequestHeader(nil, 1030, 7, 9)))
	if want := (frame.RequestHeader{Method: 1030, RequestID: 7, Length: 9}); err != nil || request != want {
		t.Errorf("request: got %+v, %v, want %+v", request, err, want)
	}
	response, err := frame.ReadResponseHeader(bytes.NewReader(frame.AppendResponseHeader(nil, 12, 7, 9)))
	if want := (frame.ResponseHeader{Status: 12, RequestID: 7, Length: 9}); err != nil || response != want {
		t.Errorf("response: got %+v, %v, want %+v", response, err, want)
	}
	push, err := frame.ReadPushHeader(bytes.NewReader(frame.AppendPushHeader(nil, 3, 9)))
	if want := (frame.PushHeader{Event: 3, Length: 9}); err != nil || push != want {
		t.Errorf("push: got %+v, %v, want %+v", push, err, want)
	}
}

func TestHeaderCutShort(t *testing.T) {
	whole := frame.AppendRequestHeader(nil, 1, 2, 3)
	for n := range whole {
		if _, err := frame.ReadRequestHeader(bytes.NewReader(whole[:n])); !errors.Is(err, frame.ErrTruncated) {
			t.Errorf("%d bytes: got %v, want ErrTruncated", n, err)
		}
	}
}

func TestReadPayload(t *testing.T) {
	big := bytes.Repeat([]byte("qpc"), 100_000)
	tests := []struct {
		name   string
		stream []byte
		length uint32
		limit  uint32
		want   error
	}{
		{"empty", nil, 0, 10, nil},
		{"exact", []byte("hello"), 5, 5, nil},
		{"large", big, uint32(len(big)), frame.MaxPayload, nil},
		{"ends early", []byte("hell"), 5, 10, frame.ErrTruncated},
		{"nothing at all", nil, 5, 10, frame.ErrTruncated},
		{"goes on", []byte("hello!"), 5, 10, frame.ErrTrailing},
		{"goes on after nothing", []byte("!"), 0, 10, frame.ErrTrailing},
		{"above the limit", nil, 11, 10, frame.ErrTooLarge},
		{"largest declared", nil, 1<<32 - 1, frame.MaxPayload, frame.ErrTooLarge},
	}
	readers := map[string]func([]byte) io.Reader{
		"whole":         func(b []byte) io.Reader { return bytes.NewReader(b) },
		"byte by byte":  func(b []byte) io.Reader { return iotest.OneByteReader(bytes.NewReader(b)) },
		"EOF with data": func(b []byte) io.Reader { return iotest.DataErrReader(bytes.NewReader(b)) },
	}
	for _, test := range tests {
		for name, reader := range readers {
			for _, scratch := range [][]byte{nil, make([]byte, 0, 3), make([]byte, 0, 1<<16)} {
				got, err := frame.ReadPayload(reader(test.stream), test.length, test.limit, scratch)
				if !errors.Is(err, test.want) {
					t.Errorf("%s, %s: got error %v, want %v", test.name, name, err, test.want)
				}
				if test.want == nil && !bytes.Equal(got, test.stream) {
					t.Errorf("%s, %s: payload differs", test.name, name)
				}
			}
		}
	}
}

// A peer who declares much and sends nothing must not cost what it declared.
func TestDeclaredLengthAloneCostsLittle(t *testing.T) {
	cost := testing.AllocsPerRun(1, func() {
		limited := io.LimitReader(bytes.NewReader(make([]byte, 100)), 100)
		if _, err := frame.ReadPayload(limited, frame.MaxPayload, frame.MaxPayload, nil); !errors.Is(err, frame.ErrTruncated) {
			t.Fatal(err)
		}
	})
	if cost > 5 {
		t.Errorf("%v allocations", cost)
	}
	buffer := make([]byte, 0, 8)
	payload, err := frame.ReadPayload(bytes.NewReader(make([]byte, 5000)), 5000, frame.MaxPayload, buffer)
	if err != nil || cap(payload) > 16<<10 {
		t.Errorf("capacity %d after 5,000 bytes, %v", cap(payload), err)
	}
}

func TestReaderErrorsPassThrough(t *testing.T) {
	broken := errors.New("broken")
	if _, err := frame.ReadRequestHeader(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := frame.ReadPayload(iotest.ErrReader(broken), 4, 10, nil); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := frame.ReadPayload(iotest.ErrReader(broken), 0, 10, nil); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(append(frame.AppendRequestHeader(nil, 200, 1, 5), "hello"...))
	f.Add(frame.AppendRequestHeader(nil, 802, 1, 0))
	f.Add(frame.AppendRequestHeader(nil, 0xffff, 0xffffffff, 0xffffffff))
	f.Add([]byte{1, 0, 32})
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		header, err := frame.ReadRequestHeader(r)
		if err != nil {
			return
		}
		payload, err := frame.ReadPayload(r, header.Length, frame.MaxPayload, nil)
		if err != nil {
			return
		}
		again := append(frame.AppendRequestHeader(nil, header.Method, header.RequestID, uint32(len(payload))), payload...)
		if !bytes.Equal(again, stream) {
			t.Errorf("read %x, wrote %x", stream, again)
		}
	})
}

func FuzzResponseAndPush(f *testing.F) {
	f.Add(append(frame.AppendResponseHeader(nil, 0, 1, 2), "ok"...))
	f.Add(append(frame.AppendPushHeader(nil, 1, 2), "ok"...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bytes.NewReader(stream)
		if header, err := frame.ReadResponseHeader(r); err == nil {
			if payload, err := frame.ReadPayload(r, header.Length, frame.MaxPayload, nil); err == nil {
				again := append(frame.AppendResponseHeader(nil, header.Status, header.RequestID, header.Length), payload...)
				if !bytes.Equal(again, stream) {
					t.Errorf("read %x, wrote %x", stream, again)
				}
			}
		}
		r = bytes.NewReader(stream)
		if header, err := frame.ReadPushHeader(r); err == nil {
			if payload, err := frame.ReadPayload(r, header.Length, frame.MaxPayload, nil); err == nil {
				again := append(frame.AppendPushHeader(nil, header.Event, header.Length), payload...)
				if !bytes.Equal(again, stream) {
					t.Errorf("read %x, wrote %x", stream, again)
				}
			}
		}
	})
}
