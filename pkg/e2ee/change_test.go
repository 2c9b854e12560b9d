package e2ee_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

// G -> +bob -> +carol -bob -> -carol
func TestChangeAddsAndRemovesAtOnce(t *testing.T) {
	alice, bob := pair(t)
	carol, dave := newPerson(t, "carol"), newPerson(t, "dave")
	_, welcome := alice.adds(carol.keyPackage(false))
	carol.joins(welcome)
	var commit []byte
	alice.with(func(g *e2ee.Group) {
		var err error
		if _, _, err = g.Change([][]byte{bob.keyPackage(false)}, []e2ee.IdentityKey{bob.device.Credential().Identity}); !errors.Is(err, e2ee.ErrAlreadyMember) {
			t.Fatalf("adding and removing bob at once: %v", err)
		}
		commit, welcome, err = g.Change([][]byte{dave.keyPackage(false)}, []e2ee.IdentityKey{bob.device.Credential().Identity})
		must(t, err)
	})
	alice.merges()
	event := carol.processes(commit)
	if len(event.Added) != 1 || len(event.Removed) != 1 || event.Added[0] != dave.device.Credential() || event.Removed[0] != bob.device.Credential() {
		t.Fatalf("carol saw %+v", event)
	}
	dave.joins(welcome)
	if a, c, d := alice.load().StateHash(), carol.load().StateHash(), dave.load().StateHash(); a != c || a != d {
		t.Error("they do not stand at one state")
	}
	dave.reads(alice.sends("hello"), "hello", alice)
	// Down to one.
	alice.with(func(g *e2ee.Group) {
		_, _, err := g.Change(nil, []e2ee.IdentityKey{carol.device.Credential().Identity, dave.device.Credential().Identity})
		must(t, err)
	})
	alice.merges()
	if got := alice.load().Identities(); len(got) != 1 {
		t.Errorf("left are %v", got)
	}
	alice.with(func(g *e2ee.Group) {
		if _, _, err := g.Change(nil, nil); !errors.Is(err, e2ee.ErrAlone) {
			t.Errorf("renewing alone: %v", err)
		}
	})
}

// Who joins reads what is sealed from then on, who is removed does not.
func TestMetadataBelongsToAnEpoch(t *testing.T) {
	alice, bob := pair(t)
	sealed, err := alice.load().SealMetadata(rand.Reader, []byte("family"))
	must(t, err)
	if got, err := bob.load().OpenMetadata(sealed); err != nil || string(got) != "family" {
		t.Fatalf("bob opens %q, %v", got, err)
	}
	longer, err := alice.load().SealMetadata(rand.Reader, bytes.Repeat([]byte("x"), 200))
	must(t, err)
	if len(longer) != len(sealed) {
		t.Error("the length tells how long the name is")
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		if _, err := bob.load().OpenMetadata(changed); err == nil {
			t.Errorf("byte %d changed, and it opens", i)
		}
	}
	carol := newPerson(t, "carol")
	var welcome []byte
	alice.with(func(g *e2ee.Group) {
		_, welcome, err = g.Change([][]byte{carol.keyPackage(false)}, []e2ee.IdentityKey{bob.device.Credential().Identity})
		must(t, err)
	})
	alice.merges()
	carol.joins(welcome)
	if _, err := carol.load().OpenMetadata(sealed); !errors.Is(err, e2ee.ErrPastEpoch) {
		t.Errorf("carol opens what was sealed before her: %v", err)
	}
	sealed, err = alice.load().SealMetadata(rand.Reader, []byte("without bob"))
	must(t, err)
	if got, err := carol.load().OpenMetadata(sealed); err != nil || string(got) != "without bob" {
		t.Errorf("carol opens %q, %v", got, err)
	}
	if _, err := bob.load().OpenMetadata(sealed); !errors.Is(err, e2ee.ErrFutureEpoch) {
		t.Errorf("bob opens what was sealed after him: %v", err)
	}
}

func TestGroupNotes(t *testing.T) {
	for _, note := range []e2ee.GroupNote{
		{Kind: e2ee.NoteInfo, Name: "Familie Ö", Revision: 7},
		{Kind: e2ee.NoteLeave},
		{Kind: e2ee.NoteRejoin, Group: [16]byte{1, 2, 3}},
	} {
		data, err := (&e2ee.Message{Type: e2ee.TypeDummy, Note: &note}).Encode()
		must(t, err)
		m, err := e2ee.DecodeMessage(data)
		must(t, err)
		if m.Note == nil || *m.Note != note {
			t.Errorf("%+v came back as %+v", note, m.Note)
		}
		for _, other := range [][]byte{data[:len(data)-1], append(bytes.Clone(data), 0)} {
			m, err := e2ee.DecodeMessage(other)
			if err != nil || m.Note != nil {
				t.Errorf("another length: %+v, %v", m.Note, err)
			}
		}
	}
	for _, name := range []string{"", "a\nb", "\x1b[2J", string(make([]byte, 200)), "\xff"} {
		if _, err := (&e2ee.Message{Type: e2ee.TypeDummy, Note: &e2ee.GroupNote{Kind: e2ee.NoteInfo, Name: name}}).Encode(); err == nil {
			t.Errorf("the name %q is taken", name)
		}
	}
}

func TestRepeatableEnvelopes(t *testing.T) {
	key, err := e2ee.NewHybridKey(bytes.Repeat([]byte{1}, 32))
	must(t, err)
	seed, to := [32]byte{7}, e2ee.IdentityKey{9}
	seal := func(seed [32]byte, text string) []byte {
		envelope, err := e2ee.SealHybridRepeatably(seed, key.Public(), to, []byte(text))
		must(t, err)
		got, err := key.Open(to, envelope)
		if err != nil || string(got) != text {
			t.Fatalf("opened %q, %v", got, err)
		}
		return envelope
	}
	first := seal(seed, "hello")
	if !bytes.Equal(first, seal(seed, "hello")) {
		t.Error("the same arguments give another envelope")
	}
	// Neither encapsulation nor nonce is ever used twice.
	for _, other := range [][]byte{seal(seed, "hellO"), seal([32]byte{8}, "hello")} {
		if bytes.Equal(first[1:33], other[1:33]) || bytes.Equal(first[1121:1133], other[1121:1133]) {
			t.Error("another message under the same randomness")
		}
	}
}
