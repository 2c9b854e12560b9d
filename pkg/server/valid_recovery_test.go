package server

import (
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/recovery"
)

// recoveryRows are the methods for recovery bundles.
func recoveryRows() map[qpcpb.MethodID]row {
	hash := make([]byte, 32)
	// store makes alice's bundle under the hash.
	store := func(s *stage) {
		_, err := qpcpb.NewRecoveryClient(s.user).StoreRecoveryBundle(within(s.t), &qpcpb.StoreRecoveryBundleRequest{TokenHash: hash, Bundle: []byte("x")})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	fields := map[protoreflect.Name]rule{"token_hash": append(fixed(32), put("another", keyOf(9), qpcpb.CodeBundleNotFound))}
	return map[qpcpb.MethodID]row{
		qpcpb.MethodStoreRecoveryBundle: {
			valid: func(*stage, *client) proto.Message {
				return &qpcpb.StoreRecoveryBundleRequest{TokenHash: hash, Bundle: random(600)}
			},
			fields: map[protoreflect.Name]rule{
				"token_hash": fixed(32),
				"bundle": append(lengths(ok, 1, recovery.MaxBundle),
					append(lengths(invalid, 0), lengths(tooLarge, recovery.MaxBundle+1)...)...),
			},
		},
		qpcpb.MethodFetchRecoveryBundle: {
			who: func(s *stage) *client { return s.stranger }, pace: 20 * time.Minute,
			valid: func(s *stage, _ *client) proto.Message {
				store(s)
				return &qpcpb.FetchRecoveryBundleRequest{TokenHash: hash}
			},
			fields: fields,
		},
		qpcpb.MethodDeleteRecoveryBundle: {
			valid: func(s *stage, _ *client) proto.Message {
				store(s)
				return &qpcpb.DeleteRecoveryBundleRequest{TokenHash: hash}
			},
			fields: fields,
		},
	}
}
