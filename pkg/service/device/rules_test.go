package device

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/quicprochat/qpcd/pkg/rpc"
)

// FuzzCheckName: what is accepted is safe to print on one line.
func FuzzCheckName(f *testing.F) {
	for _, s := range []string{"", "phone", "a\x00", "\xff", "a\u2028b", strings.Repeat("ü", 65), "👩‍👩‍👧"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		err := checkName(name)
		if err != nil {
			if rpc.CodeOf(err) == 0 {
				t.Errorf("%v is no answer", err)
			}
			return
		}
		if !utf8.ValidString(name) || len(name) == 0 || utf8.RuneCountInString(name) > MaxName ||
			strings.ContainsAny(name, "\x00\n\r\t\x1b\x7f\u0085\u2028\u2029") {
			t.Errorf("%q was accepted", name)
		}
	})
}
