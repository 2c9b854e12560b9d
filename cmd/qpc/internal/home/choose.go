package home

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/quicprochat/qpcd/pkg/username"
)

// ErrNone reports that there is no account on this machine that fits.
var ErrNone = errors.New("there is no account here")

// Wanted says which account a command is to act as.
type Wanted struct {
	Server string // host:port; empty: any
	Name   string // as the user gave it; empty: choose
	Peer   string // whom the command speaks to: hardly oneself; may be empty
}

// ErrAmbiguous reports that several accounts fit.
type ErrAmbiguous struct{ Fits []Profile }

func (e *ErrAmbiguous) Error() string {
	return fmt.Sprintf("several accounts are possible: %s", names(e.Fits))
}

func names(all []Profile) string {
	s := make([]string, len(all))
	for i, p := range all {
		s[i] = p.String()
	}
	return strings.Join(s, ", ")
}

// Choose returns the account to act as: the one named; else the only one; else
// the current one, or, when that is the peer, the only other one. more reports
// that there are others, so that the user should hear which it is.
func (h *Home) Choose(w Wanted) (p Profile, more bool, err error) {
	all, err := h.Profiles()
	if err != nil {
		return Profile{}, false, err
	}
	fits := slices.Clone(all)
	if w.Server != "" {
		fits = slices.DeleteFunc(fits, func(p Profile) bool { return p.Server != w.Server })
	}
	if w.Name != "" {
		folded, err := username.Fold(w.Name)
		if err != nil {
			return Profile{}, false, err
		}
		fits = slices.DeleteFunc(fits, func(p Profile) bool { return p.Name != folded })
	}
	switch {
	case len(fits) == 0 && len(all) == 0:
		return Profile{}, false, ErrNone
	case len(fits) == 0:
		return Profile{}, false, fmt.Errorf("%w by that name or server; there are: %s", ErrNone, names(all))
	case len(fits) == 1:
		return fits[0], len(all) > 1, nil
	}
	if w.Name == "" {
		// A name that cannot be folded is no peer; the command will say so.
		peer, _ := username.Fold(w.Peer)
		current, known := h.current()
		known = known && slices.ContainsFunc(fits, current.is)
		if known && current.Name != peer {
			return current, true, nil
		}
		if known {
			others := slices.DeleteFunc(slices.Clone(fits), current.is)
			if len(others) == 1 {
				return others[0], true, nil
			}
		}
	}
	return Profile{}, false, &ErrAmbiguous{Fits: fits}
}
