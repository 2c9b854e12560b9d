// Command bareserver is the limit that qpcd is held against: quic-go and
// nothing else. It reads a stream to its end, takes the first four bytes
// (big-endian) for the size of the answer, and answers with that many zeros.
// It logs in nobody, checks nothing and stores nothing.
//
// It listens on a free port of 127.0.0.1, prints one line ("listening
// ADDRESS") and serves until its standard input ends. It is a program of its
// own, and not a role of the harness, so that its memory is quic-go's and not
// SQLite's as well.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"os"
	"time"

	"github.com/quic-go/quic-go"
)

const (
	// alpn is the one protocol; the harness asks for it.
	alpn = "bare"
	// maxRequest and maxAnswer bound what one stream may cost.
	maxRequest = 64 << 10
	maxAnswer  = 8 << 20
	// idleTimeout is qpcd's, so that idle connections cost the same timers.
	idleTimeout = 60 * time.Second
	// certificateLife is longer than any run of the harness.
	certificateLife = 24 * time.Hour
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bareserver:", err)
		os.Exit(1)
	}
}

func run() error {
	certificate, err := selfSigned()
	if err != nil {
		return fmt.Errorf("making a certificate: %w", err)
	}
	listener, err := quic.ListenAddrEarly("127.0.0.1:0",
		&tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{alpn}, MinVersion: tls.VersionTLS13},
		&quic.Config{Allow0RTT: true, MaxIdleTimeout: idleTimeout})
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	fmt.Println("listening", listener.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // an error ends the wait as well
		listener.Close()
	}()
	for {
		conn, err := listener.Accept(context.Background())
		if err != nil {
			return nil // closed: the process ends, and its connections with it
		}
		go serve(conn)
	}
}

func serve(conn *quic.Conn) {
	for {
		stream, err := conn.AcceptStream(conn.Context())
		if err != nil {
			return
		}
		go answer(stream)
	}
}

// answer drops a stream that breaks the rules: only the harness calls.
func answer(stream *quic.Stream) {
	request, err := io.ReadAll(io.LimitReader(stream, maxRequest))
	if err == nil && len(request) >= 4 {
		_, _ = stream.Write(make([]byte, min(binary.BigEndian.Uint32(request), maxAnswer)))
	}
	_ = stream.Close()
}

// selfSigned makes a certificate of the kind qpcd makes: ECDSA on P-256.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(certificateLife), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
