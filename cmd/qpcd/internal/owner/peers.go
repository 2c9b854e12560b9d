package owner

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// PeersAdd adds a server to federate with.
func PeersAdd(ctx context.Context, c *command.Call) error {
	m, err := stub(c).AddPeer(ctx, &qpcpb.AddPeerRequest{Domain: c.Args[0], Address: c.Args[1], Pin: c.Args[2]})
	return answer(c, m, err, done[*qpcpb.AddPeerResponse]("%s is a peer. Its owner must add this server too. Next: qpcd peers test %s", clean(c.Args[0]), clean(c.Args[0])))
}

// PeersList lists the servers that this one federates with.
func PeersList(ctx context.Context, c *command.Call) error {
	m, err := stub(c).ListPeers(ctx, &qpcpb.ListPeersRequest{})
	return answer(c, m, err, func(w io.Writer, m *qpcpb.ListPeersResponse) error {
		var rows [][]string
		for _, p := range m.Peers {
			rows = append(rows, []string{p.Domain, p.Address, p.State, p.Origin, fmt.Sprint(p.QueuedMessages), size(p.QueuedBytes), clock(p.LastContact), p.LastError})
		}
		return listing(w, []string{"DOMAIN", "ADDRESS", "STATE", "SET BY", "WAITING", "BYTES", "CONTACT", "LAST ERROR"}, rows, "There are no peers.")
	})
}

// PeersRemove ends the federation with a server.
func PeersRemove(ctx context.Context, c *command.Call) error {
	domain := c.Args[0]
	if err := confirm(c, fmt.Sprintf("This ends the federation with %s and drops what waits for it.", clean(domain)), domain); err != nil {
		return err
	}
	m, err := stub(c).RemovePeer(ctx, &qpcpb.RemovePeerRequest{Domain: domain})
	return answer(c, m, err, func(w io.Writer, m *qpcpb.RemovePeerResponse) error {
		_, err := fmt.Fprintf(w, "%s is no peer any more; %s dropped.\n", clean(domain), count(m.DroppedMessages, "message"))
		return err
	})
}

// PeersTest calls a peer. One that does not answer is an error.
func PeersTest(ctx context.Context, c *command.Call) error {
	m, err := stub(c).TestPeer(ctx, &qpcpb.TestPeerRequest{Domain: c.Args[0]})
	err = answer(c, m, err, func(w io.Writer, m *qpcpb.TestPeerResponse) error {
		if !m.Reachable {
			return nil // the error says it
		}
		_, err := fmt.Fprintf(w, "%s answers %q after %d ms.\n", clean(c.Args[0]), clean(m.Status), m.RoundTripMs)
		return err
	})
	if err == nil && !m.Reachable {
		return errors.New(clean(c.Args[0]) + " does not answer: " + clean(m.Detail))
	}
	return err
}
