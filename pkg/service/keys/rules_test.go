package keys

import (
	"testing"

	"github.com/quicprochat/qpcd/pkg/rpc"
)

// FuzzCheckPackage: whatever is accepted begins as a KeyPackage of ours does
// and is within the size, and whatever is refused has a reason for the caller.
func FuzzCheckPackage(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 1, 0, 1})
	f.Add([]byte{0, 1, 0, 5, 0, 1, 0, 1})
	f.Add(make([]byte, MaxPackage+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := checkPackage(b)
		good := len(b) >= 4 && len(b) <= MaxPackage && string(b[:4]) == "\x00\x01\x00\x01"
		if good != (err == nil) {
			t.Errorf("%d bytes % x: %v", len(b), b[:min(len(b), 8)], err)
		}
		if err != nil && rpc.CodeOf(err) == 0 {
			t.Errorf("%v is no answer", err)
		}
	})
}

func TestPickOnePrefersOneTimeThenAge(t *testing.T) {
	one := func(id int64) shelf { return shelf{oldest: id, count: 3} }
	last := func(id int64) shelf { return shelf{oldest: id, count: 1, lastResort: true} }
	for name, test := range map[string]struct {
		stock  []shelf
		oldest int64
		left   int
	}{
		"oldest of one-time":               {[]shelf{one(9), one(4), one(7)}, 4, 2},
		"one-time before older last":       {[]shelf{last(1), one(5)}, 5, 2},
		"one-time not replaced by a last":  {[]shelf{one(5), last(1)}, 5, 2},
		"oldest of last resorts":           {[]shelf{last(3), last(2)}, 2, 0},
		"first of one-time after a last 1": {[]shelf{last(3), one(8), last(2), one(6)}, 6, 2},
	} {
		got, ok := pickOne(test.stock)
		if !ok || got.oldest != test.oldest || got.left != test.left {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	if _, ok := pickOne(nil); ok {
		t.Error("something was picked from nothing")
	}
}
