package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Kind is the type of a setting's values.
type Kind string

// The kinds. How each is written stands in the Valid text of a setting.
const (
	KindBool     Kind = "bool"
	KindInt      Kind = "int"
	KindBytes    Kind = "bytes"
	KindDuration Kind = "duration"
	KindEnum     Kind = "enum"
	KindAddress  Kind = "address"
	KindPath     Kind = "path"
	KindDomain   Kind = "domain"
	KindIdentity Kind = "identity"
)

// Setting is one row of the table.
type Setting struct {
	// Name is the UCI option; flag, environment variable and heading follow.
	Name string
	Kind Kind
	// List says that the setting takes any number of values: a repeated flag,
	// commas in the environment, `list` in UCI.
	List bool
	// UCIOnly says that neither a flag nor the environment sets it.
	UCIOnly bool
	// Default holds the values that apply when nothing else is said. Empty
	// with a DefaultText: worked out from the rest.
	Default     []string
	DefaultText string
	// Router holds the values the packaged uci/qpcd writes out, where a router
	// wants others than a run by hand, or its owner should see them.
	Router []string
	// Example is shown in uci/qpcd where Default is empty.
	Example string
	// Valid completes "valid is …".
	Valid string
	// Doc is one paragraph.
	Doc string

	// enum lists the words of KindEnum.
	enum []string
	// set parses one value into a Config. The first call for a list replaces
	// what is there (first is true), later ones append.
	set func(c *Config, value string, first bool) error
	// derive works out the value when Default is empty. Rows above are set.
	derive func(c *Config, hostname string) string
}

// Flag is the setting's command line flag with its dashes, "" if it has none.
func (s Setting) Flag() string {
	if s.UCIOnly {
		return ""
	}
	return "--" + strings.ReplaceAll(s.Name, "_", "-")
}

// Env is the setting's environment variable, "" if it has none.
func (s Setting) Env() string {
	if s.UCIOnly {
		return ""
	}
	return "QPC_" + strings.ToUpper(s.Name)
}

// Enum returns the words that a setting of KindEnum takes.
func (s Setting) Enum() []string { return slices.Clone(s.enum) }

// Settings returns the table, in the order of the documentation.
func Settings() []Setting {
	return []Setting{
		boolean(Setting{
			Name: "enabled", UCIOnly: true, Default: []string{"1"}, Router: []string{"1"},
			Doc: "Whether the init script starts this instance. A run by hand starts in any case.",
		}, func(c *Config) *bool { return &c.Enabled }),
		list(Setting{
			Name: "listen", Kind: KindAddress, Default: []string{"0.0.0.0:5001"}, Router: []string{"0.0.0.0:5001"},
			Valid: "an IP address with a port, such as 0.0.0.0:5001, [::]:5001 or [fe80::1%br-lan]:5001",
			Doc: "The UDP address to serve on. Give it several times to serve on several; an equal one counts once. 0.0.0.0 is every IPv4 address of the machine and [::] every IPv6 one, whatever addresses come and go. " +
				"An IPv6 link-local address needs its interface after a percent sign. Port 0 takes any free port, for tests. The router's firewall decides who can reach it: clients in the LAN can, the WAN cannot unless you open it.",
		}, func(c *Config) *[]netip.AddrPort { return &c.Listen }, parseAddrPort),
		path(Setting{
			Name: "data_dir", Default: []string{"data"}, Router: []string{"/srv/qpcd"},
			Doc: "The directory for the database, the certificate and the server's keys. It is created with mode 0700 if it is missing. Choose a place that lasts: /tmp and /var are memory on a router and empty after a restart. A relative path starts at the working directory.",
		}, func(c *Config) *string { return &c.DataDir }),
		path(Setting{
			Name: "tls_cert", DefaultText: "server-cert.der in data_dir", Example: "/etc/ssl/acme/home.example.fullchain.crt",
			Doc:    "The certificate file, DER or PEM (a PEM file may hold the whole chain). When neither it nor its key exists, both are made at the first start, self-signed, and clients pin it. It is read again on SIGHUP.",
			derive: func(c *Config, _ string) string { return filepath.Join(c.DataDir, "server-cert.der") },
		}, func(c *Config) *string { return &c.TLSCert }),
		path(Setting{
			Name: "tls_key", DefaultText: "server-key.der in data_dir", Example: "/etc/ssl/acme/home.example.key",
			Doc:    "The private key of the certificate, DER or PEM, readable by the daemon's user and by nobody else. Set it together with tls_cert.",
			derive: func(c *Config, _ string) string { return filepath.Join(c.DataDir, "server-key.der") },
		}, func(c *Config) *string { return &c.TLSKey }),
		domain(Setting{
			Name: "server_name", DefaultText: "the machine's host name", Example: "home.example",
			Doc:    "The name under which this server is known: it stands in the certificate it makes for itself and in the checkpoints of its transparency log, so choose it once. Capital letters count as small ones. A machine without a usable host name is called localhost.",
			derive: func(_ *Config, hostname string) string { return hostname },
		}, func(c *Config) *string { return &c.ServerName }),
		path(Setting{
			Name: "control_socket", DefaultText: "qpcd.sock in data_dir", Example: "/var/run/qpcd.sock", Router: []string{"/var/run/qpcd.sock"},
			Doc:    "The Unix socket through which the commands of qpcd, rpcd and LuCI talk to the running server. Only the user that the server runs as and root may use it.",
			derive: func(c *Config, _ string) string { return filepath.Join(c.DataDir, "qpcd.sock") },
		}, func(c *Config) *string { return &c.ControlSocket }),
		boolean(Setting{
			Name: "metrics_public", Default: []string{"0"},
			Doc: "Whether metrics_listen may name an address that the internet can reach, or all addresses of the machine.",
		}, func(c *Config) *bool { return &c.MetricsPublic }),
		notPublic(list(Setting{
			Name: "metrics_listen", Kind: KindAddress, DefaultText: "off", Example: "127.0.0.1:9101",
			Valid: "an IP address with a TCP port, such as 127.0.0.1:9101",
			Doc:   "The TCP address on which metrics are served as Prometheus text, by plain HTTP and without a password. Nobody's name or address stands in them. Addresses that are neither of this machine nor of a private network are refused unless metrics_public is set.",
		}, func(c *Config) *[]netip.AddrPort { return &c.MetricsListen }, parseAddrPort)),

		enum(Setting{
			Name: "registration", Default: []string{string(RegistrationOpen)}, Router: []string{string(RegistrationInvite)},
			Doc: "Who may create an account: open lets in anyone who reaches the server, invite whoever holds an unused invite, closed nobody. Accounts that exist are not touched.",
		}, func(c *Config) *Registration { return &c.Registration }, RegistrationOpen, RegistrationInvite, RegistrationClosed),
		boolean(Setting{
			Name: "require_identity_proof", Default: []string{"0"},
			Doc: "Whether a registration must prove that it holds its identity key. A proof that is sent is always checked, and qpc always sends one; quicprochat's own client sends none, so leave this off if such clients should be able to register.",
		}, func(c *Config) *bool { return &c.RequireIdentityProof }),
		list(Setting{
			Name: "admin", Kind: KindIdentity, DefaultText: "nobody", Example: strings.Repeat("0123456789abcdef", 4),
			Valid: "an identity key, 64 hexadecimal digits, as `qpc whoami` shows it",
			Doc:   "The identity key of an account that may ban users and read reports over the network. Give it several times for several. Whoever is root on the router may do so without standing here.",
		}, func(c *Config) *[]IdentityKey { return &c.Admins }, parseIdentityKey),
		duration(Setting{
			Name: "session_ttl", Default: []string{"30d"},
			Doc: "How long a login lasts after its last use. A device that stays away longer asks for the password again.",
		}, func(c *Config) *time.Duration { return &c.SessionTTL }, time.Minute, 3650*day),

		duration(Setting{
			Name: "retention", Default: []string{"7d"},
			Doc: "How long a message waits for its recipient before it is deleted, and for how long a message sent twice is recognised. A sender may ask for less, not for more.",
		}, func(c *Config) *time.Duration { return &c.Retention }, time.Minute, 365*day),
		integer(Setting{
			Name: "queue_messages", Default: []string{"1000"},
			Doc: "How many messages may wait for one recipient. The next one is refused and its sender told so.",
		}, func(c *Config) *int { return &c.QueueMessages }, 1, 1_000_000),
		size(Setting{
			Name: "queue_bytes", Default: []string{"16MiB"},
			Doc: "How many bytes may wait for one recipient. Below 4MiB the largest messages of the protocol can never be delivered.",
		}, func(c *Config) *int64 { return &c.QueueBytes }, 64<<10, 64<<30),
		integer(Setting{
			Name: "send_rate", Default: []string{"100"},
			Doc: "How many messages a second one sender may queue in the long run. More are refused until a moment later; one message to many recipients counts once for each.",
		}, func(c *Config) *int { return &c.SendRate }, 1, 1_000_000),
		integer(Setting{
			Name: "send_burst", Default: []string{"1000"},
			Doc: "How many messages one sender may queue at once before send_rate holds.",
		}, func(c *Config) *int { return &c.SendBurst }, 1, 1_000_000),
		size(Setting{
			Name: "blob_quota", Default: []string{"1GiB"}, Router: []string{"256MiB"},
			Doc: "How much room all encrypted files together may take, beside the 64MiB that one account may. What does not fit is refused and its sender told so. A file is deleted 30 days after its upload.",
		}, func(c *Config) *int64 { return &c.BlobQuota }, 0, 64<<40),
		list(Setting{
			Name: "push_host", Kind: KindDomain, DefaultText: "none, wake-ups are off", Example: "ntfy.example",
			Valid: "a host name or an IP address without a port, such as ntfy.example",
			Doc:   "A host to which wake-ups for sleeping devices may be sent (UnifiedPush: an empty HTTPS POST, which tells that host when somebody gets a message and nothing else). Give it several times for several. Addresses of this machine and link-local ones are refused unless they stand here themselves.",
		}, func(c *Config) *[]string { return &c.PushHosts }, parseHost),

		integer(Setting{
			Name: "max_connections", Default: []string{"256"},
			Doc: "How many clients may be connected at once. An idle connection costs about 50 KiB of memory, so the default is about 13 MiB: fit for a router with 64 MB.",
		}, func(c *Config) *int { return &c.MaxConnections }, 1, 65536),
		integer(Setting{
			Name: "max_connections_per_address", Default: []string{"32"},
			Doc: "How many of them may come from one address; an IPv6 /64 counts as one address. Raise it where many clients share an address behind a router of their own.",
		}, func(c *Config) *int { return &c.MaxConnectionsPerAddress }, 1, 65536),

		logLevel(Setting{
			Name: "log_level", Default: []string{"info"},
			Doc: "The least important lines that are logged.",
		}, func(c *Config) *slog.Level { return &c.LogLevel }),
		enum(Setting{
			Name: "log_format", Default: []string{string(LogText)},
			Doc: "The shape of a log line on standard error: text is key=value pairs, json one JSON object a line.",
		}, func(c *Config) *LogFormat { return &c.LogFormat }, LogText, LogJSON),
		boolean(Setting{
			Name: "log_time", Default: []string{"1"}, Router: []string{"0"},
			Doc: "Whether a log line starts with the time. Leave it off under logd or journald, which add their own.",
		}, func(c *Config) *bool { return &c.LogTime }),
		boolean(Setting{
			Name: "redact_logs", Default: []string{"1"},
			Doc: "Whether names, keys and addresses of people are shortened in the log so that it can be shown to others. Message contents and secrets are never logged in either case.",
		}, func(c *Config) *bool { return &c.RedactLogs }),
	}
}

// The constructors below complete a row for one kind of value.

func scalar[T any](s Setting, field func(*Config) *T, parse func(string) (T, error)) Setting {
	s.set = func(c *Config, value string, _ bool) error {
		v, err := parse(value)
		if err != nil {
			return err
		}
		*field(c) = v
		return nil
	}
	return s
}

func list[T comparable](s Setting, field func(*Config) *[]T, parse func(string) (T, error)) Setting {
	s.List = true
	s.set = func(c *Config, value string, first bool) error {
		f := field(c)
		if first {
			*f = nil
		}
		v, err := parse(value)
		if err != nil {
			return err
		}
		if !slices.Contains(*f, v) {
			*f = append(*f, v)
		}
		return nil
	}
	return s
}

// notPublic refuses addresses that the internet may reach, unless
// metrics_public is set. Its row stands above.
func notPublic(s Setting) Setting {
	set := s.set
	s.set = func(c *Config, value string, first bool) error {
		if err := set(c, value, first); err != nil {
			return err
		}
		if ip := c.MetricsListen[len(c.MetricsListen)-1].Addr(); !c.MetricsPublic && !ip.IsLoopback() && !ip.IsPrivate() && !ip.IsLinkLocalUnicast() {
			return errors.New("is open to more than this network; choose an address of the LAN, or set metrics_public")
		}
		return nil
	}
	return s
}

func boolean(s Setting, field func(*Config) *bool) Setting {
	s.Kind = KindBool
	s.Valid = "1 or 0 (also true, yes, on, enabled or false, no, off, disabled)"
	return scalar(s, field, parseBool)
}

func integer(s Setting, field func(*Config) *int, low, high int64) Setting {
	s.Kind = KindInt
	s.Valid = fmt.Sprintf("a whole number from %d to %d", low, high)
	return scalar(s, field, func(v string) (int, error) {
		n, err := parseInt(v, low, high)
		return int(n), err
	})
}

func size(s Setting, field func(*Config) *int64, low, high int64) Setting {
	s.Kind = KindBytes
	s.Valid = fmt.Sprintf("a size from %s to %s, in bytes or with KiB, MiB or GiB", formatBytes(low), formatBytes(high))
	return scalar(s, field, func(v string) (int64, error) { return parseBytes(v, low, high) })
}

func duration(s Setting, field func(*Config) *time.Duration, low, high time.Duration) Setting {
	s.Kind = KindDuration
	s.Valid = fmt.Sprintf("a duration from %s to %s, in seconds or with s, m, h or d, such as 90m or 1d12h", formatDuration(low), formatDuration(high))
	return scalar(s, field, func(v string) (time.Duration, error) { return parseDuration(v, low, high) })
}

func path(s Setting, field func(*Config) *string) Setting {
	s.Kind = KindPath
	s.Valid = "a path, absolute or from the working directory"
	return scalar(s, field, parsePath)
}

func domain(s Setting, field func(*Config) *string) Setting {
	s.Kind = KindDomain
	s.Valid = "a domain name of letters, digits, '-' and '.', such as home.example"
	return scalar(s, field, parseDomain)
}

func enum[T ~string](s Setting, field func(*Config) *T, words ...T) Setting {
	s.Kind = KindEnum
	for _, w := range words {
		s.enum = append(s.enum, string(w))
	}
	s.Valid = or(s.enum)
	known := s.enum
	return scalar(s, field, func(v string) (T, error) {
		if !slices.Contains(known, v) {
			return "", fmt.Errorf("is not a value of %s", s.Name)
		}
		return T(v), nil
	})
}

func logLevel(s Setting, field func(*Config) *slog.Level) Setting {
	levels := []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}
	s.Kind = KindEnum
	for _, l := range levels {
		s.enum = append(s.enum, strings.ToLower(l.String()))
	}
	s.Valid = or(s.enum)
	known := s.enum
	return scalar(s, field, func(v string) (slog.Level, error) {
		i := slices.Index(known, v)
		if i < 0 {
			return 0, fmt.Errorf("is not a value of %s", s.Name)
		}
		return levels[i], nil
	})
}

// or joins words as a sentence does: "a, b or c".
func or(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}
