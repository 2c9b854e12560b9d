package client

import (
	"context"
	"errors"
	"fmt"
)

// Overview is what can be told of a store without its password.
type Overview struct {
	Profile  Profile
	LoggedIn bool // a session is stored; the server may have ended it
	Unsent   int  // entries that wait to be sent
}

// ReadOverview looks at a store without its password: ErrNoProfile.
func ReadOverview(ctx context.Context, s Store) (o Overview, err error) {
	if o.Profile, err = ReadProfile(ctx, s); err != nil {
		return o, err
	}
	switch _, err := s.Get(ctx, keySession); {
	case err == nil:
		o.LoggedIn = true
	case !errors.Is(err, ErrNotStored):
		return o, fmt.Errorf("reading the profile: %w", err)
	}
	const page = 256
	for after := ""; ; {
		entries, err := s.List(ctx, prefixOut, after, page)
		if err != nil {
			return o, fmt.Errorf("counting what waits: %w", err)
		}
		o.Unsent += len(entries)
		if len(entries) < page {
			return o, nil
		}
		after = entries[page-1].Key
	}
}
