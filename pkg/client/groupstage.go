package client

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// packagesFor takes key packages for those who are to be added, and stores them
// with the wish, so that no refusal uses up more.
func (c *Client) packagesFor(ctx context.Context, l *link, t task, add []rpc.IdentityKey) ([][]byte, error) {
	if len(add) == 0 {
		return nil, nil
	}
	if t.wish.Packages == nil {
		t.wish.Packages = make(map[string][][]byte)
	}
	var all [][]byte
	for _, who := range add {
		if t.wish.Packages[who.String()] == nil {
			calling, cancel := context.WithTimeout(ctx, callTimeout)
			packages, err := c.takeKeyPackages(calling, l, who)
			cancel()
			if err != nil {
				return nil, fmt.Errorf("inviting %s: %w", c.calledBy(ctx, who), err)
			}
			t.wish.Packages[who.String()] = packages
			c.mu.Lock()
			b := c.box.batch()
			b.put(t.key, *t.wish)
			err = b.apply(ctx)
			c.mu.Unlock()
			if err != nil {
				return nil, err
			}
		}
		all = append(all, t.wish.Packages[who.String()]...)
	}
	return all, nil
}

// calledBy is what to call somebody in an error.
func (c *Client) calledBy(ctx context.Context, who rpc.IdentityKey) string {
	if name := c.nameOf(ctx, who); name != "" {
		return name
	}
	return who.String()[:8]
}

// refreshHybrids looks up the hybrid keys of members that were not looked up in
// the life of the program. One that the server no longer gives stays as it was.
func (c *Client) refreshHybrids(ctx context.Context, l *link, members []rpc.IdentityKey) error {
	const most = 256 // that one call asks for
	var ask [][]byte
	c.mu.Lock()
	for _, id := range members {
		if id != c.Identity() && !c.freshHybrid[id] {
			ask = append(ask, slices.Clone(id[:]))
		}
	}
	c.mu.Unlock()
	for chunk := range slices.Chunk(ask, most) {
		calling, cancel := context.WithTimeout(ctx, callTimeout)
		response, err := qpcpb.NewKeyClient(l.rpc).FetchHybridKeys(calling, &qpcpb.FetchHybridKeysRequest{IdentityKeys: chunk})
		cancel()
		if err != nil {
			return err
		}
		c.mu.Lock()
		b := c.box.batch()
		for _, k := range response.Keys {
			id, err := rpc.ParseIdentityKey("identity_key", k.IdentityKey)
			if err != nil || len(k.HybridPublicKey) != e2ee.HybridPublicKeySize || !slices.Contains(members, id) {
				continue
			}
			p, err := c.contact(ctx, id)
			if err != nil {
				c.mu.Unlock()
				return err
			}
			if string(p.Hybrid) != string(k.HybridPublicKey) {
				p.Hybrid = k.HybridPublicKey
				b.put(contactKey(id), p)
			}
			c.freshHybrid[id] = true
		}
		err = b.apply(ctx)
		c.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// stage makes the commit and its request, and stores both.
func (c *Client) stage(ctx context.Context, t task, p plan, epoch uint64, listed []rpc.IdentityKey, packages [][]byte) (err error) {
	id := t.room.ID
	c.mu.Lock()
	defer c.mu.Unlock()
	r, g, err := c.usable(ctx, id)
	if err != nil || g.mls.Epoch() != epoch || len(r.Leaving) != len(t.room.Leaving) {
		return errMoved
	}
	defer func() {
		if err != nil {
			c.forget(id)
		}
	}()
	if _, _, waits := g.mls.PendingCommit(); waits { // of a request that was given up
		if err := g.mls.DiscardCommit(); err != nil {
			return err
		}
	}
	commit, welcome, err := g.mls.Change(packages, toE2EE(p.remove))
	if err != nil {
		return fmt.Errorf("changing the group: %w", err)
	}
	members := g.mls.Identities()
	request := &qpcpb.RotateKeysRequest{GroupId: id[:], Epoch: epoch}
	for _, who := range listed {
		if who == c.Identity() && !c.otherDevices(g) {
			continue
		}
		// One whom only the server counts as a member learns nothing.
		payload := []byte{0}
		if slices.Contains(members, e2ee.IdentityKey(who)) {
			if payload, err = c.wrapFor(ctx, who, commit); err != nil {
				return err
			}
		}
		request.RecipientKeys = append(request.RecipientKeys, slices.Clone(who[:]))
		request.Payloads = append(request.Payloads, payload)
	}
	for _, who := range p.add {
		payload, err := c.wrapFor(ctx, who, welcome)
		if err != nil {
			return err
		}
		request.AddMembers = append(request.AddMembers, slices.Clone(who[:]))
		request.Welcomes = append(request.Welcomes, payload)
	}
	for _, who := range p.delist {
		request.RemoveMembers = append(request.RemoveMembers, slices.Clone(who[:]))
	}
	encoded, err := proto.Marshal(request)
	if err != nil {
		return fmt.Errorf("changing the group: %w", err)
	}
	if len(encoded) > maxRotateRequest {
		return ErrGroupTooLarge
	}
	b := c.box.batch()
	g.save(b, id)
	b.put(rotateKey(id), storedRotate{Request: encoded, Commit: sha256.Sum256(commit), Wish: t.key, Renewed: p.renew})
	return b.apply(ctx)
}

// otherDevices reports whether this account has more than one leaf in a group.
func (c *Client) otherDevices(g *chatGroup) bool {
	n := 0
	for _, m := range g.mls.Members() {
		if rpc.IdentityKey(m.Identity) == c.Identity() {
			n++
		}
	}
	return n > 1
}

// wrapFor puts a message into the hybrid envelope for a member. errNoKeys: the
// member has no hybrid key. The caller holds c.mu.
func (c *Client) wrapFor(ctx context.Context, who rpc.IdentityKey, message []byte) ([]byte, error) {
	if who == c.Identity() {
		return e2ee.SealHybrid(c.options.Rand, c.hybrid.Public(), c.self.Key(), message)
	}
	p, err := c.contact(ctx, who)
	if err != nil {
		return nil, err
	}
	if p.Hybrid == nil {
		return nil, errNoKeys
	}
	return c.wrap(p, message)
}
