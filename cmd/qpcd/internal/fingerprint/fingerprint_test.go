package fingerprint_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"rsc.io/qr"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/fingerprint"
	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// pair makes a certificate and returns its path and its pin.
func pair(t *testing.T) (cert string, pin transport.Pin) {
	t.Helper()
	dir := t.TempDir()
	cert = filepath.Join(dir, "cert")
	store, err := transport.LoadOrCreate(cert, filepath.Join(dir, "key"), []string{"localhost"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert, store.Pin()
}

func load(t *testing.T, args ...string) *config.Config {
	t.Helper()
	cfg, _, err := config.Load(config.Sources{
		Args:       args,
		DefaultUCI: filepath.Join(t.TempDir(), "none"),
		Hostname:   func() (string, error) { return "router", nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func read(t *testing.T, addrs []net.Addr, args ...string) *fingerprint.Fingerprint {
	t.Helper()
	f, err := fingerprint.Read(load(t, args...), addrs)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestLink(t *testing.T) {
	cert, pin := pair(t)
	network := func(cidr string) net.Addr {
		ip, n, err := net.ParseCIDR(cidr)
		if err != nil {
			t.Fatal(err)
		}
		return &net.IPNet{IP: ip, Mask: n.Mask}
	}
	addrs := []net.Addr{network("127.0.0.1/8"), network("::1/128"), network("203.0.113.9/24"), network("fd00::1/64"), network("192.168.1.1/24"), network("10.0.0.1/8")}
	tests := map[string]struct {
		addrs []net.Addr
		args  []string
		want  string // host:port
	}{
		"a private address":         {addrs, nil, "192.168.1.1:5001"},
		"no address":                {nil, nil, "router:5001"},
		"no private address":        {addrs[:4], nil, "router:5001"},
		"the name given":            {addrs, []string{"--server-name=home.example", "--listen=192.0.2.1:7"}, "home.example:7"},
		"the address listened on":   {addrs, []string{"--listen=192.0.2.1:7", "--listen=192.0.2.2:8"}, "192.0.2.1:7"},
		"an IPv6 address":           {addrs, []string{"--listen=[2001:db8::1]:7"}, "[2001:db8::1]:7"},
		"an interface of this host": {addrs, []string{"--listen=[fe80::1%br-lan]:7"}, "[fe80::1]:7"},
		"every IPv6 address":        {addrs, []string{"--listen=[::]:7"}, "192.168.1.1:7"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := read(t, tt.addrs, append(tt.args, "--tls-cert="+cert)...)
			if want := "qpc://" + tt.want + "/?pin=" + pin.Base64URL(); f.Link != want {
				t.Errorf("link %s, want %s", f.Link, want)
			}
			u, err := url.Parse(f.Link)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := transport.ParseAddress(u.Host); err != nil {
				t.Error(err)
			}
			if got, err := transport.ParsePin(u.Query().Get("pin")); err != nil || got != pin {
				t.Errorf("pin %v, %v; want %v", got, err, pin)
			}
		})
	}
}

func TestPortChosenAtStart(t *testing.T) {
	cert, pin := pair(t)
	f := read(t, nil, "--tls-cert="+cert, "--listen=127.0.0.1:0")
	var b bytes.Buffer
	if err := f.WriteText(&b, false); err != nil {
		t.Fatal(err)
	}
	if f.Link != "" || strings.Contains(b.String(), "█") || !strings.Contains(b.String(), pin.String()) {
		t.Errorf("link %q in\n%s", f.Link, b.String())
	}
}

// TestText reads the drawn code back, module by module.
func TestText(t *testing.T) {
	cert, pin := pair(t)
	f := read(t, nil, "--tls-cert="+cert, "--server-name=home.example")
	var plain, coloured bytes.Buffer
	if err := f.WriteText(&plain, false); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteText(&coloured, true); err != nil {
		t.Fatal(err)
	}
	const on, off = "\x1b[38;5;231;48;5;16m", "\x1b[0m"
	if got := strings.NewReplacer(on, "", off, "").Replace(coloured.String()); got != plain.String() {
		t.Errorf("colours change the text:\n%s", got)
	}
	text, drawing, _ := strings.Cut(plain.String(), "\n\n")
	words := pin.Words()
	want := "Certificate  " + cert + "\n" +
		"SHA-256      " + pin.String() + "\n" +
		"Words        " + strings.Join(words[:6], " ") + "\n" +
		"             " + strings.Join(words[6:], " ") + "\n" +
		"Link         " + f.Link
	if diff := cmp.Diff(want, text); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
	if n := strings.Count(coloured.String(), on+"█"); n != strings.Count(drawing, "\n") {
		t.Errorf("%d lines are coloured", n)
	}

	code, err := qr.Encode(f.Link, qr.L)
	if err != nil {
		t.Fatal(err)
	}
	const quiet = 4
	var rows [][]bool // true: dark
	for line := range strings.Lines(drawing) {
		var upper, lower []bool
		for _, r := range strings.TrimSuffix(line, "\n") {
			upper = append(upper, r == ' ' || r == '▄')
			lower = append(lower, r == ' ' || r == '▀')
		}
		rows = append(rows, upper, lower)
	}
	if len(rows) < code.Size+2*quiet || len(rows[0]) != code.Size+2*quiet {
		t.Fatalf("the drawing has %d rows of %d", len(rows), len(rows[0]))
	}
	for y, row := range rows {
		for x, dark := range row {
			if want := code.Black(x-quiet, y-quiet); dark != want {
				t.Fatalf("module %d,%d is dark: %v, want %v", x, y, dark, want)
			}
		}
	}
}

func TestJSON(t *testing.T) {
	cert, pin := pair(t)
	f := read(t, nil, "--tls-cert="+cert)
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	words := []any{}
	for _, w := range pin.Words() {
		words = append(words, w)
	}
	if diff := cmp.Diff(map[string]any{"certificate": cert, "sha256": pin.String(), "words": words, "link": f.Link}, got); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
}

func TestFiles(t *testing.T) {
	cert, pin := pair(t)
	der, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := pair(t)
	otherDER, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	tests := map[string]struct {
		content []byte
		wrong   string // part of the error
	}{
		"DER":                    {content: der},
		"DER chain":              {content: bytes.Join([][]byte{der, otherDER}, nil)},
		"PEM":                    {content: block("CERTIFICATE", der)},
		"PEM chain":              {content: append(block("CERTIFICATE", der), block("CERTIFICATE", otherDER)...)},
		"PEM with its key first": {content: append(block("PRIVATE KEY", []byte("secret")), block("CERTIFICATE", der)...)},
		"empty":                  {content: nil, wrong: "neither a DER nor a PEM certificate"},
		"text":                   {content: []byte("text"), wrong: "neither a DER nor a PEM certificate"},
		"PEM of a key":           {content: block("PRIVATE KEY", []byte("secret")), wrong: "neither a DER nor a PEM certificate"},
		"PEM around nothing":     {content: block("CERTIFICATE", nil), wrong: "neither a DER nor a PEM certificate"},
		"a byte missing":         {content: der[:len(der)-1], wrong: "neither a DER nor a PEM certificate"},
		"endless":                {content: bytes.Repeat(der, 1<<11), wrong: "neither a DER nor a PEM certificate"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cert")
			if err := os.WriteFile(path, tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := fingerprint.Read(load(t, "--tls-cert="+path), nil)
			switch {
			case tt.wrong != "":
				if err == nil || !strings.Contains(err.Error(), tt.wrong) || !strings.Contains(err.Error(), path) {
					t.Errorf("error %v, want %q and the path", err, tt.wrong)
				}
			case err != nil:
				t.Error(err)
			case f.SHA256 != pin.String():
				t.Errorf("fingerprint %s, want %s", f.SHA256, pin)
			}
		})
	}
}

func TestNoCertificateYet(t *testing.T) {
	dir := t.TempDir()
	_, err := fingerprint.Read(load(t, "--data-dir="+dir), nil)
	if err == nil || !strings.Contains(err.Error(), "start qpcd once") {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("reading made %v", left)
	}
}
