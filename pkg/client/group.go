package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// A group is one MLS group for all its members, and the server keeps its commit
// lock (PROTOCOL 7.7). What this client knows of one:
//
//	room/<group>     storedRoom: name, how we stand in it
//	group/, chain/   the MLS group, as for a conversation of two
//	wish/<n>         changes that the user wants and that are not made yet
//	rotate/<group>   the one commit that is on its way to the server
//
// A wish becomes a commit, a commit is accepted or refused:
//
//	wish ───draft────► staged commit + request, stored together
//	  ▲                   │ RotateKeys; the same bytes after a crash or a lost answer
//	  │ refused: forget   ├── accepted: merge, and what the wish wanted is there
//	  └── it, read the ◄──┘
//	      winner's commit
//
// Files: group.go is the door, grouptend.go finds out what is to be done,
// commit.go is the way of a wish, groupsend.go and groupreceive.go that of a
// message, and groupcheck.go keeps a group from dying quietly.
type storedRoom struct {
	ID       rpc.ChannelID
	Name     string // as far as it is known
	Revision uint64 // of the name: the higher one counts
	State    GroupState
	// Created is set once the server knows the group.
	Created bool `json:",omitempty"`
	// Quit is set once the user wants to leave.
	Quit bool `json:",omitempty"`
	// Leaving are members who have left and still stand in the MLS group: the
	// next commit of anybody removes them.
	Leaving []rpc.IdentityKey `json:",omitempty"`
	// Reseal is set when the metadata at the server must be sealed for the
	// present members.
	Reseal bool `json:",omitempty"`
	// Welcome waits for the commit that makes room for it.
	Welcome []byte `json:",omitempty"`
}

// GroupState says how this client stands in a group.
type GroupState string

// The states of a group.
const (
	// GroupActive: all is well.
	GroupActive GroupState = "active"
	// GroupLost: a commit was missed, so that nothing new can be read or
	// written. The client asks the other members to take it in anew; the user
	// can ask them to invite again.
	GroupLost GroupState = "lost"
	// GroupRemoved: somebody has removed us. The history stays.
	GroupRemoved GroupState = "removed"
	// GroupLeft: we have left.
	GroupLeft GroupState = "left"
)

// Notice tells what changed in a group. Who did it is the Peer of its message,
// zero when only the server has said so.
type Notice struct {
	Change GroupChange
	Who    []rpc.IdentityKey `json:",omitempty"`
	Name   string            `json:",omitempty"` // GroupRenamed
}

// GroupChange is a kind of notice.
type GroupChange string

// The kinds of notices.
const (
	// MemberJoined: this client was taken into the group.
	MemberJoined GroupChange = "joined"
	// MemberAdded and MemberRemoved: others, or for MemberRemoved this client.
	MemberAdded   GroupChange = "added"
	MemberRemoved GroupChange = "removed"
	// MemberLeft: by their own word.
	MemberLeft GroupChange = "left"
	// GroupRenamed: the group has a new name.
	GroupRenamed GroupChange = "renamed"
	// PlaceLost: this client has missed a commit, see GroupLost.
	PlaceLost GroupChange = "lost"
)

// Group is a group as a program shows it.
type Group struct {
	ID      rpc.ChannelID
	Name    string // empty when it is not known yet
	State   GroupState
	Members []rpc.IdentityKey // this client too
	Epoch   uint64
	// StateHash is equal for two members exactly when they have the same
	// history of commits.
	StateHash [32]byte
}

// Member is a member of a group as a program shows it.
type Member struct {
	Identity rpc.IdentityKey
	Name     string // empty when it is not known
	Owner    bool   // false too while the server cannot be reached
	JoinedAt time.Time
}

// Errors of groups that a program decides on.
var (
	// ErrNotInGroup reports a group that this client is not, or no longer, in.
	ErrNotInGroup = errors.New("you are not in this group")
	// ErrGroupLost reports a group in state GroupLost.
	ErrGroupLost = errors.New("this device has missed a change of the group and can read nothing new in it; it asks the other members to take it in again, and any of them can do so with: qpc group invite --again")
	// ErrNotOwner reports a removal that only the owner may make.
	ErrNotOwner = errors.New("only the owner of a group removes others; ask them to")
	// ErrGroupBusy reports a change that others were faster than, each time.
	ErrGroupBusy = errors.New("other members keep changing the group; try again")
	// ErrGroupTooLarge reports a commit too large for one call.
	ErrGroupTooLarge = errors.New("this change is too large for one message: let several other members run qpc group rotate first, which makes changes small again")
	// ErrAlreadyInGroup reports an invitation of a member.
	ErrAlreadyInGroup = errors.New("they are in the group already")
)

// wish is a change that the user wants. Its number tells what was wanted first,
// also among messages: what is sent after a change waits for it.
type wish struct {
	Group rpc.ChannelID
	Kind  wishKind
	Who   []rpc.IdentityKey `json:",omitempty"`
	// Renew are those of Who who are removed first, because they have lost their
	// place.
	Renew []rpc.IdentityKey `json:",omitempty"`
	// Packages are the key packages taken for Who, by identity in hexadecimal. A
	// commit that was refused has not used them.
	Packages map[string][][]byte `json:",omitempty"`
}

type wishKind string

const (
	wishAdd    wishKind = "add"
	wishRemove wishKind = "remove"
	wishRotate wishKind = "rotate"
)

// room returns what is known of a group; State is empty when nothing is.
func (c *Client) room(ctx context.Context, id rpc.ChannelID) (storedRoom, error) {
	r := storedRoom{ID: id}
	_, err := c.box.get(ctx, roomKey(id), &r)
	return r, err
}

// newest returns the MLS group in which a group lives now, nil for none. Older
// ones are for reading what is late. The caller holds c.mu.
func (c *Client) newest(ctx context.Context, id rpc.ChannelID) (*chatGroup, error) {
	groups, err := c.load(ctx, id)
	if err != nil || len(groups) == 0 {
		return nil, err
	}
	return groups[len(groups)-1], nil
}

// usable returns a group that something can be done in. The caller holds c.mu.
func (c *Client) usable(ctx context.Context, id rpc.ChannelID) (storedRoom, *chatGroup, error) {
	r, err := c.room(ctx, id)
	if err != nil {
		return r, nil, err
	}
	switch {
	case r.State == GroupLost:
		return r, nil, ErrGroupLost
	case r.State != GroupActive || r.Quit:
		return r, nil, ErrNotInGroup
	}
	g, err := c.newest(ctx, id)
	if err == nil && (g == nil || !g.mls.Active()) {
		err = ErrNotInGroup
	}
	return r, g, err
}

// CreateGroup makes a group with a name (e2ee.CheckGroupName) and members beside
// this client, who owns it. It returns when they are in. When ctx ends first, or
// some cannot be invited, the group is there all the same; what was wanted is
// stored and is done as soon as the server can be reached.
func (c *Client) CreateGroup(ctx context.Context, name string, members ...rpc.IdentityKey) (Group, error) {
	if err := e2ee.CheckGroupName(name); err != nil {
		return Group{}, err
	}
	var id rpc.ChannelID
	if _, err := io.ReadFull(c.options.Rand, id[:]); err != nil {
		return Group{}, fmt.Errorf("making a group: %w", err)
	}
	mls, err := e2ee.NewGroup(c.device, id[:])
	if err != nil {
		return Group{}, fmt.Errorf("making a group: %w", err)
	}
	c.mu.Lock()
	b := c.box.batch()
	b.put(roomKey(id), storedRoom{ID: id, Name: name, Revision: 1, State: GroupActive})
	err = c.adopt(ctx, b, id, rpc.IdentityKey{}, mls)
	var done <-chan error
	var forget func()
	if err == nil {
		done, forget, err = c.wantIn(ctx, b, wish{Group: id, Kind: wishAdd, Who: c.others(members)})
	}
	if err == nil {
		err = b.apply(ctx)
	}
	if err != nil {
		c.forget(id)
	}
	c.mu.Unlock()
	if forget != nil {
		defer forget()
	}
	if err != nil {
		return Group{}, err
	}
	c.commits.set()
	err = awaitWish(ctx, done)
	g, groupErr := c.Group(context.WithoutCancel(ctx), id)
	return g, errors.Join(err, groupErr)
}

// others returns identities without this client's and without repetitions.
func (c *Client) others(identities []rpc.IdentityKey) []rpc.IdentityKey {
	var out []rpc.IdentityKey
	for _, id := range identities {
		if id != c.Identity() && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

// Invite adds members to a group, and returns when they are in. When ctx ends
// first the wish stays stored, and is fulfilled as soon as it can.
// ErrAlreadyInGroup: all of them are members.
func (c *Client) Invite(ctx context.Context, group rpc.ChannelID, members ...rpc.IdentityKey) error {
	members = c.others(members)
	c.mu.Lock()
	_, g, err := c.usable(ctx, group)
	if err == nil {
		in := fromE2EE(g.mls.Identities())
		members = slices.DeleteFunc(members, func(m rpc.IdentityKey) bool { return slices.Contains(in, m) })
	}
	c.mu.Unlock()
	if err == nil && len(members) == 0 {
		err = ErrAlreadyInGroup
	}
	if err != nil {
		return err
	}
	return c.want(ctx, wish{Group: group, Kind: wishAdd, Who: members})
}

// InviteAgain takes members anew into a group whose program has lost its place
// in it (GroupLost), or who come with a new device.
func (c *Client) InviteAgain(ctx context.Context, group rpc.ChannelID, members ...rpc.IdentityKey) error {
	members = c.others(members)
	return c.want(ctx, wish{Group: group, Kind: wishAdd, Who: members, Renew: members})
}

// Remove removes members from a group, which only its owner may: ErrNotOwner.
// It returns when they are out, as Invite does.
func (c *Client) Remove(ctx context.Context, group rpc.ChannelID, members ...rpc.IdentityKey) error {
	return c.want(ctx, wish{Group: group, Kind: wishRemove, Who: c.others(members)})
}

// Rotate renews this client's keys in a group: what was stolen before opens
// nothing that comes after. It happens by itself every so often. It returns when
// it is done, as Invite does.
func (c *Client) Rotate(ctx context.Context, group rpc.ChannelID) error {
	return c.want(ctx, wish{Group: group, Kind: wishRotate})
}

// Rename gives a group another name (e2ee.CheckGroupName). The members are told
// like of a message: as soon as it can be.
func (c *Client) Rename(ctx context.Context, group rpc.ChannelID, name string) error {
	if err := e2ee.CheckGroupName(name); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r, _, err := c.usable(ctx, group)
	if err != nil {
		return err
	}
	b := c.box.batch()
	r.Name, r.Revision, r.Reseal = name, r.Revision+1, true
	b.put(roomKey(group), r)
	if err := c.putNote(ctx, b, group, e2ee.GroupNote{Kind: e2ee.NoteInfo, Name: r.Name, Revision: r.Revision}); err != nil {
		return err
	}
	if _, err := c.putNotice(ctx, b, r, c.Identity(), Notice{Change: GroupRenamed, Name: name}); err != nil {
		return err
	}
	if err := b.apply(ctx); err != nil {
		return err
	}
	c.outbox.set()
	c.commits.set()
	return nil
}

// Leave leaves a group: after everything that was sent to it before, members are
// told, and then the server. It returns when that is done, as Invite does. The
// history stays; the keys go.
func (c *Client) Leave(ctx context.Context, group rpc.ChannelID) error {
	c.mu.Lock()
	r, err := c.room(ctx, group)
	if err == nil && (r.State == "" || r.State == GroupLeft || r.State == GroupRemoved) {
		err = ErrNotInGroup
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	b := c.box.batch()
	first := !r.Quit
	r.Quit = true
	b.put(roomKey(group), r)
	key := ""
	if first {
		if err = c.putNote(ctx, b, group, e2ee.GroupNote{Kind: e2ee.NoteLeave}); err == nil {
			key, err = c.putOut(ctx, b, outgoing{Group: group, Leave: true})
		}
	} else if err = list(ctx, c.box, prefixOut, func(k string, out outgoing) (bool, error) {
		if out.Group == group && out.Leave {
			key = k
		}
		return true, nil
	}); err == nil && key == "" {
		err = ErrNotInGroup
	}
	if err == nil {
		err = b.apply(ctx)
	}
	if err != nil {
		c.mu.Unlock()
		return err
	}
	done, forget := c.waitFor(key)
	c.mu.Unlock()
	defer forget()
	c.outbox.set()
	return awaitWish(ctx, done)
}

// putOut adds an entry to the outbox. The caller holds c.mu.
func (c *Client) putOut(ctx context.Context, b *batch, out outgoing) (key string, err error) {
	if out.ID, err = e2ee.NewMessageID(c.options.Rand, c.options.Now()); err != nil {
		return "", err
	}
	out.Made = c.options.Now()
	n, err := c.nextNumber(ctx, b)
	if err != nil {
		return "", err
	}
	b.put(outKey(n), out)
	return outKey(n), nil
}

// putNote adds to the outbox what the programs of the other members should know.
// The caller holds c.mu.
func (c *Client) putNote(ctx context.Context, b *batch, group rpc.ChannelID, note e2ee.GroupNote) error {
	app, err := (&e2ee.Message{Type: e2ee.TypeDummy, Note: &note}).Encode()
	if err != nil {
		return err
	}
	_, err = c.putOut(ctx, b, outgoing{Group: group, App: app})
	return err
}

// putNotice adds a notice to the history. The caller holds c.mu.
func (c *Client) putNotice(ctx context.Context, b *batch, r storedRoom, by rpc.IdentityKey, n Notice) ([]Event, error) {
	var epoch uint64
	if g, err := c.newest(ctx, r.ID); err != nil {
		return nil, err
	} else if g != nil {
		epoch = g.mls.Epoch()
	}
	events, err := c.addMessage(ctx, b, Message{Peer: by, Group: r.ID, Epoch: epoch, Notice: &n, Mine: by == c.Identity(), Stored: c.options.Now(), Status: StatusReceived})
	for i := range events {
		events[i].GroupName = r.Name
	}
	return events, err
}

// want stores a wish and waits until it is fulfilled.
func (c *Client) want(ctx context.Context, w wish) error {
	c.mu.Lock()
	_, _, err := c.usable(ctx, w.Group)
	var done <-chan error
	var forget func()
	if err == nil {
		b := c.box.batch()
		if done, forget, err = c.wantIn(ctx, b, w); err == nil {
			err = b.apply(ctx)
		}
	}
	c.mu.Unlock()
	if forget != nil {
		defer forget()
	}
	if err != nil {
		return err
	}
	c.commits.set()
	return awaitWish(ctx, done)
}

// wantIn adds a wish to a batch. The caller holds c.mu.
func (c *Client) wantIn(ctx context.Context, b *batch, w wish) (done <-chan error, forget func(), err error) {
	n, err := c.nextNumber(ctx, b)
	if err != nil {
		return nil, nil, err
	}
	b.put(wishKey(n), w)
	done, forget = c.waitFor(wishKey(n))
	return done, forget, nil
}

// waitFor returns where the outcome of a wish comes, and what ends the wait. The
// caller holds c.mu.
func (c *Client) waitFor(key string) (done <-chan error, forget func()) {
	outcome := make(chan error, 1)
	c.waiters[key] = outcome
	return outcome, func() {
		c.mu.Lock()
		delete(c.waiters, key)
		c.mu.Unlock()
	}
}

func awaitWish(ctx context.Context, done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w; the change is stored here and is made when the server can be reached", context.Cause(ctx))
	}
}

// fulfilled tells whoever waits for a wish. The caller holds c.mu, and has
// removed it from the store.
func (c *Client) fulfilled(key string, err error) (told bool) {
	outcome := c.waiters[key]
	if outcome == nil {
		return false
	}
	delete(c.waiters, key)
	outcome <- err
	return true
}

// Group returns a group: ErrNotInGroup when it is not known.
func (c *Client) Group(ctx context.Context, id rpc.ChannelID) (Group, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.room(ctx, id)
	if err == nil && r.State == "" {
		err = ErrNotInGroup
	}
	if err != nil {
		return Group{}, err
	}
	return c.describe(ctx, r)
}

func (c *Client) describe(ctx context.Context, r storedRoom) (Group, error) {
	out := Group{ID: r.ID, Name: r.Name, State: r.State}
	if r.State != GroupActive && r.State != GroupLost {
		return out, nil
	}
	g, err := c.newest(ctx, r.ID)
	if err != nil || g == nil {
		return out, err
	}
	out.Epoch, out.StateHash = g.mls.Epoch(), g.mls.StateHash()
	for _, m := range fromE2EE(g.mls.Identities()) {
		if !slices.Contains(r.Leaving, m) {
			out.Members = append(out.Members, m)
		}
	}
	return out, nil
}

// Groups returns all groups that this client is or was in.
func (c *Client) Groups(ctx context.Context) ([]Group, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []Group
	err := list(ctx, c.box, prefixRoom, func(_ string, r storedRoom) (bool, error) {
		g, err := c.describe(ctx, r)
		all = append(all, g)
		return true, err
	})
	return all, err
}

// FindGroup returns the group with a name, or whose id begins with it. A group
// that the client is in goes before one that it was in.
func (c *Client) FindGroup(ctx context.Context, name string) (Group, error) {
	all, err := c.Groups(ctx)
	if err != nil {
		return Group{}, err
	}
	const shortest = 4 // digits of an id that count as one
	rank := func(g Group) int {
		switch {
		case g.Name == name && (g.State == GroupActive || g.State == GroupLost):
			return 3
		case len(name) >= shortest && strings.HasPrefix(g.ID.String(), strings.ToLower(name)):
			return 2
		case g.Name == name:
			return 1
		}
		return 0
	}
	var found []Group
	for _, g := range all {
		switch {
		case rank(g) == 0:
		case len(found) == 0 || rank(g) > rank(found[0]):
			found = []Group{g}
		case rank(g) == rank(found[0]):
			found = append(found, g)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Group{}, fmt.Errorf("there is no group %s: %w", name, ErrNotInGroup)
	}
	return Group{}, fmt.Errorf("%d groups are called %s; name one by its id", len(found), name)
}

// Members returns the members of a group, with what the server knows of them
// when it can be reached.
func (c *Client) Members(ctx context.Context, id rpc.ChannelID) ([]Member, error) {
	g, err := c.Group(ctx, id)
	if err != nil {
		return nil, err
	}
	listed := make(map[rpc.IdentityKey]*qpcpb.GroupMember)
	if l, err := c.online(); err == nil && g.State == GroupActive {
		response, err := c.listGroup(ctx, l, id)
		if err != nil {
			return nil, err
		}
		for _, m := range response.Members {
			if key, err := rpc.ParseIdentityKey("identity_key", m.IdentityKey); err == nil {
				listed[key] = m
			}
		}
	}
	var all []Member
	for _, identity := range g.Members {
		m := Member{Identity: identity}
		if identity == c.Identity() {
			m.Name = c.account.Username
		} else {
			m.Name = c.nameOf(ctx, identity)
		}
		if from := listed[identity]; from != nil {
			m.Owner = from.Owner
			if from.JoinedAt != 0 {
				m.JoinedAt = time.Unix(int64(from.JoinedAt), 0)
			}
		}
		all = append(all, m)
	}
	return all, nil
}

// listGroup asks the server for a group.
func (c *Client) listGroup(ctx context.Context, l *link, id rpc.ChannelID) (*qpcpb.ListGroupMembersResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return qpcpb.NewGroupClient(l.rpc).ListGroupMembers(ctx, &qpcpb.ListGroupMembersRequest{GroupId: id[:]})
}

// listedIn returns who is a member by the server's word.
func listedIn(response *qpcpb.ListGroupMembersResponse) (members []rpc.IdentityKey, owner rpc.IdentityKey) {
	for _, m := range response.Members {
		key, err := rpc.ParseIdentityKey("identity_key", m.IdentityKey)
		if err != nil {
			continue
		}
		members = append(members, key)
		if m.Owner {
			owner = key
		}
	}
	return members, owner
}
