package transport

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// A Trust decides whether the certificate a server presents is the right one.
// Make one with [TrustPin], [TrustFirstUse], [TrustKnown], [TrustCertificate],
// [TrustCertificateFile] or [TrustAuthorities].
type Trust interface {
	// begin prepares the decision about one dial to server, the string form
	// of an [Address].
	begin(server string) (*decision, error)
}

// A decision is one server's certificate, judged.
type decision struct {
	// scope names what is trusted, so that a TLS session made under one
	// trust is never resumed under another. Empty: nothing yet, resume no
	// session.
	scope string
	// verify judges the chain, leaf first and never empty, and returns the
	// scope under which its sessions may be resumed. name is the server
	// name, for chains that lead to an authority.
	verify func(chain []*x509.Certificate, name string, now time.Time) (scope string, err error)
	// remember, if set, stores what was learnt, after the handshake proved
	// that the server has the key: during verify it has not yet signed.
	remember func() error
}

// A PinStore remembers the key of each server. Servers are known by the string
// form of their [Address]: host:port.
type PinStore interface {
	// Lookup returns the pin of a server; ok is false when it is unknown. An
	// error refuses the connection: a store that cannot be read must not
	// look like a first meeting.
	Lookup(server string) (pin Pin, ok bool, err error)
	// Remember stores the pin of a server never seen before. An error
	// refuses the connection.
	Remember(server string, pin Pin) error
	// Replace stores the pin that a server's known one has handed over to
	// ([HandedOver]). An error refuses the connection.
	Replace(server string, known, next Pin) error
}

// ErrPinChanged says that a server presented another key than the one known.
// Never retry it, and never replace the known pin without the user's word.
type ErrPinChanged struct {
	Server    string // host:port
	Known     Pin
	Presented Pin
}

func (e *ErrPinChanged) Error() string {
	return fmt.Sprintf(`THE KEY OF SERVER %s HAS CHANGED; the connection is refused and nothing was sent.
Either the server was set up anew, or somebody between you and the server is impersonating it.
  known:     %s
  presented: %s
Ask whoever runs the server to read you the words of "qpcd fingerprint". If they are
  %s
forget the old key of %s and connect again. If they differ, do not connect.`,
		e.Server, e.Known, e.Presented, strings.Join(e.Presented.Words(), " "), e.Server)
}

// ErrUnknownServer says that [TrustKnown] met a server it does not know. Show
// the pin to the user and, on their word, Remember it and dial again.
type ErrUnknownServer struct {
	Server    string // host:port
	Presented Pin
}

func (e *ErrUnknownServer) Error() string {
	return fmt.Sprintf("server %s is not known yet; its fingerprint is %s (%s)",
		e.Server, e.Presented, strings.Join(e.Presented.Words(), " "))
}

// TrustPin trusts exactly one key, and those that it has handed over to
// ([HandedOver]), whatever the certificate says of names and dates.
func TrustPin(pin Pin) Trust { return trustPin(pin) }

type trustPin Pin

func (t trustPin) begin(server string) (*decision, error) {
	return pinned(server, Pin(t)), nil
}

// pinned trusts a known key or the one that it has handed over to.
func pinned(server string, known Pin) *decision {
	scope := "pin " + known.String()
	return &decision{
		scope: scope,
		verify: func(chain []*x509.Certificate, _ string, _ time.Time) (string, error) {
			presented := PinOf(chain[0])
			switch {
			case presented == known:
				return scope, nil
			case HandedOver(chain[0], known):
				return "pin " + presented.String(), nil
			}
			return "", &ErrPinChanged{Server: server, Known: known, Presented: presented}
		},
	}
}

// TrustFirstUse trusts the key a server presents at the first meeting, stores
// it, and from then on only that key or the one that it hands over to, which
// then takes its place in the store ([ErrPinChanged]).
func TrustFirstUse(store PinStore) Trust { return trustStore{store: store, learn: true} }

// TrustKnown trusts servers in the store and refuses others with
// [ErrUnknownServer], for a client that asks its user first.
func TrustKnown(store PinStore) Trust { return trustStore{store: store} }

type trustStore struct {
	store PinStore
	learn bool
}

func (t trustStore) begin(server string) (*decision, error) {
	known, ok, err := t.store.Lookup(server)
	if err != nil {
		return nil, fmt.Errorf("look up the known key of %s: %w", server, err)
	}
	if ok {
		d := pinned(server, known)
		verify, presented := d.verify, atomic.Pointer[Pin]{}
		d.verify = func(chain []*x509.Certificate, name string, now time.Time) (string, error) {
			scope, err := verify(chain, name, now)
			pin := PinOf(chain[0])
			presented.Store(&pin)
			return scope, err
		}
		d.remember = func() error {
			next := presented.Load()
			if next == nil || *next == known {
				return nil
			}
			if err := t.store.Replace(server, known, *next); err != nil {
				return fmt.Errorf("remember the new key of %s: %w", server, err)
			}
			return nil
		}
		return d, nil
	}
	var presented Pin
	d := &decision{
		verify: func(chain []*x509.Certificate, _ string, _ time.Time) (string, error) {
			presented = PinOf(chain[0])
			if !t.learn {
				return "", &ErrUnknownServer{Server: server, Presented: presented}
			}
			return "pin " + presented.String(), nil
		},
	}
	if t.learn {
		d.remember = func() error {
			if err := t.store.Remember(server, presented); err != nil {
				return fmt.Errorf("remember the key of %s: %w", server, err)
			}
			return nil
		}
	}
	return d, nil
}

// TrustCertificateFile is [TrustCertificate] over the content of a file.
func TrustCertificateFile(path string) (Trust, error) {
	data, err := readBounded(path)
	if err != nil {
		return nil, fmt.Errorf("read the certificate to trust: %w", err)
	}
	t, err := TrustCertificate(data)
	if err != nil {
		return nil, fmt.Errorf("certificate file %s: %w", path, err)
	}
	return t, nil
}

// TrustCertificate trusts exactly the one certificate in data, DER or PEM. A
// server that presents that very certificate is trusted whatever its names and
// dates. If it is a certificate authority's, a chain that leads to it is
// trusted too, and then names and dates are checked.
func TrustCertificate(data []byte) (Trust, error) {
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("holds %d certificates; put exactly the one to trust into it", len(certs))
	}
	return trustCertificate{certs[0]}, nil
}

type trustCertificate struct{ cert *x509.Certificate }

func (t trustCertificate) begin(server string) (*decision, error) {
	sum := sha256.Sum256(t.cert.Raw)
	scope := "certificate " + hex.EncodeToString(sum[:])
	return &decision{
		scope: scope,
		verify: func(chain []*x509.Certificate, name string, now time.Time) (string, error) {
			if bytes.Equal(chain[0].Raw, t.cert.Raw) {
				return scope, nil
			}
			if !t.cert.IsCA {
				if known, presented := PinOf(t.cert), PinOf(chain[0]); known != presented {
					return "", &ErrPinChanged{Server: server, Known: known, Presented: presented}
				}
				return "", fmt.Errorf("server %s presents another certificate than the trusted one, with the same key; fetch its present certificate file", server)
			}
			return scope, t.verifyChain(chain, name, now, server)
		},
	}, nil
}

func (t trustCertificate) verifyChain(chain []*x509.Certificate, name string, now time.Time, server string) error {
	roots := x509.NewCertPool()
	roots.AddCert(t.cert)
	return verifyChain(chain, roots, name, now, server)
}

// TrustAuthorities trusts a server whose certificate an authority has issued for
// the name it is called by, as browsers do: for servers with a public
// certificate, whose key may change at every renewal. roots nil are the
// system's.
func TrustAuthorities(roots *x509.CertPool) Trust { return trustAuthorities{roots} }

type trustAuthorities struct{ roots *x509.CertPool }

func (t trustAuthorities) begin(server string) (*decision, error) {
	const scope = "authorities"
	return &decision{
		scope: scope,
		verify: func(chain []*x509.Certificate, name string, now time.Time) (string, error) {
			return scope, verifyChain(chain, t.roots, name, now, server)
		},
	}, nil
}

// verifyChain checks that a chain leads to one of roots, for a name and now.
func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, name string, now time.Time, server string) error {
	if name == "" { // crypto/x509 would then check no name at all
		return fmt.Errorf("verify server %s: no server name given", server)
	}
	opts := x509.VerifyOptions{
		DNSName:       name,
		Roots:         roots,
		Intermediates: x509.NewCertPool(),
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, c := range chain[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(opts)
	if err == nil {
		return nil
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired && clockUnset(now) {
		return fmt.Errorf("verify server %s: this machine's clock says %s; set it and try again: %w", server, now.UTC().Format(time.DateOnly), err)
	}
	return fmt.Errorf("verify server %s as %q: %w", server, name, err)
}

// clockFloor is 2026-01-01, before this code was written, in Unix seconds: a
// clock that shows less does not know the time. Routers without a battery boot
// in 1970.
const clockFloor = 1767225600

func clockUnset(now time.Time) bool { return now.Unix() < clockFloor }
