// Package fingerprint shows which certificate a qpcd server has, in the forms
// that people and clients compare: hex, words, and a link that a telephone reads
// off the terminal as a QR code. It reads the certificate alone, never its key,
// and makes none.
package fingerprint

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"

	"rsc.io/qr"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/invite"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// maxFile bounds the certificate file, in bytes: a long chain has 20 KiB.
	maxFile = 256 << 10
	// quietZone is the light margin a reader needs, in modules
	// (ISO/IEC 18004, section 6.3.8).
	quietZone = 4
)

// A Fingerprint names a server's key; see [transport.Pin].
type Fingerprint struct {
	Certificate string   `json:"certificate"` // path of the file
	SHA256      string   `json:"sha256"`      // 64 hex digits, over the SubjectPublicKeyInfo
	Words       []string `json:"words"`       // twelve, over the first 128 bits
	// Link is qpc://HOST:PORT/?pin=PIN, with the pin in base64url; empty when
	// the port is chosen only at the start.
	Link string `json:"link"`
}

// Read takes the fingerprint of the configured certificate. addrs are the
// machine's, as net.InterfaceAddrs gives them, for the link.
func Read(cfg *config.Config, addrs []net.Addr) (*Fingerprint, error) {
	leaf, err := readLeaf(cfg.TLSCert)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is none at %s yet; start qpcd once and it makes one, or name yours with --tls-cert", cfg.TLSCert)
	}
	if err != nil {
		return nil, err
	}
	pin := transport.PinOf(leaf)
	f := &Fingerprint{Certificate: cfg.TLSCert, SHA256: pin.String(), Words: pin.Words()}
	if cfg.Listen[0].Port() != 0 {
		named := cfg.Origin("server_name").Source != config.FromDefault
		u := url.URL{
			Scheme:   "qpc",
			Host:     invite.Addresses(cfg.ServerName, named, cfg.Listen[:1], addrs)[0].String(),
			Path:     "/",
			RawQuery: url.Values{"pin": {pin.Base64URL()}}.Encode(),
		}
		f.Link = u.String()
	}
	return f, nil
}

// readLeaf reads the first certificate of a DER or PEM file.
func readLeaf(path string) (*x509.Certificate, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, err
	}
	der := data
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			der = block.Bytes
			break
		}
	}
	certs, err := x509.ParseCertificates(der)
	if err != nil || len(certs) == 0 {
		return nil, fmt.Errorf("%s is neither a DER nor a PEM certificate", path)
	}
	return certs[0], nil
}

// WriteText writes the fingerprint for people. terminal says that w is one and
// understands colours.
func (f *Fingerprint) WriteText(w io.Writer, terminal bool) error {
	var b strings.Builder
	half := len(f.Words) / 2
	fmt.Fprintf(&b, "Certificate  %s\nSHA-256      %s\nWords        %s\n             %s\n",
		f.Certificate, f.SHA256, strings.Join(f.Words[:half], " "), strings.Join(f.Words[half:], " "))
	if f.Link != "" {
		fmt.Fprintf(&b, "Link         %s\n\n", f.Link)
		if err := WriteQR(&b, f.Link, terminal); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteQR draws a text as a QR code. colours says that w is a terminal that
// understands them.
func WriteQR(w io.Writer, text string, colours bool) error {
	// A screen does not get dirty, and a small code fits a small one: L.
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return fmt.Errorf("draw the QR code: %w", err)
	}
	_, err = io.WriteString(w, blocks(code, colours))
	return err
}

// blocks draws a code with two modules, one above the other, in each character.
// Light modules are drawn and dark ones left out, which is right on a terminal
// with a dark background. With colours it is right on every one: the numbers
// are of the fixed part of the palette, which themes leave alone.
func blocks(code *qr.Code, colours bool) string {
	const whiteOnBlack, reset = "\x1b[38;5;231;48;5;16m", "\x1b[0m"
	var b strings.Builder
	for y := -quietZone; y < code.Size+quietZone; y += 2 {
		if colours {
			b.WriteString(whiteOnBlack)
		}
		for x := -quietZone; x < code.Size+quietZone; x++ {
			switch upper, lower := !code.Black(x, y), !code.Black(x, y+1); {
			case upper && lower:
				b.WriteRune('█')
			case upper:
				b.WriteRune('▀')
			case lower:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		if colours {
			b.WriteString(reset)
		}
		b.WriteByte('\n')
	}
	return b.String()
}
