package server

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/reach"
)

// reachRows are the methods for endpoints and push tokens.
func reachRows() map[qpcpb.MethodID]row {
	refused := qpcpb.CodePushHostRefused
	return map[qpcpb.MethodID]row{
		qpcpb.MethodPublishEndpoint: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.PublishEndpointRequest{IdentityKey: s.alice.key[:], Address: []byte("somewhere"), TtlSecs: 60}
			},
			fields: map[protoreflect.Name]rule{
				"identity_key": append(fixed(32), put("another's", keyOf(1), qpcpb.CodeNotYours)),
				"address":      upTo(reach.MaxAddress), "ttl_secs": number(),
			},
		},
		qpcpb.MethodResolveEndpoint: {
			valid: func(s *stage, c *client) proto.Message {
				_, err := qpcpb.NewEndpointClient(c).PublishEndpoint(within(s.t), &qpcpb.PublishEndpointRequest{IdentityKey: s.alice.key[:], Address: []byte("here")})
				if err != nil {
					s.t.Fatal(err)
				}
				return &qpcpb.ResolveEndpointRequest{IdentityKey: s.alice.key[:]}
			},
			fields: map[protoreflect.Name]rule{"identity_key": append(fixed(32), put("nobody's", keyOf(1), qpcpb.CodeEndpointNotFound))},
		},
		qpcpb.MethodRegisterPushToken: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.RegisterPushTokenRequest{Platform: reach.PlatformUnifiedPush, Token: "https://192.0.2.1/up?x=1", DeviceId: s.device}
			},
			fields: map[protoreflect.Name]rule{
				"platform": {put("empty", "", invalid), put("another", "apns", invalid), put("upper case", "UnifiedPush", invalid)},
				"token": {
					put("empty", "", ok), put("with a port", "https://192.0.2.1:8443/x", ok), put("the longest", "https://192.0.2.1/"+strings.Repeat("a", reach.MaxToken-18), ok),
					put("one too long", "https://192.0.2.1/"+strings.Repeat("a", reach.MaxToken-17), invalid), put("not encrypted", "http://192.0.2.1/x", invalid),
					put("another scheme", "file:///etc/passwd", invalid), put("no URL", "192.0.2.1", invalid), put("a user", "https://a:b@192.0.2.1/x", invalid),
					put("a fragment", "https://192.0.2.1/x#y", invalid), put("a line break", "https://192.0.2.1/x\r\ny: z", invalid), put("NUL", "https://192.0.2.1/\x00", invalid),
					put("another host", "https://192.0.2.2/x", refused), put("loopback", "https://127.0.0.1/x", refused), put("a name", "https://localhost/x", refused),
					put("a host in front", "https://192.0.2.1.example/x", refused), put("a zone", "https://[fe80::1%25eth0]/x", refused),
				},
				"device_id": append(fixed(16), put("another's", random(16), qpcpb.CodeDeviceNotFound)),
			},
		},
	}
}
