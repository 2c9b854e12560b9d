package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Bounds that hold for every setting of their kind.
const (
	// maxListItems bounds listen and admin. Each address costs a socket and
	// a household has few of either.
	maxListItems = 64
	// maxPath is PATH_MAX of Linux less its NUL.
	maxPath = 4095
	// maxName and maxLabel are the limits of a domain name, RFC 1035 2.3.4.
	maxName  = 253
	maxLabel = 63
	// addressPort is the port the examples name, PROTOCOL section 1.
	addressPort = "5001"
)

const day = 24 * time.Hour

// The parsers below turn one written value into a typed one. Their errors
// continue the quoted value in a ValueError: "is not a number".

func parseBool(s string) (bool, error) {
	// The words that OpenWrt's own scripts know (config_get_bool).
	switch strings.ToLower(s) {
	case "1", "on", "true", "yes", "enabled":
		return true, nil
	case "0", "off", "false", "no", "disabled":
		return false, nil
	}
	return false, errors.New("is neither yes nor no")
}

// digits splits s after its leading decimal digits.
func digits(s string) (number, rest string) {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return s[:n], s[n:]
}

func parseInt(s string, low, high int64) (int64, error) {
	number, rest := digits(s)
	if number == "" || rest != "" {
		return 0, errors.New("is not a whole number")
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0, errors.New("is too large")
	}
	return n, within(n, low, high)
}

func within[T int64 | time.Duration](n, low, high T) error {
	switch {
	case n < low:
		return errors.New("is too small")
	case n > high:
		return errors.New("is too large")
	}
	return nil
}

// byteUnits are the units of a size; a bare number counts bytes.
var byteUnits = []struct {
	name   string
	factor int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

func parseBytes(s string, low, high int64) (int64, error) {
	number, unit := digits(s)
	factor := int64(0)
	if unit == "" {
		factor = 1
	}
	for _, u := range byteUnits {
		if strings.EqualFold(unit, u.name) {
			factor = u.factor
		}
	}
	if number == "" || factor == 0 {
		return 0, errors.New("is not a size")
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n > math.MaxInt64/factor {
		return 0, errors.New("is too large")
	}
	return n * factor, within(n*factor, low, high)
}

func formatBytes(n int64) string {
	for _, u := range byteUnits {
		if n >= u.factor && n%u.factor == 0 {
			return strconv.FormatInt(n/u.factor, 10) + u.name
		}
	}
	return "0B"
}

// durationUnits are the units of a duration, largest first; a bare number
// counts seconds, as UCI options on a router do.
var durationUnits = []struct {
	name string
	unit time.Duration
}{{"d", day}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}

func parseDuration(s string, low, high time.Duration) (time.Duration, error) {
	malformed := errors.New("is not a duration")
	if number, rest := digits(s); number != "" && rest == "" {
		s += "s"
	}
	if s == "" {
		return 0, malformed
	}
	var sum time.Duration
	for s != "" {
		number, rest := digits(s)
		if number == "" || rest == "" {
			return 0, malformed
		}
		unit := time.Duration(0)
		for _, u := range durationUnits {
			if rest[:1] == u.name {
				unit = u.unit
			}
		}
		if unit == 0 {
			return 0, malformed
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n > int64((math.MaxInt64-sum)/unit) {
			return 0, errors.New("is too large")
		}
		sum += time.Duration(n) * unit
		s = rest[1:]
	}
	return sum, within(sum, low, high)
}

func formatDuration(d time.Duration) string {
	var b strings.Builder
	for _, u := range durationUnits {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d %= u.unit
		}
	}
	if b.Len() == 0 {
		return "0s"
	}
	return b.String()
}

func parseAddrPort(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
			if ip.Is6() {
				return ap, fmt.Errorf("has no port; write [%s]:%s", ip, addressPort)
			}
			return ap, fmt.Errorf("has no port; write %s:%s", ip, addressPort)
		}
		if rest, ok := strings.CutPrefix(s, ":"); ok {
			return ap, fmt.Errorf("has no address; write 0.0.0.0:%s for all of IPv4 or [::]:%[1]s for all of IPv6", rest)
		}
		return ap, errors.New("is not an IP address with a port")
	}
	ip := ap.Addr()
	switch {
	case ip.Is4In6():
		ap = netip.AddrPortFrom(ip.Unmap(), ap.Port())
	case ip.IsMulticast():
		return ap, errors.New("is a multicast address")
	case ip.Is6() && ip.IsLinkLocalUnicast() && ip.Zone() == "":
		return ap, fmt.Errorf("is a link-local address without its interface; write it as in [%s%%br-lan]:%d", ip, ap.Port())
	}
	return ap, nil
}

func parsePath(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("is empty")
	case len(s) > maxPath:
		return "", errors.New("is too long")
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", errors.New("holds a control character")
	}
	return filepath.Clean(s), nil
}

// parseDomain takes a domain name: it names this server to peers and stands in
// what the server signs, so it has one form, lower case and without final dot.
func parseDomain(s string) (string, error) {
	if len(s) > maxName {
		return "", errors.New("is too long")
	}
	s = strings.ToLower(s)
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return "", errors.New("is not a domain name")
		}
		for i := range len(label) {
			if c := label[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return "", errors.New("is not a domain name")
			}
		}
	}
	return s, nil
}

// parseHost takes a domain name or an IP address without a zone.
func parseHost(s string) (string, error) {
	if ip, err := netip.ParseAddr(s); err == nil && ip.Zone() == "" {
		return ip.Unmap().String(), nil
	}
	name, err := parseDomain(s)
	if err != nil {
		return "", errors.New("is neither a host name nor an IP address")
	}
	return name, nil
}

func parseIdentityKey(s string) (key IdentityKey, err error) {
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(key) {
		return key, errors.New("is not an identity key")
	}
	return IdentityKey(raw), nil
}
