// Package invite is what an owner hands to a guest: a one-time code, and the
// link that carries it together with the server's address and pin. Both sides
// use it: the server makes links, `qpc join` reads them.
//
//	qpc://HOST:PORT/join?code=XXXX-XXXX-XXXX-XXXX&pin=PIN[&also=HOST:PORT…][&user=NAME]
//
// PIN is the base64url SHA-256 of the server's public key (43 characters). The
// text is the same in a QR code. A link without "join" and code, as `qpcd
// fingerprint` shows it, names a server and invites nobody.
package invite

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/quicprochat/qpcd/pkg/transport"
	"github.com/quicprochat/qpcd/pkg/username"
)

const (
	// codeBits are random: 2^80 guesses at a few a minute are no danger, and 16
	// characters can be read to somebody on the telephone.
	codeBits = 80
	// group is how many characters stand between two dashes.
	group = 4
	// maxCode bounds a code that is read, with all that people type between.
	maxCode = 64
	// maxLink bounds a link that is read. Ours have some 150 characters; a QR
	// code holds 2,953 bytes at most.
	maxLink = 1024
	// maxAddresses bounds the addresses of one link: names and address families
	// of one router.
	maxAddresses = 4

	scheme = "qpc"
	path   = "/join"
)

// alphabet is Crockford's base 32: no I, L, O and U, which are misread.
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

// NewCode makes a code: 16 characters in groups of four.
func NewCode(random io.Reader) (string, error) {
	var bits [codeBits / 8]byte
	if _, err := io.ReadFull(random, bits[:]); err != nil {
		return "", fmt.Errorf("making an invite: %w", err)
	}
	var b strings.Builder
	buffer, have := uint(0), 0
	for _, octet := range bits {
		buffer, have = buffer<<8|uint(octet), have+8
		for ; have >= 5; have -= 5 {
			if n := b.Len(); n%(group+1) == group {
				b.WriteByte('-')
			}
			b.WriteByte(alphabet[buffer>>(have-5)&31])
		}
	}
	return b.String(), nil
}

// Hash is what a server stores of a code: the SHA-256 of its one form. With 80
// random bits in the code it needs no salt. Text that is no code has a hash
// too, which is nobody's.
func Hash(code string) [32]byte { return sha256.Sum256([]byte(Normalize(code))) }

// Normalize returns the one form of a code as people type it: capitals, O for
// 0, I and L for 1, and neither dashes nor spaces.
func Normalize(code string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '-' || r == ' ' || r == '\t' || r == '\n' || r == '\r':
			return -1
		case r == 'o' || r == 'O':
			return '0'
		case r == 'i' || r == 'I' || r == 'l' || r == 'L':
			return '1'
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		}
		return r
	}, code[:min(len(code), maxCode)])
}

// checkCode returns an error for what is no code.
func checkCode(code string) error {
	n := Normalize(code)
	if len(code) > maxCode || len(n)*5 < codeBits || strings.Trim(n, alphabet) != "" {
		return fmt.Errorf("a code has %d letters and digits, such as 0AB1-C2D3-E4F5-G6H7", codeBits/5)
	}
	return nil
}

// A Link invites to a server.
type Link struct {
	// Addresses are where the server is probably reached, the best first; one
	// to maxAddresses.
	Addresses []transport.Address
	// Pin is the one key that the guest trusts.
	Pin transport.Pin
	// Code is in groups, as NewCode makes it.
	Code string
	// Username, when set, is the name whose password the code resets.
	Username string
}

// String returns the link. It must have an address.
func (l Link) String() string {
	// By hand and not by url.Values, for an order in which the server and the
	// code come first.
	query := "code=" + url.QueryEscape(l.Code) + "&pin=" + l.Pin.Base64URL()
	for _, a := range l.Addresses[1:] {
		query += "&also=" + url.QueryEscape(a.String())
	}
	if l.Username != "" {
		query += "&user=" + url.QueryEscape(l.Username)
	}
	u := url.URL{Scheme: scheme, Host: l.Addresses[0].String(), Path: path, RawQuery: query}
	return u.String()
}

// Parse reads a link, with spaces around it or lines broken within, as mail
// programs leave them. Parameters that it does not know are for later versions
// and ignored.
func Parse(text string) (Link, error) {
	bad := func(why string, args ...any) (Link, error) {
		return Link{}, fmt.Errorf("this is no invitation link: %s; valid is qpc://HOST:PORT/join?code=CODE&pin=PIN, as `qpcd invites create` prints it", fmt.Sprintf(why, args...))
	}
	if len(text) > maxLink {
		return bad("it is longer than %d characters", maxLink)
	}
	text = strings.Join(strings.Fields(text), "")
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return bad("it does not parse")
	case u.Scheme != scheme:
		return bad("it does not begin with qpc://")
	case u.User != nil || u.Fragment != "" || u.Opaque != "":
		return bad("there is too much in it")
	case u.Path != path:
		return bad("it has no /join")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("what follows the question mark does not parse")
	}
	for _, name := range []string{"code", "pin", "user"} {
		if len(query[name]) > 1 {
			return bad("it has two of %s", name)
		}
	}
	var l Link
	for _, written := range append([]string{u.Host}, query["also"]...) {
		address, err := transport.ParseAddress(written)
		if err != nil {
			return bad("%v", err)
		}
		if !slices.Contains(l.Addresses, address) {
			l.Addresses = append(l.Addresses, address)
		}
	}
	if len(l.Addresses) > maxAddresses {
		return bad("it names %d addresses where %d are possible", len(l.Addresses), maxAddresses)
	}
	if l.Pin, err = transport.ParsePin(query.Get("pin")); err != nil {
		return bad("its pin is not one (%v)", err)
	}
	l.Code = query.Get("code")
	if err := checkCode(l.Code); err != nil {
		return bad("%v", err)
	}
	if name := query.Get("user"); name != "" {
		if l.Username, err = username.Fold(name); err != nil {
			return bad("%v", err)
		}
	}
	return l, nil
}

// Addresses says where guests probably reach a server: by the name that its
// owner gave it, when named says that there is one; the addresses that it
// listens on; for a wildcard, the machine's private IPv4 addresses, which need
// no working name service; else its name. The pin is what guests trust, so that
// a wrong guess costs a connection and nothing else. machine is as
// net.InterfaceAddrs gives it.
func Addresses(name string, named bool, listen []netip.AddrPort, machine []net.Addr) []transport.Address {
	var found []transport.Address
	add := func(host string, port uint16) {
		a := transport.Address{Host: host, Port: port}
		if len(found) < maxAddresses && !slices.Contains(found, a) {
			found = append(found, a)
		}
	}
	for _, l := range listen {
		if named {
			add(name, l.Port())
		}
		if ip := l.Addr(); !ip.IsUnspecified() {
			add(ip.WithZone("").Unmap().String(), l.Port())
			continue
		}
		for _, m := range machine {
			if prefix, err := netip.ParsePrefix(m.String()); err == nil && prefix.Addr().Is4() && prefix.Addr().IsPrivate() {
				add(prefix.Addr().String(), l.Port())
			}
		}
	}
	if len(found) == 0 {
		for _, l := range listen {
			add(name, l.Port())
		}
	}
	return found
}
