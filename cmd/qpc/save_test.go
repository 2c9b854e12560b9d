package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestCleanName(t *testing.T) {
	for name, want := range map[string]string{
		"holiday.jpg":                           "holiday.jpg",
		"Grüße aus Köln.pdf":                    "Grüße aus Köln.pdf",
		"archive.tar.gz":                        "archive.tar.gz",
		"../../etc/passwd":                      "passwd",
		"/etc/passwd":                           "passwd",
		`C:\Windows\system32\x.d`:               "x.d",
		"..":                                    "file",
		".":                                     "file",
		"":                                      "file",
		"a/":                                    "file",
		".bashrc":                               "bashrc",
		"...hidden":                             "hidden",
		"-rf":                                   "rf",
		"~root":                                 "root",
		"a\x00b":                                "a_b",
		"a\nb\x1b[31m":                          "a_b_[31m",
		"gpj.\u202eexe.txt":                     "gpj._exe.txt",
		"stream:ads":                            "stream_ads",
		"dots. . .":                             "dots",
		"\xff\xfe.bin":                          "__.bin",
		strings.Repeat("a", 300):                strings.Repeat("a", 200),
		strings.Repeat("ä", 300):                strings.Repeat("ä", 100),
		"x" + strings.Repeat("ä", 300) + ".png": "x" + strings.Repeat("ä", 97) + ".png",
	} {
		if got := cleanName(name); got != want {
			t.Errorf("%q becomes %q, want %q", name, got, want)
		}
	}
}

// Whatever a sender calls a file, it gets a name in the directory.
func FuzzCleanName(f *testing.F) {
	for _, seed := range []string{"../x", `a\..\b`, ".\u202e", strings.Repeat("\u00e4.", 300), "a/.", "CON", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := cleanName(name)
		if got == "" || len(got) > maxSavedName || strings.HasPrefix(got, ".") || strings.ContainsAny(got, "/\\\x00") ||
			!utf8.ValidString(got) || !filepath.IsLocal(got) || strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("%q becomes %q", name, got)
		}
		if filepath.Base(numbered(got, 7)) != numbered(got, 7) {
			t.Errorf("%q becomes %q with a number", name, numbered(got, 7))
		}
	})
}

func TestTakenNamesGetANumber(t *testing.T) {
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	// A link that leads elsewhere is a taken name, and is not followed.
	if err := os.Symlink(filepath.Join(t.TempDir(), "elsewhere"), filepath.Join(dir, "a (2).txt")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a.txt", "a (3).txt", "a (4).txt"} {
		if err := root.WriteFile("part", []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := settle(root, "part", "a.txt")
		if err != nil || got != want {
			t.Errorf("saved as %q, %v, want %q", got, err, want)
		}
		content, err := root.ReadFile(got)
		if err != nil || string(content) != want {
			t.Errorf("%s holds %q, %v", got, content, err)
		}
		if _, err := root.Stat("part"); err == nil {
			t.Error("the part stays")
		}
	}
}
