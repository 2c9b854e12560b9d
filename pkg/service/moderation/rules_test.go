package moderation

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/quicprochat/qpcd/pkg/rpc"
)

func FuzzCheckReason(f *testing.F) {
	for _, s := range []string{"", "spam", "a\x00", "\xff", "a\u2028b", strings.Repeat("ü", 201), "\ufffd"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, reason string) {
		err := checkReason(reason)
		if err != nil {
			if rpc.CodeOf(err) == 0 {
				t.Errorf("%v is no answer", err)
			}
			return
		}
		if !utf8.ValidString(reason) || utf8.RuneCountInString(reason) > MaxReason || strings.ContainsAny(reason, "\x00\n\r\t\x1b\x7f\u0085\u2028\u2029") {
			t.Errorf("%q was accepted", reason)
		}
	})
}
