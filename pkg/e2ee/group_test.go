package e2ee_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

func TestTwoTalk(t *testing.T) {
	alice, bob := pair(t)
	for i := range 5 {
		text := fmt.Sprint("number ", i)
		bob.reads(alice.sends(text), text, alice)
		alice.reads(bob.sends(text), text, bob)
	}
	commit := bob.refreshes()
	if event := alice.processes(commit); event.Kind != e2ee.EventCommit || event.Epoch != 2 || event.Own {
		t.Fatalf("refresh gave %+v", event)
	}
	alice.reads(bob.sends("new keys"), "new keys", bob)
	bob.reads(alice.sends("mine too"), "mine too", alice)
}

// G -> +bob -> +carol -> refresh(bob) -> -bob
func TestThreeTalk(t *testing.T) {
	alice, bob := pair(t)
	carol := newPerson(t, "carol")
	commit, welcome := alice.adds(carol.keyPackage(false))
	event := bob.processes(commit)
	if len(event.Added) != 1 || event.Added[0] != carol.device.Credential() || event.Sender != alice.device.Credential() {
		t.Fatalf("bob saw %+v", event)
	}
	joined := carol.joins(welcome)
	if joined.Inviter != alice.device.Credential() {
		t.Fatalf("carol was invited by %v", joined.Inviter.Identity)
	}
	for _, from := range []*person{alice, bob, carol} {
		message := from.sends("from " + from.name)
		for _, to := range []*person{alice, bob, carol} {
			if to != from {
				to.reads(message, "from "+from.name, from)
			}
		}
	}
	commit = bob.refreshes()
	alice.processes(commit)
	carol.processes(commit)
	carol.reads(bob.sends("refreshed"), "refreshed", bob)

	alice.with(func(g *e2ee.Group) {
		var err error
		commit, err = g.Remove(bob.device.Credential().Identity)
		must(t, err)
	})
	alice.merges()
	if event := carol.processes(commit); len(event.Removed) != 1 || event.Removed[0] != bob.device.Credential() {
		t.Fatalf("carol saw %+v", event)
	}
	if event := bob.processes(commit); event.Kind != e2ee.EventRemoved {
		t.Fatalf("bob saw %+v", event)
	}
	message := alice.sends("without bob")
	carol.reads(message, "without bob", alice)
	if _, err := bob.load().Process(message); !errors.Is(err, e2ee.ErrRemoved) {
		t.Fatalf("bob, removed, got %v", err)
	}
	if _, err := bob.load().Encrypt(nil); !errors.Is(err, e2ee.ErrRemoved) {
		t.Fatalf("bob, removed, could write: %v", err)
	}
	if bob.load().Active() {
		t.Fatal("bob believes he is a member")
	}
}

func TestLeavingIsProposed(t *testing.T) {
	alice, bob := pair(t)
	carol := newPerson(t, "carol")
	commit, welcome := alice.adds(carol.keyPackage(false))
	bob.processes(commit)
	carol.joins(welcome)
	var proposal []byte
	bob.with(func(g *e2ee.Group) {
		var err error
		proposal, err = g.ProposeSelfRemove()
		must(t, err)
	})
	for _, p := range []*person{alice, carol} {
		event := p.processes(proposal)
		if event.Kind != e2ee.EventProposal || len(event.Removed) != 1 || event.Removed[0] != bob.device.Credential() {
			t.Fatalf("%s saw %+v", p.name, event)
		}
		if _, err := p.load().Encrypt(nil); !errors.Is(err, e2ee.ErrProposalsPending) {
			t.Fatalf("%s wrote although a proposal waits: %v", p.name, err)
		}
	}
	commit = carol.refreshes()
	if event := alice.processes(commit); len(event.Removed) != 1 {
		t.Fatalf("alice saw %+v", event)
	}
	if event := bob.processes(commit); event.Kind != e2ee.EventRemoved {
		t.Fatalf("bob saw %+v", event)
	}
	alice.reads(carol.sends("he left"), "he left", carol)
}

func TestReplaysAndOrder(t *testing.T) {
	alice, bob := pair(t)
	var messages [][]byte
	for i := range 6 {
		messages = append(messages, alice.sends(fmt.Sprint(i)))
	}
	for _, i := range []int{3, 0, 5, 1, 4, 2} {
		bob.reads(messages[i], fmt.Sprint(i), alice)
	}
	for i, m := range messages {
		if _, err := bob.load().Process(m); !errors.Is(err, e2ee.ErrReplayed) {
			t.Errorf("message %d again: %v", i, err)
		}
	}
	if _, err := alice.load().Process(messages[0]); !errors.Is(err, e2ee.ErrOwnMessage) {
		t.Errorf("own message: %v", err)
	}
}

// A crash between processing and storing: the old state reads the message again.
func TestCrashBeforeStore(t *testing.T) {
	alice, bob := pair(t)
	message := alice.sends("once")
	event, err := bob.load().Process(message) // not stored
	must(t, err)
	if string(event.Message) != "once" {
		t.Fatal(event.Message)
	}
	bob.reads(message, "once", alice)
}

func TestLateAcrossEpochs(t *testing.T) {
	alice, bob := pair(t)
	var late [][]byte
	const epochs, forgotten = e2ee.PastEpochs + 4, 4
	for i := range epochs {
		late = append(late, alice.sends(fmt.Sprint("epoch ", i)))
		bobsCommit := bob.refreshes()
		early := bob.sends("early")
		if _, err := alice.load().Process(early); !errors.Is(err, e2ee.ErrFutureEpoch) {
			t.Fatalf("message of the next epoch: %v", err)
		}
		alice.processes(bobsCommit)
		alice.reads(early, "early", bob)
		if _, err := alice.load().Process(bobsCommit); !errors.Is(err, e2ee.ErrPastEpoch) {
			t.Fatalf("the same commit again: %v", err)
		}
	}
	for i, m := range late {
		if i < forgotten {
			if _, err := bob.load().Process(m); !errors.Is(err, e2ee.ErrPastEpoch) {
				t.Fatalf("message %d of a forgotten epoch: %v", i, err)
			}
			continue
		}
		bob.reads(m, fmt.Sprint("epoch ", i), alice)
		if _, err := bob.load().Process(m); !errors.Is(err, e2ee.ErrReplayed) {
			t.Fatalf("late message %d again: %v", i, err)
		}
	}
}

// Two stage a commit at once; the server takes alice's.
func TestConcurrentCommits(t *testing.T) {
	alice, bob := pair(t)
	carol, dave := newPerson(t, "carol"), newPerson(t, "dave")
	var alices, bobs, alicesWelcome, bobsWelcome []byte
	davesPackage := dave.keyPackage(false)
	alice.with(func(g *e2ee.Group) {
		var err error
		alices, alicesWelcome, err = g.Add([][]byte{carol.keyPackage(false)})
		must(t, err)
		if _, _, err := g.Add([][]byte{davesPackage}); !errors.Is(err, e2ee.ErrCommitPending) {
			t.Fatalf("two staged commits: %v", err)
		}
	})
	bob.with(func(g *e2ee.Group) {
		var err error
		bobs, _, err = g.Add([][]byte{davesPackage})
		must(t, err)
	})
	// Both go on in the old epoch, and survive a crash with the commit staged.
	bob.reads(alice.sends("while staged"), "while staged", alice)
	if commit, welcome, ok := alice.load().PendingCommit(); !ok || !slices.Equal(commit, alices) || !slices.Equal(welcome, alicesWelcome) {
		t.Fatal("the staged commit was not kept")
	}
	if event := bob.processes(alices); event.Kind != e2ee.EventCommit || event.Own {
		t.Fatalf("bob saw %+v", event)
	}
	if _, _, ok := bob.load().PendingCommit(); ok {
		t.Fatal("bob's commit still waits")
	}
	if event := alice.processes(alices); !event.Own || event.Epoch != 2 {
		t.Fatalf("alice's own commit came back as %+v", event)
	}
	if _, err := alice.load().Process(bobs); !errors.Is(err, e2ee.ErrPastEpoch) {
		t.Fatalf("the loser's commit: %v", err)
	}
	carol.joins(alicesWelcome)
	bobs, bobsWelcome = bob.adds(davesPackage)
	alice.processes(bobs)
	carol.processes(bobs)
	dave.joins(bobsWelcome)
	message := dave.sends("all four")
	for _, p := range []*person{alice, bob, carol} {
		p.reads(message, "all four", dave)
	}
}

func TestDiscard(t *testing.T) {
	alice, bob := pair(t)
	alice.with(func(g *e2ee.Group) {
		_, err := g.Refresh()
		must(t, err)
	})
	alice.with(func(g *e2ee.Group) { must(t, g.DiscardCommit()) })
	bob.reads(alice.sends("still here"), "still here", alice)
	alice.with(func(g *e2ee.Group) {
		if err := g.DiscardCommit(); !errors.Is(err, e2ee.ErrNoCommitPending) {
			t.Fatal(err)
		}
		if _, err := g.MergeCommit(); !errors.Is(err, e2ee.ErrNoCommitPending) {
			t.Fatal(err)
		}
	})
	// The handshake key of the discarded commit is not used again.
	bob.processes(alice.refreshes())
}

func TestLastResortIsUsedTwice(t *testing.T) {
	bob := newPerson(t, "bob")
	public := bob.keyPackage(true)
	info, err := e2ee.InspectKeyPackage(public)
	must(t, err)
	if !info.LastResort || info.Credential != bob.device.Credential() {
		t.Fatalf("%+v", info)
	}
	for _, name := range []string{"alice", "carol"} {
		p := newPerson(t, name)
		p.starts("one id for both")
		_, welcome := p.adds(public)
		if joined := bob.joins(welcome); !joined.LastResort {
			t.Fatal("not marked as last resort")
		}
		bob.reads(p.sends("hello"), "hello", p)
	}
}

func TestUsedKeyPackageIsGone(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	alice.starts("chat")
	_, welcome := alice.adds(bob.keyPackage(false))
	bob.joins(welcome)
	_, err := e2ee.JoinGroup(bob.device, welcome, func(ref e2ee.KeyPackageRef) []byte { return bob.private[ref] })
	if !errors.Is(err, e2ee.ErrKeyPackageUnknown) {
		t.Fatal(err)
	}
}

func TestLinkedDevicesAreOneUser(t *testing.T) {
	alice, bob := pair(t)
	phone := newLinked(t, "bob", 1)
	commit, welcome := bob.adds(phone.keyPackage(false))
	alice.processes(commit)
	phone.joins(welcome)
	if n := len(alice.load().Members()); n != 3 {
		t.Fatalf("%d leaves, want 3", n)
	}
	if users := alice.load().Identities(); len(users) != 2 {
		t.Fatalf("%d users, want 2", len(users))
	}
	message := phone.sends("from the phone")
	alice.reads(message, "from the phone", phone)
	bob.reads(message, "from the phone", phone)

	if _, err := bob.load().Remove(bob.device.Credential().Identity); !errors.Is(err, e2ee.ErrNotAllowed) {
		t.Fatalf("removing oneself: %v", err)
	}
	key := phone.device.Credential().SignatureKey
	bob.with(func(g *e2ee.Group) {
		var err error
		commit, err = g.RemoveDevice(key[:])
		must(t, err)
	})
	bob.merges()
	alice.processes(commit)
	if event := phone.processes(commit); event.Kind != e2ee.EventRemoved {
		t.Fatalf("%+v", event)
	}
	alice.reads(bob.sends("phone is gone"), "phone is gone", bob)
}

func TestRefusals(t *testing.T) {
	alice, bob := pair(t)
	g := alice.load()
	for name, tc := range map[string]struct {
		do   func() error
		want error
	}{
		"add a member twice": {func() error { _, _, err := g.Add([][]byte{bob.keyPackage(false)}); return err }, e2ee.ErrAlreadyMember},
		"add nobody":         {func() error { _, _, err := g.Add(nil); return err }, e2ee.ErrMalformed},
		"add garbage":        {func() error { _, _, err := g.Add([][]byte{{1, 2, 3}}); return err }, e2ee.ErrMalformed},
		"remove a stranger":  {func() error { _, err := g.Remove(e2ee.IdentityKey{1}); return err }, e2ee.ErrNotMember},
		"remove nobody":      {func() error { _, err := g.Remove(); return err }, e2ee.ErrMalformed},
		"another's state":    {func() error { _, err := e2ee.LoadGroup(bob.device, alice.blob); return err }, e2ee.ErrState},
		"no state":           {func() error { _, err := e2ee.LoadGroup(bob.device, nil); return err }, e2ee.ErrState},
		"empty group id":     {func() error { _, err := e2ee.NewGroup(bob.device, nil); return err }, e2ee.ErrMalformed},
		"too long a message": {func() error { _, err := g.Encrypt(make([]byte, e2ee.MaxMessageSize)); return err }, e2ee.ErrMalformed},
	} {
		if err := tc.do(); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if string(g.Marshal()) != string(alice.blob) {
		t.Error("a refused operation changed the group")
	}
	lonely := newPerson(t, "lonely")
	lonely.starts("nobody here")
	if _, err := lonely.load().Refresh(); !errors.Is(err, e2ee.ErrAlone) {
		t.Errorf("refresh alone: %v", err)
	}
}

var errEmpty = errors.New("empty")

type empty struct{}

func (empty) Read([]byte) (int, error) { return 0, errEmpty }
