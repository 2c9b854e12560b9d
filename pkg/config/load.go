package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/quicprochat/qpcd/pkg/config/internal/ucifile"
)

// Sources is where Load looks. The zero value reads the default UCI file and
// nothing else.
type Sources struct {
	// Args are the command line arguments without the program's name.
	Args []string
	// Environ is the environment as os.Environ gives it. An empty variable
	// counts as absent.
	Environ []string
	// Pass names flags (with their dashes) that the caller handles itself: they
	// are handed back among the rest. One with "=" at its end takes a value and
	// comes back as one argument, --flag=value, or bare when the value is missing.
	Pass []string

	// DefaultUCI replaces DefaultUCIPath.
	DefaultUCI string
	// Open replaces the opening of a UCI file, which takes regular files only.
	Open func(name string) (fs.File, error)
	// Hostname replaces os.Hostname.
	Hostname func() (string, error)
}

// given is one value as some source states it.
type given struct {
	text   string
	origin Origin
}

// Load reads all sources and returns the validated configuration and the
// arguments that are no flags of the table, in order. If something is wrong it
// returns every problem joined into one error, each a sentence naming its
// origin, and no configuration. ErrHelp comes before any other problem.
func Load(src Sources) (*Config, []string, error) {
	table := Settings()
	args, problems := parseArgs(src.Args, table, src.Pass)
	if args.help {
		return nil, args.rest, ErrHelp
	}

	c := &Config{}
	var fromUCI map[string][]given
	file, err := readUCI(src, args)
	if err == nil && file != nil {
		fromUCI, err = fromSection(file, args.section, table, c)
	}
	switch {
	case errors.Is(err, errSkipped):
		// The default file is there but not for this user: run without it, as
		// if it were absent, but say so.
		c.Warnings = append(c.Warnings, err.Error())
	case err != nil:
		problems = append(problems, err)
	case file == nil && args.sectionNamed:
		problems = append(problems, fmt.Errorf("flag %s: there is no UCI file to find '%s' in; name one with %s", flagSection, args.section, flagConfig))
	}

	fromEnv := parseEnviron(src.Environ, table)
	hostname := usableHostname(src.Hostname)
	for _, s := range table {
		values := args.values[s.Name]
		if values == nil {
			values = fromEnv[s.Name]
		}
		if values == nil {
			values = fromUCI[s.Name]
		}
		problems = append(problems, c.apply(s, values, hostname)...)
	}
	if file != nil {
		problems = append(problems, c.peersFrom(file, args.section)...)
	}
	if err := errors.Join(problems...); err != nil {
		return nil, args.rest, err
	}
	return c, args.rest, nil
}

// apply sets one row, from the values given or from its default.
func (c *Config) apply(s Setting, values []given, hostname string) (problems []error) {
	if values == nil {
		origin := Origin{Source: FromDefault, Name: s.Name}
		texts := s.Default
		if s.derive != nil {
			texts = []string{s.derive(c, hostname)}
		}
		for _, text := range texts {
			values = append(values, given{text, origin})
		}
	}
	e := Effective{Name: s.Name, Origin: Origin{Source: FromDefault, Name: s.Name}}
	if len(values) > 0 {
		e.Origin = values[0].origin
	}
	switch {
	case s.List && len(values) > maxListItems:
		return []error{fmt.Errorf("%s: %d values are too many; valid are at most %d", e.Origin, len(values), maxListItems)}
	case !s.List && len(values) > 1:
		return []error{fmt.Errorf("%s: %s takes one value and a list of %d is given; write it as `option`, once", e.Origin, s.Name, len(values))}
	}
	for i, v := range values {
		e.Values = append(e.Values, v.text)
		if err := s.set(c, v.text, i == 0); err != nil {
			problems = append(problems, &ValueError{
				Setting: s.Name, Origin: v.origin, Value: v.text, Reason: err.Error(), Valid: s.Valid,
			})
		}
	}
	c.effective = append(c.effective, e)
	return problems
}

// parseEnviron picks the table's variables out of an environment.
func parseEnviron(environ []string, table []Setting) map[string][]given {
	env := map[string]string{}
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, "QPC_") {
			env[name] = value
		}
	}
	out := map[string][]given{}
	for _, s := range table {
		value := env[s.Env()]
		if strings.TrimSpace(value) == "" {
			continue
		}
		items := []string{value}
		if s.List {
			items = strings.Split(value, ",")
		}
		for _, item := range items {
			out[s.Name] = append(out[s.Name], given{strings.TrimSpace(item), Origin{Source: FromEnvironment, Name: s.Env()}})
		}
	}
	return out
}

// fallbackHostname stands in where a machine has no name fit for a domain.
const fallbackHostname = "localhost"

func usableHostname(hostname func() (string, error)) string {
	if hostname == nil {
		hostname = os.Hostname
	}
	name, err := hostname()
	if err != nil {
		return fallbackHostname
	}
	name, err = parseDomain(name)
	if err != nil {
		return fallbackHostname
	}
	return name
}

// uciSource is a UCI file that was read.
type uciSource struct {
	name string
	*ucifile.File
}

// errSkipped marks a default UCI file that exists but may not be read.
var errSkipped = errors.New("its settings are ignored")

// readUCI reads the UCI file that the flags name, or the default one if it is
// there; nil without an error means that there is none.
func readUCI(src Sources, args arguments) (*uciSource, error) {
	name, named := args.config, args.config != ""
	if !named {
		name = src.DefaultUCI
	}
	if name == "" {
		name = DefaultUCIPath
	}
	open := src.Open
	if open == nil {
		open = openRegular
	}

	text, err := readBounded(open, name)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist) && !named:
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("flag --config: there is no file %s; name an existing UCI file, or leave the flag out", name)
	case errors.Is(err, fs.ErrPermission) && !named:
		return nil, fmt.Errorf("%s exists but this user may not read it and %w; run as root, or name a readable copy with --config", name, errSkipped)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("flag --config: this user may not read %s; run as root, or let the init script render a copy that the daemon's group may read", name)
	default:
		return nil, fmt.Errorf("reading UCI file %s: %w", name, err)
	}
	file, err := ucifile.Parse(name, text)
	if err != nil {
		return nil, err
	}
	return &uciSource{name, file}, nil
}

// openRegular opens a regular file only, as libuci does: a named pipe would
// block and a device never end.
func openRegular(name string) (fs.File, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	return os.Open(name)
}

// readBounded reads a file and one byte more than ucifile accepts at most.
func readBounded(open func(string) (fs.File, error), name string) ([]byte, error) {
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, ucifile.MaxSize+1))
}

// fromSection takes the table's options out of one section and notes in c
// what else stands there.
func fromSection(file *uciSource, name string, table []Setting, c *Config) (map[string][]given, error) {
	section, ok := file.Section(name)
	if !ok {
		return nil, fmt.Errorf("%s has no section '%s'; %s", file.name, name, sectionHint(file))
	}
	if section.Type != sectionType {
		return nil, fmt.Errorf("%s section '%s' line %d is of type '%s'; valid is config %s '%s'", file.name, name, section.Line, section.Type, sectionType, name)
	}
	c.File = file.name
	byName := map[string]Setting{}
	var names []string
	for _, s := range table {
		byName[s.Name] = s
		names = append(names, s.Name)
	}
	out := map[string][]given{}
	for _, o := range section.Options {
		origin := Origin{Source: FromUCI, Name: o.Name, File: file.name, Section: name, Line: o.Values[0].Line}
		s, ok := byName[o.Name]
		if !ok {
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s: is no setting of qpcd and ignored%s", origin, suggestion(o.Name, names)))
			continue
		}
		for _, v := range o.Values {
			origin.Line = v.Line
			items := []string{v.Text}
			if fields := strings.Fields(v.Text); s.List && !o.List && len(fields) > 0 {
				// Scripts on OpenWrt take `option x 'a b'` for a list too.
				items = fields
			}
			for _, item := range items {
				out[s.Name] = append(out[s.Name], given{item, origin})
			}
		}
	}
	return out, nil
}

// sectionHint says which sections would do.
func sectionHint(file *uciSource) string {
	var usable []string
	for _, s := range file.Sections {
		if s.Type == sectionType && len(usable) < 8 {
			usable = append(usable, "'"+s.Name+"'")
		}
	}
	if len(usable) == 0 {
		return fmt.Sprintf("write config %s '%s' above its options", sectionType, DefaultSection)
	}
	return "choose " + or(usable) + " with --section"
}
