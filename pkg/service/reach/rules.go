package reach

import (
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// endpointTTL is how long an endpoint is kept, in seconds.
func endpointTTL(seconds uint32) int64 {
	if seconds == 0 {
		return int64(DefaultTTL / time.Second)
	}
	return min(int64(seconds), int64(MaxTTL/time.Second))
}

// pushHost checks a push URL and returns its host in the form in which hosts
// are listed.
func pushHost(token string) (string, error) {
	if len(token) > MaxToken {
		return "", rpc.Errorf(qpcpb.CodeInvalidField, "token has %d bytes where %d are allowed", len(token), MaxToken)
	}
	u, err := url.Parse(token)
	if err != nil || u.Scheme != "https" || u.Opaque != "" || u.Hostname() == "" || u.User != nil || u.Fragment != "" {
		return "", rpc.Errorf(qpcpb.CodeInvalidField, "token is not an https URL without user and fragment")
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String() // with its zone, which no listed address has
	}
	return host, nil
}

// nat64 is how IPv6 networks without IPv4 write IPv4 addresses (RFC 6052):
// what such an address means lies behind it.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// isOwnOrLocal reports whether an address is one that no host on the network
// may make this server speak to: of this machine or link, or of nobody in
// particular. own are the addresses of this machine's interfaces.
func isOwnOrLocal(ip netip.Addr, own []netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if nat64.Contains(ip) {
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	for _, o := range own {
		if ip == o.Unmap().WithZone("") {
			return true
		}
	}
	return !ip.IsValid() || ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() ||
		ip.IsLinkLocalUnicast() || ip.IsInterfaceLocalMulticast() ||
		ip.Is4() && (ip.As4()[0] == 0 || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}))
}

// The pace of a device's wake-ups. A wake-up that is wanted is sent when its
// time has come; after a success the next comes a minute later at the earliest,
// after a failure the wait doubles, and what failed is tried again.
const (
	wakeEvery = time.Minute
	// maxBackOff bounds the wait after failures, and what a host may ask for.
	maxBackOff = time.Hour
	// maxFailures is when a wake-up is given up until the next message: about
	// five hours after the first attempt.
	maxFailures = 10
)

// pace is the state of one device that was or is to be woken.
type pace struct {
	wanted   bool
	sending  bool
	failures int
	earliest time.Time // no wake-up before
}

// due reports whether a wake-up is to be sent now.
func (p pace) due(now time.Time) bool { return p.wanted && !p.sending && !now.Before(p.earliest) }

// idle reports whether forgetting the device changes nothing.
func (p pace) idle(now time.Time) bool { return !p.wanted && !p.sending && !now.Before(p.earliest) }

// sent is the pace while a wake-up is under way.
func (p pace) sent() pace {
	p.wanted, p.sending = false, true
	return p
}

// ended is the pace after a wake-up. every is the least time between two, and
// asked how long the host wants to be left alone, 0 when it did not say.
func (p pace) ended(now time.Time, ok bool, every, asked time.Duration) pace {
	p.sending = false
	if ok {
		p.failures = 0
		p.earliest = now.Add(every)
		return p
	}
	p.failures++
	wait := min(max(every<<min(p.failures-1, 10), asked), maxBackOff)
	p.earliest = now.Add(wait)
	p.wanted = p.wanted || p.failures < maxFailures
	return p
}
