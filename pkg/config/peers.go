package config

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/quicprochat/qpcd/pkg/config/internal/ucifile"
)

// peerType is the type of a section that names another server: config peer
// 'alice'. Its own name is free, and may be left out.
const peerType = "peer"

// maxPeers bounds the servers that one federates with: each costs connections, a
// goroutine and room for what waits for it.
const maxPeers = 32

// Peer is another server that this one federates with, from a section of type
// peer. All of a Config's differ in domain and pin.
type Peer struct {
	Domain  string   // lower case, never this server's own
	Address string   // host:port
	Pin     [32]byte // SHA-256 of its public key (SubjectPublicKeyInfo)
	// Origin is where it stands: its option domain.
	Origin Origin
}

// peerOption is one row of the options of a peer section.
type peerOption struct {
	name    string
	doc     string
	valid   string
	example string
	// needed says that there is no default.
	needed bool
	parse  func(p *peerSection, value string) error
}

// peerSection is a section of type peer as it is read.
type peerSection struct {
	Peer
	enabled  bool
	instance string
}

func peerOptions() []peerOption {
	return []peerOption{
		{
			name: "domain", needed: true, example: "friends.example",
			doc:   "The other server's server_name: its users are called user@domain here. It must say the same of itself.",
			valid: "a domain name of letters, digits, '-' and '.', such as friends.example",
			parse: func(p *peerSection, v string) (err error) { p.Domain, err = parseDomain(v); return err },
		},
		{
			name: "address", needed: true, example: "friends.example:5001",
			doc:   "Where it is reached. Without a port it is " + addressPort + ". Both servers must reach each other: open the port in both firewalls.",
			valid: "a host name or IP address with a port, such as friends.example:5001 or [2001:db8::1]:5001",
			parse: func(p *peerSection, v string) (err error) { p.Address, err = ParsePeerAddress(v); return err },
		},
		{
			name: "pin", needed: true, example: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
			doc:   "The fingerprint of its certificate, as `qpcd fingerprint` shows it there. Its owner needs yours. No other certificate is accepted for this domain.",
			valid: "a fingerprint of 64 hexadecimal digits, as `qpcd fingerprint` shows it",
			parse: func(p *peerSection, v string) (err error) { p.Pin, err = parsePin(v); return err },
		},
		{
			name: "enabled", example: "1",
			doc:   "Whether the section counts; 1 unless it says 0.",
			valid: "1 or 0 (also true, yes, on, enabled or false, no, off, disabled)",
			parse: func(p *peerSection, v string) error {
				on, err := parseBool(v)
				p.enabled = on || err != nil // so that the error is heard
				return err
			},
		},
		{
			name: "instance", example: DefaultSection,
			doc:   "The name of the config qpcd section that it belongs to; without it, every instance of the file has the peer.",
			valid: "the name of a section of type " + sectionType,
			parse: func(p *peerSection, v string) error { p.instance = v; return nil },
		},
	}
}

// peersFrom reads the peer sections of a file that belong to an instance.
func (c *Config) peersFrom(file *uciSource, instance string) (problems []error) {
	domains, pins := map[string]Origin{}, map[[32]byte]Origin{}
	for i := range file.Sections {
		section := &file.Sections[i]
		if section.Type != peerType {
			continue
		}
		p, found := c.peerFrom(file.name, section)
		if p.instance != "" {
			if whose, ok := file.Section(p.instance); !ok || whose.Type != sectionType {
				origin := Origin{Source: FromUCI, Name: "instance", File: file.name, Section: section.Name, Line: section.Line}
				problems = append(problems, fmt.Errorf("%s: there is no config %s '%.40s'; %s", origin, sectionType, p.instance, sectionHint(file)))
				continue
			}
		}
		if !p.enabled || p.instance != "" && p.instance != instance {
			continue
		}
		if len(found) > 0 {
			problems = append(problems, found...)
			continue
		}
		first, twice := domains[p.Domain]
		same, shared := pins[p.Pin]
		switch {
		case p.Domain == c.ServerName:
			problems = append(problems, fmt.Errorf("%s: %q is this server's own server_name; name another server, or with several instances in one file, say by `option instance` whose peer it is", p.Origin, p.Domain))
		case twice:
			problems = append(problems, fmt.Errorf("%s: %q is the peer of section '%s' already; a server has one section", p.Origin, p.Domain, first.Section))
		case shared:
			problems = append(problems, fmt.Errorf("%s: the pin of %q is that of section '%s' already; a certificate stands for one domain", p.Origin, p.Domain, same.Section))
		case len(c.Peers) == maxPeers:
			return append(problems, fmt.Errorf("%s: more than %d peers; remove some", p.Origin, maxPeers))
		default:
			domains[p.Domain], pins[p.Pin] = p.Origin, p.Origin
			c.Peers = append(c.Peers, p.Peer)
		}
	}
	return problems
}

// peerFrom reads one section.
func (c *Config) peerFrom(file string, section *ucifile.Section) (p peerSection, problems []error) {
	p.enabled = true
	p.Origin = Origin{Source: FromUCI, Name: "domain", File: file, Section: section.Name, Line: section.Line}
	table := peerOptions()
	var names []string
	for _, row := range table {
		names = append(names, row.name)
	}
	given := map[string]bool{}
	for _, o := range section.Options {
		origin := Origin{Source: FromUCI, Name: o.Name, File: file, Section: section.Name, Line: o.Values[0].Line}
		row := -1
		for i := range table {
			if table[i].name == o.Name {
				row = i
			}
		}
		switch {
		case row < 0:
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s: is no option of a peer and ignored%s", origin, suggestion(o.Name, names)))
			continue
		case len(o.Values) > 1:
			problems = append(problems, fmt.Errorf("%s: %s takes one value and a list of %d is given; write it as `option`, once", origin, o.Name, len(o.Values)))
			continue
		}
		given[o.Name] = true
		if o.Name == "domain" {
			p.Origin = origin
		}
		if err := table[row].parse(&p, o.Values[0].Text); err != nil {
			problems = append(problems, &ValueError{
				Setting: o.Name, Origin: origin, Value: o.Values[0].Text, Reason: err.Error(), Valid: table[row].valid,
			})
		}
	}
	for _, row := range table {
		if row.needed && !given[row.name] {
			origin := Origin{Source: FromUCI, Name: row.name, File: file, Section: section.Name, Line: section.Line}
			problems = append(problems, fmt.Errorf("%s: is missing; valid is %s", origin, row.valid))
		}
	}
	return p, problems
}

// ParsePeerAddress reads host:port, where the port may be left out, into its one
// form. Its errors continue a quoted value: "has no host".
func ParsePeerAddress(s string) (string, error) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		if ip, err := parsePeerIP(inner); ok && err == nil {
			return net.JoinHostPort(ip, addressPort), nil
		}
	} else if ip, err := parsePeerIP(s); err == nil {
		return net.JoinHostPort(ip, addressPort), nil
	}
	host, port := s, addressPort
	if strings.Contains(s, ":") {
		var err error
		if host, port, err = net.SplitHostPort(s); err != nil {
			return "", errors.New("is not host:port")
		}
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("has no port from 1 to 65535")
	}
	if ip, err := parsePeerIP(host); err == nil {
		return net.JoinHostPort(ip, port), nil
	}
	name, err := parseDomain(host)
	if err != nil {
		return "", errors.New("has no host name or IP address")
	}
	return net.JoinHostPort(name, port), nil
}

// parsePeerIP reads an IP address, whose zone is the name of an interface.
func parsePeerIP(s string) (string, error) {
	ip, err := netip.ParseAddr(s)
	if err == nil && !ifName(ip.Zone()) {
		err = errors.New("is no interface")
	}
	return ip.Unmap().String(), err
}

// ifName reports whether s may name an interface, or is empty.
func ifName(s string) bool {
	return strings.TrimLeft(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789.-_") == ""
}

// ParsePeerDomain reads the domain of a peer into its one form, lower case. Its
// errors continue a quoted value: "is not a domain name".
func ParsePeerDomain(s string) (string, error) { return parseDomain(s) }

// parsePin takes a SHA-256 in hexadecimal, with colons or without, or in the
// base64url of mDNS records.
func parsePin(s string) (pin [32]byte, err error) {
	raw, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "", "-", "").Replace(s))
	if err != nil || len(raw) != len(pin) {
		raw, err = base64.RawURLEncoding.Strict().DecodeString(s)
	}
	if err != nil || len(raw) != len(pin) {
		return pin, errors.New("is not a fingerprint")
	}
	return [32]byte(raw), nil
}
