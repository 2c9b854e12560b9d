package client

import (
	"context"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// SetGapGrace makes a client believe sooner that a commit is lost.
func SetGapGrace(c *Client, d time.Duration) {
	c.mu.Lock()
	c.gapGrace = d
	c.mu.Unlock()
}

// Calls returns the calls of a client that is connected.
func Calls(c *Client) (*rpc.Client, error) {
	l, err := c.online()
	if err != nil {
		return nil, err
	}
	return l.rpc, nil
}

// DropLink ends the connection of a client, which connects again.
func DropLink(c *Client) {
	if l, err := c.online(); err == nil {
		l.rpc.Conn().Close(0, "")
	}
}

// ForgeWelcome makes a second MLS group of a group's id at an epoch, and the
// envelope with the Welcome to it.
func ForgeWelcome(c *Client, id rpc.ChannelID, keyPackage, hybrid []byte, to rpc.IdentityKey, epoch int) []byte {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	g, err := e2ee.NewGroup(c.device, id[:])
	must(err)
	other, err := e2ee.NewIdentity(make([]byte, e2ee.SeedSize))
	must(err)
	for i := 0; int(g.Epoch()) < epoch-1; i++ {
		if i%2 == 0 {
			public, _, _, err := e2ee.NewKeyPackage(other.FirstDevice(), e2ee.Unlimited, false)
			must(err)
			_, _, err = g.Add([][]byte{public})
			must(err)
		} else {
			_, err := g.Remove(other.Key())
			must(err)
		}
		_, err = g.MergeCommit()
		must(err)
	}
	_, welcome, err := g.Add([][]byte{keyPackage})
	must(err)
	envelope, err := e2ee.SealHybrid(c.options.Rand, hybrid, e2ee.IdentityKey(to), welcome)
	must(err)
	return envelope
}

// Held returns how many messages of a channel wait for a commit.
func Held(c *Client, id rpc.ChannelID) (n int) {
	_ = list(context.Background(), c.box, heldPrefix(id), func(string, held) (bool, error) { n++; return true, nil })
	return n
}
