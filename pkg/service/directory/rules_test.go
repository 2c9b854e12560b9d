package directory

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/quicprochat/qpcd/pkg/username"
)

// FuzzFoldPart: a whole name folds to the form in which it is stored, anything
// else to some valid text.
func FuzzFoldPart(f *testing.F) {
	for _, s := range []string{"", "Alice", "ＡＬ", "א1", "a\x00", "@", "\xff", "e\u0301", "İ", strings.Repeat("a", 600)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := foldPart(s)
		if folded, err := username.Fold(s); err == nil && got != folded {
			t.Errorf("%q gives %q, its name is %q", s, got, folded)
		}
		if utf8.ValidString(s) && !utf8.ValidString(got) {
			t.Errorf("%q gives invalid %q", s, got)
		}
	})
}

func TestFoldPart(t *testing.T) {
	for part, want := range map[string]string{
		"":            "",
		"Al":          "al",
		"Ａｌ":          "al",  // full width
		"_Ａe\u0301":   "_aé", // no name begins so: folded without the checks
		"_ｶ":          "_カ",  // half width
		"א1":          "א1",
		"\x00A":       "\x00a",
		"two Words":   "two words",
		"a@B.example": "a@b.example",
	} {
		if got := foldPart(part); got != want {
			t.Errorf("%q gives %q, want %q", part, got, want)
		}
	}
}
