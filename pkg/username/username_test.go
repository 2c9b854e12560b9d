package username_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/pkg/username"
)

func TestFold(t *testing.T) {
	tests := []struct{ name, want string }{
		{"alice", "alice"},
		{"Alice", "alice"},
		{"ＡＬＩＣＥ", "alice"}, // full width
		{"Zoë", "zoë"},
		{"Zoe\u0308", "zoë"},
		{"Ωmega", "ωmega"},
		{"太郎", "太郎"},
		{"a.b_c-9", "a.b_c-9"},
		{"9lives", "9lives"},
		{strings.Repeat("ü", 32), strings.Repeat("ü", 32)},
	}
	for _, test := range tests {
		got, err := username.Fold(test.name)
		if err != nil || got != test.want {
			t.Errorf("Fold(%q) = %q, %v, want %q", test.name, got, err, test.want)
		}
	}
	for _, name := range []string{
		"", " ", "a b", "a@home", ".a", "-a", "_a", "a\x00b", "a\nb", "a/b", "a'b", "\xff", "a\u200db", "😀",
		strings.Repeat("a", 33), strings.Repeat("a", 1<<20),
	} {
		if got, err := username.Fold(name); !errors.Is(err, username.ErrInvalid) {
			t.Errorf("Fold(%.40q) = %q, %v, want ErrInvalid", name, got, err)
		}
	}
}

func FuzzFold(f *testing.F) {
	f.Add("Alice")
	f.Add("Zoe\u0308")
	f.Fuzz(func(t *testing.T, name string) {
		folded, err := username.Fold(name)
		if err != nil {
			return
		}
		again, err := username.Fold(folded)
		if err != nil || again != folded {
			t.Errorf("Fold(%q) = %q, and Fold of that = %q, %v", name, folded, again, err)
		}
	})
}
