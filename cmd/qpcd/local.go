package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/term"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/cmd/qpcd/internal/fingerprint"
	"github.com/quicprochat/qpcd/pkg/server"
)

// The commands that need files and no server.

func checkConfig(_ context.Context, c *command.Call) error {
	if !c.JSON() {
		for _, warning := range c.Config.Warnings {
			fmt.Fprintln(os.Stderr, "warning:", warning)
		}
		return c.Config.WriteEffective(c.Out)
	}
	settings := map[string]any{}
	for _, e := range c.Config.Effective() {
		settings[e.Name] = map[string]any{"values": append([]string{}, e.Values...), "from": e.Origin.String()}
	}
	return command.WriteJSON(c.Out, map[string]any{"valid": true, "settings": settings, "warnings": append([]string{}, c.Config.Warnings...)})
}

func showFingerprint(_ context.Context, c *command.Call) error {
	addrs, _ := net.InterfaceAddrs() // without them, the server's name must do
	f, err := fingerprint.Read(c.Config, addrs)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", server.ErrCertificate, err)
	case c.JSON():
		return command.WriteJSON(c.Out, f)
	}
	return f.WriteText(c.Out, term.IsTerminal(int(c.Out.Fd())))
}
