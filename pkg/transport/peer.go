//go:build !js

package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// FederationALPN is the protocol name of servers among themselves (PROTOCOL
// section 7.12). Both sides prove a certificate; each knows the other's pin.
const FederationALPN = "quicprochat/federation/1"

// connectionsPerPeer is how many connections each other server may have: one
// that it uses, one that it has lost and we not yet noticed, one that is being
// made, one for its owner's test.
const connectionsPerPeer = 4

// Peers knows which other servers may connect. Its methods are called for every
// handshake, must not block, and be safe for concurrent use.
type Peers interface {
	// Admits reports whether a server with this certificate may connect. The
	// server has yet to prove that it holds the key.
	Admits(cert *x509.Certificate) bool
	// Count is how many servers could. With none the protocol is not offered.
	Count() int
}

// ErrUnknownPeer refuses the handshake of a server that is no peer.
var ErrUnknownPeer = errors.New("this server's certificate is no peer's")

// wantsFederation reports whether a ClientHello is another server's: one that
// also offers a client's protocol is a client's.
func wantsFederation(offered, clients []string) bool {
	return slices.Contains(offered, FederationALPN) &&
		!slices.ContainsFunc(offered, func(p string) bool { return slices.Contains(clients, p) })
}

// peerTLS is the server's half of mutual TLS. There are no session tickets: a
// resumed session would prove no key, and 0-RTT could be replayed.
func peerTLS(o ServerOptions) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       keyExchanges(),
		NextProtos:             []string{FederationALPN},
		GetCertificate:         o.Certificates.GetCertificate,
		SessionTicketsDisabled: true,
		Time:                   o.Now,
		// Pins are trusted whatever their certificates say of names and dates,
		// so that no authority is asked.
		ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("the server that connects presented no certificate")
			}
			if cert := cs.PeerCertificates[0]; !o.Peers.Admits(cert) {
				return fmt.Errorf("%w: its pin is %s", ErrUnknownPeer, PinOf(cert))
			}
			return nil
		},
	}
}
