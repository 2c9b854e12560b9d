package auth_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// opaqueServer is one for all tests: its keys are in no test's way, and an
// upload that was made once can be registered again elsewhere.
var opaqueServer = sync.OnceValues(func() (*opaque.Server, error) {
	setup, err := opaque.NewServerSetup(rand.Reader)
	if err != nil {
		return nil, err
	}
	return opaque.NewServer(setup)
})

// uploads keeps one upload for each name and password, since making one takes
// an Argon2id.
var uploads sync.Map

// account is somebody with a password, registered or not.
type account struct {
	name, password string
	key            ed25519.PrivateKey
}

// person is an account with a key of its own, always the same for a name.
func person(name string) account {
	seed := sha256.Sum256([]byte("seed of " + name))
	return account{name: name, password: "password of " + name, key: ed25519.NewKeyFromSeed(seed[:])}
}

func (a account) identity() rpc.IdentityKey {
	return rpc.IdentityKey(a.key.Public().(ed25519.PublicKey))
}

// registrationRequest is the first message of a registration.
func registrationRequest(t testing.TB) []byte {
	t.Helper()
	_, request, err := opaque.NewRegistration(rand.Reader, []byte("any"))
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// upload returns a registration upload for the folded name.
func (a account) upload(t testing.TB) []byte {
	t.Helper()
	label := a.name + "\x00" + a.password
	if known, ok := uploads.Load(label); ok {
		return known.([]byte)
	}
	server, err := opaqueServer()
	if err != nil {
		t.Fatal(err)
	}
	registration, request, err := opaque.NewRegistration(rand.Reader, []byte(a.password))
	if err != nil {
		t.Fatal(err)
	}
	response, err := server.RegistrationResponse(request, []byte(a.name))
	if err != nil {
		t.Fatal(err)
	}
	upload, _, err := registration.Finish(response)
	if err != nil {
		t.Fatal(err)
	}
	uploads.Store(label, upload)
	return upload
}

// house is a server that answers the auth methods.
type house struct {
	*servicetest.House
	t         *testing.T
	auth      *auth.Service
	live      atomic.Pointer[auth.Service] // auth, for the server's goroutines
	registrar qpcpb.Registrar
	options   auth.Options
}

// open makes a house in which registration is open, changed by tweak.
func open(t *testing.T, tweak ...func(*auth.Options)) *house {
	t.Helper()
	server, err := opaqueServer()
	if err != nil {
		t.Fatal(err)
	}
	h := &house{House: servicetest.New(t), t: t}
	h.registrar = h.Replaceable()
	h.options = auth.Options{
		Opaque: server, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Now: h.Wall.Now, Rand: rand.Reader,
		Registration: auth.RegistrationOpen, SessionTTL: 30 * day, Sessions: h.Hub,
		Erase:      func(*store.Tx, rpc.IdentityKey) error { return nil },
		DeviceSeen: func(*store.Tx, rpc.IdentityKey, rpc.DeviceID) error { return nil },
	}
	for _, f := range tweak {
		f(&h.options)
	}
	h.build()
	h.ResumeSession = func(ctx context.Context, token []byte) (rpc.Principal, error) {
		return h.live.Load().ResumeSession(ctx, token)
	}
	h.Disconnected = func(p *rpc.Peer) { h.live.Load().Disconnected(p) }
	return h
}

const day = 24 * time.Hour

// build makes the service on the present database.
func (h *house) build() {
	h.options.DB = h.DB
	h.auth = auth.New(h.options)
	h.live.Store(h.auth)
	qpcpb.RegisterAuthServer(h.registrar, h.auth)
}

// restart closes everything that is kept in memory or open.
func (h *house) restart() {
	h.t.Helper()
	h.RestartDB()
	h.build()
}

// passes moves all clocks: time goes by while the server runs.
func (h *house) passes(d time.Duration) {
	h.Wall.Advance(d)
	h.Service.Advance(d)
}

// client is one connection.
type client struct {
	*servicetest.Client
	qpcpb.AuthClient
	t *testing.T
}

func (h *house) wrap(c *servicetest.Client) client { return client{c, qpcpb.NewAuthClient(c), h.t} }

// quic connects over loopback; call Open first.
func (h *house) quic() client {
	h.t.Helper()
	return h.wrap(h.Stranger())
}

// from connects in memory from an address.
func (h *house) from(address string) client {
	h.t.Helper()
	return h.wrap(h.InMemory(netip.MustParseAddr(address)))
}

// home is an address from which nothing bad was tried.
const home = "192.0.2.200"

// registers makes accounts that must succeed, from fresh addresses.
func (h *house) registers(accounts ...account) {
	h.t.Helper()
	for _, a := range accounts {
		if err := h.from(home).finishRegistration(a); err != nil {
			h.t.Fatalf("register %s: %v", a.name, err)
		}
	}
}

// register goes through a whole registration, with the name as it is written.
func (c client) register(a account, written string) error {
	c.t.Helper()
	registration, request, err := opaque.NewRegistration(rand.Reader, []byte(a.password))
	if err != nil {
		c.t.Fatal(err)
	}
	started, err := c.OpaqueRegisterStart(servicetest.Within(c.t), &qpcpb.OpaqueRegisterStartRequest{Username: written, Request: request})
	if err != nil {
		return err
	}
	upload, _, err := registration.Finish(started.Response)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.finishWith(&qpcpb.OpaqueRegisterFinishRequest{
		Username: written, Upload: upload, IdentityKey: a.key.Public().(ed25519.PublicKey), IdentityProof: proof.SignIdentity(a.key, a.name, upload),
	})
}

// finishRegistration skips the first half.
func (c client) finishRegistration(a account) error {
	c.t.Helper()
	return c.finishWith(a.finish(c.t))
}

// finish is a request without proof and invite.
func (a account) finish(t testing.TB) *qpcpb.OpaqueRegisterFinishRequest {
	return &qpcpb.OpaqueRegisterFinishRequest{Username: a.name, Upload: a.upload(t), IdentityKey: a.key.Public().(ed25519.PublicKey)}
}

func (c client) finishWith(r *qpcpb.OpaqueRegisterFinishRequest) error {
	c.t.Helper()
	_, err := c.OpaqueRegisterFinish(servicetest.Within(c.t), r)
	return err
}

// begins sends KE1 for a name and returns KE2.
func (c client) begins(name string) ([]byte, error) {
	c.t.Helper()
	_, ke2, err := c.beginsWith(account{name: name, password: "a guess"})
	return ke2, err
}

func (c client) beginsWith(a account) (*opaque.Login, []byte, error) {
	c.t.Helper()
	login, ke1, err := opaque.NewLogin(rand.Reader, []byte(a.password))
	if err != nil {
		c.t.Fatal(err)
	}
	started, err := c.OpaqueLoginStart(servicetest.Within(c.t), &qpcpb.OpaqueLoginStartRequest{Username: a.name, Request: ke1})
	if err != nil {
		return nil, nil, err
	}
	return login, started.Response, nil
}

// ends sends a KE3.
func (c client) ends(a account, ke3 []byte) ([]byte, error) {
	c.t.Helper()
	got, err := c.OpaqueLoginFinish(servicetest.Within(c.t), &qpcpb.OpaqueLoginFinishRequest{
		Username: a.name, Finalization: ke3, IdentityKey: a.key.Public().(ed25519.PublicKey),
	})
	return got.GetSessionToken(), err
}

// login goes through a whole login.
func (c client) login(a account) ([]byte, error) {
	c.t.Helper()
	login, ke2, err := c.beginsWith(a)
	if err != nil {
		return nil, err
	}
	ke3, _, _, _, err := login.Finish(ke2)
	if errors.Is(err, opaque.ErrAuthentication) {
		ke3 = make([]byte, opaque.KE3Length) // a client that does not give up
	} else if err != nil {
		c.t.Fatal(err)
	}
	return c.ends(a, ke3)
}

func (c client) mustLogin(a account) []byte {
	c.t.Helper()
	token, err := c.login(a)
	if err != nil {
		c.t.Fatalf("log in as %s: %v", a.name, err)
	}
	return token
}

// changePassword goes through a whole change.
func (c client) changePassword(a account, password string) error {
	c.t.Helper()
	registration, request, err := opaque.NewRegistration(rand.Reader, []byte(password))
	if err != nil {
		c.t.Fatal(err)
	}
	started, err := c.ChangePasswordStart(servicetest.Within(c.t), &qpcpb.ChangePasswordStartRequest{Request: request})
	if err != nil {
		return err
	}
	upload, _, err := registration.Finish(started.Response)
	if err != nil {
		c.t.Fatal(err)
	}
	_, err = c.ChangePasswordFinish(servicetest.Within(c.t), &qpcpb.ChangePasswordFinishRequest{Upload: upload})
	return err
}

// session puts a session into the database, as a login would, and returns its
// token.
func (h *house) session(a account, device *rpc.DeviceID) []byte {
	h.t.Helper()
	return h.sessionUntil(a, device, h.DB.ServiceTime()+int64(h.options.SessionTTL/time.Second))
}

func (h *house) sessionUntil(a account, device *rpc.DeviceID, until int64) []byte {
	h.t.Helper()
	token := make([]byte, 32)
	if _, err := rand.Read(token); err != nil {
		h.t.Fatal(err)
	}
	var id any
	if device != nil {
		id = device[:]
	}
	h.Write(func(tx *store.Tx) error {
		_, err := tx.Exec("INSERT INTO auth_session (token_hash, account_id, device_id, valid_until) SELECT ?, id, ?, ? FROM auth_account WHERE username = ?",
			sha256.Sum256(token), id, until, a.name)
		return err
	})
	return token
}

// resumes reports whether a token still stands for a session.
func (h *house) resumes(token []byte) bool {
	h.t.Helper()
	switch err := h.from(home).Resume(servicetest.Within(h.t), token); {
	case err == nil:
		return true
	case errors.Is(err, rpc.ErrSessionRefused):
		return false
	default:
		h.t.Fatal(err)
		return false
	}
}

// endsWith waits for SessionEnded and then the close of the connection.
func (c client) endsWith(code transport.CloseCode) {
	c.t.Helper()
	event := c.Event()
	if event.Kind != qpcpb.EventSessionEnded {
		c.t.Fatalf("got event %s, want SessionEnded", event.Kind)
	}
	select {
	case <-c.Conn().Context().Done():
	case <-time.After(10 * time.Second):
		c.t.Fatal("the connection was not closed")
	}
	got, reason, remote, ok := transport.CloseError(context.Cause(c.Conn().Context()))
	if !ok || !remote || got != code || reason == "" {
		c.t.Fatalf("the connection ended with %v, want the server's close code %d and a reason", context.Cause(c.Conn().Context()), code)
	}
}

// works reports whether the connection is logged in, by a call that changes
// nothing.
func (c client) works() error {
	c.t.Helper()
	_, err := c.ChangePasswordFinish(servicetest.Within(c.t), &qpcpb.ChangePasswordFinishRequest{Upload: []byte("no upload")})
	if rpc.CodeOf(err) == qpcpb.CodeInvalidField {
		return nil
	}
	return fmt.Errorf("the connection is not logged in: %w", err)
}

// wantWait fails the test unless err is RATE_LIMITED with that wait.
func wantWait(t *testing.T, err error, want time.Duration) {
	t.Helper()
	servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
	var answer *rpc.Error
	if errors.As(err, &answer); answer.RetryAfter != want {
		t.Fatalf("told to wait for %v, want %v", answer.RetryAfter, want)
	}
}
