package ucifile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/digineo/go-uci/v2"
)

// procFD is where Linux shows a process its open files by number. A pipe read
// through it reaches go-uci, which knows only directories, without touching
// any disk: inside a jail or on a read-only root there may be nowhere to write.
const procFD = "/proc/self/fd"

// carry hands f to go-uci in canonical form, reads every value back and
// refuses the file if one differs.
func carry(name string, f *File) error {
	tree, config, err := load(procFD, canonical(f))
	if err != nil {
		return &SyntaxError{File: name, Reason: fmt.Sprintf("cannot be handed to the UCI reader: %v", err)}
	}
	for i := range f.Sections {
		s := &f.Sections[i]
		// Asking go-uci for an option of a section it does not know makes it
		// read its source again, which is closed by now: look first.
		names, err := tree.GetSections(config, encode(s.Type, '-'))
		if err != nil || !slices.Contains(names, s.Name) {
			return &SyntaxError{File: name, Line: s.Line, Reason: fmt.Sprintf("section '%s' does not survive the UCI reader; give it another name", s.Name)}
		}
		for j := range s.Options {
			o := &s.Options[j]
			got, _ := tree.Get(config, s.Name, o.Name)
			if len(got) != len(o.Values) {
				return misread(name, s, o, o.Values[0].Line)
			}
			for k := range got {
				text, err := decodeValue(got[k], k)
				if err != nil || text != o.Values[k].Text {
					return misread(name, s, o, o.Values[k].Line)
				}
			}
		}
	}
	return nil
}

func misread(file string, s *Section, o *Option, line int) error {
	return &SyntaxError{File: file, Line: line, Reason: fmt.Sprintf("option '%s' of section '%s' does not survive the UCI reader; write its value differently", o.Name, s.Name)}
}

// canonical writes f in the subset that go-uci reads correctly: one statement
// a line, every section named, every value single-quoted and encoded. The text
// is for memory only and never meant for a router's /etc/config.
func canonical(f *File) string {
	var b strings.Builder
	for i := range f.Sections {
		s := &f.Sections[i]
		fmt.Fprintf(&b, "config %s '%s'\n", encode(s.Type, '-'), s.Name)
		for j := range s.Options {
			o := &s.Options[j]
			keyword := "option"
			if o.List {
				keyword = "list"
			}
			for k, v := range o.Values {
				fmt.Fprintf(&b, "\t%s %s '%s'\n", keyword, o.Name, encodeValue(v.Text, k))
			}
		}
	}
	return b.String()
}

// encodeValue makes a value safe to carry. The index keeps equal list entries
// apart, which go-uci would drop, and keeps an empty one from vanishing.
func encodeValue(text string, index int) string {
	return strconv.Itoa(index) + ":" + encode(text, '%')
}

func decodeValue(carried string, index int) (string, error) {
	text, ok := strings.CutPrefix(carried, strconv.Itoa(index)+":")
	if !ok {
		return "", errors.New("index missing")
	}
	return decode(text, '%')
}

const hexDigits = "0123456789abcdef"

// encode replaces every byte but letters, digits and '_' by the escape byte
// and two hex digits.
func encode(s string, escape byte) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; isAlnum(c) || c == '_' {
			b.WriteByte(c)
		} else {
			b.WriteByte(escape)
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

func decode(s string, escape byte) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != escape {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errors.New("escape cut short")
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", fmt.Errorf("decoding an escape: %w", err)
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), nil
}

// load makes go-uci read text, through a pipe below fdDir where that exists,
// else through a file in a temporary directory that is gone on return.
func load(fdDir, text string) (tree uci.Tree, config string, err error) {
	tree, config, err = loadPipe(fdDir, text)
	if !errors.Is(err, fs.ErrNotExist) {
		return tree, config, err
	}
	dir, err := os.MkdirTemp("", "qpcd-uci-")
	if err != nil {
		return nil, "", fmt.Errorf("neither %s nor a temporary directory is there: %w", fdDir, err)
	}
	defer os.RemoveAll(dir)
	const file = "config"
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
		return nil, "", fmt.Errorf("writing a temporary file: %w", err)
	}
	tree = uci.NewTree(dir)
	if err := tree.LoadConfig(file, false); err != nil {
		return nil, "", fmt.Errorf("reading a temporary file: %w", err)
	}
	return tree, file, nil
}

func loadPipe(fdDir, text string) (uci.Tree, string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, "", fmt.Errorf("opening a pipe: %w", err)
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		// A failed write means that the reader gave up, and then it says why.
		_, _ = w.WriteString(text)
		_ = w.Close()
	}()
	tree := uci.NewTree(fdDir)
	config := strconv.Itoa(int(r.Fd()))
	err = tree.LoadConfig(config, false)
	// Without a reader the writer cannot block, so it always ends.
	_ = r.Close()
	<-written
	if err != nil {
		return nil, "", fmt.Errorf("reading a pipe: %w", err)
	}
	return tree, config, nil
}
