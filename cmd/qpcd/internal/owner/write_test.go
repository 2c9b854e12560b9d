package owner

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// What others wrote does not steer the terminal, nor break a table.
func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"жуля 1": "жуля 1", "a\x1b[2Jb": "a�[2Jb", "a\nb\tc": "a�b�c", "x\u202ey": "x�y", "\x7f\u009b": "��",
	} {
		if got := clean(in); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
	var b strings.Builder
	if err := listing(&b, []string{"A", "B"}, [][]string{{"one\n", "x"}, {"t", ""}}, ""); err != nil {
		t.Fatal(err)
	}
	if want := "A     B\none�  x\nt\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestFigures(t *testing.T) {
	got := []string{
		size(0), size(1023), size(1024), size(3 << 19), size(5 << 30), count(1, "call"), count(2, "call"),
		span(0), span(61 * time.Second), span(25 * time.Hour), span(3*time.Hour + 2*time.Minute), clock(int64(0)), clock(int64(-5)),
	}
	want := []string{"0 B", "1023 B", "1.0 KiB", "1.5 MiB", "5.0 GiB", "1 call", "2 calls", "0s", "1m1s", "1d1h", "3h2m", "never", "never"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Every field is there, numbers are numbers and keys are hexadecimal.
func TestObject(t *testing.T) {
	got := object((&qpcpb.GetAccountResponse{
		Devices:      []*qpcpb.Device{{DeviceId: []byte{0xab, 1}, RegisteredAt: 1 << 60}},
		BanExpiresAt: 7,
	}).ProtoReflect())
	want := map[string]any{
		"account": nil, "ban_reason": "", "ban_expires_at": uint64(7),
		"devices": []any{map[string]any{"device_id": "ab01", "device_name": "", "registered_at": uint64(1 << 60), "last_seen": uint64(0)}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
