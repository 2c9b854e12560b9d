package auth

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
)

// The pending logins are as many as the protocol says, and what ends makes
// room.
func TestPendingLoginsAreBounded(t *testing.T) {
	now := time.Now()
	s := &Service{pending: newPendingTable(func() time.Time { return now })}
	peers := make([]rpc.Peer, 1027)
	put := func(i int) bool { return s.pending.put(&peers[i], pendingLogin{folded: "alice"}) }
	for i := range 1024 {
		if !put(i) {
			t.Fatalf("no room for login %d", i+1)
		}
	}
	if put(1024) {
		t.Fatal("there is room for more than 1,024 logins")
	}
	if !put(0) {
		t.Error("a connection with a login under way may not start again")
	}
	if _, ok := s.pending.take(&peers[0], "alice"); !ok || !put(1024) {
		t.Error("a login that ended makes no room")
	}
	s.Disconnected(&peers[1])
	if !put(1025) {
		t.Error("a connection that ended makes no room")
	}
	if put(1026) {
		t.Error("there is room for more than 1,024 logins")
	}
	now = now.Add(5*time.Minute + time.Nanosecond)
	if !put(1026) {
		t.Error("logins that have expired make no room")
	}
	if n := len(s.pending.logins); n != 1 {
		t.Errorf("%d logins are kept although all but one have expired", n)
	}
}

// A flood of names and addresses costs bounded memory.
func TestFailureTableIsBounded(t *testing.T) {
	now := time.Now()
	table := newFailureTable(func() time.Time { return now })
	for i := range 3 * maxFailureKeys {
		address := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		table.attempt(fmt.Sprint("name", i), address, scopeLogin)
		if n := len(table.counts); n > maxFailureKeys {
			t.Fatalf("%d keys are kept after %d attempts", n, i+1)
		}
	}
}
