package machine

import (
	"strings"
	"testing"
)

func TestMemAvailable(t *testing.T) {
	for text, want := range map[string]uint64{
		"MemTotal:  100 kB\nMemAvailable:   61234 kB\n": 61234 << 10,
		"MemTotal: 100 kB\n":                            0,
		"MemAvailable: many kB\n":                       0,
		"":                                              0,
	} {
		if got := memAvailable(strings.NewReader(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if MemAvailable() == 0 {
		t.Error("this machine has no memory")
	}
}
