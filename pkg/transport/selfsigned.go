package transport

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The validity of a self-signed certificate must hold on a router that boots in
// 1970 and stay through any jump of its clock, so it has in effect no bounds.
// 1970-01-01 is the earliest that rustls-webpki can read; 9999-12-31T23:59:59Z
// is how RFC 5280, section 4.1.2.5, writes «no well-defined expiration date».
const (
	validFrom  = 0            // Unix seconds
	validUntil = 253402300799 // Unix seconds
)

// maxNames bounds the names in a self-signed certificate: a router has a few
// addresses, a container host may have hundreds.
const maxNames = 64

// maxLabel is the longest label of a domain name (RFC 1035, section 2.3.4).
const maxLabel = 63

// DefaultNames are the names of a self-signed certificate: localhost, 127.0.0.1
// and ::1, the host's own name with `.lan` and `.local`, and the addresses by
// which the local network reaches it. hostname is as os.Hostname gives it,
// addrs as net.InterfaceAddrs does; loopback, link-local and multicast addresses
// are left out. At most 64.
func DefaultNames(hostname string, addrs []net.Addr) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	add := func(name string) {
		if len(names) < maxNames && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	full := strings.ToLower(strings.TrimSuffix(hostname, "."))
	host, _, _ := strings.Cut(full, ".")
	if isDNSName(full) && host != "localhost" {
		add(full)
		add(host)
		add(host + ".lan")
		add(host + ".local")
	}
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		ip := prefix.Addr().Unmap()
		if ip.IsGlobalUnicast() { // private addresses are of this kind
			add(ip.String())
		}
	}
	return names
}

// isDNSName reports whether s can stand in a certificate as a DNS name: ASCII
// letters, digits and hyphens.
func isDNSName(s string) bool {
	if s == "" || len(s) > maxHostName {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if c := label[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
				return false
			}
		}
	}
	return true
}

// createPair makes the files. With haveKey, only the certificate is missing.
func createPair(certPath, keyPath string, haveKey bool, names []string, random io.Reader) error {
	var key crypto.Signer
	if haveKey {
		data, err := readBounded(keyPath)
		if err != nil {
			return fmt.Errorf("read the private key: %w", err)
		}
		if key, err = parsePrivateKey(data); err != nil {
			return fmt.Errorf("private key file %s: %w", keyPath, err)
		}
	} else {
		k, der, err := newKey()
		if err != nil {
			return err
		}
		if err := writeAtomic(keyPath, der, privateMode); err != nil {
			return fmt.Errorf("store the private key: %w", err)
		}
		key = k
	}
	der, err := selfSign(key, names, nil, random)
	if err != nil {
		return err
	}
	if err := writeAtomic(certPath, der, publicMode); err != nil {
		return fmt.Errorf("store the certificate: %w", err)
	}
	return nil
}

// newKey makes a private key, and its PKCS #8 form. P-256: every TLS stack has
// it, browsers too, and signing is cheap on a router.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a private key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the private key: %w", err)
	}
	return key, der, nil
}

// selfSign makes the certificate, with the hand-overs of earlier keys if there
// are any. It is no certificate authority: rustls refuses
// those as a server's own.
func selfSign(key crypto.Signer, names []string, handOvers []byte, random io.Reader) ([]byte, error) {
	if random == nil {
		random = rand.Reader
	}
	serial := make([]byte, 16)
	if _, err := io.ReadFull(random, serial); err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive, and of fixed length
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               pkix.Name{CommonName: "qpcd"},
		NotBefore:             time.Unix(validFrom, 0).UTC(),
		NotAfter:              time.Unix(validUntil, 0).UTC(),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if len(handOvers) > 0 {
		template.ExtraExtensions = []pkix.Extension{{Id: oidHandOver(), Value: handOvers}}
	}
	for _, name := range names {
		if ip, err := netip.ParseAddr(name); err == nil {
			template.IPAddresses = append(template.IPAddresses, ip.WithZone("").AsSlice())
		} else if isDNSName(name) {
			template.DNSNames = append(template.DNSNames, name)
		} else {
			return nil, fmt.Errorf("certificate name %q is neither an IP address nor a lower-case host name", cut80(name))
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a self-signed certificate: %w", err)
	}
	return der, nil
}
