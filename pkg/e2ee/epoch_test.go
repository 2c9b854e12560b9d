package e2ee

import (
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Whatever the order of arrival, each generation counts as unread once, and what
// is remembered stays bounded.
func TestReadMarks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m readMarks
		read := map[uint32]bool{}
		given := map[uint32]bool{} // in a gap that was forgotten
		for range rapid.IntRange(1, 200).Draw(t, "messages") {
			generation := rapid.Uint32Range(0, 120).Draw(t, "generation")
			switch has := m.has(generation); {
			case read[generation] && !has:
				t.Fatalf("generation %d could be read twice: %+v", generation, m)
			case has && !read[generation] && !given[generation]:
				t.Fatalf("generation %d was never read: %+v", generation, m)
			case has:
				continue
			}
			before := m
			m = m.with(generation)
			read[generation] = true
			if len(m.gaps) > maxGaps {
				t.Fatalf("%d gaps are remembered", len(m.gaps))
			}
			for g := range before.next {
				if !before.has(g) && m.has(g) && g != generation {
					if len(m.gaps) < maxGaps {
						t.Fatalf("generation %d was given up without need: %+v", g, m)
					}
					given[g] = true
				}
			}
			for g := before.next; g < generation; g++ {
				if m.has(g) {
					t.Fatalf("generation %d, jumped over, counts as read: %+v", g, m)
				}
			}
		}
	})
}

func TestPadding(t *testing.T) {
	for message, want := range map[int]int{
		0: 256, 188: 256, 189: 1024, 956: 1024, 957: 4096, 4028: 4096, 4029: 16384, 16380: 16384, 40_000: 16384,
	} {
		if got := paddingFor(message); got != want {
			t.Errorf("paddingFor(%d) = %d, want %d", message, got, want)
		}
	}
}

func TestLabelsAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, label := range labels() {
		if seen[label] {
			t.Errorf("%q stands twice", label)
		}
		seen[label] = true
	}
}

func TestLibraryErrorsHideSecrets(t *testing.T) {
	secret := strings.Repeat("c0ffee00", 8)
	err := libraryError(ErrDecrypt, errors.New("mismatch [leaf=1 initSecret="+secret+" x=abcd]"))
	if strings.Contains(err.Error(), secret[:16]) || !strings.Contains(err.Error(), "x=abcd") {
		t.Error(err)
	}
	if !errors.Is(err, ErrDecrypt) {
		t.Error("lost its kind")
	}
}
