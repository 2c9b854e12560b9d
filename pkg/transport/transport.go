// Package transport owns the network edge: QUIC endpoints over UDP, their TLS
// 1.3 configuration, the server's certificate files and their reload, and the
// client's trust in a server (pin on first use, a known pin, one certificate
// file). It is the only room that imports quic-go; every other room speaks of
// [Conn] and [Stream].
//
// What it promises:
//
//   - Nothing older than TLS 1.3, no connection without a common ALPN. Clients
//     are asked for no certificate (PROTOCOL section 1); other servers are, by
//     an ALPN of their own on the same port, and only those whose pin is known
//     get through the handshake ([Peers]).
//   - A server is bounded: connections in all, connections per source address
//     (an IPv6 /64 counts as one), unfinished handshakes, receive windows per
//     connection and in all. What exceeds a bound is refused before any state
//     exists for it, and unvalidated addresses are asked to prove themselves
//     by Retry (RFC 9000, section 8.1.2) once handshakes come too fast.
//   - A restart with the same secret keeps TLS session tickets and address
//     tokens valid, and tells clients of lost connections at once by stateless
//     reset (RFC 9000, section 10.3).
//   - A connection that came by 0-RTT is handed out before its handshake is
//     complete, any other only after it; [Conn.HandshakeComplete] tells the
//     difference, so that only idempotent calls run on replayable data.
//   - A private key is written once, mode 0600, and never overwritten.
//
// State: a [Listener] owns its sockets, its acceptor goroutines (one an
// address) and one short-lived goroutine for each unfinished handshake. An
// established connection costs no goroutine of this package. A connection made
// by [Dial] owns its socket and gives it back when it ends.
//
// The interfaces, the certificates and the trust code build for
// GOOS=js GOARCH=wasm; [Listen] and [Dial] do not exist there.
package transport

import "time"

const (
	// DefaultPort is the UDP port of quicprochat servers.
	DefaultPort = 5001
	// ALPN is the protocol name of clients (RFC 7301).
	ALPN = "qpc"

	// idleTimeout ends a connection on which nothing arrived (RFC 9000,
	// section 10.1). Three keep-alives fit into it, so two lost ones in a
	// row end nothing.
	idleTimeout = 60 * time.Second
	// keepAlive is the client's ping period: below the 30 s after which
	// common NATs forget an UDP mapping. Servers send none; a client that
	// is gone must not be kept.
	keepAlive = 20 * time.Second
	// handshakeIdle ends a handshake in which nothing arrived; twice this
	// ends any handshake. A slow router answers in well under a second.
	handshakeIdle = 5 * time.Second

	// Receive windows of a server. quic-go's own defaults (15 MiB a
	// connection) let five hostile peers empty a 64 MB router. A stream
	// starts with 16 KiB, enough for nearly every call in one flight, and
	// grows to 128 KiB while the reader keeps up, so a 4 MiB payload flows
	// at 128 KiB a round trip. A connection holds at most four such
	// streams' worth of unread bytes.
	serverStreamWindow    = 16 << 10
	serverStreamWindowMax = 128 << 10
	serverConnWindow      = 32 << 10
	serverConnWindowMax   = 512 << 10
	// serverStreams is the credit for concurrent calls; more wait for
	// credit (PROTOCOL section 1: at least 64).
	serverStreams = 64

	// Receive windows of a client. It talks to one server it trusts and
	// takes answers of up to 4 MiB, so memory is not the concern, but a
	// small device still keeps it under 2 MiB.
	clientStreamWindow    = 64 << 10
	clientStreamWindowMax = 1 << 20
	clientConnWindow      = 128 << 10
	clientConnWindowMax   = 2 << 20
	// clientUniStreams is the credit for pushed events: as many as a server
	// queues for one connection (PROTOCOL section 8).
	clientUniStreams = 256

	// socketBuffer is asked of the kernel for each direction of each
	// listening socket: the packets of a burst at 100 Mbit/s while a slow
	// router is busy for 80 ms. quic-go alone would force 7 MiB as root,
	// which a flood could fill.
	socketBuffer = 1 << 20

	// acceptQueue is how many connections wait for [Listener.Accept]; a
	// reader that falls behind further leaves handshakes pending, and those
	// are bounded.
	acceptQueue = 32
	// closeFanout is how many connections are closed side by side when a
	// listener ends, so that a thousand closes take one round and not a
	// thousand, with a bounded number of goroutines.
	closeFanout = 32
	// maxReason bounds the reason of a close, in bytes: it must fit the one
	// packet that carries it.
	maxReason = 256
	// maxDialAddresses bounds how many addresses of one name are tried.
	maxDialAddresses = 8
	// maxHostName is the longest host name taken (RFC 1035, section 2.3.4).
	maxHostName = 253

	// maxCertificateFile bounds a certificate or key file, in bytes: a long
	// PEM chain is 20 KiB.
	maxCertificateFile = 256 << 10
	// minRSABits is what TLS peers accept today.
	minRSABits = 2048
)

// Defaults of [Limits], made for a 64 MB router: an idle connection costs about
// 50 KiB, an unfinished handshake no more.
const (
	// DefaultMaxConnections bounds all connections: 13 MiB when idle.
	DefaultMaxConnections = 256
	// DefaultMaxConnectionsPerSource bounds those of one address: a family
	// behind one NAT, not one neighbour's script.
	DefaultMaxConnectionsPerSource = 32
	// DefaultMaxPendingHandshakes bounds handshakes under way: 3 MiB, and a
	// second's worth of a slow router's handshakes.
	DefaultMaxPendingHandshakes = 64
	// DefaultHandshakesPerSecond is how many handshakes with unvalidated
	// addresses start per second before Retry sets in; a slow router can
	// compute about that many.
	DefaultHandshakesPerSecond = 32
	// DefaultHandshakeBurst lets everybody reconnect at once after a
	// restart without the extra round trip.
	DefaultHandshakeBurst = 64
	// DefaultWindowBudget bounds, in bytes and over all connections, what
	// receive windows may grow beyond their initial 32 KiB.
	DefaultWindowBudget = 8 << 20
)
