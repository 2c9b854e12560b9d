package federation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// Where a peer comes from, and how it stands, in PeerStatus.
const (
	originUCI     = "uci"
	originControl = "control"

	stateConnected   = "connected"
	stateWaiting     = "waiting" // not connected, and nothing is wrong
	stateUnreachable = "unreachable"
)

// AddPeer adds a server, or replaces the address and pin of one that was added
// so (control method 1140). A changed pin forgets what was learnt under the old.
func (s *Service) AddPeer(ctx context.Context, r *qpcpb.AddPeerRequest) (*qpcpb.AddPeerResponse, error) {
	domain, err := config.ParsePeerDomain(r.Domain)
	if err != nil {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "the domain %.80q %v; give one like friends.example", r.Domain, err)
	}
	address, err := config.ParsePeerAddress(r.Address)
	if err != nil {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "the address %.80q %v; give one like friends.example:5001", r.Address, err)
	}
	pin, err := transport.ParsePin(r.Pin)
	if err != nil {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "the pin is none; give the 64 digits that `qpcd fingerprint` shows on the other server")
	}
	s.mu.Lock()
	refusal := s.refuseLocked(domain, pin)
	s.mu.Unlock()
	if refusal != nil {
		return nil, refusal
	}
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		if _, err := tx.Exec(sqlPutPeer, domain, address, pin); err != nil {
			return fmt.Errorf("store a peer: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	p := s.newPeer(domain, address, pin, "")
	known, err := p.known(ctx)
	if err != nil {
		return nil, err
	}
	p.pin, p.contact = known.pin, known.contactAt
	s.mu.Lock()
	// Another call may have come between; the owner sees what is there now.
	if refusal = s.refuseLocked(domain, pin); refusal != nil {
		s.mu.Unlock()
		return nil, refusal
	}
	old := s.peers[domain]
	s.peers[domain] = p
	s.startLocked(p)
	s.mu.Unlock()
	s.retire(old)
	return &qpcpb.AddPeerResponse{Success: true}, nil
}

// retire ends what a peer that is none any more has running.
func (s *Service) retire(p *peer) {
	if p == nil {
		return
	}
	s.mu.Lock()
	if p.stop != nil {
		p.stop()
	}
	s.mu.Unlock()
	p.end()
}

// RemovePeer ends the federation with a server, drops what waits for it and
// forgets who lives there (control method 1142).
func (s *Service) RemovePeer(ctx context.Context, r *qpcpb.RemovePeerRequest) (*qpcpb.RemovePeerResponse, error) {
	domain := strings.ToLower(r.Domain)
	s.mu.Lock()
	p, ok := s.peers[domain]
	if ok && p.where != "" {
		s.mu.Unlock()
		return nil, rpc.Errorf(qpcpb.CodePeerExists, "%s stands in the configuration; remove it there (%s) and restart", domain, p.where)
	}
	delete(s.peers, domain)
	s.mu.Unlock()
	if !ok {
		return nil, peerNotFound(r.Domain)
	}
	s.retire(p)
	var dropped int64
	err := s.options.DB.Write(store.Freeing(ctx), func(tx *store.Tx) error {
		s.loads.forget()
		tx.AfterRollback(s.loads.forget)
		for _, query := range []string{sqlDropPeer, sqlDropTrust, sqlDropIdentities, sqlDropOutbox} {
			result, err := tx.Exec(query, domain)
			if err != nil {
				return fmt.Errorf("remove a peer: %w", err)
			}
			dropped = result.RowsAffected // of the last: the outbox
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.RemovePeerResponse{DroppedMessages: uint64(dropped)}, nil
}

func peerNotFound(domain string) error {
	return rpc.Errorf(qpcpb.CodePeerNotFound, "%.80q is no peer; `qpcd peers list` shows them", domain)
}

// sorted returns the peers by domain.
func (s *Service) sorted() []*peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*peer, 0, len(s.peers))
	for _, p := range s.peers {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *peer) int { return strings.Compare(a.domain, b.domain) })
	return all
}

// ListPeers returns the servers that this one federates with, by domain (control
// method 1141).
func (s *Service) ListPeers(ctx context.Context, _ *qpcpb.ListPeersRequest) (*qpcpb.ListPeersResponse, error) {
	response := &qpcpb.ListPeersResponse{}
	peers := s.sorted()
	err := s.options.DB.Read(ctx, func(tx *store.Tx) error {
		for _, p := range peers {
			waits, err := readLoad(tx, loadOf{domain: p.domain})
			if err != nil {
				return err
			}
			status := p.status()
			status.QueuedMessages, status.QueuedBytes = uint64(waits.messages), uint64(waits.bytes)
			response.Peers = append(response.Peers, status)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

// status is how a peer stands, without its queue.
func (p *peer) status() *qpcpb.PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := &qpcpb.PeerStatus{
		Domain: p.domain, Address: p.address, Pin: p.pin.String(), Origin: originControl, State: stateWaiting, LastContact: p.contact,
	}
	if p.where != "" {
		out.Origin = originUCI
	}
	switch {
	case p.client != nil && p.client.Conn().Context().Err() == nil:
		out.State = stateConnected
	case p.failure != nil:
		out.State = stateUnreachable
	}
	if p.failure != nil {
		out.LastError = fmt.Sprintf("%.300s", p.failure.Error())
	}
	if p.stuck > 0 && out.LastError == "" {
		out.LastError = fmt.Sprintf("%d of its users' queues take nothing now", p.stuck)
	}
	return out
}

// TestPeer connects to a peer anew and asks who it is (control method 1143). A
// peer that fails is an answer, not an error.
func (s *Service) TestPeer(ctx context.Context, r *qpcpb.TestPeerRequest) (*qpcpb.TestPeerResponse, error) {
	p, ok := s.find(strings.ToLower(r.Domain))
	if !ok {
		return nil, peerNotFound(r.Domain)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	client, health, err := p.dial(ctx)
	if err != nil {
		p.note(err)
		return &qpcpb.TestPeerResponse{Detail: advice(err), Status: health.GetStatus()}, nil
	}
	defer func() { _ = client.Conn().Close(transport.CloseNormal, "tested") }()
	begun := time.Now()
	if _, err := qpcpb.NewFederationClient(client).FederationHealth(ctx, &qpcpb.FederationHealthRequest{}); err != nil {
		return &qpcpb.TestPeerResponse{Detail: advice(err), Status: health.Status}, nil
	}
	trip := time.Since(begun)
	p.note(nil)
	nudge(p.hasCalled) // what waits need not wait longer
	return &qpcpb.TestPeerResponse{
		Reachable: true, Status: health.Status, RoundTripMs: uint32(max(1, trip.Milliseconds())),
		Detail: fmt.Sprintf("%s answers at %s with the right certificate and name", p.domain, p.address),
	}, nil
}

// advice says what an owner can do about a peer that cannot be reached.
func advice(err error) string {
	var changed *transport.ErrPinChanged
	var handshake *transport.HandshakeError
	switch {
	case errors.As(err, &changed):
		return fmt.Sprintf("another certificate is there: its pin is %s. Ask the other owner for `qpcd fingerprint`; if it is this one, enter it", changed.Presented)
	case errors.Is(err, transport.ErrNoCommonProtocol):
		return "it does not federate; its owner has to add this server as a peer"
	case errors.As(err, &handshake) && handshake.Remote:
		return "it refuses this server's certificate; its owner has to add this server as a peer, with the pin that `qpcd fingerprint` shows here"
	}
	return fmt.Sprintf("%.400s", err.Error())
}
