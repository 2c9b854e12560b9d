package server

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/group"
)

// peerDomain is the server that the stage's peer speaks for.
const peerDomain = "peer.example"

// peerOf connects to a house as another server, in memory: that only a peer's
// certificate gets so far is the transport's matter.
func (h *house) peerOf(domain string) *client {
	conn, server := rpctest.Pipe(rpctest.Options{})
	c := h.client(conn)
	c.gone.Go(func() { h.s.calls.ServePeer(server, domain) })
	return c
}

// asPeer is the stage's connection of another server.
func asPeer(s *stage) *client {
	if s.peer == nil {
		s.peer = s.peerOf(peerDomain)
	}
	return s.peer
}

func origin() *qpcpb.FederationAuth { return &qpcpb.FederationAuth{Origin: peerDomain} }

// abroad is a user of the other server.
func abroad() *user { return person("abroad") }

// federationRows are the methods of other servers.
func federationRows() map[qpcpb.MethodID]row {
	key := fixed(32)
	message := func(name string, m proto.Message, want qpcpb.Code) value {
		return value{name, func(in protoreflect.Message, fd protoreflect.FieldDescriptor) {
			if m == nil {
				in.Clear(fd)
				return
			}
			in.Set(fd, protoreflect.ValueOfMessage(m.ProtoReflect()))
		}, want}
	}
	auth := rule{
		message("missing", nil, qpcpb.CodeOriginMismatch), message("empty", &qpcpb.FederationAuth{}, qpcpb.CodeOriginMismatch),
		message("another", &qpcpb.FederationAuth{Origin: "else.example"}, qpcpb.CodeOriginMismatch),
		message("capital", &qpcpb.FederationAuth{Origin: "Peer.example"}, qpcpb.CodeOriginMismatch),
		message("with a NUL", &qpcpb.FederationAuth{Origin: peerDomain + "\x00"}, qpcpb.CodeOriginMismatch),
	}
	senderName := username()
	for i := range senderName {
		senderName[i].want = invalid
	}
	senderKey := optional(32).but(invalid, "0 bytes") // there is a sender_name
	relay := func(s *stage) *qpcpb.RelayEnqueueRequest {
		return &qpcpb.RelayEnqueueRequest{
			Auth: origin(), RecipientKey: s.alice.key[:], Payload: []byte("x"), MessageId: random(16),
			SenderKey: keyBytes(abroad().key), SenderName: abroad().name,
		}
	}
	// shared is a group of alice and of somebody abroad. It is the same each time,
	// and written to only when its member is missing: looking at everything after
	// a write is slow.
	var made []byte
	shared := func(s *stage, c *client) []byte {
		s.t.Helper()
		calls := qpcpb.NewGroupClient(s.user)
		if made == nil {
			if _, err := qpcpb.NewFederationClient(c).RelayEnqueue(within(s.t), relay(s)); err != nil {
				s.t.Fatal(err)
			}
			made = random(16)
		} else if now, err := calls.ListGroupMembers(within(s.t), &qpcpb.ListGroupMembersRequest{GroupId: made}); err != nil {
			s.t.Fatal(err)
		} else if len(now.Members) == 2 {
			return made
		}
		r := &qpcpb.UpdateGroupMetadataRequest{GroupId: made, Metadata: []byte("x"), AddMembers: [][]byte{keyBytes(abroad().key)}}
		if _, err := calls.UpdateGroupMetadata(within(s.t), r); err != nil {
			s.t.Fatal(err)
		}
		return made
	}
	member := fixed(32)
	state := func(s *stage, change func(*qpcpb.GroupState)) *qpcpb.GroupState {
		g := &qpcpb.GroupState{GroupId: random(16), Version: 1, Epoch: 1, Metadata: []byte("x"), Members: []*qpcpb.GroupStateMember{
			{IdentityKey: s.alice.key[:], Address: "alice@router", JoinedAt: 1},
			{IdentityKey: keyBytes(abroad().key), Address: "abroad@" + peerDomain, Owner: true},
		}}
		if change != nil {
			change(g)
		}
		return g
	}
	// theirs is a state without alice, which a value can have without the stage.
	theirs := func(change func(*qpcpb.GroupState)) *qpcpb.GroupState {
		g := &qpcpb.GroupState{GroupId: random(16), Version: 1, Members: []*qpcpb.GroupStateMember{
			{IdentityKey: keyBytes(abroad().key), Address: "abroad@" + peerDomain, Owner: true},
		}}
		change(g)
		return g
	}
	return map[qpcpb.MethodID]row{
		qpcpb.MethodRelayEnqueue: {
			who:   asPeer,
			valid: func(s *stage, _ *client) proto.Message { return relay(s) },
			fields: map[protoreflect.Name]rule{
				"recipient_key": key, "payload": upTo(delivery.MaxPayload), "channel_id": optional(16), "auth": auth,
				"ttl_secs": number(), "message_id": fixed(16), "sender_key": senderKey, "ephemeral": number(), "sender_name": senderName,
			},
		},
		qpcpb.MethodRelayBatchEnqueue: {
			who: asPeer,
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.RelayBatchEnqueueRequest{
					Auth: origin(), RecipientKeys: [][]byte{s.alice.key[:], s.bob.key[:]}, Payload: []byte("x"), MessageId: random(16),
					SenderKey: keyBytes(abroad().key), SenderName: abroad().name,
				}
			},
			fields: map[protoreflect.Name]rule{
				"recipient_keys": {
					list("none", 0, keyOf, invalid), list("256", 256, keyOf, ok), list("257", 257, keyOf, invalid),
					list("31 bytes", 2, keysOf(31), invalid), list("33 bytes", 2, keysOf(33), invalid), list("empty", 2, keysOf(0), invalid),
					list("5,000", 5000, keyOf, qpcpb.CodeMalformed),
				},
				"payload": lengths(ok, 0, 1, 100_000), "channel_id": optional(16), "auth": auth, "ttl_secs": number(), "message_id": fixed(16),
				"sender_key": senderKey, "sender_name": senderName,
				"payloads":    {list("as well as payload", 2, keysOf(1), invalid), list("too few", 1, keysOf(1), invalid), list("too many", 3, keysOf(1), invalid)},
				"message_ids": {list("as well as message_id", 2, keysOf(16), invalid), list("too few", 1, keysOf(16), invalid)},
				"ttls_secs":   {numbers("too few", 1, invalid), numbers("as many", 2, ok), numbers("too many", 3, invalid), numbers("5,000", 5000, invalid)},
			},
		},
		qpcpb.MethodProxyFetchKeyPackage: {
			who: asPeer,
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.ProxyFetchKeyPackageRequest{Auth: origin(), IdentityKey: s.bob.key[:]}
			},
			fields: map[protoreflect.Name]rule{"identity_key": key, "auth": auth},
		},
		qpcpb.MethodProxyFetchHybridKey: {
			who: asPeer,
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.ProxyFetchHybridKeyRequest{Auth: origin(), IdentityKey: s.bob.key[:]}
			},
			fields: map[protoreflect.Name]rule{"identity_key": key, "auth": auth},
		},
		qpcpb.MethodProxyResolveUser: {
			who: asPeer,
			valid: func(*stage, *client) proto.Message {
				return &qpcpb.ProxyResolveUserRequest{Auth: origin(), Username: "bob"}
			},
			fields: map[protoreflect.Name]rule{"username": username(), "auth": auth, "known_size": number()},
		},
		qpcpb.MethodFederationHealth: {
			who:   asPeer,
			valid: func(*stage, *client) proto.Message { return &qpcpb.FederationHealthRequest{} },
		},
		qpcpb.MethodRelayGroupState: {
			who: asPeer,
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.RelayGroupStateRequest{Auth: origin(), State: state(s, nil)}
			},
			fields: map[protoreflect.Name]rule{"auth": auth, "state": {
				message("missing", nil, invalid),
				message("without an id", theirs(func(g *qpcpb.GroupState) { g.GroupId = nil }), invalid),
				message("a short id", theirs(func(g *qpcpb.GroupState) { g.GroupId = make([]byte, 15) }), invalid),
				message("version 0", theirs(func(g *qpcpb.GroupState) { g.Version = 0 }), invalid),
				message("a huge epoch", theirs(func(g *qpcpb.GroupState) { g.Epoch = 1 << 63 }), invalid),
				message("large metadata", theirs(func(g *qpcpb.GroupState) { g.Metadata = make([]byte, group.MaxMetadata+1) }), tooLarge),
				message("a short member", theirs(func(g *qpcpb.GroupState) { g.Members[0].IdentityKey = make([]byte, 31) }), invalid),
				message("no owner", theirs(func(g *qpcpb.GroupState) { g.Members[0].Owner = false }), invalid),
				message("no address", theirs(func(g *qpcpb.GroupState) { g.Members[0].Address = "" }), invalid),
				message("an address for terminals", theirs(func(g *qpcpb.GroupState) { g.Members[0].Address = "\x1b[2J@x" }), invalid),
				message("nobody of this server", theirs(func(*qpcpb.GroupState) {}), ok),
			}},
		},
		qpcpb.MethodProxyRotateKeys: {
			who: asPeer,
			valid: func(s *stage, c *client) proto.Message {
				return &qpcpb.ProxyRotateKeysRequest{
					Auth: origin(), SenderKey: keyBytes(abroad().key), Request: &qpcpb.RotateKeysRequest{GroupId: shared(s, c), Commit: []byte("x")},
				}
			},
			fields: map[protoreflect.Name]rule{"auth": auth, "sender_key": member, "request": {
				message("missing", nil, invalid), message("empty", &qpcpb.RotateKeysRequest{}, invalid),
				message("an unknown group", &qpcpb.RotateKeysRequest{GroupId: make([]byte, 16), Commit: []byte("x")}, qpcpb.CodeChannelNotFound),
				message("many members", &qpcpb.RotateKeysRequest{GroupId: make([]byte, 16), Commit: []byte("x"), AddMembers: make([][]byte, 10_000)}, qpcpb.CodeMalformed),
			}},
		},
		qpcpb.MethodProxyUpdateGroupMetadata: {
			who: asPeer,
			valid: func(s *stage, c *client) proto.Message {
				return &qpcpb.ProxyUpdateGroupMetadataRequest{
					Auth: origin(), SenderKey: keyBytes(abroad().key), Request: &qpcpb.UpdateGroupMetadataRequest{GroupId: shared(s, c), Metadata: []byte("y")},
				}
			},
			fields: map[protoreflect.Name]rule{"auth": auth, "sender_key": member, "request": {
				message("missing", nil, invalid), message("empty", &qpcpb.UpdateGroupMetadataRequest{}, invalid),
				message("an unknown group", &qpcpb.UpdateGroupMetadataRequest{GroupId: make([]byte, 16), Metadata: []byte("x")}, qpcpb.CodeChannelNotFound),
			}},
		},
		qpcpb.MethodProxyRemoveMember: {
			who: asPeer,
			valid: func(s *stage, c *client) proto.Message {
				return &qpcpb.ProxyRemoveMemberRequest{
					Auth: origin(), SenderKey: keyBytes(abroad().key),
					Request: &qpcpb.RemoveMemberRequest{GroupId: shared(s, c), IdentityKey: keyBytes(abroad().key)},
				}
			},
			fields: map[protoreflect.Name]rule{"auth": auth, "sender_key": member, "request": {
				message("missing", nil, invalid), message("empty", &qpcpb.RemoveMemberRequest{}, invalid),
				message("an unknown group", &qpcpb.RemoveMemberRequest{GroupId: make([]byte, 16), IdentityKey: make([]byte, 32)}, qpcpb.CodeChannelNotFound),
			}},
		},
	}
}

func keyBytes(k rpc.IdentityKey) []byte { return k[:] }

// numbers sets a list of that many numbers.
func numbers(name string, n int, want qpcpb.Code) value {
	return value{name, func(m protoreflect.Message, fd protoreflect.FieldDescriptor) {
		l := m.Mutable(fd).List()
		l.Truncate(0)
		for range n {
			l.Append(protoreflect.ValueOfUint32(1))
		}
	}, want}
}

// A peer calls the methods of peers and no others.
func TestPeersCallNothingElse(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	for _, info := range qpcpb.Methods() {
		if info.Access != qpcpb.Access_ACCESS_PEER {
			s.refuse(t, asPeer(s), bad{info.Name, framed(info.ID, nil), qpcpb.CodeUnimplemented, requestID})
		}
	}
}
