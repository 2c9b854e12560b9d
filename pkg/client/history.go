package client

import (
	"context"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// History gives the messages of a conversation to visit, oldest first, from
// the first one after a number (0 for all), until visit returns false.
func (c *Client) History(ctx context.Context, peer rpc.IdentityKey, after uint64, visit func(Message) bool) error {
	return listAfter(ctx, c.box, messagePrefix(peer), messageKey(peer, after), func(_ string, m Message) (bool, error) {
		return visit(m), nil
	})
}

// User is somebody with an account on the server.
type User struct {
	Name     string
	Identity rpc.IdentityKey
	Online   bool
	LastSeen uint64 // Unix seconds
}

// Users returns everybody on the server.
func (c *Client) Users(ctx context.Context) ([]User, error) {
	var users []User
	err := c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		for after := ""; ; {
			response, err := qpcpb.NewDirectoryClient(calls).ListUsers(ctx, &qpcpb.ListUsersRequest{After: after})
			if err != nil {
				return err
			}
			for _, u := range response.Users {
				key, err := rpc.ParseIdentityKey("identity_key", u.IdentityKey)
				if err != nil {
					return fmt.Errorf("%w: %w", rpc.ErrProtocol, err)
				}
				users = append(users, User{Name: u.Username, Identity: key, Online: u.Online, LastSeen: u.LastSeen})
				after = u.Username
			}
			if len(response.Users) == 0 {
				return nil
			}
		}
	})
	return users, err
}
