package config

import (
	"strings"
	"testing"
	"testing/fstest"
)

const (
	pinOne = "0101010101010101010101010101010101010101010101010101010101010101"
	pinTwo = "02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02:02"
)

// loadPeers loads a file with a section for this server and the text given.
func loadPeers(t *testing.T, text string, args ...string) (*Config, error) {
	t.Helper()
	c, _, err := load(sources{
		args: append([]string{"--config", "/f"}, args...),
		files: fstest.MapFS{"f": {Data: []byte("config qpcd 'main'\n\toption server_name 'home.example'\n" +
			"config qpcd 'other'\n\toption server_name 'other.example'\n" + text)}},
	})
	return c, err
}

func peerText(name string, lines ...string) string {
	text := "config peer " + name + "\n"
	for _, line := range lines {
		text += "\toption " + line + "\n"
	}
	return text
}

func TestPeers(t *testing.T) {
	text := peerText("'b'", "domain 'B.Example'", "address 'b.example'", "pin '"+pinOne+"'") +
		peerText("", "domain 'c.example'", "address '[2001:db8::1]:7'", "pin '"+pinTwo+"'", "instance 'main'") +
		peerText("off", "domain 'home.example'", "enabled 0") + // what is off need not be right
		peerText("elsewhere", "domain 'd.example'", "address 'd'", "pin 'AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM'", "instance 'other'")
	c, err := loadPeers(t, text)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Peers) != 2 {
		t.Fatalf("got %+v", c.Peers)
	}
	b, second := c.Peers[0], c.Peers[1]
	if b.Domain != "b.example" || b.Address != "b.example:5001" || b.Pin != [32]byte(repeat(1)) || b.Origin.String() != "/f section 'b' option 'domain' line 6" {
		t.Errorf("got %+v from %s", b, b.Origin)
	}
	if second.Domain != "c.example" || second.Address != "[2001:db8::1]:7" || second.Pin != [32]byte(repeat(2)) {
		t.Errorf("got %+v", second)
	}
	var listing strings.Builder
	if err := c.WriteEffective(&listing); err != nil || !strings.Contains(listing.String(), "b.example at b.example:5001") {
		t.Errorf("the listing says %s (%v)", listing.String(), err)
	}
	c, err = loadPeers(t, text, "--section", "other")
	if err != nil || len(c.Peers) != 2 || c.Peers[1].Domain != "d.example" || c.Peers[1].Pin != [32]byte(repeat(3)) {
		t.Errorf("the other instance has %+v, %v", c.Peers, err)
	}
}

func repeat(b byte) []byte { return []byte(strings.Repeat(string(rune(b)), 32)) }

func TestWrongPeers(t *testing.T) {
	whole := []string{"domain 'b.example'", "address 'b.example'", "pin '" + pinOne + "'"}
	with := func(lines ...string) string { return peerText("'b'", append(whole[:3:3], lines...)...) }
	many := ""
	for i := range maxPeers + 1 {
		many += peerText("", "domain 'p"+strings.Repeat("x", i)+".example'", "address 'p'", "pin '"+pinOne[:62]+string("0123456789abcdef"[i/16])+string("0123456789abcdef"[i%16])+"'")
	}
	for name, test := range map[string]struct{ text, want string }{
		"no domain":        {peerText("'b'", whole[1:]...), "section 'b' option 'domain' line 5: is missing; valid is a domain name"},
		"no address":       {peerText("'b'", whole[0], whole[2]), "option 'address' line 5: is missing"},
		"no pin":           {peerText("'b'", whole[:2]...), "option 'pin' line 5: is missing"},
		"a bad domain":     {with("domain 'b@example'"), `section 'b' option 'domain' line 9: "b@example" is not a domain name`},
		"a bad address":    {with("address 'b:0'"), `option 'address' line 9: "b:0" has no port from 1 to 65535`},
		"a bad host":       {with("address '-b:1'"), `"-b:1" has no host name or IP address`},
		"a short pin":      {with("pin '0102'"), `option 'pin' line 9: "0102" is not a fingerprint; valid is a fingerprint of 64`},
		"a list":           {peerText("'b'", whole[1:]...) + "\tlist domain 'b.example'\n\tlist domain 'c.example'\n", "option 'domain' line 8: domain takes one value and a list of 2 is given"},
		"a bad switch":     {with("enabled 'maybe'"), `option 'enabled' line 9: "maybe" is neither yes nor no`},
		"a lost instance":  {with("instance 'nowhere'"), "option 'instance' line 5: there is no config qpcd 'nowhere'; choose 'main' or 'other'"},
		"itself":           {with("domain 'HOME.example'"), `"home.example" is this server's own server_name`},
		"twice":            {with() + peerText("'c'", whole[0], whole[1], "pin '"+pinTwo+"'"), `section 'c' option 'domain' line 10: "b.example" is the peer of section 'b' already`},
		"two with one pin": {with() + peerText("'c'", "domain 'c.example'", whole[1], whole[2]), `the pin of "c.example" is that of section 'b' already`},
		"too many":         {many, "more than 32 peers"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := loadPeers(t, test.text); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v\nwant %s", err, test.want)
			}
		})
	}
	c, err := loadPeers(t, with("adress 'x'"))
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "option 'adress' line 9: is no option of a peer and ignored; did you mean address?") {
		t.Errorf("got %v, %v", c.Warnings, err)
	}
}

func TestParsePeerAddress(t *testing.T) {
	for in, want := range map[string]string{
		"b.example": "b.example:5001", "B.example:7": "b.example:7", "192.0.2.1": "192.0.2.1:5001", "192.0.2.1:9": "192.0.2.1:9",
		"::1": "[::1]:5001", "[::1]": "[::1]:5001", "[::1]:7": "[::1]:7", "[fe80::1%br-lan]:7": "[fe80::1%br-lan]:7",
		"": "", ":7": "", "b:": "", "b:x": "", "b:70000": "", "b:-1": "", "a b": "", "b:1:2": "", "b/c:1": "",
	} {
		got, err := ParsePeerAddress(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
}

func FuzzParsePeerAddress(f *testing.F) {
	f.Add("b.example:5001")
	f.Add("[fe80::1%br-lan]:7")
	f.Fuzz(func(t *testing.T, s string) {
		once, err := ParsePeerAddress(s)
		if err != nil {
			return
		}
		if again, err := ParsePeerAddress(once); err != nil || again != once {
			t.Errorf("%q becomes %q and then %q (%v)", s, once, again, err)
		}
	})
}
