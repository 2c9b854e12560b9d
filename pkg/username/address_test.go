package username_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/pkg/username"
)

func TestParseAddress(t *testing.T) {
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 61)
	for in, want := range map[string]string{
		"alice": "alice", "Alice@Home.EXAMPLE": "alice@home.example", "ＡＬＩＣＥ@home": "alice@home",
		"zoë@192.0.2.1": "zoë@192.0.2.1", "a@" + long: "a@" + long,
	} {
		got, err := username.ParseAddress(in)
		if err != nil || got.String() != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", "@", "@home", "alice@", "alice@@home", "alice@home@b", "alice@-home", "alice@home-", "alice@.home", "alice@home.", "alice@a..b",
		"alice@hö", "alice@a b", "alice@a\nb", "alice@" + long + "d", "alice@" + strings.Repeat("a", 64), "a b@home", "alice @home",
		"alice@" + strings.Repeat("a", 1<<20), strings.Repeat("a", 1<<20) + "@home",
	} {
		if got, err := username.ParseAddress(in); !errors.Is(err, username.ErrInvalid) {
			t.Errorf("%.40q: got %q, %v, want ErrInvalid", in, got, err)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	f.Add("alice")
	f.Add("Zoe\u0308@Home.example")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := username.ParseAddress(s)
		if err != nil {
			return
		}
		again, err := username.ParseAddress(a.String())
		if err != nil || again != a {
			t.Errorf("%q is %q, and that is %q, %v", s, a, again, err)
		}
	})
}
