package client

import (
	"context"

	"github.com/quicprochat/qpcd/pkg/rpc"
)

// Shown is what a program remembers of what its user has seen, so that no
// message is shown twice or missed when the program dies.
type Shown struct {
	// Peers has a mark for each conversation; the keys are identity keys in
	// hexadecimal.
	Peers map[string]Mark `json:",omitempty"`
	// Writing is set while output is under way that a crash may cut off.
	Writing *Writing `json:",omitempty"`
}

// Mark is how far one conversation was shown.
type Mark struct {
	// UpTo is the number of the last message shown.
	UpTo uint64
	// Open is set while that message is a part and the text goes on.
	Open bool `json:",omitempty"`
}

// Writing describes output that goes to a regular file, before it is written:
// where it begins, how long it is, and the marks that hold once it is there.
type Writing struct {
	Device, Inode  uint64
	Offset, Length int64
	Peers          map[string]Mark
}

// Of returns the mark of a conversation, zero when nothing was shown.
func (s Shown) Of(peer rpc.IdentityKey) Mark { return s.Peers[peer.String()] }

// Shown returns what SetShown stored last.
func (c *Client) Shown(ctx context.Context) (Shown, error) {
	var s Shown
	_, err := c.box.get(ctx, keyShown, &s)
	return s, err
}

// SetShown makes durable what the user has seen. Store it after the output.
func (c *Client) SetShown(ctx context.Context, s Shown) error {
	b := c.box.batch()
	b.put(keyShown, s)
	return b.apply(ctx)
}
