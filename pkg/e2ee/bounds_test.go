package e2ee

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/thomas-vilte/mls-go/framing"
	"github.com/thomas-vilte/mls-go/group"
)

// talkers is two members of one group.
func talkers(t *testing.T) (alice, bob *Group) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	devices := [2]*Device{}
	for i := range devices {
		id, err := NewIdentity(bytes.Repeat([]byte{byte(i + 1)}, SeedSize))
		check(err)
		devices[i] = id.FirstDevice()
	}
	alice, err := NewGroup(devices[0], []byte("chat"))
	check(err)
	public, private, _, err := NewKeyPackage(devices[1], Unlimited, false)
	check(err)
	_, welcome, err := alice.Add([][]byte{public})
	check(err)
	_, err = alice.MergeCommit()
	check(err)
	joined, err := JoinGroup(devices[1], welcome, func(KeyPackageRef) []byte { return private })
	check(err)
	return alice, joined.Group
}

// soon fails when hostile bytes cost more than a slow machine needs for honest
// ones. Without the bounds these cost minutes.
func soon(t *testing.T, what string, do func()) {
	t.Helper()
	const bound = 20 * time.Second
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(bound):
		t.Fatalf("%s: still at work after %v", what, bound)
	}
}

// A sender may name any generation; mls-go would walk to it.
func TestFarGenerations(t *testing.T) {
	for _, tc := range []struct {
		generation uint64
		want       error
	}{
		{maxForwardGenerations, ErrDecrypt}, // it walks, and the key is another
		{maxForwardGenerations + 1, ErrTooFarAhead},
		{1<<32 - 2, ErrTooFarAhead},
		{1<<32 - 1, ErrTooFarAhead},
	} {
		alice, bob := talkers(t)
		if _, err := alice.Encrypt(nil); err != nil {
			t.Fatal(err)
		}
		own := alice.current().own
		state := alice.current().tree.LeafStates[own]
		state.Generation, state.SequenceNumber = tc.generation, tc.generation
		alice.current().tree.LeafStates[own] = state
		message, err := alice.Encrypt(nil)
		if err != nil {
			t.Fatal(err)
		}
		soon(t, "a far generation", func() {
			if _, err := bob.Process(message); !errors.Is(err, tc.want) {
				t.Errorf("generation %d: %v, want %v", tc.generation, err, tc.want)
			}
		})
	}
}

// A body without an end is refused before mls-go looks for it.
func TestPublicMessagesWithoutEnd(t *testing.T) {
	alice, bob := talkers(t)
	commit, err := alice.Refresh()
	if err != nil {
		t.Fatal(err)
	}
	if err := checkPublicMessage(commit); err != nil {
		t.Fatalf("an honest commit: %v", err)
	}
	const size = 512 << 10
	list := func(item ...byte) []byte {
		items := bytes.Repeat(item, size/2/len(item))
		return append(binary.BigEndian.AppendUint32(nil, 2<<30|uint32(len(items))), items...)
	}
	for name, tc := range map[string]struct {
		kind framing.ContentType
		body []byte
	}{
		"removals":   {framing.ContentTypeCommit, list(1, 0, 3, 0, 0, 0, 1)},
		"references": {framing.ContentTypeCommit, list(2, 0)},
		"extensions": {framing.ContentTypeProposal, append([]byte{0, byte(group.ProposalTypeGroupContextExtensions)}, list(0, 1, 0)...)},
	} {
		for _, tail := range [][]byte{bytes.Repeat([]byte{0xff}, size/2), make([]byte, size/2), commit[len(commit)-signatureField-2*tagField:]} {
			message := append([]byte{0, 1, 0, 1, 4, 'c', 'h', 'a', 't', 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, byte(tc.kind)}, tc.body...)
			message = append(message, tail...)
			soon(t, name, func() {
				if _, err := bob.Process(message); err == nil {
					t.Errorf("%s: accepted", name)
				}
			})
		}
	}
	outside := bytes.Clone(commit)
	outside[4+1+4+8] = byte(framing.SenderTypeExternal)
	if _, err := bob.Process(outside); !errors.Is(err, ErrNotAllowed) {
		t.Errorf("from outside: %v", err)
	}
}
