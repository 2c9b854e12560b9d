package transport

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// An Address is where a server is reached: a host name or an IP address, and a
// port.
type Address struct {
	Host string // lower case; an IPv6 address without brackets, its zone kept
	Port uint16
}

// ParseAddress reads `host`, `host:port`, an IPv4 or IPv6 address, `[v6]:port`
// and `[v6%zone]:port`. A missing port is [DefaultPort].
func ParseAddress(s string) (Address, error) {
	bad := func(why string) (Address, error) {
		return Address{}, fmt.Errorf("server address %q: %s; valid are host, host:port, 192.0.2.1:5001 or [2001:db8::1]:5001", cut80(s), why)
	}
	host, port := s, ""
	if _, err := netip.ParseAddr(s); err != nil { // a bare IPv6 address has colons but no port
		switch {
		case strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]"):
			host = s[1 : len(s)-1]
			if !strings.Contains(host, ":") {
				return bad("brackets are for IPv6 addresses")
			}
		case strings.Contains(s, ":"):
			h, p, err := net.SplitHostPort(s)
			if err != nil {
				return bad("host and port cannot be told apart")
			}
			if p == "" {
				return bad("the port is empty")
			}
			if strings.HasPrefix(s, "[") && !strings.Contains(h, ":") {
				return bad("brackets are for IPv6 addresses")
			}
			host, port = h, p
		}
	}
	addr := Address{Port: DefaultPort}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return bad("the port must be a number from 1 to 65535")
		}
		addr.Port = uint16(n)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		addr.Host = ip.Unmap().String()
		return addr, nil
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "" {
		return bad("the host is empty")
	}
	emptyLabel := host[0] == '.' || host[len(host)-1] == '.' || strings.Contains(host, "..")
	if emptyLabel || len(host) > maxHostName || strings.ContainsFunc(host, notHostRune) {
		return bad("that is no host name")
	}
	addr.Host = host
	return addr, nil
}

// String is host:port, the form under which a [PinStore] knows a server.
func (a Address) String() string {
	return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}

// notHostRune reports what cannot be in a host name. Letters beyond ASCII are
// left to the resolver.
func notHostRune(r rune) bool {
	return r <= ' ' || r == 0x7f || r == '\uFFFD' || strings.ContainsRune(`:/\[]@%"'<>#?`, r)
}

func cut80(s string) string { return s[:min(len(s), 80)] }
