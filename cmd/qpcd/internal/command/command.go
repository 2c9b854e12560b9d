// Package command is the grammar of qpcd's command line: which words make a
// command, what stands after them, and which flags go with it. It knows no
// command itself; main has the table of them.
//
//	qpcd [WORD...] [ARGUMENT...] [FLAG...]
//
// Flags may stand anywhere. A flag is a setting of pkg/config, which every
// command takes, or a row of the table of flags, which the commands take that
// name it.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/quicprochat/qpcd/pkg/config"
)

// JSON is the name of the flag that asks for JSON on standard output.
const JSON = "json"

// A Command is one row of the table.
type Command struct {
	// Name is the words that ask for it, such as "users delete"; "" is qpcd
	// with no word at all.
	Name string
	// Args names what follows the words: "DOMAIN ADDRESS PIN". One in brackets
	// may be left out; only the last ones may.
	Args string
	// Does says in a sentence without a full stop what it does.
	Does string
	// Example is a whole command line that works; docs/running.md shows it.
	Example string
	// Flags names the rows of the table of flags that go with it, separated by
	// spaces: "json yes".
	Flags string
	// Run does it. A nil Run is answered before the settings are looked at, so
	// that it works with broken ones.
	Run func(ctx context.Context, c *Call) error
}

// Usage is how the command is typed, with its own flags in brackets.
func (c Command) Usage(flags []Flag) string {
	words := append([]string{"qpcd"}, strings.Fields(c.Name+" "+c.Args)...)
	for _, name := range strings.Fields(c.Flags) {
		i := slices.IndexFunc(flags, func(f Flag) bool { return f.Name == name })
		if i >= 0 {
			words = append(words, "["+flags[i].usage()+"]")
		}
	}
	return strings.Join(words, " ")
}

// takes reports whether a flag goes with the command.
func (c Command) takes(flag string) bool { return slices.Contains(strings.Fields(c.Flags), flag) }

// A Flag is one row of the table of flags that are no settings.
type Flag struct {
	Name  string // without dashes
	Value string // what stands for its value: "FILE"; "" when it takes none
	Does  string // a sentence
	// Check, when set, returns an error that completes `flag --valid: "x" …`
	// for a value that is none.
	Check func(value string) error
}

func (f Flag) usage() string {
	if f.Value == "" {
		return "--" + f.Name
	}
	return "--" + f.Name + " " + f.Value
}

// Pass returns the flags as config.Sources wants them.
func Pass(flags []Flag) (pass []string) {
	for _, f := range flags {
		name := "--" + f.Name
		if f.Value != "" {
			name += "="
		}
		pass = append(pass, name)
	}
	return pass
}

// A Call is a command as it was typed.
type Call struct {
	Command Command
	// Config is nil for a command without Run.
	Config *config.Config
	// Args are what stood after the words; those left out are "".
	Args    []string
	In      *os.File
	Out     *os.File
	Err     io.Writer
	Version string // of this program

	flags map[string]string
}

// Is reports whether a flag was given.
func (c *Call) Is(flag string) bool {
	_, given := c.flags[flag]
	return given
}

// Text returns the value of a flag, "" when it was not given.
func (c *Call) Text(flag string) string { return c.flags[flag] }

// Duration returns the value of a flag whose Check is CheckDuration, or
// otherwise when it was not given.
func (c *Call) Duration(flag string, otherwise time.Duration) time.Duration {
	d, err := ParseDuration(c.flags[flag])
	if err != nil {
		return otherwise
	}
	return d
}

// JSON reports whether JSON is wanted.
func (c *Call) JSON() bool { return c.Is(JSON) }

// Misuse is an error that the caller can mend in the command line or the
// settings.
type Misuse struct{ Err error }

// Error is what is to be mended.
func (m Misuse) Error() string { return m.Err.Error() }

// Unwrap returns Err.
func (m Misuse) Unwrap() error { return m.Err }

// maxDuration bounds a duration on the command line: ten years, beyond which a
// number is a mistake.
const maxDuration = 3650 * 24 * time.Hour

// ParseDuration reads a duration as settings have it: 7d, 12h, 90m, 1d12h.
func ParseDuration(s string) (time.Duration, error) {
	const day = 24 * time.Hour
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': day}
	wrong := errors.New("is not a duration; valid is a number with s, m, h or d, such as 7d or 12h")
	total := time.Duration(0)
	for rest := s; ; {
		n := 0
		for n < len(rest) && rest[n] >= '0' && rest[n] <= '9' {
			n++
		}
		if n == 0 || n == len(rest) {
			return 0, wrong
		}
		number, err := strconv.ParseInt(rest[:n], 10, 64)
		unit, known := units[rest[n]]
		if err != nil || !known {
			return 0, wrong
		}
		if number > int64(maxDuration/unit) {
			return 0, errors.New("is too long; valid is at most 3650d")
		}
		if total += time.Duration(number) * unit; total > maxDuration {
			return 0, errors.New("is too long; valid is at most 3650d")
		}
		if rest = rest[n+1:]; rest == "" {
			return total, nil
		}
	}
}

// CheckDuration is a Check for a duration of a second or more.
func CheckDuration(value string) error {
	d, err := ParseDuration(value)
	if err == nil && d < time.Second {
		err = errors.New("is too short; valid is a second or more")
	}
	return err
}

// Parse finds the command that rest asks for, which is what config.Load handed
// back: words, arguments and passed flags. On an error the Call still tells
// which command and flags were meant, as far as that is known.
func Parse(rest []string, commands []Command, flags []Flag) (*Call, error) {
	c := &Call{flags: map[string]string{}}
	var words, problems []string
	for _, arg := range rest {
		name, isFlag := strings.CutPrefix(arg, "--")
		name, value, hasValue := strings.Cut(name, "=")
		i := slices.IndexFunc(flags, func(f Flag) bool { return f.Name == name })
		switch {
		case !isFlag || i < 0:
			words = append(words, arg)
			continue
		case flags[i].Value != "" && !hasValue:
			problems = append(problems, fmt.Sprintf("flag --%s: a value is missing; it is --%s %s", name, name, flags[i].Value))
		case flags[i].Check != nil:
			if err := flags[i].Check(value); err != nil {
				problems = append(problems, fmt.Sprintf("flag --%s: %q %v", name, value, err))
			}
		}
		c.flags[name] = value
	}
	row, args, err := find(words, commands)
	if err != nil {
		return c, err
	}
	c.Command = row
	if c.Args, err = arrange(row, args, flags); err != nil {
		return c, err
	}
	for _, f := range flags { // in the order of the table
		if c.Is(f.Name) && !row.takes(f.Name) {
			problems = append(problems, fmt.Sprintf("flag --%s does not go with %s", f.Name, strings.TrimSpace("qpcd "+row.Name)))
		}
	}
	if len(problems) > 0 {
		return c, errors.New(strings.Join(problems, "\n"))
	}
	return c, nil
}

// find returns the command with the most words that words begin with, and what
// is left of them.
func find(words []string, commands []Command) (best Command, args []string, err error) {
	found, length := false, 0
	for _, c := range commands {
		name := strings.Fields(c.Name)
		if len(name) > len(words) || !slices.Equal(name, words[:len(name)]) || found && len(name) <= length {
			continue
		}
		best, found, length = c, true, len(name)
	}
	if found && (length > 0 || len(words) == 0) {
		return best, words[length:], nil
	}
	var next []string
	for _, c := range commands {
		if name := strings.Fields(c.Name); len(name) == 2 && name[0] == words[0] {
			next = append(next, name[1])
		}
	}
	if len(next) > 0 {
		return Command{}, nil, fmt.Errorf("%q is no command of qpcd; after %s comes one of %s", strings.Join(words, " "), words[0], strings.Join(next, ", "))
	}
	return Command{}, nil, fmt.Errorf("%q is no command of qpcd; qpcd --help lists all", strings.Join(words, " "))
}

// arrange gives each argument its place.
func arrange(row Command, args []string, flags []Flag) ([]string, error) {
	names := strings.Fields(row.Args)
	switch {
	case len(args) > len(names) && len(names) == 0:
		return nil, fmt.Errorf("%q is no command of qpcd; %s takes no argument", strings.Join(append([]string{row.Name}, args...), " "), row.Name)
	case len(args) > len(names):
		return nil, fmt.Errorf("%q is too much; it is %s", args[len(names)], row.Usage(flags))
	case len(args) < len(names) && !strings.HasPrefix(names[len(args)], "["):
		return nil, fmt.Errorf("%s is missing; it is %s", names[len(args)], row.Usage(flags))
	}
	return append(slices.Clone(args), make([]string, len(names)-len(args))...), nil
}
