package client_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// within bounds a call of a test.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func keysOf(people ...*person) (keys []rpc.IdentityKey) {
	for _, p := range people {
		keys = append(keys, p.Identity())
	}
	return keys
}

// founds makes a group with others.
func (p *person) founds(name string, with ...*person) rpc.ChannelID {
	p.t.Helper()
	g, err := p.CreateGroup(within(p.t), name, keysOf(with...)...)
	if err != nil {
		p.t.Fatalf("%s makes no group: %v", p.name, err)
	}
	return g.ID
}

func (p *person) tells(group rpc.ChannelID, text string) client.Message {
	p.t.Helper()
	m, err := p.SendTo(p.t.Context(), client.InGroup(group), &e2ee.Message{Type: e2ee.TypeChat, Text: text})
	if err != nil {
		p.t.Fatalf("%s cannot say %q in the group: %v", p.name, text, err)
	}
	return m
}

// sees waits for a notice.
func (p *person) sees(change client.GroupChange) client.Event {
	p.t.Helper()
	return p.until("the notice "+string(change), func(e client.Event) bool {
		return e.Kind == client.EventGroup && e.Message.Notice != nil && e.Message.Notice.Change == change
	})
}

// hears waits for the next message of a group.
func (p *person) hears(from *person, text string) client.Message {
	p.t.Helper()
	e := p.until(fmt.Sprintf("%q in the group", text), func(e client.Event) bool {
		return e.Kind == client.EventGroup && e.Message.Notice == nil
	})
	if e.Message.Text != text || e.PeerName != from.name {
		p.t.Fatalf("%s hears %q (%s) from %q, want %q from %q", p.name, e.Message.Text, e.Message.Problem, e.PeerName, text, from.name)
	}
	return e.Message
}

func (p *person) group(id rpc.ChannelID) client.Group {
	p.t.Helper()
	g, err := p.Group(p.t.Context(), id)
	if err != nil {
		p.t.Fatalf("%s knows no such group: %v", p.name, err)
	}
	return g
}

// reaches waits until all stand at one state of a group, and returns it.
func reaches(t *testing.T, id rpc.ChannelID, people ...*person) client.Group {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		var all []client.Group
		for _, p := range people {
			g, err := p.Group(t.Context(), id) // perhaps the Welcome has not come
			if err != nil && !errors.Is(err, client.ErrNotInGroup) {
				t.Fatal(err)
			}
			all = append(all, g)
		}
		same := !slices.ContainsFunc(all, func(g client.Group) bool {
			return g.State != client.GroupActive || g.Epoch != all[0].Epoch || g.StateHash != all[0].StateHash || len(g.Members) != len(people)
		})
		if same {
			return all[0]
		}
		if time.Now().After(deadline) {
			for i, g := range all {
				t.Errorf("%s: %s, epoch %d, state %x, %d members", people[i].name, g.State, g.Epoch, g.StateHash[:4], len(g.Members))
			}
			t.Fatal("they do not come to one state")
		}
	}
}

func TestGroupStory(t *testing.T) {
	h := newHouse(t)
	alice, bob, carol, dave := h.register("alice").on(), h.register("bob").on(), h.register("carol").on(), h.register("dave").on()
	family := alice.founds("family", bob, carol)
	for _, p := range []*person{bob, carol} {
		if e := p.sees(client.MemberJoined); e.Group != family || e.PeerName != "alice" {
			t.Errorf("%s joined %s by %q", p.name, e.Group, e.PeerName)
		}
	}
	reaches(t, family, alice, bob, carol)
	sent := alice.tells(family, "hello all")
	alice.learns(client.StatusSent, sent)
	bob.hears(alice, "hello all")
	carol.hears(alice, "hello all")
	bob.tells(family, "hello alice")
	alice.hears(bob, "hello alice")
	carol.hears(bob, "hello alice")
	if g := carol.group(family); g.Name != "family" {
		t.Errorf("carol calls it %q", g.Name)
	}

	// A new member reads nothing earlier, and the name from the start.
	if err := bob.Invite(within(t), family, dave.Identity()); err != nil {
		t.Fatal(err)
	}
	if e := dave.sees(client.MemberJoined); e.PeerName != "bob" {
		t.Errorf("dave was invited by %q", e.PeerName)
	}
	alice.sees(client.MemberAdded)
	reaches(t, family, alice, bob, carol, dave)
	alice.tells(family, "welcome dave")
	if m := dave.hears(alice, "welcome dave"); m.Epoch == 0 {
		t.Error("the message has no epoch")
	}
	carol.hears(alice, "welcome dave")
	bob.hears(alice, "welcome dave")
	if g := dave.group(family); g.Name != "family" {
		t.Errorf("dave calls it %q", g.Name)
	}
	if err := bob.Invite(within(t), family, dave.Identity()); !errors.Is(err, client.ErrAlreadyInGroup) {
		t.Errorf("inviting a member: %v", err)
	}

	if err := carol.Rename(t.Context(), family, "the family"); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*person{alice, bob, dave} {
		if e := p.sees(client.GroupRenamed); e.GroupName != "the family" || e.PeerName != "carol" {
			t.Errorf("%s: renamed to %q by %q", p.name, e.GroupName, e.PeerName)
		}
	}

	before := reaches(t, family, alice, bob, carol, dave)
	if err := bob.Rotate(within(t), family); err != nil {
		t.Fatal(err)
	}
	if after := reaches(t, family, alice, bob, carol, dave); after.Epoch != before.Epoch+1 {
		t.Errorf("epoch %d after %d", after.Epoch, before.Epoch)
	}

	// Only the owner removes, and who is removed reads nothing more.
	if err := bob.Remove(within(t), family, carol.Identity()); !errors.Is(err, client.ErrNotOwner) {
		t.Errorf("bob removes carol: %v", err)
	}
	if err := alice.Remove(within(t), family, carol.Identity()); err != nil {
		t.Fatal(err)
	}
	if e := carol.sees(client.MemberRemoved); e.PeerName != "alice" || !slices.Contains(e.Message.Notice.Who, carol.Identity()) {
		t.Errorf("carol was removed by %q: %+v", e.PeerName, e.Message.Notice)
	}
	bob.sees(client.MemberRemoved)
	reaches(t, family, alice, bob, dave)
	alice.tells(family, "without carol")
	bob.hears(alice, "without carol")
	dave.hears(alice, "without carol")
	if _, err := carol.SendTo(t.Context(), client.InGroup(family), &e2ee.Message{Type: e2ee.TypeChat, Text: "still here?"}); !errors.Is(err, client.ErrNotInGroup) {
		t.Errorf("carol writes after her removal: %v", err)
	}

	// Who leaves is out of the MLS group with the next commit, which comes by
	// itself.
	if err := bob.Leave(within(t), family); err != nil {
		t.Fatal(err)
	}
	if e := alice.sees(client.MemberLeft); e.PeerName != "bob" {
		t.Errorf("%q left", e.PeerName)
	}
	reaches(t, family, alice, dave)
	if g := bob.group(family); g.State != client.GroupLeft {
		t.Errorf("bob stands as %s", g.State)
	}
	dave.tells(family, "two of us")
	alice.hears(dave, "two of us")

	members, err := dave.Members(within(t), family)
	if err != nil || len(members) != 2 {
		t.Fatalf("%d members, %v", len(members), err)
	}
	for _, m := range members {
		if m.Owner != (m.Name == "alice") || m.JoinedAt.IsZero() {
			t.Errorf("member %+v", m)
		}
	}
	// The owner leaves: dave owns.
	if err := alice.Leave(within(t), family); err != nil {
		t.Fatal(err)
	}
	dave.sees(client.MemberLeft)
	reaches(t, family, dave)
	if err := dave.Invite(within(t), family, carol.Identity()); err != nil {
		t.Fatal(err)
	}
	carol.sees(client.MemberJoined)
	reaches(t, family, dave, carol)
	dave.tells(family, "back again")
	carol.hears(dave, "back again")

	for _, who := range []*person{carol, dave} {
		err := who.HistoryOf(t.Context(), client.InGroup(family), 0, func(m client.Message) bool {
			if m.Problem != "" || who == dave && m.Text == "hello all" || who == carol && slices.Contains([]string{"without carol", "two of us"}, m.Text) {
				t.Errorf("%s has %q %s", who.name, m.Text, m.Problem)
			}
			return true
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// What was wanted while the server was away is done when it is back, though the
// program ended meanwhile.
func TestGroupWishesOutliveTheProgram(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	alice.says(bob, "hi")
	bob.reads(alice, "hi")
	h.close()
	alice.until("the loss of the connection", func(e client.Event) bool {
		return e.Kind == client.EventConnection && e.Connection == client.Disconnected
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	g, err := alice.CreateGroup(ctx, "family", bob.Identity())
	if !errors.Is(err, context.DeadlineExceeded) || g.ID == (rpc.ChannelID{}) {
		t.Fatalf("a group without a server: %+v, %v", g, err)
	}
	alice.tells(g.ID, "for bob too")
	alice.off()
	h.start()
	alice.on()
	bob.sees(client.MemberJoined)
	bob.hears(alice, "for bob too")
	reaches(t, g.ID, alice, bob)
}

// Two people whose only group has two members, and who talk beside it.
func TestGroupOfTwoIsNoDirectChat(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	pair := alice.founds("pair", bob)
	bob.sees(client.MemberJoined)
	bob.says(alice, "in private")
	alice.reads(bob, "in private")
	bob.tells(pair, "in the group")
	alice.hears(bob, "in the group")
	alice.says(bob, "me too")
	bob.reads(alice, "me too")
}

// Everybody commits in the same instant, again and again. One wins, the others
// follow, and all wishes come true.
func TestConcurrentCommits(t *testing.T) {
	h := newHouse(t)
	names := []string{"alice", "bob", "carol", "dave"}
	var people []*person
	for _, name := range names {
		people = append(people, h.register(name).on())
	}
	family := people[0].founds("family", people[1:]...)
	start := reaches(t, family, people...)
	const rounds = 3
	for range rounds {
		errs := make(chan error)
		for _, p := range people {
			go func() { errs <- p.Rotate(within(t), family) }()
		}
		for range people {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	}
	if end := reaches(t, family, people...); end.Epoch != start.Epoch+rounds*uint64(len(people)) {
		t.Errorf("epoch %d after %d", end.Epoch, start.Epoch)
	}
	for _, p := range people {
		text := "from " + p.name
		p.tells(family, text)
		for _, other := range people {
			if other != p {
				other.hears(p, text)
			}
		}
	}
}

// A member misses commits that its queue no longer has: it notices, asks to be
// taken in again, and goes on.
func TestLostPlaceIsMended(t *testing.T) {
	h := newHouse(t)
	alice, bob, carol := h.register("alice").on(), h.register("bob").on(), h.register("carol").on()
	family := alice.founds("family", bob, carol)
	reaches(t, family, alice, bob, carol)
	alice.tells(family, "complete") // behind the name
	carol.hears(alice, "complete")
	bob.hears(alice, "complete")
	carol.off()
	if err := bob.Rotate(within(t), family); err != nil {
		t.Fatal(err)
	}
	alice.learns(client.StatusSent, alice.tells(family, "carol cannot read this"))
	// Her queue is emptied behind her back, as its expiry would.
	carol.openedBriefly(func(ctx context.Context, calls *rpc.Client, self rpc.IdentityKey) error {
		_, err := qpcpb.NewDeliveryClient(calls).Fetch(ctx, &qpcpb.FetchRequest{RecipientKey: self[:], ChannelId: family[:]})
		return err
	})
	carol.on()
	client.SetGapGrace(carol.Client, 20*time.Millisecond)
	e := carol.sees(client.PlaceLost)
	if e.Group != family || e.GroupName != "family" {
		t.Errorf("she lost her place in %s %q", e.Group, e.GroupName)
	}
	if e := carol.sees(client.MemberJoined); e.PeerName != "alice" {
		t.Errorf("taken in again by %q", e.PeerName)
	}
	reaches(t, family, alice, bob, carol)
	carol.tells(family, "here again")
	alice.hears(carol, "here again")
	bob.hears(alice, "carol cannot read this")
	bob.hears(carol, "here again")
	bob.tells(family, "good")
	carol.hears(bob, "good")
}

// openedBriefly makes calls as a person who is off.
func (p *person) openedBriefly(f func(context.Context, *rpc.Client, rpc.IdentityKey) error) {
	p.t.Helper()
	c, err := client.Open(p.t.Context(), p.options(), password(p.name))
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	if err := c.Call(p.t.Context(), func(ctx context.Context, calls *rpc.Client) error { return f(ctx, calls, c.Identity()) }); err != nil {
		p.t.Fatal(err)
	}
}

// The Welcome of somebody whom the server does not list leads nowhere, and one
// who is in good standing does not change over to another group of the same id.
func TestForgedWelcome(t *testing.T) {
	h := newHouse(t)
	alice, bob, mallory := h.register("alice").on(), h.register("bob").on(), h.register("mallory").on()
	family := alice.founds("family", bob, mallory)
	reaches(t, family, alice, bob, mallory)
	before := reaches(t, family, alice, bob, mallory)
	forge := func() {
		t.Helper()
		l := mallory.calls(t)
		b := bob.Identity()
		response, err := qpcpb.NewKeyClient(l).FetchKeyPackages(within(t), &qpcpb.FetchKeyPackagesRequest{IdentityKey: b[:]})
		if err != nil {
			t.Fatal(err)
		}
		hybrid, err := qpcpb.NewKeyClient(l).FetchHybridKey(within(t), &qpcpb.FetchHybridKeyRequest{IdentityKey: b[:]})
		if err != nil {
			t.Fatal(err)
		}
		welcome := client.ForgeWelcome(mallory.Client, family, response.Packages[0].Package, hybrid.HybridPublicKey, b, int(before.Epoch)+3)
		if _, err := qpcpb.NewDeliveryClient(l).Enqueue(within(t), &qpcpb.EnqueueRequest{RecipientKey: b[:], Payload: welcome}); err != nil {
			t.Fatal(err)
		}
		mallory.says(bob, "did you get it?")
		bob.reads(mallory, "did you get it?")
		if g := bob.group(family); g.State != client.GroupActive || g.StateHash != before.StateHash {
			t.Fatal("bob has changed over to the forged group")
		}
	}
	forge()
	if err := alice.Remove(within(t), family, mallory.Identity()); err != nil {
		t.Fatal(err)
	}
	before = reaches(t, family, alice, bob)
	forge()
	alice.tells(family, "without mallory")
	bob.hears(alice, "without mallory")
}

func TestGroupNames(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	for _, name := range []string{"", "two\nlines", strings.Repeat("x", e2ee.MaxGroupName+1)} {
		if _, err := alice.CreateGroup(within(t), name, bob.Identity()); err == nil {
			t.Errorf("a group called %q", name)
		}
	}
	first, second := alice.founds("twins"), alice.founds("twins")
	if _, err := alice.FindGroup(t.Context(), "twins"); err == nil {
		t.Error("one of two groups of one name is found")
	}
	if g, err := alice.FindGroup(t.Context(), second.String()[:10]); err != nil || g.ID != second {
		t.Errorf("by its id: %v, %v", g.ID, err)
	}
	if err := alice.Leave(within(t), second); err != nil {
		t.Fatal(err)
	}
	if g, err := alice.FindGroup(t.Context(), "twins"); err != nil || g.ID != first {
		t.Errorf("the one that is left: %v, %v", g.ID, err)
	}
	if _, err := alice.FindGroup(t.Context(), "nobody"); !errors.Is(err, client.ErrNotInGroup) {
		t.Errorf("no group: %v", err)
	}
	// Somebody without keys cannot be invited, and that is said at once.
	stranger := rpc.IdentityKey{1}
	if err := alice.Invite(within(t), first, stranger); err == nil {
		t.Error("somebody who does not exist was invited")
	}
}

// calls returns the calls of a person who is on.
func (p *person) calls(t *testing.T) *rpc.Client {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		calls, err := client.Calls(p.Client)
		if err == nil {
			return calls
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// The last name counts for all, however it sorts and however often the one
// before was given.
func TestLastNameCounts(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	group := alice.founds("m", bob)
	calls := func(name string) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			a, b := alice.group(group), bob.group(group)
			if a.Name == name && b.Name == name {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("alice calls it %q, bob %q, want %q", a.Name, b.Name, name)
			}
		}
	}
	bob.sees(client.MemberJoined)
	calls("m")
	for _, name := range []string{"z", "z"} {
		if err := bob.Rename(t.Context(), group, name); err != nil {
			t.Fatal(err)
		}
	}
	bob.tells(group, "renamed")
	alice.hears(bob, "renamed")
	calls("z")
	if err := alice.Rename(t.Context(), group, "a"); err != nil {
		t.Fatal(err)
	}
	calls("a")
}
