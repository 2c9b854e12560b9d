package server

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/moderation"
)

// culprit is a new user to ban.
func culprit(s *stage) []byte {
	s.made++
	u := s.settle(person(fmt.Sprintf("passer%d", s.made)))
	return u.key[:]
}

// moderationRows are the methods for reports and bans.
func moderationRows() map[qpcpb.MethodID]row {
	admin := func(s *stage) *client { return s.admin }
	return map[qpcpb.MethodID]row{
		qpcpb.MethodReportMessage: {
			who: passer, // one reporter may have 20
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.ReportMessageRequest{EncryptedReport: random(100), ConversationId: random(16)}
			},
			fields: map[protoreflect.Name]rule{
				"encrypted_report": append(lengths(ok, 1, moderation.MaxReport),
					append(lengths(qpcpb.CodeReportEmpty, 0), lengths(tooLarge, moderation.MaxReport+1)...)...),
				"conversation_id": optional(16),
			},
		},
		qpcpb.MethodListReportKeys: {valid: func(*stage, *client) proto.Message { return &qpcpb.ListReportKeysRequest{} }},
		qpcpb.MethodListReports: {
			who:    admin,
			valid:  func(*stage, *client) proto.Message { return &qpcpb.ListReportsRequest{Limit: 1} },
			fields: map[protoreflect.Name]rule{"limit": number(), "offset": number()},
		},
		qpcpb.MethodBanUser: {
			who: admin,
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.BanUserRequest{IdentityKey: culprit(s), Reason: "spam", DurationSecs: 60}
			},
			fields: map[protoreflect.Name]rule{
				"identity_key": append(fixed(32), put("nobody's", keyOf(7), qpcpb.CodeUserNotFound)),
				"reason": {
					put("empty", "", ok), put("200 characters", strings.Repeat("ä", 200), ok), put("SQL", "' OR 1=1 --", ok),
					put("201 characters", strings.Repeat("a", 201), invalid), put("NUL", "a\x00b", invalid),
					put("line break", "a\nb", invalid), put("separator", "a\u2028b", invalid),
				},
				"duration_secs": number(),
			},
		},
		qpcpb.MethodUnbanUser: {
			who: admin,
			valid: func(s *stage, c *client) proto.Message {
				key := culprit(s)
				if _, err := qpcpb.NewModerationClient(c).BanUser(within(s.t), &qpcpb.BanUserRequest{IdentityKey: key}); err != nil {
					s.t.Fatal(err)
				}
				return &qpcpb.UnbanUserRequest{IdentityKey: key}
			},
			fields: map[protoreflect.Name]rule{"identity_key": append(fixed(32), put("not banned", keyOf(7), qpcpb.CodeBanNotFound))},
		},
		qpcpb.MethodListBanned: {who: admin, valid: func(*stage, *client) proto.Message { return &qpcpb.ListBannedRequest{} }},
	}
}
