package ucifile

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// libuciCase is a file and what libuci makes of it.
type libuciCase struct {
	Name     string
	File     string
	Error    bool
	Sections []libuciSection
}

type libuciSection struct {
	Type    string         `json:"type"`
	Name    *string        `json:"name"`
	Options map[string]any `json:"options"`
}

// libuciCases holds the cases of the project's uci-cases.json and the further
// ones recorded from libuci (commit 66127cd) with a small C program.
func libuciCases(t testing.TB) []libuciCase {
	t.Helper()
	var all []libuciCase
	for _, file := range []string{"testdata/uci-cases.json", "testdata/libuci-more.json"} {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var cases []libuciCase
		if err := json.Unmarshal(raw, &cases); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, cases...)
	}
	return all
}

// asLibuci shapes a file like the recorded answers.
func asLibuci(f *File) []libuciSection {
	out := []libuciSection{}
	for _, s := range f.Sections {
		section := libuciSection{Type: s.Type, Options: map[string]any{}}
		if !s.Anonymous {
			section.Name = &s.Name
		}
		for _, o := range s.Options {
			if !o.List {
				section.Options[o.Name] = o.Values[0].Text
				continue
			}
			list := []any{}
			for _, v := range o.Values {
				list = append(list, v.Text)
			}
			section.Options[o.Name] = list
		}
		out = append(out, section)
	}
	return out
}

func TestParseAgreesWithLibuci(t *testing.T) {
	cases := libuciCases(t)
	if len(cases) < 35+30 {
		t.Fatalf("only %d cases; the recorded files are not whole", len(cases))
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			f, err := Parse("/etc/config/x", []byte(c.File))
			if c.Error {
				var se *SyntaxError
				if !errors.As(err, &se) || se.Line == 0 || !strings.HasPrefix(err.Error(), "/etc/config/x line ") {
					t.Fatalf("Parse = %v, %v; want a refusal with file and line", f, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.Sections, asLibuci(f)); diff != "" {
				t.Errorf("differs from libuci (-libuci +ours):\n%s", diff)
			}
		})
	}
}

func TestRefusalsNameLineAndReason(t *testing.T) {
	many := func(n int, line string) string { return strings.Repeat(line, n) }
	cases := []struct{ name, text, want string }{
		{"keyword", "config a 'b'\n\toptoin c 1\n", `f line 2: "optoin" is not a keyword; valid is package, config, option or list, then a blank`},
		{"keyword alone", "config", `f line 1: "config" is followed by nothing`},
		{"no name", "config a 'b'\n\toption # c\n", `f line 2: a name is missing after the keyword`},
		{"option name", "config a 'b'\n\n\toption c-d 1\n", `f line 3: option name "c-d" is not valid; valid are letters, digits and '_'`},
		{"section name", "config a 'b.c'\n", `f line 1: section name "b.c" is not valid; valid are letters, digits and '_'`},
		{"package name", "package 'b.c'\n", `f line 1: package name "b.c" is not valid; valid are letters, digits and '_'`},
		{"section type", "config 'a b'\n", `f line 1: section type "a b" holds a character that is not printable ASCII`},
		{"type change", "config a 'm'\n\nconfig b 'm'\n", `f line 3: section 'm' was of type 'a' in line 1 and is of type 'b' here`},
		{"quote", "config a 'b'\n\toption c 'x\n\toption d 1\n", `f line 2: the quote ' opened here is never closed`},
		{"extra", "config a 'b'\n\toption c x y\n", `f line 2: too many arguments: "y" is left over; put a value with blanks in quotes`},
		{"before section", "\noption c x\n", `f line 2: an option stands before the first config line`},
		{"nul", "config a 'b'\n\toption c '\x00'\n", `f line 2: a NUL byte; a UCI file is text`},
		{"size", many(MaxSize+1, "#"), `f: the file is larger than 64 KiB`},
		{"sections", many(257, "config a\n"), `f line 257: more than 256 sections in one file`},
		{"entries", "config a\n" + many(2049, "list b c\n"), `f line 2050: more than 2048 options in one file`},
		{"made-up name taken", "config a 'cfg02b606'\nconfig a\n", `f line 2: this section without a name would be called 'cfg02b606' like the one in line 1; give it a name`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("f", []byte(c.text))
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestLargestFilesAreRead(t *testing.T) {
	for name, text := range map[string]string{
		"comment":  strings.Repeat("#", MaxSize),
		"sections": strings.Repeat("config a\n", maxSections),
		"entries":  "config a\n" + strings.Repeat("list b c\n", maxEntries),
		"value":    "config a\n\toption b '" + strings.Repeat("'\"'\"'", 6000) + "'\n",
	} {
		if _, err := Parse(name, []byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLinesAreWhereStatementsStart(t *testing.T) {
	f, err := Parse("f", []byte("# c\nconfig a 'b'\n\toption c 'x\ny'\n\tlist d 1\n\n\tlist d 2\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Option{
		{Name: "c", Values: []Value{{"x\ny", 3}}},
		{Name: "d", List: true, Values: []Value{{"1", 5}, {"2", 7}}},
	}
	s, ok := f.Section("b")
	if !ok || s.Line != 2 {
		t.Fatalf("section = %+v, %v", s, ok)
	}
	if diff := cmp.Diff(want, s.Options); diff != "" {
		t.Error(diff)
	}
}

// A jail may come without /proc; the reader is then fed from a file that does
// not stay.
func TestLoadWithoutProc(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	tree, config, err := load("/nonexistent", "config a 'b'\n\toption c '0:x'\n")
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := tree.GetLast(config, "b", "c"); !ok || got != "0:x" {
		t.Errorf("got %q, %v", got, ok)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}

	t.Setenv("TMPDIR", "/nonexistent")
	if _, _, err := load("/nonexistent", ""); err == nil {
		t.Error("no error without /proc and without a temporary directory")
	}
}

// A large canonical text must not block on the pipe's capacity, not even when
// go-uci gives up early.
func TestLoadPipeBeyondItsCapacity(t *testing.T) {
	big := "config a 'b'\n\toption c '" + strings.Repeat("x", 1<<20) + "'\n"
	tree, config, err := load(procFD, big)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := tree.GetLast(config, "b", "c"); len(got) != 1<<20 {
		t.Errorf("read %d bytes", len(got))
	}
	if _, _, err := loadPipe("/nonexistent", big); err == nil {
		t.Error("no error from a directory that is not there")
	}
}

// export writes f in libuci's own quoting, as `uci export` would.
func export(f *File) string {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	var b strings.Builder
	for _, s := range f.Sections {
		fmt.Fprintf(&b, "\nconfig %s", quote(s.Type))
		if !s.Anonymous {
			fmt.Fprintf(&b, " %s", quote(s.Name))
		}
		b.WriteString("\n")
		for _, o := range s.Options {
			for _, v := range o.Values {
				keyword := "option"
				if o.List {
					keyword = "list"
				}
				fmt.Fprintf(&b, "\t%s %s %s\n", keyword, o.Name, quote(v.Text))
			}
		}
	}
	return b.String()
}

// withoutLines drops what a rewritten file may change.
func withoutLines(f *File) *File {
	out := &File{}
	for _, s := range f.Sections {
		s.Line = 0
		options := s.Options
		s.Options = nil
		for _, o := range options {
			values := o.Values
			o.Values = nil
			for _, v := range values {
				o.Values = append(o.Values, Value{Text: v.Text})
			}
			s.Options = append(s.Options, o)
		}
		out.Sections = append(out.Sections, s)
	}
	return out
}

// FuzzParse checks that nothing panics, that a file read once and written in
// normal form reads the same again, and that the form made for go-uci says the
// same to our own grammar (Parse itself compares what go-uci returned).
func FuzzParse(f *testing.F) {
	for _, c := range libuciCases(f) {
		f.Add([]byte(c.File))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		first, err := Parse("f", text)
		if err != nil {
			var se *SyntaxError
			if !errors.As(err, &se) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			if strings.Contains(se.Reason, "UCI reader") {
				t.Fatalf("go-uci differs on %q: %v", text, err)
			}
			return
		}
		normal := export(first)
		if len(normal) > MaxSize {
			return
		}
		again, err := Parse("f", []byte(normal))
		if err != nil {
			t.Fatalf("normal form %q of %q: %v", normal, text, err)
		}
		if diff := cmp.Diff(withoutLines(first), withoutLines(again)); diff != "" {
			t.Fatalf("normal form %q of %q differs:\n%s", normal, text, diff)
		}
		carried, err := parseText("f", []byte(canonical(first)))
		if err != nil {
			if len(canonical(first)) > MaxSize {
				return
			}
			t.Fatalf("canonical form of %q: %v", text, err)
		}
		for i, s := range carried.Sections {
			for j, o := range s.Options {
				for k, v := range o.Values {
					got, err := decodeValue(v.Text, k)
					if want := first.Sections[i].Options[j].Values[k].Text; err != nil || got != want {
						t.Fatalf("carried %q as %q: %v", want, v.Text, err)
					}
				}
			}
		}
	})
}
