package config

import (
	"fmt"
	"strings"
)

// Source is a kind of place a value comes from.
type Source int

// The sources, from the weakest to the strongest.
const (
	FromDefault Source = iota + 1
	FromUCI
	FromEnvironment
	FromFlag
)

// Origin is the place one value came from.
type Origin struct {
	Source Source
	// Name is the flag with its dashes, the environment variable, the UCI
	// option, or for a default the setting.
	Name string
	// File, Section and Line (from 1) are set for UCI only.
	File    string
	Section string
	Line    int
}

// String names the place as an error or a listing does, for example
// "/etc/config/qpcd section 'main' option 'listen' line 4".
func (o Origin) String() string {
	switch o.Source {
	case FromFlag:
		return "flag " + o.Name
	case FromEnvironment:
		return "environment " + o.Name
	case FromUCI:
		s := fmt.Sprintf("%s section '%s' option '%s'", o.File, o.Section, o.Name)
		if o.Line > 0 {
			s += fmt.Sprintf(" line %d", o.Line)
		}
		return s
	case FromDefault:
		return "default of " + o.Name
	default:
		return "unknown origin"
	}
}

// ValueError is a value that a setting cannot take.
type ValueError struct {
	Setting string
	Origin  Origin
	Value   string
	Reason  string // continues the value: "is not a number"
	Valid   string // what would be valid
}

// Error is one sentence: origin, value, reason, and what would be valid.
func (e *ValueError) Error() string {
	return fmt.Sprintf("%s: %s %s; valid is %s", e.Origin, quote(e.Value), e.Reason, e.Valid)
}

// maxQuoted bounds how much of a foreign value an error repeats, in bytes: the
// sentence should stay readable on a terminal.
const maxQuoted = 80

// quote makes a value from outside safe to print.
func quote(value string) string {
	if len(value) > maxQuoted {
		return fmt.Sprintf("%q…", strings.ToValidUTF8(value[:maxQuoted], ""))
	}
	return fmt.Sprintf("%q", value)
}
