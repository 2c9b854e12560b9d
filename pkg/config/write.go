package config

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// wrapWidth is the line length of generated text.
const wrapWidth = 78

// wrap breaks text between words, each line starting with prefix.
func wrap(text, prefix string) string {
	var b strings.Builder
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(prefix)+len(line)+1+len(word) > wrapWidth {
			b.WriteString(prefix + line + "\n")
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	if line != "" {
		b.WriteString(prefix + line + "\n")
	}
	return b.String()
}

// defaultText is a row's default in words.
func (s Setting) defaultText() string {
	if s.DefaultText != "" {
		return s.DefaultText
	}
	return strings.Join(s.Default, ", ")
}

// firstSentence cuts a paragraph for the help text.
func firstSentence(doc string) string {
	if i := strings.Index(doc, ". "); i >= 0 {
		return doc[:i+1]
	}
	return doc
}

// Usage writes the flags for --help.
func Usage(w io.Writer) error {
	var b bytes.Buffer
	entry := func(flag, doc, note string) {
		fmt.Fprintf(&b, "  %s\n%s", flag, wrap(doc, "      "))
		if note != "" {
			b.WriteString(wrap(note, "      "))
		}
	}
	entry(flagConfig+" FILE", "The UCI file to read.", "("+DefaultUCIPath+" if it exists)")
	entry(flagSection+" NAME", "The section of it that holds this instance's settings.", "("+DefaultSection+")")
	for _, s := range Settings() {
		if s.Flag() == "" {
			continue
		}
		flag := s.Flag()
		switch {
		case s.Kind == KindEnum:
			flag += " " + strings.Join(s.enum, "|")
		case s.Kind != KindBool:
			flag += " " + strings.ToUpper(string(s.Kind))
		}
		if s.List {
			flag += " (may be repeated)"
		}
		entry(flag, firstSentence(s.Doc), fmt.Sprintf("(%s; %s)", s.defaultText(), s.Env()))
	}
	_, err := w.Write(b.Bytes())
	return err
}

// WriteEffective writes every setting as it applies and where it came from, as
// a table for people.
func (c *Config) WriteEffective(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "SETTING\tVALUE\tFROM")
	for _, e := range c.effective {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", e.Name, strings.Join(e.Values, ", "), e.Origin)
	}
	for _, p := range c.Peers {
		fmt.Fprintf(tw, "peer\t%s at %s\t%s\n", p.Domain, p.Address, p.Origin)
	}
	return tw.Flush()
}

// peerDoc heads the peers in the documentation and the example.
const peerDoc = "A section of type peer names another server to federate with: its users and yours write to each other as user@domain. Both owners enter each other's server. `qpcd peers add` does the same while the server runs; a peer that stands in this file can only be removed here. For a conversation of several people, the servers of all of them must be each other's peers."

// WriteDefaultUCI writes the file that the package installs as
// /etc/config/qpcd: what a router sets, and the rest as comments. It is run at
// build time; at run time nothing in Go writes UCI.
func WriteDefaultUCI(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString("# qpcd, the quicprochat server. Settings left out have the default shown.\n" +
		"# `qpcd check-config` says what is wrong; docs/configuration.md explains more.\n" +
		"# Generated from the table in pkg/config: `go generate ./pkg/config`.\n\n")
	fmt.Fprintf(&b, "config %s '%s'\n", sectionType, DefaultSection)
	for _, s := range Settings() {
		b.WriteString("\n" + wrap(s.Doc, "\t# "))
		b.WriteString(wrap("Valid: "+s.Valid+".", "\t# "))
		keyword := "option"
		if s.List {
			keyword = "list"
		}
		prefix, values := "\t", s.Router
		if len(values) == 0 {
			prefix, values = "\t#", s.Default
		}
		if len(values) == 0 {
			b.WriteString(wrap("Default: "+s.DefaultText+".", "\t# "))
			values = []string{s.Example}
		}
		for _, v := range values {
			fmt.Fprintf(&b, "%s%s %s '%s'\n", prefix, keyword, s.Name, strings.ReplaceAll(v, "'", `'\''`))
		}
	}
	b.WriteString("\n" + wrap(peerDoc, "# ") + "#\n#config " + peerType + " 'friends'\n")
	for _, o := range peerOptions() {
		b.WriteString("#\n" + wrap(o.doc, "#\t# ") + wrap("Valid: "+o.valid+".", "#\t# "))
		fmt.Fprintf(&b, "#\toption %s '%s'\n", o.name, o.example)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// WriteMarkdown writes docs/configuration.md.
func WriteMarkdown(w io.Writer) error {
	var b bytes.Buffer
	b.WriteString("<!-- Generated from the table in pkg/config: go generate ./pkg/config -->\n\n# Configuration\n\n")
	b.WriteString(wrap("qpcd takes its settings from command line flags, the environment and a UCI file. A flag beats the environment, the environment beats the file, the file beats the default. A list is taken whole from the strongest source that names it. `qpcd check-config` checks them all and names every problem at once, with the place of the value and what would be valid.", ""))
	b.WriteString("\n" + wrap(fmt.Sprintf("The file is `%s` if it exists; `%s FILE` names another, which must exist, and `%s NAME` a section other than `%s`. It is read by the grammar of OpenWrt's own `uci`: what `uci show qpcd` prints is what qpcd sees. An option that is not listed here is ignored with a warning; a flag that is not, an error.", DefaultUCIPath, flagConfig, flagSection, DefaultSection), ""))
	fmt.Fprintf(&b, "\n```\nconfig %s '%s'\n\tlist listen '0.0.0.0:5001'\n\tlist listen '[::]:5001'\n\toption retention '14d'\n```\n", sectionType, DefaultSection)
	b.WriteString("\n" + wrap("The same by hand: `qpcd --listen 0.0.0.0:5001 --listen '[::]:5001' --retention 14d`, or with `QPC_LISTEN='0.0.0.0:5001,[::]:5001' QPC_RETENTION=14d` in the environment. Flags of on-off settings need no value (`--redact-logs`, but `--redact-logs=0`); other single settings given twice take the last value; an empty variable counts as absent.", ""))
	b.WriteString("\n| setting | default | on a router |\n|---|---|---|\n")
	for _, s := range Settings() {
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s | %s |\n", s.Name, s.Name, s.defaultText(), strings.Join(s.Router, ", "))
	}
	b.WriteString("\n" + wrap("The last column is what the packaged `/etc/config/qpcd` sets.", ""))
	for _, s := range Settings() {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n", s.Name, wrap(s.Doc, ""))
		keyword := "option"
		if s.List {
			keyword = "list"
		}
		fmt.Fprintf(&b, "- UCI: `%s %s`\n", keyword, s.Name)
		if s.UCIOnly {
			b.WriteString("- flag and environment: none\n")
		} else {
			separated := ""
			if s.List {
				separated = ", values separated by commas"
			}
			fmt.Fprintf(&b, "- flag: `%s`%s\n- environment: `%s`%s\n", s.Flag(), map[bool]string{true: ", may be repeated"}[s.List], s.Env(), separated)
		}
		fmt.Fprintf(&b, "- default: %s\n- valid: %s\n", s.defaultText(), s.Valid)
	}
	b.WriteString("\n# Peers\n\n" + wrap(peerDoc, "") + "\n```\nconfig " + peerType + " 'friends'\n")
	for _, o := range peerOptions() {
		if o.needed {
			fmt.Fprintf(&b, "\toption %s '%s'\n", o.name, o.example)
		}
	}
	b.WriteString("```\n")
	for _, o := range peerOptions() {
		fmt.Fprintf(&b, "\n## peer: %s\n\n%s\n- UCI: `option %s`\n- valid: %s\n", o.name, wrap(o.doc, ""), o.name, o.valid)
	}
	_, err := w.Write(b.Bytes())
	return err
}
