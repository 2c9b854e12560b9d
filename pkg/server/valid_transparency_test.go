package server

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// transparencyRows are the methods of the log.
func transparencyRows() map[qpcpb.MethodID]row {
	return map[qpcpb.MethodID]row{
		qpcpb.MethodRevokeKey: {
			who: passer,
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.RevokeKeyRequest{IdentityKey: s.keyOfPasser(), Reason: "user_revoked"}
			},
			fields: map[protoreflect.Name]rule{
				"identity_key": append(fixed(32), put("another's", keyOf(1), qpcpb.CodeNotYours)),
				"reason": {
					put("compromised", "compromised", ok), put("superseded", "superseded", ok), put("user_revoked", "user_revoked", ok),
					put("empty", "", invalid), put("another", "lost", invalid), put("upper case", "Compromised", invalid), put("NUL", "superseded\x00", invalid),
				},
			},
		},
		qpcpb.MethodCheckRevocation: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.CheckRevocationRequest{IdentityKey: s.bob.key[:]}
			},
			fields: map[protoreflect.Name]rule{"identity_key": fixed(32)},
		},
		qpcpb.MethodAuditKeyTransparency: {
			who: func(s *stage) *client { return s.stranger },
			valid: func(*stage, *client) proto.Message {
				return &qpcpb.AuditKeyTransparencyRequest{Start: 0, End: 1}
			},
			fields: map[protoreflect.Name]rule{"start": number().but(invalid, "maximum"), "end": number().but(invalid, "maximum")},
		},
		qpcpb.MethodGetCheckpoint: {
			who:   func(s *stage) *client { return s.stranger },
			valid: func(*stage, *client) proto.Message { return &qpcpb.GetCheckpointRequest{} },
		},
		qpcpb.MethodProveConsistency: {
			who: func(s *stage) *client { return s.stranger },
			valid: func(*stage, *client) proto.Message {
				return &qpcpb.ProveConsistencyRequest{OldSize: 0, NewSize: 2}
			},
			fields: map[protoreflect.Name]rule{"old_size": number().but(invalid, "maximum"), "new_size": number().but(invalid, "maximum")},
		},
	}
}
