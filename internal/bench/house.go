package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// house is a running qpcd and what is needed to reach it.
type house struct {
	*process
	address string
	pin     transport.Pin
}

// qpcdFlags lift every limit that a setting names, so that none of them is
// measured. What no setting names stays as it is: above all, Retry once
// handshakes come faster than 32 a second.
func qpcdFlags(dataDir string) []string {
	return []string{
		"--listen", "127.0.0.1:0", "--data-dir", dataDir, "--registration", "open", "--log-level", "info",
		"--queue-messages", "1000000", "--queue-bytes", "64GiB", "--send-rate", "1000000", "--send-burst", "1000000",
		"--max-connections", "65536", "--max-connections-per-address", "65536",
	}
}

// listening finds the address in the one line that qpcd logs when it serves.
var listening = regexp.MustCompile(`\blistening\b.* addr=(127\.0\.0\.1:\d+)`)

// startHouse starts qpcd on a data directory; first are the program and the
// arguments before qpcd's own.
func startHouse(ctx context.Context, dataDir string, first ...string) (*house, error) {
	p, err := startProcess(ctx, listening.MatchString, first[0], append(first[1:], qpcdFlags(dataDir)...)...)
	if err != nil {
		return nil, err
	}
	h := &house{process: p, address: listening.FindStringSubmatch(p.ready)[1]}
	der, err := os.ReadFile(filepath.Join(dataDir, "server-cert.der"))
	var certificate *x509.Certificate
	if err == nil {
		certificate, err = x509.ParseCertificate(der)
	}
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("reading the server's certificate: %w", err)
	}
	h.pin = transport.PinOf(certificate)
	return h, nil
}

// close drains the server and waits for its end.
func (h *house) close() error { return h.stop(syscall.SIGTERM) }

// dial connects. With sessions the connection may be an early one.
func (h *house) dial(ctx context.Context, from netip.Addr, sessions tls.ClientSessionCache) (*rpc.Client, error) {
	return dialQPC(ctx, h.address, h.pin, from, sessions)
}

func dialQPC(ctx context.Context, address string, pin transport.Pin, from netip.Addr, sessions tls.ClientSessionCache) (*rpc.Client, error) {
	conn, err := transport.Dial(ctx, transport.DialOptions{Address: address, Trust: transport.TrustPin(pin), LocalAddr: from, Sessions: sessions})
	if err != nil {
		return nil, err
	}
	return rpc.NewClient(conn), nil
}

// hangUp closes a client's connection.
func hangUp(c *rpc.Client) { _ = c.Conn().Close(transport.CloseNormal, "") } // it may have ended already

// account is somebody who can log in.
type account struct {
	name     string
	password []byte
	key      ed25519.PrivateKey
	device   rpc.DeviceID
	token    []byte
}

func (a *account) identity() []byte { return a.key.Public().(ed25519.PublicKey) }

// accountsPerAddress is how many register from one loopback address: the server
// takes 30 from each at once (auth: registrationBurst), and a failed attempt
// may cost some.
const accountsPerAddress = 25

// register makes n accounts with a session and a device each, from as many
// addresses of 127.0.0.0/8 as that takes.
func (h *house) register(ctx context.Context, n int) ([]*account, error) {
	accounts := make([]*account, n)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.NumCPU()) // Argon2id takes a core each
	for i := range accounts {
		accounts[i] = &account{name: fmt.Sprintf("bench-%d", i), password: []byte(rand.Text())}
		group.Go(func() error {
			from := netip.AddrFrom4([4]byte{127, 0, 1, byte(1 + i/accountsPerAddress)})
			if err := h.registerOne(ctx, accounts[i], from); err != nil {
				return fmt.Errorf("registering %s: %w", accounts[i].name, err)
			}
			return nil
		})
	}
	return accounts, group.Wait()
}

func (h *house) registerOne(ctx context.Context, a *account, from netip.Addr) (err error) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	if _, a.key, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return err
	}
	if _, err := rand.Read(a.device[:]); err != nil {
		return err
	}
	calls, err := h.dial(ctx, from, nil)
	if err != nil {
		return err
	}
	defer hangUp(calls)
	auth := qpcpb.NewAuthClient(calls)
	registration, request, err := opaque.NewRegistration(rand.Reader, a.password)
	if err != nil {
		return err
	}
	started, err := auth.OpaqueRegisterStart(ctx, &qpcpb.OpaqueRegisterStartRequest{Username: a.name, Request: request})
	if err != nil {
		return err
	}
	upload, _, err := registration.Finish(started.Response)
	if err != nil {
		return err
	}
	_, err = auth.OpaqueRegisterFinish(ctx, &qpcpb.OpaqueRegisterFinishRequest{
		Username: a.name, Upload: upload, IdentityKey: a.identity(), IdentityProof: proof.SignIdentity(a.key, a.name, upload),
	})
	if err != nil {
		return err
	}
	// Not with the device: it has to be registered first.
	if err := a.logIn(ctx, calls); err != nil {
		return err
	}
	_, err = qpcpb.NewDeviceClient(calls).RegisterDevice(ctx, &qpcpb.RegisterDeviceRequest{DeviceId: a.device[:], DeviceName: "bench"})
	return err
}

// logIn runs an OPAQUE login on a connection and keeps the session's token.
func (a *account) logIn(ctx context.Context, calls *rpc.Client) error {
	auth := qpcpb.NewAuthClient(calls)
	login, ke1, err := opaque.NewLogin(rand.Reader, a.password)
	if err != nil {
		return err
	}
	started, err := auth.OpaqueLoginStart(ctx, &qpcpb.OpaqueLoginStartRequest{Username: a.name, Request: ke1})
	if err != nil {
		return err
	}
	ke3, _, _, _, err := login.Finish(started.Response)
	if err != nil {
		return err
	}
	finished, err := auth.OpaqueLoginFinish(ctx, &qpcpb.OpaqueLoginFinishRequest{Username: a.name, Finalization: ke3, IdentityKey: a.identity()})
	if err != nil {
		return err
	}
	a.token = finished.SessionToken
	return nil
}

// connect opens a connection that speaks for an account.
func (h *house) connect(ctx context.Context, a *account) (*rpc.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, callPatience)
	defer cancel()
	calls, err := h.dial(ctx, netip.Addr{}, nil)
	if err != nil {
		return nil, fmt.Errorf("connecting %s: %w", a.name, err)
	}
	if err := calls.Resume(ctx, a.token); err != nil {
		hangUp(calls)
		return nil, fmt.Errorf("connecting %s: %w", a.name, err)
	}
	return calls, nil
}

// connectAll connects every account, or none.
func (h *house) connectAll(ctx context.Context, accounts []*account) (clients []*rpc.Client, hangUpAll func(), err error) {
	hangUpAll = func() {
		for _, c := range clients {
			hangUp(c)
		}
	}
	for _, a := range accounts {
		c, err := h.connect(ctx, a)
		if err != nil {
			hangUpAll()
			return nil, nil, err
		}
		clients = append(clients, c)
	}
	return clients, hangUpAll, nil
}

// dataDir is the database that most of the run works on.
func (b *bench) dataDir() string { return b.inDir("data") }

// inDir is a path in the run's own directory.
func (b *bench) inDir(name string) string { return filepath.Join(b.dir, name) }
