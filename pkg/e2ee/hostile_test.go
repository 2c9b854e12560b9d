package e2ee_test

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

// known reports whether err wraps a sentinel a caller may decide on.
func known(err error) bool {
	for _, e := range []error{
		e2ee.ErrMalformed, e2ee.ErrDecrypt, e2ee.ErrReplayed, e2ee.ErrTooFarAhead, e2ee.ErrFutureEpoch,
		e2ee.ErrPastEpoch, e2ee.ErrWrongGroup, e2ee.ErrOwnMessage, e2ee.ErrCredential, e2ee.ErrNotAllowed,
		e2ee.ErrProposalUnknown, e2ee.ErrRemoved, e2ee.ErrKeyPackageUnknown, e2ee.ErrState,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Every byte of every kind of message is changed; each is refused and leaves the
// group byte for byte as it was, able to read the true message.
func TestTamperMessages(t *testing.T) {
	alice, bob := pair(t)
	carol := newPerson(t, "carol")
	message := alice.sends("a message")
	var commit []byte
	alice.with(func(g *e2ee.Group) {
		var err error
		commit, _, err = g.Add([][]byte{carol.keyPackage(false)})
		must(t, err)
	})
	proposal, err := alice.load().ProposeSelfRemove()
	must(t, err)
	for name, data := range map[string][]byte{"message": message, "commit": commit, "proposal": proposal} {
		g := bob.load()
		before := g.Marshal()
		for i := range data {
			bad := bytes.Clone(data)
			bad[i] ^= 1
			if event, err := g.Process(bad); err == nil || !known(err) {
				t.Fatalf("%s with byte %d changed: %+v, %v", name, i, event, err)
			}
		}
		for n := range data {
			if _, err := g.Process(data[:n]); err == nil || !known(err) {
				t.Fatalf("%s cut to %d: %v", name, n, err)
			}
		}
		if _, err := g.Process(append(bytes.Clone(data), 0)); !errors.Is(err, e2ee.ErrMalformed) {
			t.Fatalf("%s with a byte more: %v", name, err)
		}
		after := g.Marshal()
		if _, err := g.Process(data); err != nil {
			t.Fatalf("the true %s after all: %v", name, err)
		}
		if !bytes.Equal(before, after) {
			t.Fatalf("a forged %s changed the group (%d, %d bytes)", name, len(before), len(after))
		}
	}
}

func TestTamperWelcomeAndKeyPackage(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	alice.starts("chat")
	public := bob.keyPackage(false)
	for i := range public {
		bad := bytes.Clone(public)
		bad[i] ^= 1
		if _, err := e2ee.InspectKeyPackage(bad); err == nil || !known(err) {
			t.Fatalf("key package with byte %d changed: %v", i, err)
		}
	}
	_, welcome := alice.adds(public)
	private := func(ref e2ee.KeyPackageRef) []byte { return bob.private[ref] }
	for i := range welcome {
		bad := bytes.Clone(welcome)
		bad[i] ^= 1
		if _, err := e2ee.JoinGroup(bob.device, bad, private); err == nil || !known(err) {
			t.Fatalf("welcome with byte %d changed: %v", i, err)
		}
	}
	for n := range welcome {
		if _, err := e2ee.JoinGroup(bob.device, welcome[:n], private); err == nil || !known(err) {
			t.Fatalf("welcome cut to %d: %v", n, err)
		}
	}
	bob.joins(welcome)
}

func TestTamperState(t *testing.T) {
	alice, bob := pair(t)
	bob.reads(alice.sends("x"), "x", alice)
	for n := range bob.blob {
		if _, err := e2ee.LoadGroup(bob.device, bob.blob[:n]); !errors.Is(err, e2ee.ErrState) {
			t.Fatalf("state cut to %d: %v", n, err)
		}
	}
	group, keys := bob.load().MarshalParts()
	bob.processes(alice.refreshes())
	newGroup, newKeys := bob.load().MarshalParts()
	if _, err := e2ee.LoadGroupParts(bob.device, group, newKeys); !errors.Is(err, e2ee.ErrState) {
		t.Errorf("old group, new keys: %v", err)
	}
	if _, err := e2ee.LoadGroupParts(bob.device, newGroup, keys); !errors.Is(err, e2ee.ErrState) {
		t.Errorf("new group, old keys: %v", err)
	}
	g, err := e2ee.LoadGroupParts(bob.device, newGroup, newKeys)
	must(t, err)
	if !bytes.Equal(g.Marshal(), bob.blob) {
		t.Error("the parts are not the whole")
	}
}

// The group part is the same after every message, as MarshalParts promises.
func TestGroupPartStaysPut(t *testing.T) {
	alice, bob := pair(t)
	before, _ := bob.load().MarshalParts()
	bob.reads(alice.sends("in"), "in", alice)
	bob.sends("out")
	if after, _ := bob.load().MarshalParts(); !bytes.Equal(before, after) {
		t.Error("a message changed the group part")
	}
}

// A member may not speak in the name of another group or of another epoch's tree.
func TestWrongGroup(t *testing.T) {
	alice, bob := pair(t)
	carol := newPerson(t, "carol")
	carol.starts("another chat")
	if _, err := carol.load().Process(alice.sends("hello")); !errors.Is(err, e2ee.ErrWrongGroup) {
		t.Error(err)
	}
	// The same id, started afresh by a peer that lost its state.
	carol.starts("a direct chat...")
	carol.adds(newPerson(t, "dave").keyPackage(false))
	if _, err := bob.load().Process(carol.sends("hello")); !errors.Is(err, e2ee.ErrDecrypt) {
		t.Error(err)
	}
}

// fuzzWorld is one pair of members for the fuzz targets; made once, as it costs
// more than a run.
func fuzzWorld(f *testing.F) (alice, bob *person, welcome []byte) {
	f.Helper()
	var t testing.T
	alice = &person{t: &t, name: "alice", device: newIdentity(f, "alice").FirstDevice(), private: map[e2ee.KeyPackageRef][]byte{}}
	bob = &person{t: &t, name: "bob", device: newIdentity(f, "bob").FirstDevice(), private: map[e2ee.KeyPackageRef][]byte{}}
	alice.starts("chat")
	_, welcome = alice.adds(bob.keyPackage(true))
	bob.joins(welcome)
	return alice, bob, welcome
}

func FuzzProcess(f *testing.F) {
	alice, bob, _ := fuzzWorld(f)
	f.Add(alice.sends("hello"))
	f.Add([]byte{0, 1, 0, 2})
	f.Add([]byte{0, 1, 0, 1, 4, 'c', 'h', 'a', 't', 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 3, 0, 0})
	alice.with(func(g *e2ee.Group) {
		proposal, err := g.ProposeSelfRemove()
		must(f, err)
		f.Add(proposal)
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := e2ee.LoadGroup(bob.device, bob.blob)
		must(t, err)
		if _, err := g.Process(data); err != nil && !known(err) {
			t.Fatal(err)
		}
	})
}

func FuzzJoinGroup(f *testing.F) {
	_, bob, welcome := fuzzWorld(f)
	f.Add(welcome)
	f.Add([]byte{0, 1, 0, 3, 0, 1, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := e2ee.JoinGroup(bob.device, data, func(e2ee.KeyPackageRef) []byte {
			for _, private := range bob.private {
				return private
			}
			return nil
		})
		if err != nil && !known(err) {
			t.Fatal(err)
		}
	})
}

func FuzzInspectKeyPackage(f *testing.F) {
	_, bob, _ := fuzzWorld(f)
	f.Add(bob.keyPackage(false))
	f.Add([]byte{0, 1, 0, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := e2ee.InspectKeyPackage(data); err != nil && !known(err) {
			t.Fatal(err)
		}
	})
}

func FuzzLoadGroup(f *testing.F) {
	_, bob, _ := fuzzWorld(f)
	f.Add(bob.blob)
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := e2ee.LoadGroup(bob.device, data)
		if err != nil {
			return
		}
		_, _ = g.Encrypt(nil)
		_, _ = g.Refresh()
		_ = g.Marshal()
	})
}

// Groups of one device are independent values: no state is shared between them.
func TestGroupsAreIndependent(t *testing.T) {
	alice, bob := pair(t)
	var wg sync.WaitGroup
	for range 4 {
		g := alice.load()
		wg.Go(func() {
			for range 10 {
				if _, err := g.Encrypt([]byte("x")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	bob.reads(alice.sends("still first"), "still first", alice)
}

var _ io.Reader = empty{}
