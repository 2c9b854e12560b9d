package e2ee

import (
	"errors"
	"fmt"
	"strings"

	"github.com/thomas-vilte/mls-go/group"
)

// libraryError turns an error of mls-go into one of ours: its text without hex,
// and never its value, so that nothing secret reaches a log. mls-go puts key
// material into some texts ("confirmation tag mismatch [… initSecret=…]").
func libraryError(kind, err error) error {
	switch {
	case errors.Is(err, group.ErrUnknownProposalRef):
		kind = ErrProposalUnknown
	case errors.Is(err, group.ErrWelcomeNoEncryptedSecrets), errors.Is(err, ErrKeyPackageUnknown):
		kind = ErrKeyPackageUnknown
	case errors.Is(err, ErrNotAllowed):
		kind = ErrNotAllowed
	}
	return fmt.Errorf("%w (%s)", kind, withoutHex(err.Error()))
}

// withoutHex puts "…" in place of every run of hexadecimal digits that is long
// enough to be a secret.
func withoutHex(text string) string {
	const shortest = 16
	var out strings.Builder
	for len(text) > 0 {
		run := strings.IndexFunc(text, func(r rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF", r) })
		switch {
		case run < 0:
			run = len(text)
		case run == 0:
			run = 1
			out.WriteByte(text[0])
			text = text[run:]
			continue
		}
		if run >= shortest {
			out.WriteString("…")
		} else {
			out.WriteString(text[:run])
		}
		text = text[run:]
	}
	return out.String()
}

// guard runs a function of mls-go on bytes from a peer. A panic in it is that
// peer's fault, not ours, and must not end the program.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("mls-go gave up: %v", p)
		}
	}()
	return f()
}
