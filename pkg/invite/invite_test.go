package invite

import (
	"bytes"
	"crypto/rand"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestCode(t *testing.T) {
	code, err := NewCode(bytes.NewReader([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1}))
	if err != nil || code != "ZZZZ-ZZZZ-0000-0001" {
		t.Fatalf("%s, %v", code, err)
	}
	if _, err := NewCode(bytes.NewReader([]byte{1, 2})); err == nil {
		t.Error("a code without randomness")
	}
	for _, same := range []string{"zzzz-zzzz-0000-0001", " ZZZZ ZZZZ oOoO o00l\n", "ZZZZZZZZ0000000I"} {
		if Hash(same) != Hash(code) || checkCode(same) != nil {
			t.Errorf("%q is another code", same)
		}
	}
	for _, other := range []string{"", "ZZZZ-ZZZZ-0000", "ZZZZ-ZZZZ-0000-000U", "ZZZZ-ZZZZ-0000-000é", strings.Repeat("0-", 40)} {
		if checkCode(other) == nil {
			t.Errorf("%q is a code", other)
		}
		if Hash(other) == Hash(code) {
			t.Errorf("%q has the hash of another", other)
		}
	}
	seen := map[string]bool{}
	for range 1000 {
		c, err := NewCode(rand.Reader)
		if err != nil || seen[c] || checkCode(c) != nil {
			t.Fatal(c, err)
		}
		seen[c] = true
	}
}

func link() Link {
	return Link{
		Addresses: []transport.Address{{Host: "192.168.1.1", Port: 5001}, {Host: "fe80::1%br-lan", Port: 5001}, {Host: "home.example", Port: 5002}},
		Pin:       transport.Pin{1, 2, 0xff}, Code: "ZZZZ-ZZZZ-0000-0001", Username: "жуля",
	}
}

func TestLink(t *testing.T) {
	plain := link()
	plain.Addresses, plain.Username = plain.Addresses[:1], ""
	const want = "qpc://192.168.1.1:5001/join?code=ZZZZ-ZZZZ-0000-0001&pin=AQL_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	if plain.String() != want {
		t.Errorf("got  %s\nwant %s", plain, want)
	}
	v6 := link()
	v6.Addresses = v6.Addresses[1:2]
	for _, l := range []Link{plain, link(), v6} {
		text := l.String()
		for _, written := range []string{text, "  " + text + "\n", text[:20] + "\r\n  " + text[20:], strings.Replace(text, "qpc://", "QPC://", 1), text + "&later=1"} {
			got, err := Parse(written)
			if diff := cmp.Diff(l, got); err != nil || diff != "" {
				t.Errorf("%q: %v %s", written, err, diff)
			}
		}
	}
	pin := plain.Pin.Base64URL()
	for _, bad := range []string{
		"", "hello", "http://a/join?code=ZZZZ-ZZZZ-0000-0001&pin=" + pin, "qpc://a:5001/?pin=" + pin,
		"qpc:a", "qpc://me@a/join?code=ZZZZ-ZZZZ-0000-0001&pin=" + pin, "qpc:///join?code=ZZZZ-ZZZZ-0000-0001&pin=" + pin,
		"qpc://a/join?pin=" + pin, "qpc://a/join?code=ZZZZ-ZZZZ-0000-0001", "qpc://a/join?code=ZZZZ&pin=" + pin,
		want + "&pin=" + pin, want + "&code=ZZZZ-ZZZZ-0000-0002", want + "x", want + "&user=a@b", want + "&also=a:b:c",
		want + "&also=a&also=b&also=c&also=d", want + "#x", want + "&x=%zz", want + strings.Repeat("&y=1", 400),
	} {
		if l, err := Parse(bad); err == nil || !strings.Contains(err.Error(), "no invitation link") {
			t.Errorf("%q: %+v %v", bad, l, err)
		}
	}
}

func TestAddresses(t *testing.T) {
	machine := []net.Addr{
		&net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)},
		&net.IPNet{IP: net.IPv4(203, 0, 113, 5), Mask: net.CIDRMask(24, 32)},
		&net.IPNet{IP: net.IPv4(192, 168, 1, 1).To4(), Mask: net.CIDRMask(24, 32)},
		&net.IPNet{IP: net.IPv4(10, 0, 0, 1).To4(), Mask: net.CIDRMask(24, 32)},
		&net.IPNet{IP: net.ParseIP("fd00::1"), Mask: net.CIDRMask(64, 128)},
	}
	for _, tc := range []struct {
		listen string
		named  bool
		want   string
	}{
		{"0.0.0.0:5001", false, "192.168.1.1:5001 10.0.0.1:5001"},
		{"0.0.0.0:5001 [::]:5001", true, "router:5001 192.168.1.1:5001 10.0.0.1:5001"},
		{"127.0.0.1:7", false, "127.0.0.1:7"},
		{"[fe80::1%br-lan]:7", false, "[fe80::1]:7"},
		{"1.1.1.1:1 1.1.1.2:1 1.1.1.3:1 1.1.1.4:1 1.1.1.5:1", false, "1.1.1.1:1 1.1.1.2:1 1.1.1.3:1 1.1.1.4:1"},
	} {
		var listen []netip.AddrPort
		for _, l := range strings.Fields(tc.listen) {
			listen = append(listen, netip.MustParseAddrPort(l))
		}
		var got []string
		for _, a := range Addresses("router", tc.named, listen, machine) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: got %s, want %s", tc.listen, got, tc.want)
		}
	}
	if got := Addresses("router", false, []netip.AddrPort{netip.MustParseAddrPort("[::]:5001")}, nil); len(got) != 1 || got[0].Host != "router" {
		t.Errorf("without addresses: %v", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(link().String())
	f.Add("qpc://192.168.1.1:5001/join?code=ZZZZ-ZZZZ-0000-0001&pin=AQL_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA&also=a")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(l.String())
		if diff := cmp.Diff(l, again); err != nil || diff != "" {
			t.Fatalf("%q became %q: %v %s", text, l, err, diff)
		}
	})
}
