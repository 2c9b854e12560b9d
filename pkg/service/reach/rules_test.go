package reach

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/rpc"
)

func TestOwnOrLocal(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("127.0.0.1")}
	for address, want := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true, "64:ff9b::7f00:1": true,
		"169.254.1.1": true, "fe80::1": true, "fe80::1%eth0": true, "0.0.0.0": true, "::": true, "0.1.2.3": true,
		"224.0.0.1": true, "ff02::1": true, "ff01::1": true, "239.1.1.1": true, "255.255.255.255": true,
		"192.168.1.1": true, "::ffff:192.168.1.1": true, "2001:db8::1": true, "64:ff9b::c0a8:101": true,
		"192.168.1.2": false, "10.0.0.1": false, "203.0.113.7": false, "2001:db8::2": false, "fd00::1": false, "64:ff9b::cb00:7107": false,
	} {
		if got := isOwnOrLocal(netip.MustParseAddr(address), own); got != want {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
	if !isOwnOrLocal(netip.Addr{}, nil) {
		t.Error("no address passes")
	}
}

func TestPushHost(t *testing.T) {
	for url, want := range map[string]string{
		"https://ntfy.example/upABC?up=1":      "ntfy.example",
		"https://NTFY.example.:8443/up":        "ntfy.example",
		"https://192.0.2.1/":                   "192.0.2.1",
		"https://[2001:DB8::1]:443/x":          "2001:db8::1",
		"https://[::ffff:127.0.0.1]/x":         "127.0.0.1",
		"https://[fe80::1%25eth0]/x":           "fe80::1%eth0",
		"HTTPS://ntfy.example":                 "ntfy.example",
		"http://ntfy.example/":                 "",
		"https:///x":                           "",
		"https:ntfy.example":                   "",
		"https://user@ntfy.example/":           "",
		"https://ntfy.example/#f":              "",
		"ntfy.example/x":                       "",
		"https://ntfy.example/\r\nHost: x":     "",
		"https://" + strings.Repeat("a", 1024): "",
	} {
		got, err := pushHost(url)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.60q: %q, %v, want %q", url, got, err, want)
		}
	}
}

func FuzzPushHost(f *testing.F) {
	for _, s := range []string{"https://ntfy.example/up", "https://[::1]:0/", "https://%31/", "", "https://a@b/", "https://0x7f.1/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, token string) {
		host, err := pushHost(token)
		if err != nil {
			if rpc.CodeOf(err) == 0 {
				t.Errorf("%v is no answer", err)
			}
			return
		}
		if host == "" && !strings.Contains(token, "//.") || len(token) > MaxToken || host != strings.ToLower(host) {
			t.Errorf("%q is at %q", token, host)
		}
	})
}

// One wake-up a minute; after failures the wait doubles to an hour, and after
// ten the next message must ask again.
func TestPace(t *testing.T) {
	now := time.Now()
	p := pace{wanted: true}
	if !p.due(now) {
		t.Fatal("the first wake-up must wait")
	}
	p = p.sent()
	if p.due(now) || p.idle(now) {
		t.Error("two at once")
	}
	p.wanted = true // another message meanwhile
	p = p.ended(now, true, time.Minute, 0)
	if p.due(now.Add(time.Minute-1)) || !p.due(now.Add(time.Minute)) {
		t.Error("the second wake-up does not come after a minute")
	}
	p = p.sent().ended(now, true, time.Minute, time.Hour)
	if p.wanted || p.idle(now.Add(time.Minute-1)) || !p.idle(now.Add(time.Minute)) {
		t.Errorf("after a success: %+v", p)
	}
	p = pace{}
	var waits []time.Duration
	for range maxFailures {
		p = p.sent().ended(now, false, time.Minute, 0)
		waits = append(waits, p.earliest.Sub(now))
	}
	if waits[0] != time.Minute || waits[1] != 2*time.Minute || waits[5] != 32*time.Minute || waits[6] != time.Hour || waits[9] != time.Hour {
		t.Errorf("the waits are %v", waits)
	}
	if p.wanted {
		t.Error("after ten failures it goes on")
	}
	if p = (pace{}).ended(now, false, time.Minute, 90*time.Second); p.earliest.Sub(now) != 90*time.Second || !p.wanted {
		t.Errorf("the host's own word counts for nothing: %+v", p)
	}
	if p = (pace{}).ended(now, false, time.Minute, 1000*time.Hour); p.earliest.Sub(now) != time.Hour {
		t.Errorf("a host may ask for %v", p.earliest.Sub(now))
	}
}

// What is pending stays within its bounds, whoever asks.
func TestPendingIsBounded(t *testing.T) {
	now := time.Now()
	s := &Service{hosts: map[string]bool{"push.example": true}, pending: newPending()}
	for i := range maxAsked + 10 {
		s.Wake(rpc.IdentityKey{byte(i), byte(i >> 8)})
	}
	if n := len(s.pending.asked); n != maxAsked {
		t.Errorf("%d identities are asked for", n)
	}
	p := s.pending
	for i := range maxPaced + 10 {
		p.want(map[target]string{{identity: rpc.IdentityKey{byte(i), byte(i >> 8)}}: "https://push.example/"}, now, time.Minute)
	}
	if n := len(p.paces); n != maxPaced {
		t.Errorf("%d paces", n)
	}
	due := p.take(now)
	if len(due) != maxSending || len(p.take(now)) != 0 {
		t.Errorf("%d at once", len(due))
	}
	if _, ok := p.next(now); ok {
		t.Error("a full house sets a timer")
	}
	p.cancel(due[0])
	if wait, ok := p.next(now); !ok || wait != 0 {
		t.Errorf("the next waits %v (%v)", wait, ok)
	}
	// A device that needs nothing makes room.
	p.want(map[target]string{{device: rpc.DeviceID{1}}: "https://push.example/"}, now, time.Minute)
	if _, ok := p.paces[target{device: rpc.DeviceID{1}}]; !ok || len(p.paces) > maxPaced {
		t.Errorf("no room was made among %d", len(p.paces))
	}
}
