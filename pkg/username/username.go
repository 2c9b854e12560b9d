// Package username says what a name may be, in one place for server and
// client, so that both sign and look up the same form of it.
package username

import (
	"errors"
	"fmt"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
)

// MaxLength is the most characters (not bytes) that a name may have.
const MaxLength = 32

// maxBytes bounds what is looked at: 32 characters of four bytes, with room
// for characters that folding makes shorter.
const maxBytes = 512

// ErrInvalid reports a name that cannot be one; the error that wraps it says
// why.
var ErrInvalid = errors.New("invalid name")

// Fold returns the one form of a name under which it is stored, compared and
// signed: RFC 8265 UsernameCaseMapped, then 1 to 32 letters, digits, '.', '_'
// and '-', the first a letter or digit. '@' is no part of a name: it separates
// the domain.
func Fold(name string) (string, error) {
	if len(name) > maxBytes {
		return "", fmt.Errorf("%w: it has more than %d characters", ErrInvalid, MaxLength)
	}
	folded, err := precis.UsernameCaseMapped.String(name)
	if err != nil {
		return "", fmt.Errorf("%w: use letters, digits, '.', '_' and '-'", ErrInvalid)
	}
	if n := utf8.RuneCountInString(folded); n == 0 || n > MaxLength {
		return "", fmt.Errorf("%w: it has %d characters where 1 to %d are allowed", ErrInvalid, n, MaxLength)
	}
	for i, r := range folded {
		letter := unicode.IsLetter(r) || unicode.IsDigit(r)
		if i == 0 && !letter {
			return "", fmt.Errorf("%w: it must begin with a letter or digit", ErrInvalid)
		}
		if !letter && r != '.' && r != '_' && r != '-' {
			return "", fmt.Errorf("%w: %q is not a letter, a digit, '.', '_' or '-'", ErrInvalid, r)
		}
	}
	return folded, nil
}
