package client

import (
	"context"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// pushPlatform is the only kind of push address that servers take.
const pushPlatform = "unifiedpush"

// Endpoint is where somebody can be reached directly.
type Endpoint struct {
	// Address means something to the programs of both sides only.
	Address []byte
	Expires time.Time
}

// PublishEndpoint tells the server for a while (0 is an hour, at most a day)
// where this account can be reached directly; an empty address takes it back.
// The server tells those who share a conversation with it and are not blocked.
func (c *Client) PublishEndpoint(ctx context.Context, address []byte, ttl time.Duration) error {
	identity := c.Identity()
	return c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		_, err := qpcpb.NewEndpointClient(calls).PublishEndpoint(ctx, &qpcpb.PublishEndpointRequest{
			IdentityKey: identity[:], Address: address, TtlSecs: uint32(min(max(0, ttl/time.Second), 1<<32-1)),
		})
		return err
	})
}

// ResolveEndpoint asks where somebody can be reached directly. The error has
// CodeEndpointNotFound when they have told nobody, or not this account.
func (c *Client) ResolveEndpoint(ctx context.Context, peer rpc.IdentityKey) (e Endpoint, err error) {
	err = c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		response, err := qpcpb.NewEndpointClient(calls).ResolveEndpoint(ctx, &qpcpb.ResolveEndpointRequest{IdentityKey: peer[:]})
		if err != nil {
			return err
		}
		e = Endpoint{Address: response.Address, Expires: time.Unix(int64(response.ExpiresAt), 0)}
		return nil
	})
	return e, err
}

// RegisterPushToken tells the server at which UnifiedPush address to wake this
// device when a message waits and nothing of the account is connected; an empty
// one takes that back. The error has CodePushHostRefused where the server's
// owner has not listed the address's host.
func (c *Client) RegisterPushToken(ctx context.Context, url string) error {
	device := c.DeviceID()
	return c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		_, err := qpcpb.NewPushTokenClient(calls).RegisterPushToken(ctx, &qpcpb.RegisterPushTokenRequest{
			Platform: pushPlatform, Token: url, DeviceId: device[:],
		})
		return err
	})
}
