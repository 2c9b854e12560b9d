package client

import (
	"context"
	"testing"

	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// CutOffPasswordChange does what ChangePassword does up to the last call, which
// arrives or not, and of which nothing is heard. testOnly.
func CutOffPasswordChange(ctx context.Context, c *Client, password []byte, arrives bool) error {
	return c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		registration, request, err := opaque.NewRegistration(c.options.Rand, password)
		if err != nil {
			return err
		}
		start, err := qpcpb.NewAuthClient(calls).ChangePasswordStart(ctx, &qpcpb.ChangePasswordStartRequest{Request: request})
		if err != nil {
			return err
		}
		upload, _, key, err := registration.FinishKeeping(start.Response)
		if err != nil {
			return err
		}
		if err := c.renewRecovery(ctx, calls, key); err != nil || !arrives {
			return err
		}
		_, err = qpcpb.NewAuthClient(calls).ChangePasswordFinish(ctx, &qpcpb.ChangePasswordFinishRequest{Upload: upload})
		return err
	})
}

func FuzzParseRecovery(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"identity_seed":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","password_keys":["AA=="],"codes":[{"TokenHash":"AA==","Key":null}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := parseRecovery(content)
		if err == nil && (len(r.IdentitySeed) != 32 || len(r.PasswordKeys) == 0 || len(r.PasswordKeys[0]) != opaque.PasswordKeyLength) {
			t.Errorf("accepted %q", content)
		}
	})
}
