// Package ucifile reads one OpenWrt UCI file and promises to see in it exactly
// what the system's own parser (libuci, as `uci show` uses it, strict mode)
// sees, or to refuse it with file, line and reason. It never writes UCI.
//
// The way of a file:
//
//	raw text → statements (lexer.go: quoting, escapes, comments, lines)
//	         → sections and options (model.go: merging, lists, empty values)
//	         → a canonical text with encoded values (carry.go)
//	         → go-uci, which reads that canonical form correctly
//	         → decoded and compared with what was meant
//
// go-uci alone misreads much of the grammar (empty values, joined quotes,
// escapes, several lines, equal list entries), so nothing but the canonical
// form ever reaches it, and an answer that differs is an error, not a value.
//
// Sizes are bounded: see the constants below.
package ucifile

import (
	"fmt"
)

const (
	// MaxSize is the largest file accepted, in bytes. A hand-written file has
	// a few KiB; 64 KiB leaves room for hundreds of sections and still reads
	// in milliseconds on a MIPS router.
	MaxSize = 64 << 10

	// maxSections and maxEntries bound the work behind this package: looking
	// up sections, options and list entries is linear in libuci and go-uci
	// alike, so their product is the cost of a hostile file.
	maxSections = 256
	maxEntries  = 2048
)

// File is the content of one UCI file: its sections in the order of their
// first appearance. Sections of one name are already merged.
type File struct {
	Sections []Section
}

// Section is one `config TYPE ['NAME']` block.
type Section struct {
	Type string
	// Name is the given name, or the one libuci makes up (cfg01f2a3) for a
	// section without one. It is unique in the file.
	Name string
	// Anonymous says that the name is made up.
	Anonymous bool
	// Line is where the section first appears, counted from 1.
	Line    int
	Options []Option
}

// Option is one name with its value (List false, exactly one value) or its
// values in order, equal ones kept (List true, at least one).
type Option struct {
	Name   string
	List   bool
	Values []Value
}

// Value is one value, any bytes but NUL, and the line its statement starts on.
type Value struct {
	Text string
	Line int
}

// Section returns the section of that name.
func (f *File) Section(name string) (*Section, bool) {
	for i := range f.Sections {
		if f.Sections[i].Name == name {
			return &f.Sections[i], true
		}
	}
	return nil, false
}

// Option returns the option of that name.
func (s *Section) Option(name string) (*Option, bool) {
	for i := range s.Options {
		if s.Options[i].Name == name {
			return &s.Options[i], true
		}
	}
	return nil, false
}

// SyntaxError says why a file is refused.
type SyntaxError struct {
	File   string
	Line   int // counted from 1; 0 when the whole file is meant
	Reason string
}

// Error names the file, the line and the reason in one sentence.
func (e *SyntaxError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.File, e.Reason)
	}
	return fmt.Sprintf("%s line %d: %s", e.File, e.Line, e.Reason)
}

// Parse reads text as the UCI file called name (used in errors only). What
// libuci refuses is refused with a *SyntaxError, and so is the little that
// libuci takes but this package does not: NUL bytes, more than MaxSize bytes,
// and more sections or entries than any sane file holds.
func Parse(name string, text []byte) (*File, error) {
	f, err := parseText(name, text)
	if err != nil {
		return nil, err
	}
	if err := carry(name, f); err != nil {
		return nil, err
	}
	return f, nil
}
