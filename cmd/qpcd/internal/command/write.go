package command

import (
	"fmt"
	"strings"
)

// wrapWidth is the line length of generated text.
const wrapWidth = 78

// wrap breaks text between words, each line starting with prefix.
func wrap(text, prefix string) string {
	var b strings.Builder
	line := prefix
	for _, word := range strings.Fields(text) {
		if line != prefix && len(line)+1+len(word) > wrapWidth {
			b.WriteString(line + "\n")
			line = prefix
		}
		if line != prefix {
			line += " "
		}
		line += word
	}
	return b.String() + line + "\n"
}

// WriteUsage writes both tables for --help.
func WriteUsage(b *strings.Builder, commands []Command, flags []Flag) {
	for _, c := range commands {
		fmt.Fprintf(b, "  %s\n%s", c.Usage(flags), wrap(c.Does, "      "))
	}
	b.WriteString("\nFlags of single commands:\n")
	for _, f := range flags {
		fmt.Fprintf(b, "  %s\n%s", f.usage(), wrap(f.Does, "      "))
	}
	b.WriteString("\nFlags of every command:\n")
}

// WriteMarkdown writes both tables for docs/running.md.
func WriteMarkdown(b *strings.Builder, commands []Command, flags []Flag) {
	for _, c := range commands {
		fmt.Fprintf(b, "### `%s`\n\n%s", strings.TrimSpace("qpcd "+c.Name), wrap(sentence(c.Does), ""))
		fmt.Fprintf(b, "\n    %s\n\n", c.Usage(flags))
		if c.Example != "" && c.Example != c.Usage(flags) {
			fmt.Fprintf(b, "For example: `%s`\n\n", c.Example)
		}
	}
	b.WriteString("### Flags\n\nBeside the settings, which every command takes\n([configuration](configuration.md)):\n\n")
	for _, f := range flags {
		fmt.Fprintf(b, "- `%s`: %s\n", f.usage(), f.Does)
	}
}

// sentence makes one of what a row says.
func sentence(does string) string {
	return strings.ToUpper(does[:1]) + does[1:] + "."
}
