package ucifile

import (
	"bytes"
	"errors"
	"fmt"
)

// parseText builds the sections from raw text, by libuci's rules alone.
func parseText(name string, text []byte) (*File, error) {
	refuse := func(line int, format string, args ...any) error {
		return &SyntaxError{File: name, Line: line, Reason: fmt.Sprintf(format, args...)}
	}
	if len(text) > MaxSize {
		return nil, refuse(0, "the file is larger than %d KiB", MaxSize>>10)
	}
	if i := bytes.IndexByte(text, 0); i >= 0 {
		return nil, refuse(1+bytes.Count(text[:i], []byte{'\n'}), "a NUL byte; a UCI file is text")
	}
	b := builder{current: -1}
	err := statements(text, b.add)
	var le *lexError
	if errors.As(err, &le) {
		return nil, refuse(le.line, "%s", le.reason)
	}
	return &b.file, err
}

// builder applies statements to a file. Sections are found by linear search:
// maxSections bounds it.
type builder struct {
	file    File
	current int // index of the open section, -1 before the first
	entries int
}

func (b *builder) add(st statement) error {
	switch st.keyword {
	case 'p':
		// A package line may stand in a file that is loaded by its own name;
		// it changes nothing there, but its argument is checked.
		if !validName(st.first, true) {
			return nameError(st.line, "package", st.first)
		}
		return nil
	case 'c':
		return b.openSection(st)
	}
	if b.current < 0 {
		return &lexError{st.line, "an option stands before the first config line"}
	}
	if !validName(st.first, false) {
		return nameError(st.line, "option", st.first)
	}
	if b.entries++; b.entries > maxEntries {
		return &lexError{st.line, fmt.Sprintf("more than %d options in one file", maxEntries)}
	}
	b.file.Sections[b.current].set(st)
	return nil
}

func (b *builder) openSection(st statement) error {
	if !validType(st.first) {
		return &lexError{st.line, fmt.Sprintf("section type %.40q holds a character that is not printable ASCII", st.first)}
	}
	if st.second != "" {
		if !validName(st.second, false) {
			return nameError(st.line, "section", st.second)
		}
		for i := range b.file.Sections {
			s := &b.file.Sections[i]
			if s.Name != st.second {
				continue
			}
			if s.Type != st.first {
				return &lexError{st.line, fmt.Sprintf("section '%s' was of type '%s' in line %d and is of type '%s' here", s.Name, s.Type, s.Line, st.first)}
			}
			b.current = i
			return nil
		}
	}
	if len(b.file.Sections) == maxSections {
		return &lexError{st.line, fmt.Sprintf("more than %d sections in one file", maxSections)}
	}
	s := Section{Type: st.first, Name: st.second, Line: st.line}
	if s.Name == "" {
		s.Anonymous = true
		s.Name = anonymousName(len(b.file.Sections)+1, s.Type)
		if other, ok := b.file.Section(s.Name); ok {
			// libuci would then hold two sections of one name, which nothing
			// after it can tell apart.
			return &lexError{st.line, fmt.Sprintf("this section without a name would be called '%s' like the one in line %d; give it a name", s.Name, other.Line)}
		}
	}
	b.file.Sections = append(b.file.Sections, s)
	b.current = len(b.file.Sections) - 1
	return nil
}

// set applies an option or list statement.
func (s *Section) set(st statement) {
	value := Value{Text: st.second, Line: st.line}
	have, ok := s.Option(st.first)
	switch {
	case st.keyword == 'l' && ok:
		have.List = true
		have.Values = append(have.Values, value)
	case st.keyword == 'l':
		s.Options = append(s.Options, Option{Name: st.first, List: true, Values: []Value{value}})
	case value.Text == "":
		// An empty option is no option, and does not remove an earlier one.
	case ok:
		have.List = false
		have.Values = []Value{value}
	default:
		s.Options = append(s.Options, Option{Name: st.first, Values: []Value{value}})
	}
}

func nameError(line int, what, name string) error {
	return &lexError{line, fmt.Sprintf("%s name %.40q is not valid; valid are letters, digits and '_'", what, name)}
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func validName(s string, dash bool) bool {
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && c != '_' && (c != '-' || !dash) {
			return false
		}
	}
	return s != ""
}

func validType(s string) bool {
	for i := range len(s) {
		if s[i] < 33 || s[i] > 126 {
			return false
		}
	}
	return s != ""
}

// anonymousName is the name libuci gives to the n-th section of a file when it
// has none: its number and 16 bits of a hash over its type.
func anonymousName(n int, typ string) string {
	hash := uint32(5381)
	for i := range len(typ) {
		hash = hash*33 + uint32(typ[i])
	}
	return fmt.Sprintf("cfg%02x%04x", n, hash&0xffff)
}
