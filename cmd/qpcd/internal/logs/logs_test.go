package logs

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quicprochat/qpcd/pkg/config"
)

func newLog(t *testing.T, redact bool) (*slog.Logger, *bytes.Buffer) {
	t.Helper()
	var b bytes.Buffer
	log, err := New(&config.Config{LogFormat: config.LogText, RedactLogs: redact}, Options{Output: &b, Rand: rand.Reader, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return log, &b
}

func TestRedaction(t *testing.T) {
	alice := netip.MustParseAddrPort("192.168.1.7:40000")
	again := netip.MustParseAddrPort("192.168.1.7:40001")
	bob := netip.MustParseAddrPort("192.168.1.8:40000")
	log, b := newLog(t, true)
	for _, a := range []netip.AddrPort{alice, again, bob} {
		log.Warn("refused", "from", a, "user", "alice", "identity", strings.Repeat("ab", 32), "count", 3)
	}
	log.With("user", "alice").Warn("once more")
	text := b.String()
	for _, secret := range []string{"192.168", "alice", "abab"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q stands in the log:\n%s", secret, text)
		}
	}
	hashes := regexp.MustCompile(`from=(#[0-9a-f]{8}) user=(#[0-9a-f]{8})`).FindAllStringSubmatch(text, -1)
	if len(hashes) != 3 || hashes[0][1] != hashes[1][1] || hashes[0][1] == hashes[2][1] || hashes[0][2] != hashes[2][2] {
		t.Errorf("the hashes do not tell lines apart:\n%s", text)
	}
	if !strings.Contains(text, "count=3") {
		t.Errorf("what is not personal is gone:\n%s", text)
	}
	other, c := newLog(t, true)
	other.Warn("refused", "from", alice)
	if strings.Contains(c.String(), hashes[0][1]) {
		t.Error("two runs have the same hashes")
	}
	open, d := newLog(t, false)
	open.Warn("refused", "from", alice, "user", "alice")
	if !strings.Contains(d.String(), "from=192.168.1.7:40000 user=alice") {
		t.Errorf("redacted although it is off: %s", d.String())
	}
}

func TestFloodIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, b := newLog(t, true)
		count := func(part string) int { return strings.Count(b.String(), part) }
		flooder := netip.MustParseAddr("10.0.0.1")
		for range 10_000 {
			log.Warn("refused", "from", flooder)
		}
		if n := count("refused"); n != linesAtOnce {
			t.Errorf("%d lines of a flood, want %d", n, linesAtOnce)
		}
		log.Warn("refused", "from", netip.MustParseAddr("10.0.0.2"))
		log.With("from", netip.MustParseAddr("10.0.0.3")).Warn("refused")
		if n := count("refused"); n != linesAtOnce+2 {
			t.Errorf("others are not heard: %d lines", n)
		}
		time.Sleep(time.Minute)
		log.Warn("refused", "from", flooder)
		if want := fmt.Sprintf("left_out=%d", 10_000-linesAtOnce); count(want) != 1 {
			t.Errorf("what was left out is not told: %s", b.String())
		}
		log.Warn("refused", "from", flooder)
		if count("left_out") != 1 {
			t.Error("told twice")
		}
		// Addresses that change do not grow the memory of the log.
		for i := range 5 * maxKinds {
			from := netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})
			for range linesAtOnce + 1 {
				log.Warn("refused", "from", from)
			}
		}
		if n := len(log.Handler().(*bounded).flood.leftOut); n > maxKinds {
			t.Errorf("%d kinds are counted", n)
		}
	})
}
