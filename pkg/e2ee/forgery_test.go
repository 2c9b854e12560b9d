package e2ee

import (
	"errors"
	"testing"
)

// A member knows every secret of the group, but not the others' signature
// keys: what mallory sends in alice's name is refused.
func TestMemberCannotForgeAnother(t *testing.T) {
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	device := func(seed byte) *Device {
		identity, err := NewIdentity(append(make([]byte, SeedSize-1), seed))
		check(err)
		return identity.FirstDevice()
	}
	alice, err := NewGroup(device(1), []byte("0123456789abcdef"))
	check(err)
	private := map[KeyPackageRef][]byte{}
	var packages [][]byte
	others := []*Device{device(2), device(3)}
	for _, d := range others {
		public, secret, ref, err := NewKeyPackage(d, Unlimited, false)
		check(err)
		private[ref] = secret
		packages = append(packages, public)
	}
	_, welcome, err := alice.Add(packages)
	check(err)
	_, err = alice.MergeCommit()
	check(err)
	join := func(n int) *Group {
		// The Welcome names both key packages; each has the secret of its own.
		own, err := InspectKeyPackage(packages[n])
		check(err)
		joined, err := JoinGroup(others[n], welcome, func(ref KeyPackageRef) []byte {
			if ref != own.Ref {
				return nil
			}
			return private[ref]
		})
		check(err)
		return joined.Group
	}
	mallory, carol := join(0), join(1)

	honest, err := mallory.Encrypt([]byte("in my own name"))
	check(err)
	if event, err := carol.Process(honest); err != nil || event.Sender.Identity != others[0].Credential().Identity {
		t.Fatalf("an honest message: %v, %v", event, err)
	}
	mallory.current().own = alice.current().own
	forged, err := mallory.Encrypt([]byte("in alice's name"))
	check(err)
	if event, err := carol.Process(forged); err == nil {
		t.Fatalf("carol believes that %s sent %q", event.Sender.Identity, event.Message)
	} else if !errors.Is(err, ErrDecrypt) && !errors.Is(err, ErrMalformed) {
		t.Errorf("refused with %v", err)
	}
	// And alice's own next message is not lost by it.
	real, err := alice.Encrypt([]byte("really alice"))
	check(err)
	if event, err := carol.Process(real); err != nil || string(event.Message) != "really alice" {
		t.Errorf("alice's next message: %v, %v", event, err)
	}
}
