package server

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/group"
)

// groupRows are the methods of groups.
func groupRows() map[qpcpb.MethodID]row {
	// made is a new group of alice and bob, at epoch 0.
	made := func(s *stage) []byte {
		id := random(16)
		r := &qpcpb.UpdateGroupMetadataRequest{GroupId: id, Metadata: []byte("x"), AddMembers: [][]byte{s.bob.key[:]}}
		if _, err := qpcpb.NewGroupClient(s.user).UpdateGroupMetadata(within(s.t), r); err != nil {
			s.t.Fatal(err)
		}
		return id
	}
	id := fixed(16)
	wrongKeys := rule{
		list("31 bytes", 1, keysOf(31), invalid), list("33 bytes", 1, keysOf(33), invalid), list("empty", 1, keysOf(0), invalid),
		list("257", 257, keyOf, invalid), list("5,000", 5000, keyOf, qpcpb.CodeMalformed),
	}
	return map[qpcpb.MethodID]row{
		qpcpb.MethodRemoveMember: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.RemoveMemberRequest{GroupId: made(s), IdentityKey: s.bob.key[:]}
			},
			fields: map[protoreflect.Name]rule{"group_id": id, "identity_key": fixed(32)},
		},
		qpcpb.MethodUpdateGroupMetadata: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.UpdateGroupMetadataRequest{GroupId: random(16), Metadata: []byte("x"), AddMembers: [][]byte{s.bob.key[:]}}
			},
			fields: map[protoreflect.Name]rule{
				"group_id": id, "metadata": upTo(group.MaxMetadata),
				"add_members": append(rule{list("none", 0, keyOf, ok), list("nobody", 1, keyOf, qpcpb.CodeUserNotFound)}, wrongKeys...),
			},
		},
		qpcpb.MethodListGroupMembers: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.ListGroupMembersRequest{GroupId: made(s)}
			},
			fields: map[protoreflect.Name]rule{"group_id": id},
		},
		qpcpb.MethodRotateKeys: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.RotateKeysRequest{
					GroupId: made(s), Commit: []byte("x"), AddMembers: [][]byte{s.root.key[:]}, Welcomes: [][]byte{{1}},
				}
			},
			fields: map[protoreflect.Name]rule{
				"group_id": id, "epoch": number(),
				"commit": {
					put("0 bytes", []byte{}, invalid), put("1 byte", []byte{1}, ok), put("one too large", make([]byte, frame.MaxPayload-1<<10+1), tooLarge),
				},
				"recipient_keys": append(rule{list("as well as commit", 1, keyOf, invalid)}, wrongKeys...),
				"payloads":       {list("as well as commit", 1, keysOf(1), invalid)},
				"add_members":    append(rule{list("none", 0, keyOf, invalid), list("two", 2, keyOf, invalid), list("nobody", 1, keyOf, qpcpb.CodeUserNotFound)}, wrongKeys...),
				"welcomes":       {list("none", 0, keyOf, invalid), list("an empty one", 1, keysOf(0), invalid), list("two", 2, keysOf(1), invalid)},
				"remove_members": append(rule{list("nobody", 1, keyOf, ok)}, wrongKeys...),
			},
		},
	}
}
