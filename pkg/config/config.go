// Package config turns command line flags, the environment and a UCI file into
// one validated [Config], and promises three things:
//
//   - One voice. Every setting is a row of one table ([Settings]), which gives
//     it the same name as UCI option, flag, environment variable and heading in
//     docs/configuration.md; uci/qpcd and that page are generated from it.
//   - One order. A flag beats the environment, the environment beats the UCI
//     file, the file beats the default. A list is taken whole from one source.
//   - One sentence. Every error names where its value came from and what would
//     be valid, and all of them are reported at once.
//
// The package only reads: UCI is never written from Go.
package config

import (
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

//go:generate go test . -run ^TestGeneratedFilesAreCurrent$ -update

// DefaultUCIPath is the UCI file read when no --config names another one.
const DefaultUCIPath = "/etc/config/qpcd"

// DefaultSection is the UCI section read when no --section names another one.
const DefaultSection = "main"

// sectionType is the type a section with settings must have: config qpcd 'main'.
const sectionType = "qpcd"

// ErrHelp is returned by [Load] when --help or -h stands among the flags. The
// caller prints [Usage] and exits with success.
var ErrHelp = errors.New("help requested")

// Registration says who may create an account.
type Registration string

// The values of Registration.
const (
	RegistrationOpen   Registration = "open"   // anyone who reaches the server
	RegistrationInvite Registration = "invite" // whoever holds an unused invite
	RegistrationClosed Registration = "closed" // nobody
)

// LogFormat is the shape of a log line.
type LogFormat string

// The values of LogFormat.
const (
	LogText LogFormat = "text" // key=value pairs
	LogJSON LogFormat = "json" // one JSON object a line
)

// IdentityKey is an Ed25519 public key.
type IdentityKey [32]byte

// Config is what qpcd runs with. Each field is the setting of the same name in
// [Settings], where its range, default and meaning stand; a Config from [Load]
// keeps them all.
type Config struct {
	Enabled bool

	Listen     []netip.AddrPort // at least one, all different, IPv4 never mapped into IPv6
	DataDir    string
	TLSCert    string
	TLSKey     string
	ServerName string // a lower-case domain name; other servers know this one by it
	// ControlSocket is the path of the Unix socket for the owner's commands.
	ControlSocket string
	MetricsListen []netip.AddrPort // none: no metrics
	MetricsPublic bool             // serve metrics on public addresses too

	Registration         Registration
	RequireIdentityProof bool
	Admins               []IdentityKey // setting admin; all different
	SessionTTL           time.Duration

	Retention     time.Duration
	QueueMessages int      // per recipient
	QueueBytes    int64    // per recipient, in bytes
	SendRate      int      // messages a second and sender
	SendBurst     int      // messages
	BlobQuota     int64    // of all blobs together, in bytes
	PushHosts     []string // hosts that wake-ups may go to, lower case

	// Peers are the servers that this one federates with, from the sections of
	// type peer in the same UCI file; neither flag nor environment has them.
	Peers []Peer

	MaxConnections           int
	MaxConnectionsPerAddress int

	LogLevel   slog.Level
	LogFormat  LogFormat
	LogTime    bool
	RedactLogs bool

	// File is the UCI file that was read, empty if none was.
	File string
	// Warnings are sentences for the log: what was ignored, and why.
	Warnings []string

	effective []Effective
}

// Effective is a setting as it applies: its value in the form in which it was
// written, or by default would be, and where it came from. A list has any
// number of values, everything else exactly one.
type Effective struct {
	Name   string
	Values []string
	Origin Origin
}

// Effective returns all settings as they apply, in the order of the table.
func (c *Config) Effective() []Effective {
	return slices.Clone(c.effective)
}

// Origin says where the value of the named setting came from (for a list, where
// its first value did). An unknown name has the zero Origin.
func (c *Config) Origin(name string) Origin {
	for _, e := range c.effective {
		if e.Name == name {
			return e.Origin
		}
	}
	return Origin{}
}
