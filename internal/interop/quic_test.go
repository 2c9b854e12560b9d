package interop_test

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/internal/interop/outside"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// quiche is a QUIC client of another make.
type quiche struct {
	t    *testing.T
	node *outside.Node
}

// connect returns the certificate that the server showed.
func (q quiche) connect(h *house, alpn string) ([]byte, error) {
	q.t.Helper()
	var answer struct{ Certificate hexBytes }
	err := q.node.Call("connect", map[string]any{"host": h.addr.Addr().String(), "port": h.addr.Port(), "alpn": alpn}, &answer)
	return answer.Certificate, err
}

// exchange sends bytes on a stream of their own and returns the answer.
func (q quiche) exchange(request []byte) (stream int, response []byte) {
	q.t.Helper()
	var answer struct {
		ID    int
		Bytes hexBytes
	}
	if err := q.node.Call("exchange", map[string]any{"bytes": hexBytes(request)}, &answer); err != nil {
		q.t.Fatal(err)
	}
	return answer.ID, answer.Bytes
}

// hexBytes is bytes that JSON carries as hex.
type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, b), nil }

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.AppendDecode(nil, text)
	return err
}

// A client on another QUIC and TLS stack (quiche and BoringSSL), which knows
// nothing of ours but PROTOCOL: the bytes are written out here.
func TestQUIC(t *testing.T) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		outside.Missing(t, "the lock file of quiche knows its program for linux/amd64 only")
	}
	q := quiche{t, outside.Start(t, "quiche", "peer.mjs")}
	h := newHouse(t)
	h.start(home(), home().build(t))
	defer h.stop()

	// Refused with no_application_protocol: 0x0100 + alert 120 (RFC 9001, section
	// 4.8). quiche takes three seconds to drain such a connection, hence one.
	if _, err := q.connect(h, "qpc2"); err == nil || !strings.Contains(err.Error(), "code 376") {
		t.Errorf("a connection with ALPN qpc2: %v", err)
	}

	shown, err := q.connect(h, "qpc")
	if err != nil {
		t.Fatal(err)
	}
	stored, err := os.ReadFile(filepath.Join(h.data, "server-cert.der"))
	if err != nil || !bytes.Equal(shown, stored) {
		t.Errorf("the server showed another certificate than it keeps (%v)", err)
	}
	if _, err := x509.ParseCertificate(shown); err != nil {
		t.Error(err)
	}

	// Health twice, on streams 0 and 4: an ordinary request may come on either.
	for i, id := range []uint32{0, 0xfedcba98} {
		request := []byte{0x03, 0x22} // 802
		request = binary.BigEndian.AppendUint32(request, id)
		request = binary.BigEndian.AppendUint32(request, 0)
		stream, response := q.exchange(request)
		if stream != 4*i {
			t.Errorf("stream %d, want %d", stream, 4*i)
		}
		if len(response) < 9 {
			t.Fatalf("an answer of %d bytes", len(response))
		}
		payload := response[9:]
		want := binary.BigEndian.AppendUint32([]byte{0}, id)
		want = binary.BigEndian.AppendUint32(want, uint32(len(payload)))
		if !bytes.Equal(response[:9], want) {
			t.Errorf("the header is % x, want % x", response[:9], want)
		}
		var health qpcpb.HealthResponse
		if err := proto.Unmarshal(payload, &health); err != nil || health.Status != "ok" || health.Version != "interop" {
			t.Errorf("%v, %v", &health, err)
		}
	}

	// A method that wants a session: status 2 with the request's id.
	_, response := q.exchange([]byte{0x00, 0xc8, 0, 0, 0, 7, 0, 0, 0, 0}) // 200
	if !bytes.HasPrefix(response, []byte{2, 0, 0, 0, 7}) {
		t.Errorf("Enqueue without a session: % x", response)
	}
	// Stream 0 alone resumes sessions; elsewhere 0x01 begins a request, whose
	// header is cut short here.
	_, response = q.exchange([]byte{0x01, 0x00, 0x00})
	if !bytes.HasPrefix(response, []byte{1, 0, 0, 0, 0}) {
		t.Errorf("a header cut short: % x", response)
	}
	if err := q.node.Call("close", nil, nil); err != nil {
		t.Error(err)
	}

	// The handshake of stream 0 with a token that nobody has.
	if _, err := q.connect(h, "qpc"); err != nil {
		t.Fatal(err)
	}
	stream, response := q.exchange(append([]byte{0x01, 0x00, 32}, make([]byte, 32)...))
	if stream != 0 || !bytes.Equal(response, []byte{0x01, 0x01}) {
		t.Errorf("stream %d answers % x, want 01 01", stream, response)
	}
	if _, response = q.exchange([]byte{0x03, 0x22, 0, 0, 0, 9, 0, 0, 0, 0}); !bytes.HasPrefix(response, []byte{0, 0, 0, 0, 9}) {
		t.Errorf("Health after a refused session: % x", response)
	}
	if err := q.node.Call("close", nil, nil); err != nil {
		t.Error(err)
	}
}
