package limit_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quicprochat/qpcd/pkg/limit"
)

func TestTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limit.NewKeyed[string](10, 5, time.Now)
		for i := range 5 {
			if wait, ok := l.Take("alice", 1); !ok {
				t.Fatalf("token %d of the burst: wait %v", i, wait)
			}
		}
		wait, ok := l.Take("alice", 1)
		if ok || wait != 100*time.Millisecond {
			t.Fatalf("past the burst: wait %v, %v, want 100ms", wait, ok)
		}
		if _, ok := l.Take("bob", 5); !ok {
			t.Error("bob pays for alice")
		}
		if wait, ok := l.Take("bob", 6); ok || wait < 24*time.Hour {
			t.Errorf("more than the burst: wait %v, %v", wait, ok)
		}
		time.Sleep(100 * time.Millisecond)
		if _, ok := l.Take("alice", 1); !ok {
			t.Error("the refused tokens were not given back")
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limit.NewKeyed[int](1, 1, time.Now)
		for i := range 50_000 {
			l.Take(i, 1)
		}
		if n := l.Keys(); n > 10_000 {
			t.Errorf("%d keys remembered", n)
		}
		if _, ok := l.Take(49_999, 1); ok {
			t.Error("the newest key was forgotten at once")
		}
	})
}

func TestSource(t *testing.T) {
	for in, want := range map[string]string{
		"192.168.1.7":             "192.168.1.7",
		"::ffff:192.168.1.7":      "192.168.1.7",
		"2001:db8:1:2:3:4:5:6":    "2001:db8:1:2::",
		"fe80::1%eth0":            "fe80::%eth0",
		"2001:db8:1:2:ffff::ffff": "2001:db8:1:2::",
	} {
		if got := limit.Source(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("Source(%s) = %s, want %s", in, got, want)
		}
	}
}
