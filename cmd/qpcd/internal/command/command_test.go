package command

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func table() ([]Command, []Flag) {
	return []Command{
			{Name: ""}, {Name: "status", Flags: "json"}, {Name: "users list", Flags: "json"},
			{Name: "users delete", Args: "NAME", Flags: "json yes"},
			{Name: "invites create", Flags: "valid note"}, {Name: "look", Args: "HERE [THERE]"},
		}, []Flag{
			{Name: JSON}, {Name: "yes"}, {Name: "valid", Value: "DURATION", Check: CheckDuration}, {Name: "note", Value: "TEXT"},
		}
}

func TestParse(t *testing.T) {
	commands, flags := table()
	for _, tc := range []struct {
		typed, name string
		args        []string
		want        string // error
	}{
		{"", "", nil, ""},
		{"status --json", "status", nil, ""},
		{"users delete bob --yes", "users delete", []string{"bob"}, ""},
		{"--yes users delete bob", "users delete", []string{"bob"}, ""},
		{"users delete status", "users delete", []string{"status"}, ""},
		{"invites create --note= --valid=1d12h", "invites create", nil, ""},
		{"look a", "look", []string{"a", ""}, ""},
		{"look a b", "look", []string{"a", "b"}, ""},
		{"serve", "", nil, `"serve" is no command of qpcd; qpcd --help lists all`},
		{"users", "", nil, `"users" is no command of qpcd; after users comes one of list, delete`},
		{"users lost", "", nil, `"users lost" is no command of qpcd; after users comes one of list, delete`},
		{"status twice", "status", nil, `"status twice" is no command of qpcd; status takes no argument`},
		{"users delete", "users delete", nil, "NAME is missing; it is qpcd users delete NAME [--json] [--yes]"},
		{"users delete a b", "users delete", nil, `"b" is too much; it is qpcd users delete NAME [--json] [--yes]`},
		{"users delete bob --note=x", "users delete", nil, "flag --note does not go with qpcd users delete"},
		{"--json", "", nil, "flag --json does not go with qpcd"},
		{"invites create --note", "invites create", nil, "flag --note: a value is missing; it is --note TEXT"},
		{"invites create --valid=7", "invites create", nil, `flag --valid: "7" is not a duration; valid is a number with s, m, h or d, such as 7d or 12h`},
	} {
		c, err := Parse(strings.Fields(tc.typed), commands, flags)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%q:\ngot  %s\nwant %s", tc.typed, got, tc.want)
		}
		if err == nil && (c.Command.Name != tc.name || !slices.Equal(c.Args, tc.args)) {
			t.Errorf("%q: got %q %q, want %q %q", tc.typed, c.Command.Name, c.Args, tc.name, tc.args)
		}
	}
}

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"7d": 7 * 24 * time.Hour, "1d12h": 36 * time.Hour, "90m": 90 * time.Minute, "1s": time.Second, "3650d": maxDuration,
	} {
		if got, err := ParseDuration(s); got != want || err != nil || CheckDuration(s) != nil {
			t.Errorf("%s: got %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "7", "d", "-1d", "1.5h", "7 d", "1w", "0s", "3651d", "99999999999999999999d", "3650d1s", "106751991167301d"} {
		if CheckDuration(s) == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func FuzzParseDuration(f *testing.F) {
	f.Add("1d12h")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := ParseDuration(s); err == nil && (d < 0 || d > maxDuration) {
			t.Errorf("%q is %v", s, d)
		}
	})
}
