package config

import (
	"fmt"
	"slices"
	"strings"
)

// arguments is a parsed command line.
type arguments struct {
	help         bool
	config       string
	section      string
	sectionNamed bool // by --section
	values       map[string][]given
	rest         []string
}

// The flags that say where the settings are and so cannot be settings.
const (
	flagConfig  = "--config"
	flagSection = "--section"
	flagHelp    = "--help"
)

// parseArgs takes the table's flags out of args, wherever they stand before a
// lone "--". A value follows as --flag=value or as the next argument, unless
// that looks like a flag; a bool takes one with = only.
func parseArgs(args []string, table []Setting, pass []string) (arguments, []error) {
	out := arguments{section: DefaultSection, values: map[string][]given{}}
	var problems []error
	byFlag := map[string]Setting{}
	known := []string{flagConfig, flagSection, flagHelp}
	for _, f := range pass {
		known = append(known, strings.TrimSuffix(f, "="))
	}
	for _, s := range table {
		if f := s.Flag(); f != "" {
			byFlag[f] = s
			known = append(known, f)
		}
	}
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			out.rest = append(out.rest, args[i+1:]...)
			break
		}
		if slices.Contains(pass, arg) || len(arg) < 2 || arg[0] != '-' {
			out.rest = append(out.rest, arg)
			continue
		}
		if arg == flagHelp || arg == "-h" {
			out.help = true
			continue
		}
		name, value, hasValue := strings.Cut(arg, "=")
		s, isSetting := byFlag[name]
		passed := slices.Contains(pass, name+"=")
		if !isSetting && !passed && name != flagConfig && name != flagSection {
			problems = append(problems, fmt.Errorf("flag %s is not known%s; --help lists all", clip(name), suggestion(name, known)))
			continue
		}
		switch {
		case hasValue:
		case isSetting && s.Kind == KindBool:
			value = "1"
		case i+1 < len(args) && !strings.HasPrefix(args[i+1], "--"):
			i++
			value = args[i]
		case passed: // the caller knows what is valid
			out.rest = append(out.rest, name)
			continue
		default:
			valid := "the path of a UCI file"
			if isSetting {
				valid = s.Valid
			} else if name == flagSection {
				valid = "the name of a section in the UCI file"
			}
			problems = append(problems, fmt.Errorf("flag %s: a value is missing; valid is %s", name, valid))
			continue
		}
		switch {
		case passed:
			out.rest = append(out.rest, name+"="+value)
		case name == flagConfig && value == "":
			problems = append(problems, fmt.Errorf("flag %s: \"\" is empty; valid is the path of a UCI file", name))
		case name == flagConfig:
			out.config = value
		case name == flagSection:
			out.section, out.sectionNamed = value, true
		default:
			g := given{value, Origin{Source: FromFlag, Name: name}}
			if s.List {
				out.values[s.Name] = append(out.values[s.Name], g)
			} else {
				out.values[s.Name] = []given{g} // the last one counts
			}
		}
	}
	return out, problems
}

// clip bounds a foreign word for use in a sentence.
func clip(word string) string {
	const longest = 40
	if len(word) <= longest && !strings.ContainsFunc(word, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return word
	}
	return quote(word)
}

// suggestion is "; did you mean X" for the known word nearest to word, or empty
// when none is near.
func suggestion(word string, known []string) string {
	const longest = 64 // the distance costs the product of both lengths
	if len(word) > longest {
		return ""
	}
	bare := func(s string) string { return strings.ReplaceAll(strings.TrimLeft(s, "-"), "_", "-") }
	best, bestDistance := "", 0
	for _, k := range known {
		d := distance(bare(word), bare(k))
		// A third of a word may be wrong before another word is meant, and two
		// letters swapped in a short one.
		if limit := max(2, len(bare(k))/3); d <= limit && (best == "" || d < bestDistance) {
			best, bestDistance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
