package home

import (
	"fmt"
	"os"
	"time"
)

// SetAside moves an account out of the way of another one by its name, and
// returns where it is kept and how to put it back. Nothing finds it there but
// its owner.
func (p Profile) SetAside(now time.Time) (dir string, undo func() error, err error) {
	// escape makes no "~", so that no account has this name.
	dir = fmt.Sprintf("%s~%s", p.Dir(), now.UTC().Format("20060102T150405Z"))
	if err := os.Rename(p.Dir(), dir); err != nil {
		return "", nil, fmt.Errorf("setting the old account %s aside: %w", p, err)
	}
	return dir, func() error {
		if err := os.Rename(dir, p.Dir()); err != nil {
			return fmt.Errorf("putting the old account back: %w", err)
		}
		return nil
	}, nil
}
