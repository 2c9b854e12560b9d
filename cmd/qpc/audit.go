package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
)

type auditCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run implements qpc audit.
func (cmd *auditCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	audit, err := s.AuditLog(ctx)
	if err != nil {
		return err
	}
	root := hex.EncodeToString(audit.Root[:])
	if cmd.JSON {
		return a.json(map[string]any{"entries": audit.Entries, "root": root, "checkpoint": audit.Checkpoint})
	}
	fmt.Fprintf(a.out, "The list of names has %d entries, and they are what the server has signed.\nIts root is %s:\nwhoever else uses the server must see the same for as many entries.\n", audit.Entries, root)
	return nil
}

type revokeKeyCmd struct {
	Reason string `enum:"compromised,superseded,user_revoked" default:"compromised" help:"Why: compromised, superseded or user_revoked (${default})."`
	Yes    bool   `help:"Do not ask."`
}

// Run implements qpc revoke-key.
func (cmd *revokeKeyCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	if !cmd.Yes {
		answer, err := a.ask(fmt.Sprintf("This ends the key of %s for good: nobody can log in with it again, and everybody can see that.\nType the name %s to go on: ", s.profile, s.profile.Name))
		if err != nil {
			return err
		}
		if answer != s.profile.Name {
			return errors.New("that was not the name; nothing was revoked")
		}
	}
	if err := s.RevokeKey(ctx, cmd.Reason); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "The key of %s is revoked. To come back under another key, ask the owner of the server for a reset of the name.\n", s.Username())
	return nil
}
