package ucifile

import (
	"bytes"
	"fmt"
)

// lexer splits a file into statements as libuci does. libuci reads a physical
// line into a buffer and consumes words from it; quotes and a backslash at the
// line's end pull in the next line. Here the whole text is at hand, so the
// buffer is a window on it:
//
//	text:  … option a 'x' # comment \n option b …
//	           pos ↑              limit ↑ = next
//
// limit is the end of the window, next the start of the following physical
// line. They differ only after a comment cut the window short.
type lexer struct {
	text  []byte
	pos   int
	limit int
	next  int
	line  int // number of the last physical line in the window
}

// statement is one keyword with its arguments, unquoted.
type statement struct {
	keyword byte // 'p', 'c', 'o' or 'l'
	line    int  // where the keyword stands
	first   string
	second  string
}

// lexError is a SyntaxError before the file's name is known.
type lexError struct {
	line   int
	reason string
}

func (e *lexError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.reason) }

// nextLine appends the following physical line to the window, which must be
// consumed, and reports whether there was one.
func (l *lexer) nextLine() bool {
	l.pos = l.next
	if l.next == len(l.text) {
		l.limit = l.next
		return false
	}
	if i := bytes.IndexByte(l.text[l.next:], '\n'); i >= 0 {
		l.next += i + 1
	} else {
		l.next = len(l.text)
	}
	l.limit = l.next
	l.line++
	return true
}

// peek returns the current byte, or 0 at the end of the window. The text holds
// no NUL (parseText refuses it), so 0 is unambiguous.
func (l *lexer) peek() byte {
	if l.pos < l.limit {
		return l.text[l.pos]
	}
	return 0
}

// cut drops the rest of the window, as a comment does.
func (l *lexer) cut() { l.limit = l.pos }

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

func (l *lexer) skipSpace() {
	for isSpace(l.peek()) {
		l.pos++
	}
}

// keyword takes the next word, which only blanks and tabs delimit, and returns
// 0 when the window holds none but a comment at most.
func (l *lexer) keyword() (byte, error) {
	for l.peek() == ' ' || l.peek() == '\t' {
		l.pos++
	}
	start := l.pos
	for l.pos < l.limit && l.text[l.pos] != ' ' && l.text[l.pos] != '\t' {
		l.pos++
	}
	word := string(l.text[start:l.pos])
	if word == "" || word[0] == '#' {
		return 0, nil
	}
	switch word {
	case "package", "p", "config", "c", "option", "o", "list", "l":
	default:
		return 0, &lexError{l.line, fmt.Sprintf("%.40q is not a keyword; valid is package, config, option or list, then a blank", word)}
	}
	if l.pos == l.limit {
		return 0, &lexError{l.line, fmt.Sprintf("%q is followed by nothing", word)}
	}
	l.pos++
	return word[0], nil
}

// argument takes the next argument with quotes and escapes resolved. A missing
// one is empty, and libuci cannot tell it from an empty pair of quotes.
func (l *lexer) argument() (string, error) {
	l.skipSpace()
	if l.peek() == ';' {
		l.pos++
		return "", nil
	}
	var out []byte
	verbatim := true // no quote or backslash so far
	for {
		switch c := l.peek(); c {
		case 0:
		case '#':
			l.cut()
		case ';':
			// libuci ends a word by writing a NUL where its unquoted form
			// ends. After a verbatim word that hits the ';' itself, and the
			// rest of the line is lost; otherwise the ';' survives and
			// separates two statements. `uci show` does so too: follow it.
			if verbatim {
				l.cut()
			}
			return string(out), nil
		case '\'', '"':
			verbatim = false
			var err error
			if out, err = l.quoted(out, c); err != nil {
				return "", err
			}
		case '\\':
			verbatim = false
			out = l.escaped(out)
		default:
			out = append(out, c)
			l.pos++
		}
		if c := l.peek(); c == 0 || isSpace(c) {
			break
		}
	}
	if l.pos < l.limit {
		l.pos++
	}
	return string(out), nil
}

// quoted appends what stands up to the closing quote, over several lines if
// need be. Only double quotes know the backslash.
func (l *lexer) quoted(out []byte, quote byte) ([]byte, error) {
	opened := l.line
	l.pos++
	for {
		switch c := l.peek(); {
		case c == quote:
			l.pos++
			return out, nil
		case c == 0:
			if !l.nextLine() {
				return nil, &lexError{opened, fmt.Sprintf("the quote %c opened here is never closed", quote)}
			}
		case c == '\\' && quote == '"':
			out = l.escaped(out)
		default:
			out = append(out, c)
			l.pos++
		}
	}
}

// escaped consumes a backslash: before a line's end it joins the next line,
// before anything else it makes that byte an ordinary one.
func (l *lexer) escaped(out []byte) []byte {
	l.pos++
	switch rest := l.text[l.pos:l.limit]; string(rest) {
	case "", "\n", "\r\n":
		l.nextLine()
		return out
	default:
		l.pos++
		return append(out, rest[0])
	}
}

// endOfStatement refuses a further argument.
func (l *lexer) endOfStatement() error {
	extra, err := l.argument()
	if err != nil {
		return err
	}
	if extra != "" {
		return &lexError{l.line, fmt.Sprintf("too many arguments: %.40q is left over; put a value with blanks in quotes", extra)}
	}
	return nil
}

// statements calls yield for each statement of text, in order, and stops at
// the first error.
func statements(text []byte, yield func(statement) error) error {
	l := &lexer{text: text}
	for l.nextLine() {
		l.skipSpace()
		for {
			st := statement{line: l.line}
			var err error
			if st.keyword, err = l.keyword(); err != nil {
				return err
			}
			if st.keyword == 0 {
				break
			}
			if st.first, err = l.argument(); err != nil {
				return err
			}
			if st.first == "" {
				return &lexError{st.line, "a name is missing after the keyword"}
			}
			if st.keyword != 'p' {
				if st.second, err = l.argument(); err != nil {
					return err
				}
			}
			if err := l.endOfStatement(); err != nil {
				return err
			}
			if err := yield(st); err != nil {
				return err
			}
		}
	}
	return nil
}
