package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help is the long help of the command.
func (completionCmd) Help() string {
	return "bash: source <(qpc completion bash)\n\nzsh: qpc completion zsh > a file named _qpc in a directory of $fpath\n\nfish: qpc completion fish > ~/.config/fish/completions/qpc.fish"
}

func (cmd *completionCmd) Run(a *app) error {
	commands := completions(a.model.Node)
	switch cmd.Shell {
	case "bash":
		return bashCompletion(a.out, commands)
	case "zsh":
		return zshCompletion(a.out, commands)
	}
	return fishCompletion(a.out, commands)
}

// completion is what may follow some words.
type completion struct {
	path  string      // "" or "devices list", say
	words [][2]string // word and what it does
}

// completions walks the command line, so that no script is ever out of date.
func completions(node *kong.Node) []completion {
	path := strings.TrimPrefix(strings.TrimPrefix(node.Path(), "qpc"), " ")
	here := completion{path: path}
	var below []completion
	for _, child := range node.Children {
		if child.Type != kong.CommandNode || child.Hidden {
			continue
		}
		here.words = append(here.words, [2]string{child.Name, firstSentence(child.Help)})
		below = append(below, completions(child)...)
	}
	for _, p := range node.Positional {
		for _, word := range p.EnumSlice() {
			if word != "" {
				here.words = append(here.words, [2]string{word, ""})
			}
		}
	}
	for _, flags := range node.AllFlags(true) {
		for _, f := range flags {
			here.words = append(here.words, [2]string{"--" + f.Name, firstSentence(f.Help)})
		}
	}
	return append([]completion{here}, below...)
}

func firstSentence(s string) string {
	s, _, _ = strings.Cut(s, ". ")
	return strings.TrimSuffix(s, ".")
}

// quote makes a word of any of the three shells.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (c completion) list() string {
	var words []string
	for _, w := range c.words {
		words = append(words, w[0])
	}
	return strings.Join(words, " ")
}

func bashCompletion(w io.Writer, commands []completion) error {
	var b strings.Builder
	b.WriteString(`_qpc() {
    local word=${COMP_WORDS[COMP_CWORD]} path= w
    for w in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$path $w" in
`)
	for _, c := range commands[1:] {
		parent, name := "", c.path
		if i := strings.LastIndexByte(c.path, ' '); i >= 0 {
			parent, name = c.path[:i], c.path[i+1:]
		}
		fmt.Fprintf(&b, "            %s) path=%s ;;\n", quote(parent+" "+name), quote(c.path))
	}
	b.WriteString("        esac\n    done\n    case \"$path\" in\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "        %s) COMPREPLY=($(compgen -W %s -- \"$word\")) ;;\n", quote(c.path), quote(c.list()))
	}
	b.WriteString("    esac\n}\ncomplete -o default -F _qpc qpc\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func zshCompletion(w io.Writer, commands []completion) error {
	var b strings.Builder
	b.WriteString("#compdef qpc\n_qpc() {\n    local path_= w\n    local -a choices\n    for w in ${words[2,CURRENT-1]}; do\n        case \"$path_ $w\" in\n")
	for _, c := range commands[1:] {
		parent, name := "", c.path
		if i := strings.LastIndexByte(c.path, ' '); i >= 0 {
			parent, name = c.path[:i], c.path[i+1:]
		}
		fmt.Fprintf(&b, "            %s) path_=%s ;;\n", quote(parent+" "+name), quote(c.path))
	}
	b.WriteString("        esac\n    done\n    case \"$path_\" in\n")
	for _, c := range commands {
		var choices []string
		for _, word := range c.words {
			choices = append(choices, quote(strings.ReplaceAll(word[0], ":", `\:`)+":"+word[1]))
		}
		fmt.Fprintf(&b, "        %s) choices=(%s) ;;\n", quote(c.path), strings.Join(choices, " "))
	}
	b.WriteString("    esac\n    _describe 'qpc' choices || _files\n}\nif [ \"$funcstack[1]\" = _qpc ]; then _qpc \"$@\"; else compdef _qpc qpc; fi\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func fishCompletion(w io.Writer, commands []completion) error {
	var b strings.Builder
	for _, c := range commands {
		condition := "__fish_use_subcommand"
		if c.path != "" {
			var seen []string
			for _, name := range strings.Fields(c.path) {
				seen = append(seen, "__fish_seen_subcommand_from "+name)
			}
			condition = strings.Join(seen, "; and ")
		}
		for _, word := range c.words {
			option := "-a " + quote(word[0])
			if long, ok := strings.CutPrefix(word[0], "--"); ok {
				option = "-l " + quote(long)
			}
			fmt.Fprintf(&b, "complete -c qpc -n %s %s -d %s\n", quote(condition), option, quote(word[1]))
		}
	}
	lines := slices.Compact(slices.Sorted(strings.Lines(b.String())))
	_, err := io.WriteString(w, strings.Join(lines, ""))
	return err
}
