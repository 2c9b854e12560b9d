package server

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/federation"
	"github.com/quicprochat/qpcd/pkg/service/group"
	"github.com/quicprochat/qpcd/pkg/service/keys"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// federate makes the domain that talks to other servers. Groups and keys are
// made after it.
func (s *Server) federate(cfg *config.Config, o Options, secrets secrets, accounts *auth.Service, groups **group.Service, packages **keys.Service) *federation.Service {
	peers := make([]federation.ConfiguredPeer, len(cfg.Peers))
	for i, p := range cfg.Peers {
		peers[i] = federation.ConfiguredPeer{Domain: p.Domain, Address: p.Address, Pin: p.Pin, Where: p.Origin.String()}
	}
	return federation.New(federation.Options{
		DB: s.db, Log: o.Log, Now: o.Now, Rand: o.Rand,
		Domain: cfg.ServerName, ServerKey: secrets.signing.Public().(ed25519.PublicKey), Peers: peers,
		Dial: func(ctx context.Context, address string, trust transport.Trust) (transport.Conn, error) {
			return transport.Dial(ctx, transport.DialOptions{
				Address: address, Trust: trust, ALPN: transport.FederationALPN, Certificates: s.certs, Now: o.Now,
			})
		},
		Status: s.status, Accounts: localAccounts{accounts}, Mailbox: mailbox{s}, Groups: federatedGroups{groups},
		Keys: federatedKeys{packages}, KeyLog: s.keyLog,
	})
}

// servePeer answers the calls of another server, if it is a peer still.
func (s *Server) servePeer(conn transport.Conn) {
	domain, detach, ok := s.federation.Attach(conn)
	if !ok {
		_ = conn.Close(transport.CloseProtocolViolation, "this server's certificate is no peer's") // gone, or going
		return
	}
	defer detach()
	s.calls.ServePeer(conn, domain)
}

// localAccounts shows the accounts to the federation in its own terms.
type localAccounts struct{ *auth.Service }

func (l localAccounts) UsernameTx(tx *store.Tx, identity rpc.IdentityKey) (string, bool, error) {
	return usernames{l.Service}.UsernameTx(tx, identity)
}

func (l localAccounts) IdentityTx(tx *store.Tx, folded string) (rpc.IdentityKey, bool, error) {
	a, err := l.FindByNameTx(tx, folded)
	if errors.Is(err, auth.ErrNoAccount) {
		return rpc.IdentityKey{}, false, nil
	}
	return a.Identity, err == nil, err
}

// mailbox is delivery as the federation sees it, which is made before it.
type mailbox struct{ server *Server }

// homeSender stands for a server that sends as the home of a group, where
// receipts want a sender: no identity key is a hash that begins so.
func homeSender(domain string) rpc.IdentityKey {
	return sha256.Sum256([]byte("qpc federation home v1\x00" + domain))
}

func arrival(domain string, m federation.Message) delivery.Arrival {
	a := delivery.Arrival{
		Sender: m.Sender, Recipient: m.Recipient, Channel: m.Channel, Payload: m.Payload, ID: m.ID, ValidFor: m.ValidFor, FromHome: m.FromHome,
	}
	if m.FromHome {
		a.Sender = homeSender(domain)
	}
	return a
}

func (b mailbox) ReceiveTx(tx *store.Tx, domain string, m federation.Message) (uint64, bool, error) {
	return b.server.delivery.ReceiveTx(tx, arrival(domain, m))
}

func (b mailbox) ReceiveEphemeral(ctx context.Context, m federation.Message) error {
	return b.server.delivery.ReceiveEphemeral(ctx, arrival("", m))
}

// relays is the federation as delivery sees it.
type relays struct{ *federation.Service }

func relayed(m delivery.Relay) federation.Message {
	out := federation.Message{
		Sender: m.Sender, Recipient: m.Recipient, Channel: m.Channel, Payload: m.Payload, ID: m.ID, ValidFor: m.ValidFor,
	}
	if m.Must {
		// What nobody may miss is a group's, and this server its home.
		out.FromHome, out.Sender = true, rpc.IdentityKey{}
	}
	return out
}

func (r relays) RelayTx(tx *store.Tx, domain string, m delivery.Relay) error {
	return r.Service.RelayTx(tx, domain, relayed(m), m.Must)
}

func (r relays) RelayEphemeral(domain string, m delivery.Relay) {
	r.Service.RelayEphemeral(domain, relayed(m))
}

// federatedGroups are the groups, for the federation that is made before them.
type federatedGroups struct{ groups **group.Service }

func (g federatedGroups) HomeTx(tx *store.Tx, id rpc.ChannelID) (string, bool, error) {
	return (*g.groups).HomeTx(tx, id)
}

func (g federatedGroups) OpenChannelTx(tx *store.Tx, id rpc.ChannelID, sender, recipient rpc.IdentityKey) error {
	return (*g.groups).OpenChannelTx(tx, id, sender, recipient)
}

func (g federatedGroups) ApplyStateTx(tx *store.Tx, home string, state *qpcpb.GroupState) error {
	return (*g.groups).ApplyStateTx(tx, home, state)
}

func (g federatedGroups) RotateKeysFor(ctx context.Context, member rpc.IdentityKey, r *qpcpb.RotateKeysRequest) (*qpcpb.RotateKeysResponse, error) {
	return (*g.groups).RotateKeysFor(ctx, member, r)
}

func (g federatedGroups) UpdateGroupMetadataFor(ctx context.Context, member rpc.IdentityKey, r *qpcpb.UpdateGroupMetadataRequest) (*qpcpb.UpdateGroupMetadataResponse, error) {
	return (*g.groups).UpdateGroupMetadataFor(ctx, member, r)
}

func (g federatedGroups) RemoveMemberFor(ctx context.Context, member rpc.IdentityKey, r *qpcpb.RemoveMemberRequest) (*qpcpb.RemoveMemberResponse, error) {
	return (*g.groups).RemoveMemberFor(ctx, member, r)
}

// federatedKeys are the keys, for the federation that is made before them.
type federatedKeys struct{ packages **keys.Service }

func (k federatedKeys) KeyPackageFor(ctx context.Context, owner rpc.IdentityKey) ([]byte, error) {
	return (*k.packages).KeyPackageFor(ctx, owner)
}

func (k federatedKeys) HybridKeyFor(ctx context.Context, owner rpc.IdentityKey) ([]byte, error) {
	return (*k.packages).HybridKeyFor(ctx, owner)
}
