package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the generated files")

// sources are what a test says; the machine it runs on says nothing.
type sources struct {
	args  []string
	env   []string
	uci   string // content of /etc/config/qpcd, absent if empty
	pass  []string
	files fstest.MapFS
}

func load(s sources) (*Config, []string, error) {
	files := fstest.MapFS{}
	for name, f := range s.files {
		files[name] = f
	}
	if s.uci != "" {
		files["etc/config/qpcd"] = &fstest.MapFile{Data: []byte(s.uci)}
	}
	return Load(Sources{
		Args: s.args, Environ: s.env, Pass: s.pass,
		Open:     func(name string) (fs.File, error) { return files.Open(strings.TrimPrefix(name, "/")) },
		Hostname: func() (string, error) { return "OpenWrt", nil },
	})
}

func mustLoad(t *testing.T, s sources) *Config {
	t.Helper()
	c, _, err := load(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func row(t *testing.T, name string) Setting {
	t.Helper()
	for _, s := range Settings() {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no setting %s", name)
	return Setting{}
}

func TestDefaults(t *testing.T) {
	want := &Config{
		Enabled: true,
		Listen:  []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:5001")},
		DataDir: "data", TLSCert: "data/server-cert.der", TLSKey: "data/server-key.der",
		ServerName: "openwrt", ControlSocket: "data/qpcd.sock",
		Registration: RegistrationOpen,
		SessionTTL:   30 * 24 * time.Hour, Retention: 7 * 24 * time.Hour,
		QueueMessages: 1000, QueueBytes: 16 << 20, SendRate: 100, SendBurst: 1000, BlobQuota: 1 << 30,
		MaxConnections: 256, MaxConnectionsPerAddress: 32,
		LogLevel: slog.LevelInfo, LogFormat: LogText, LogTime: true, RedactLogs: true,
	}
	got := mustLoad(t, sources{})
	for _, e := range got.Effective() {
		if e.Origin.Source != FromDefault {
			t.Errorf("%s comes from %s", e.Name, e.Origin)
		}
	}
	got.effective = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

const (
	keyA = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	keyB = "FF112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
)

const (
	boolValid    = `valid is 1 or 0 (also true, yes, on, enabled or false, no, off, disabled)`
	addrValid    = `valid is an IP address with a port, such as 0.0.0.0:5001, [::]:5001 or [fe80::1%br-lan]:5001`
	pathValid    = `valid is a path, absolute or from the working directory`
	domainValid  = `valid is a domain name of letters, digits, '-' and '.', such as home.example`
	keyValid     = "valid is an identity key, 64 hexadecimal digits, as `qpc whoami` shows it"
	millionValid = `valid is a whole number from 1 to 1000000`
	connValid    = `valid is a whole number from 1 to 65536`
	sizeValid    = `valid is a size from 64KiB to 64GiB, in bytes or with KiB, MiB or GiB`
	ttlValid     = `valid is a duration from 1m to 3650d, in seconds or with s, m, h or d, such as 90m or 1d12h`
	retainValid  = `valid is a duration from 1m to 365d, in seconds or with s, m, h or d, such as 90m or 1d12h`
)

// settingCases says for every setting what values mean and which are refused
// with which words.
var settingCases = map[string]struct {
	valid   map[string]any
	field   func(*Config) any
	invalid map[string]string
}{
	"enabled": {
		field:   func(c *Config) any { return c.Enabled },
		valid:   map[string]any{"1": true, "0": false, "Yes": true, "off": false, "enabled": true, "disabled": false},
		invalid: map[string]string{"2": `is neither yes nor no; ` + boolValid},
	},
	"listen": {
		field: func(c *Config) any { return c.Listen[0].String() },
		valid: map[string]any{
			"127.0.0.1:0": "127.0.0.1:0", "[::]:5001": "[::]:5001", "[fe80::1%br-lan]:65535": "[fe80::1%br-lan]:65535",
			"[::ffff:192.168.1.1]:5001": "192.168.1.1:5001",
		},
		invalid: map[string]string{
			"router:5001":     `is not an IP address with a port; ` + addrValid,
			"1.2.3.4:65536":   `is not an IP address with a port; ` + addrValid,
			"1.2.3.4":         `has no port; write 1.2.3.4:5001; ` + addrValid,
			"::1":             `has no port; write [::1]:5001; ` + addrValid,
			"[::1]":           `has no port; write [::1]:5001; ` + addrValid,
			":443":            `has no address; write 0.0.0.0:443 for all of IPv4 or [::]:443 for all of IPv6; ` + addrValid,
			"224.0.0.1:5001":  `is a multicast address; ` + addrValid,
			"[fe80::1]:5001":  `is a link-local address without its interface; write it as in [fe80::1%br-lan]:5001; ` + addrValid,
			"1.2.3.4:5001 # ": `is not an IP address with a port; ` + addrValid,
		},
	},
	"data_dir": {
		field:   func(c *Config) any { return c.DataDir },
		valid:   map[string]any{"/srv/qpcd/": "/srv/qpcd", "./a b": "a b", "Zoë": "Zoë"},
		invalid: map[string]string{"a\nb": `holds a control character; ` + pathValid, strings.Repeat("x", 4096): `is too long; ` + pathValid},
	},
	"tls_cert": {
		field:   func(c *Config) any { return c.TLSCert },
		valid:   map[string]any{"/etc/ssl/acme/a.crt": "/etc/ssl/acme/a.crt"},
		invalid: map[string]string{"a\x7f": `holds a control character; ` + pathValid},
	},
	"tls_key": {
		field:   func(c *Config) any { return c.TLSKey },
		valid:   map[string]any{"/etc/ssl/acme/a.key": "/etc/ssl/acme/a.key"},
		invalid: map[string]string{"a\tb": `holds a control character; ` + pathValid},
	},
	"server_name": {
		field: func(c *Config) any { return c.ServerName },
		valid: map[string]any{"Home.Example": "home.example", "a": "a", "x--1": "x--1"},
		invalid: map[string]string{
			"a_b": `is not a domain name; ` + domainValid, "a..b": `is not a domain name; ` + domainValid,
			"home.": `is not a domain name; ` + domainValid, "-a": `is not a domain name; ` + domainValid,
			"a@b": `is not a domain name; ` + domainValid, strings.Repeat("a", 64): `is not a domain name; ` + domainValid,
			strings.Repeat("a.", 127): `is too long; ` + domainValid,
		},
	},
	"control_socket": {
		field:   func(c *Config) any { return c.ControlSocket },
		valid:   map[string]any{"/var/run/qpcd.sock": "/var/run/qpcd.sock"},
		invalid: map[string]string{"a\nb": `holds a control character; ` + pathValid},
	},
	"metrics_listen": {
		field: func(c *Config) any { return c.MetricsListen[0].String() },
		valid: map[string]any{"127.0.0.1:9101": "127.0.0.1:9101"},
		invalid: map[string]string{
			"9101":         `is not an IP address with a port; valid is an IP address with a TCP port, such as 127.0.0.1:9101`,
			"0.0.0.0:9101": `is open to more than this network; choose an address of the LAN, or set metrics_public; valid is an IP address with a TCP port, such as 127.0.0.1:9101`,
			"8.8.8.8:9101": `is open to more than this network; choose an address of the LAN, or set metrics_public; valid is an IP address with a TCP port, such as 127.0.0.1:9101`,
		},
	},
	"metrics_public": {
		field:   func(c *Config) any { return c.MetricsPublic },
		valid:   map[string]any{"1": true},
		invalid: map[string]string{"maybe": `is neither yes nor no; ` + boolValid},
	},
	"blob_quota": {
		field:   func(c *Config) any { return c.BlobQuota },
		valid:   map[string]any{"0": int64(0), "10GiB": int64(10 << 30)},
		invalid: map[string]string{"some": `is not a size; valid is a size from 0B to 65536GiB, in bytes or with KiB, MiB or GiB`},
	},
	"push_host": {
		field: func(c *Config) any { return c.PushHosts[0] },
		valid: map[string]any{"Ntfy.Example": "ntfy.example", "192.168.1.2": "192.168.1.2", "::1": "::1"},
		invalid: map[string]string{
			"https://ntfy.example": `is neither a host name nor an IP address; valid is a host name or an IP address without a port, such as ntfy.example`,
			"fe80::1%eth0":         `is neither a host name nor an IP address; valid is a host name or an IP address without a port, such as ntfy.example`,
		},
	},
	"registration": {
		field:   func(c *Config) any { return c.Registration },
		valid:   map[string]any{"open": RegistrationOpen, "invite": RegistrationInvite, "closed": RegistrationClosed},
		invalid: map[string]string{"Open": `is not a value of registration; valid is open, invite or closed`},
	},
	"require_identity_proof": {
		field:   func(c *Config) any { return c.RequireIdentityProof },
		valid:   map[string]any{"true": true, "no": false},
		invalid: map[string]string{"maybe": `is neither yes nor no; ` + boolValid},
	},
	"admin": {
		field: func(c *Config) any { return c.Admins[0][0] },
		valid: map[string]any{keyA: byte(0), keyB: byte(0xff)},
		invalid: map[string]string{
			keyA[2:]: `is not an identity key; ` + keyValid, keyA + "00": `is not an identity key; ` + keyValid,
			keyA[:63] + "x": `is not an identity key; ` + keyValid,
		},
	},
	"session_ttl": {
		field:   func(c *Config) any { return c.SessionTTL },
		valid:   map[string]any{"1m": time.Minute, "3650d": 3650 * 24 * time.Hour},
		invalid: map[string]string{"59s": `is too small; ` + ttlValid, "3651d": `is too large; ` + ttlValid},
	},
	"retention": {
		field: func(c *Config) any { return c.Retention },
		valid: map[string]any{"60": time.Minute, "1d12h": 36 * time.Hour, "90m": 90 * time.Minute, "1h30s": time.Hour + 30*time.Second},
		invalid: map[string]string{
			"1y": `is not a duration; ` + retainValid, "d": `is not a duration; ` + retainValid, "-1d": `is not a duration; ` + retainValid,
			"1d12": `is not a duration; ` + retainValid, "1 d": `is not a duration; ` + retainValid, "1.5h": `is not a duration; ` + retainValid,
			"366d": `is too large; ` + retainValid, "99999999999999999999d": `is too large; ` + retainValid, "9223372036854775807s": `is too large; ` + retainValid,
			"106751d106751d": `is too large; ` + retainValid,
		},
	},
	"queue_messages": {
		field:   func(c *Config) any { return c.QueueMessages },
		valid:   map[string]any{"1": 1, "1000000": 1_000_000},
		invalid: map[string]string{"0": `is too small; ` + millionValid, "1000001": `is too large; ` + millionValid, "ten": `is not a whole number; ` + millionValid},
	},
	"queue_bytes": {
		field: func(c *Config) any { return c.QueueBytes },
		valid: map[string]any{"65536": int64(65536), "64KiB": int64(65536), "2mib": int64(2 << 20), "64GiB": int64(64 << 30), "70000B": int64(70000)},
		invalid: map[string]string{
			"16M": `is not a size; ` + sizeValid, "MiB": `is not a size; ` + sizeValid, "1 MiB": `is not a size; ` + sizeValid,
			"65535": `is too small; ` + sizeValid, "65GiB": `is too large; ` + sizeValid, "9223372036854775807KiB": `is too large; ` + sizeValid,
			"9223372036854775808": `is too large; ` + sizeValid,
		},
	},
	"send_rate": {
		field:   func(c *Config) any { return c.SendRate },
		valid:   map[string]any{"007": 7},
		invalid: map[string]string{"-1": `is not a whole number; ` + millionValid, "9223372036854775808": `is too large; ` + millionValid},
	},
	"send_burst": {
		field:   func(c *Config) any { return c.SendBurst },
		valid:   map[string]any{"5": 5},
		invalid: map[string]string{"1e3": `is not a whole number; ` + millionValid},
	},
	"max_connections": {
		field:   func(c *Config) any { return c.MaxConnections },
		valid:   map[string]any{"65536": 65536},
		invalid: map[string]string{"65537": `is too large; ` + connValid},
	},
	"max_connections_per_address": {
		field:   func(c *Config) any { return c.MaxConnectionsPerAddress },
		valid:   map[string]any{"1": 1},
		invalid: map[string]string{"0": `is too small; ` + connValid},
	},
	"log_level": {
		field:   func(c *Config) any { return c.LogLevel },
		valid:   map[string]any{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError},
		invalid: map[string]string{"loud": `is not a value of log_level; valid is debug, info, warn or error`},
	},
	"log_format": {
		field:   func(c *Config) any { return c.LogFormat },
		valid:   map[string]any{"text": LogText, "json": LogJSON},
		invalid: map[string]string{"xml": `is not a value of log_format; valid is text or json`},
	},
	"log_time": {
		field:   func(c *Config) any { return c.LogTime },
		valid:   map[string]any{"0": false},
		invalid: map[string]string{"utc": `is neither yes nor no; ` + boolValid},
	},
	"redact_logs": {
		field:   func(c *Config) any { return c.RedactLogs },
		valid:   map[string]any{"0": false},
		invalid: map[string]string{"some": `is neither yes nor no; ` + boolValid},
	},
}

// through says one value of one setting by each source that can, and what that
// source is called in an error.
func through(s Setting, value string) map[string]sources {
	uci := fmt.Sprintf("config qpcd 'main'\n\toption other '1'\n\toption %s '%s'\n", s.Name, strings.ReplaceAll(value, "'", `'\''`))
	if s.List {
		uci = strings.Replace(uci, "option "+s.Name, "list "+s.Name, 1)
	}
	out := map[string]sources{
		fmt.Sprintf("/etc/config/qpcd section 'main' option '%s' line 3", s.Name): {uci: uci},
	}
	if !s.UCIOnly {
		out["flag --"+strings.ReplaceAll(s.Name, "_", "-")] = sources{args: []string{s.Flag() + "=" + value}}
		if value == strings.TrimSpace(value) {
			out["environment QPC_"+strings.ToUpper(s.Name)] = sources{env: []string{s.Env() + "=" + value}}
		}
	}
	return out
}

func TestEverySettingFromEverySource(t *testing.T) {
	if got, want := len(settingCases), len(Settings()); got != want {
		t.Errorf("cases for %d settings of %d", got, want)
	}
	for name, c := range settingCases {
		s := row(t, name)
		if len(c.valid) == 0 || len(c.invalid) == 0 {
			t.Errorf("%s: no valid or no invalid case", name)
		}
		for value, want := range c.valid {
			for origin, src := range through(s, value) {
				cfg, _, err := load(src)
				if err != nil {
					t.Errorf("%s %q: %v", origin, value, err)
					continue
				}
				if got := c.field(cfg); !reflect.DeepEqual(got, want) {
					t.Errorf("%s %q = %v, want %v", origin, value, got, want)
				}
				if got := cfg.Origin(name).String(); got != origin {
					t.Errorf("origin %q, want %q", got, origin)
				}
			}
		}
		for value, want := range c.invalid {
			for origin, src := range through(s, value) {
				cfg, _, err := load(src)
				if cfg != nil || err == nil {
					t.Errorf("%s %q: accepted", origin, value)
					continue
				}
				shown := value
				if len(shown) > maxQuoted {
					shown = shown[:maxQuoted]
				}
				sentence := fmt.Sprintf("%s: %q", origin, shown)
				if shown != value {
					sentence += "…"
				}
				if sentence += " " + want; err.Error() != sentence {
					t.Errorf("got  %s\nwant %s", err, sentence)
				}
				var ve *ValueError
				if !errors.As(err, &ve) || ve.Setting != name {
					t.Errorf("%s: no ValueError of %s", err, name)
				}
			}
		}
	}
}

func TestEmptyValues(t *testing.T) {
	_, _, err := load(sources{args: []string{"--data-dir", "", "--listen="}})
	want := "flag --listen: \"\" is not an IP address with a port; " + addrValid + "\nflag --data-dir: \"\" is empty; " + pathValid
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	c := mustLoad(t, sources{env: []string{"QPC_LISTEN=", "QPC_DATA_DIR= "}, uci: "config qpcd main\n\toption data_dir ''\n"})
	if c.DataDir != "data" || c.Origin("listen").Source != FromDefault {
		t.Errorf("empty variables or options count: %+v", c)
	}
}

func TestPrecedence(t *testing.T) {
	const uci = "config qpcd 'main'\n\toption log_level 'warn'\n\tlist listen '127.0.0.3:3'\n\tlist listen '127.0.0.3:4'\n"
	env := []string{"QPC_LOG_LEVEL=error", "QPC_LISTEN=127.0.0.2:2,127.0.0.2:3 , 127.0.0.2:4"}
	args := []string{"--log-level", "debug", "--listen", "127.0.0.1:1", "--listen=127.0.0.1:2"}
	for _, tc := range []struct {
		name   string
		src    sources
		level  slog.Level
		listen []string
		source Source
	}{
		{"default", sources{}, slog.LevelInfo, []string{"0.0.0.0:5001"}, FromDefault},
		{"uci", sources{uci: uci}, slog.LevelWarn, []string{"127.0.0.3:3", "127.0.0.3:4"}, FromUCI},
		{"environment", sources{env: env}, slog.LevelError, []string{"127.0.0.2:2", "127.0.0.2:3", "127.0.0.2:4"}, FromEnvironment},
		{"environment over uci", sources{uci: uci, env: env}, slog.LevelError, []string{"127.0.0.2:2", "127.0.0.2:3", "127.0.0.2:4"}, FromEnvironment},
		{"flag", sources{args: args}, slog.LevelDebug, []string{"127.0.0.1:1", "127.0.0.1:2"}, FromFlag},
		{"flag over uci", sources{args: args, uci: uci}, slog.LevelDebug, []string{"127.0.0.1:1", "127.0.0.1:2"}, FromFlag},
		{"flag over environment", sources{args: args, env: env}, slog.LevelDebug, []string{"127.0.0.1:1", "127.0.0.1:2"}, FromFlag},
		{"flag over both", sources{args: args, env: env, uci: uci}, slog.LevelDebug, []string{"127.0.0.1:1", "127.0.0.1:2"}, FromFlag},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := mustLoad(t, tc.src)
			var listen []string
			for _, a := range c.Listen {
				listen = append(listen, a.String())
			}
			if c.LogLevel != tc.level || !slices.Equal(listen, tc.listen) {
				t.Errorf("log_level %v, listen %v", c.LogLevel, listen)
			}
			for _, name := range []string{"log_level", "listen"} {
				if got := c.Origin(name).Source; got != tc.source {
					t.Errorf("%s from %v, want %v", name, got, tc.source)
				}
			}
		})
	}
}

func TestDerivedDefaultsFollowDataDir(t *testing.T) {
	c := mustLoad(t, sources{args: []string{"--data-dir", "/x", "--tls-key", "/y/k.pem"}})
	if c.TLSCert != "/x/server-cert.der" || c.TLSKey != "/y/k.pem" {
		t.Errorf("cert %q, key %q", c.TLSCert, c.TLSKey)
	}
}

func TestServerNameWithoutUsableHostname(t *testing.T) {
	for _, hostname := range []func() (string, error){
		func() (string, error) { return "my_router", nil },
		func() (string, error) { return "", nil },
		func() (string, error) { return "x", errors.New("no name") },
	} {
		c, _, err := Load(Sources{DefaultUCI: "/nonexistent/qpcd", Hostname: hostname})
		if err != nil || c.ServerName != "localhost" {
			t.Errorf("server_name %v, %v", c, err)
		}
	}
}

func TestListsInUCI(t *testing.T) {
	for name, uci := range map[string]string{
		"list":   "\tlist listen '127.0.0.1:1'\n\tlist listen '127.0.0.1:2'\n\tlist listen '127.0.0.1:1'\n",
		"option": "\toption listen '127.0.0.1:1  127.0.0.1:2'\n",
		"mixed":  "\toption listen '127.0.0.1:1'\n\tlist listen '127.0.0.1:2'\n",
	} {
		c := mustLoad(t, sources{uci: "config qpcd 'main'\n" + uci})
		if len(c.Listen) != 2 || c.Listen[0].Port() != 1 || c.Listen[1].Port() != 2 {
			t.Errorf("%s: %v", name, c.Listen)
		}
	}
	_, _, err := load(sources{uci: "config qpcd 'main'\n\tlist data_dir 'a'\n\tlist data_dir 'b'\n"})
	want := "/etc/config/qpcd section 'main' option 'data_dir' line 2: data_dir takes one value and a list of 2 is given; write it as `option`, once"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	_, _, err = load(sources{env: []string{"QPC_LISTEN=" + strings.Repeat("127.0.0.1:1,", 64) + "127.0.0.1:1"}})
	want = "environment QPC_LISTEN: 65 values are too many; valid are at most 64"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

func TestAllProblemsAtOnceInTheirPlaces(t *testing.T) {
	_, _, err := load(sources{
		args: []string{"--lisen", "--retention=x", "--queue-bytes"},
		env:  []string{"QPC_SEND_RATE=0"},
		uci:  "config qpcd 'main'\n\tlist listen '127.0.0.1:1'\n\tlist listen 'lan'\n\tlist listen 'wan'\n",
	})
	want := []string{
		"flag --lisen is not known; did you mean --listen?; --help lists all",
		"flag --queue-bytes: a value is missing; " + sizeValid,
		`/etc/config/qpcd section 'main' option 'listen' line 3: "lan" is not an IP address with a port; ` + addrValid,
		`/etc/config/qpcd section 'main' option 'listen' line 4: "wan" is not an IP address with a port; ` + addrValid,
		`flag --retention: "x" is not a duration; ` + retainValid,
		`environment QPC_SEND_RATE: "0" is too small; ` + millionValid,
	}
	if err == nil {
		t.Fatal("no error")
	}
	if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Error(diff)
	}
}

func TestArguments(t *testing.T) {
	pass := []string{"--json", "--version", "--note="}
	for _, tc := range []struct {
		args, rest []string
		want       string // error
	}{
		{[]string{"check-config", "--redact-logs", "x", "--json", "-"}, []string{"check-config", "x", "--json", "-"}, ""},
		{[]string{"--listen", "127.0.0.1:1", "--", "--listen", "-h"}, []string{"--listen", "-h"}, ""},
		{[]string{"--registration=closed", "--registration", "open"}, nil, ""},
		{[]string{"--note", "a b", "x", "--note=--y", "--note"}, []string{"--note=a b", "x", "--note=--y", "--note"}, ""},
		{[]string{"--notes=x"}, nil, "flag --notes is not known; did you mean --note?; --help lists all"},
		{[]string{"--help", "--nonsense"}, nil, ErrHelp.Error()},
		{[]string{"x", "-h"}, []string{"x"}, ErrHelp.Error()},
		{[]string{"--data_dir=x"}, nil, "flag --data_dir is not known; did you mean --data-dir?; --help lists all"},
		{[]string{"-listen=x"}, nil, "flag -listen is not known; did you mean --listen?; --help lists all"},
		{[]string{"--josn"}, nil, "flag --josn is not known; did you mean --json?; --help lists all"},
		{[]string{"--enabled"}, nil, "flag --enabled is not known; --help lists all"},
		{[]string{"--zzz"}, nil, "flag --zzz is not known; --help lists all"},
		{[]string{"--json=1"}, nil, "flag --json is not known; did you mean --json?; --help lists all"},
		{[]string{"--" + strings.Repeat("x", 100)}, nil, "flag \"--" + strings.Repeat("x", 78) + "\"… is not known; --help lists all"},
		{[]string{"--data-dir", "--log-time"}, nil, "flag --data-dir: a value is missing; " + pathValid},
		{[]string{"--config"}, nil, "flag --config: a value is missing; valid is the path of a UCI file"},
		{[]string{"--config="}, nil, `flag --config: "" is empty; valid is the path of a UCI file`},
		{[]string{"--section", "lan"}, nil, "flag --section: there is no UCI file to find 'lan' in; name one with --config"},
	} {
		_, rest, err := load(sources{args: tc.args, pass: pass})
		if (err == nil) != (tc.want == "") || err != nil && err.Error() != tc.want {
			t.Errorf("%q:\ngot  %v\nwant %s", tc.args, err, tc.want)
		}
		if err == nil || errors.Is(err, ErrHelp) {
			if !slices.Equal(rest, tc.rest) {
				t.Errorf("%q: rest %q, want %q", tc.args, rest, tc.rest)
			}
		}
	}
	c := mustLoad(t, sources{args: []string{"--log-time=0", "--require-identity-proof", "--registration=closed", "--registration", "open"}})
	if c.LogTime || !c.RequireIdentityProof || c.Registration != RegistrationOpen {
		t.Errorf("%+v", c)
	}
}

func TestUCIFileAndSection(t *testing.T) {
	two := fstest.MapFS{
		"etc/config/qpcd": {Data: []byte("config qpcd 'main'\n\toption send_rate 1\nconfig qpcd 'guest'\n\toption send_rate 2\nconfig other 'x'\n")},
		"y/no-main":       {Data: []byte("config qpcd 'a'\nconfig qpcd 'b'\nconfig other 'c'\n")},
		"y/none":          {Data: []byte("# nothing\n")},
		"y/bad":           {Data: []byte("config qpcd 'main'\n\toption a 'b\n")},
		"y/big":           {Data: bytes.Repeat([]byte("#"), 65537)},
		"y/typo":          {Data: []byte("config qpcd 'main'\n\toption lisetn '1'\n\toption frob '1'\n\tlist log-level 1\n")},
	}
	for _, tc := range []struct {
		args []string
		rate int
		want string
	}{
		{nil, 1, ""},
		{[]string{"--section", "guest"}, 2, ""},
		{[]string{"--section", "x"}, 0, "/etc/config/qpcd section 'x' line 5 is of type 'other'; valid is config qpcd 'x'"},
		{[]string{"--section", "lan"}, 0, "/etc/config/qpcd has no section 'lan'; choose 'main' or 'guest' with --section"},
		{[]string{"--config", "/y/no-main"}, 0, "/y/no-main has no section 'main'; choose 'a' or 'b' with --section"},
		{[]string{"--config", "/y/none"}, 0, "/y/none has no section 'main'; write config qpcd 'main' above its options"},
		{[]string{"--config", "/y/absent"}, 0, "flag --config: there is no file /y/absent; name an existing UCI file, or leave the flag out"},
		{[]string{"--config", "/y/bad"}, 0, "/y/bad line 2: the quote ' opened here is never closed"},
		{[]string{"--config", "/y/big"}, 0, "/y/big: the file is larger than 64 KiB"},
		{[]string{"--config", "/y/typo"}, 0, `/y/typo line 4: option name "log-level" is not valid; valid are letters, digits and '_'`},
	} {
		c, _, err := load(sources{args: tc.args, files: two})
		if tc.want != "" {
			if err == nil || err.Error() != tc.want {
				t.Errorf("%q:\ngot  %v\nwant %s", tc.args, err, tc.want)
			}
			continue
		}
		if err != nil || c.SendRate != tc.rate || c.File != "/etc/config/qpcd" || len(c.Warnings) != 0 {
			t.Errorf("%q: %+v, %v", tc.args, c, err)
		}
	}
}

func TestUnknownOptionsAreWarnings(t *testing.T) {
	c := mustLoad(t, sources{uci: "config qpcd 'main'\n\toption lisetn '1'\n\toption frob '1'\n"})
	want := []string{
		"/etc/config/qpcd section 'main' option 'lisetn' line 2: is no setting of qpcd and ignored; did you mean listen?",
		"/etc/config/qpcd section 'main' option 'frob' line 3: is no setting of qpcd and ignored",
	}
	if diff := cmp.Diff(want, c.Warnings); diff != "" {
		t.Error(diff)
	}
}

// OPENWRT trap 13: the file is mode 0600 root, the daemon is not root.
func TestUnreadableFile(t *testing.T) {
	open := func(name string) (fs.File, error) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	c, _, err := Load(Sources{Open: open})
	if err != nil {
		t.Fatal(err)
	}
	want := "/etc/config/qpcd exists but this user may not read it and its settings are ignored; run as root, or name a readable copy with --config"
	if len(c.Warnings) != 1 || c.Warnings[0] != want || c.File != "" {
		t.Errorf("warnings %q, file %q", c.Warnings, c.File)
	}
	_, _, err = Load(Sources{Open: open, Args: []string{"--config", "/etc/config/qpcd"}})
	want = "flag --config: this user may not read /etc/config/qpcd; run as root, or let the init script render a copy that the daemon's group may read"
	if err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

func TestOnlyRegularFilesAreOpened(t *testing.T) {
	dir := t.TempDir()
	_, _, err := Load(Sources{Args: []string{"--config", dir}})
	if want := "reading UCI file " + dir + ": not a regular file"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	file := filepath.Join(dir, "qpcd")
	if err := os.WriteFile(file, []byte("config qpcd 'main'\n\toption send_rate 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _, err := Load(Sources{DefaultUCI: file})
	if err != nil || c.SendRate != 3 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestTableIsSound(t *testing.T) {
	name := regexp.MustCompile(`^[a-z][a-z0-9]*(_[a-z0-9]+)*$`)
	seen := map[string]bool{flagConfig: true, flagSection: true, flagHelp: true}
	for _, s := range Settings() {
		if !name.MatchString(s.Name) || seen["--"+strings.ReplaceAll(s.Name, "_", "-")] {
			t.Errorf("%s: malformed or taken name", s.Name)
		}
		seen["--"+strings.ReplaceAll(s.Name, "_", "-")] = true
		if s.Doc == "" || strings.Contains(s.Doc, "\n") || !strings.HasSuffix(s.Doc, ".") || s.Valid == "" || s.Kind == "" {
			t.Errorf("%s: documentation, valid text or kind missing", s.Name)
		}
		if (len(s.Default) == 0) != (s.DefaultText != "") || (len(s.Default) == 0) != (s.Example != "") {
			t.Errorf("%s: want either a default or both its words and an example", s.Name)
		}
		if (s.Kind == KindEnum) != (len(s.Enum()) > 0) {
			t.Errorf("%s: kind %s with words %q", s.Name, s.Kind, s.Enum())
		}
		for _, v := range slices.Concat(s.Default, s.Router, s.Enum()) {
			if err := s.set(&Config{}, v, true); err != nil {
				t.Errorf("%s: its own value %q %v", s.Name, v, err)
			}
		}
		if s.Example != "" {
			if err := s.set(&Config{}, s.Example, true); err != nil {
				t.Errorf("%s: its example %q %v", s.Name, s.Example, err)
			}
		}
	}
}

func TestGeneratedFilesAreCurrent(t *testing.T) {
	for file, write := range map[string]func(*bytes.Buffer) error{
		"../../uci/qpcd":              func(b *bytes.Buffer) error { return WriteDefaultUCI(b) },
		"../../docs/configuration.md": func(b *bytes.Buffer) error { return WriteMarkdown(b) },
	} {
		var want bytes.Buffer
		if err := write(&want); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, want.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.String(), string(got)); diff != "" {
			t.Errorf("%s is not current; run go generate ./pkg/config\n%s", file, diff)
		}
	}
}

// The packaged file must load, and with every commented option switched on too.
func TestPackagedFileIsValid(t *testing.T) {
	raw, err := os.ReadFile("../../uci/qpcd")
	if err != nil {
		t.Fatal(err)
	}
	c := mustLoad(t, sources{uci: string(raw)})
	if len(c.Warnings) != 0 || c.Registration != RegistrationInvite || c.DataDir != "/srv/qpcd" || c.LogTime || !c.Enabled {
		t.Errorf("%+v", c)
	}
	all := regexp.MustCompile(`(?m)^\t#(option|list) `).ReplaceAllString(string(raw), "\t$1 ")
	c = mustLoad(t, sources{uci: all})
	for _, s := range Settings() {
		if c.Origin(s.Name).Source != FromUCI {
			t.Errorf("%s does not stand in the file", s.Name)
		}
	}
}

func TestUsageAndEffectiveNameEverySetting(t *testing.T) {
	var usage, effective bytes.Buffer
	if err := Usage(&usage); err != nil {
		t.Fatal(err)
	}
	c := mustLoad(t, sources{env: []string{"QPC_SEND_RATE=5"}})
	if err := c.WriteEffective(&effective); err != nil {
		t.Fatal(err)
	}
	for _, s := range Settings() {
		if s.Flag() != "" && (!strings.Contains(usage.String(), s.Flag()) || !strings.Contains(usage.String(), s.Env())) {
			t.Errorf("usage lacks %s", s.Name)
		}
		if !strings.Contains(effective.String(), "\n"+s.Name+" ") {
			t.Errorf("listing lacks %s", s.Name)
		}
	}
	if !regexp.MustCompile(`\nsend_rate +5 +environment QPC_SEND_RATE\n`).MatchString(effective.String()) {
		t.Errorf("listing:\n%s", &effective)
	}
}

// FuzzLoad checks that nothing from outside makes Load panic, that it returns a
// configuration or a reason but never both, and that a configuration is whole.
func FuzzLoad(f *testing.F) {
	f.Add("--listen\n[::]:1\nx", "QPC_RETENTION=1d\nQPC_ADMIN=,", "config qpcd 'main'\n\tlist listen '1.2.3.4:5'\n")
	f.Add("--queue-bytes=9223372036854775807GiB", "", "config qpcd 'main'\n\toption retention '99999999d99999999d'\n")
	f.Add("--section\nx\n--\n--help", "QPC_SERVER_NAME=-.", "config qpcd x\n\toption server_name \"a'b\"")
	f.Add("-h", "=", "\x00")
	f.Fuzz(func(t *testing.T, args, env, uci string) {
		c, _, err := load(sources{args: strings.Split(args, "\n"), env: strings.Split(env, "\n"), uci: uci})
		if (c == nil) == (err == nil) {
			t.Fatalf("config %v with error %v", c, err)
		}
		if c != nil && (len(c.Listen) == 0 || len(c.Effective()) != len(Settings()) || c.DataDir == "" || c.Retention < time.Minute) {
			t.Fatalf("incomplete: %+v", c)
		}
	})
}
