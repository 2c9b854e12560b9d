package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
	"github.com/quicprochat/qpcd/pkg/username"
)

// Errors that a program decides on.
var (
	// ErrNoProfile reports a store that holds no profile.
	ErrNoProfile = errors.New("there is no profile here")
	// ErrProfileExists reports a store that holds a profile already.
	ErrProfileExists = errors.New("this profile is registered already")
	// ErrOtherName reports a half-made profile of another name or server.
	ErrOtherName = errors.New("this profile belongs to another name or server")
)

// ReadProfile returns what is known of a store's profile without its password.
func ReadProfile(ctx context.Context, s Store) (Profile, error) {
	var p Profile
	value, err := s.Get(ctx, keyProfile)
	if errors.Is(err, ErrNotStored) {
		return p, ErrNoProfile
	}
	if err != nil {
		return p, fmt.Errorf("reading the profile: %w", err)
	}
	if err := json.Unmarshal(value, &p); err != nil {
		return p, fmt.Errorf("reading the profile: %w", err)
	}
	return p, nil
}

// Registration is what a new account needs.
type Registration struct {
	Server   string // as the user gave it; kept with the profile
	Username string
	Password []byte
	Invite   string // where registration is by invitation
	Device   string // what other devices see, "laptop" say
}

// Register makes an account: on this machine first, then on the server. When
// the answer of the server is lost, calling it again with the same name and
// password finishes what was begun. When it returns a client and an error, the
// account is there, and Login and Run make good what failed after it.
func Register(ctx context.Context, o Options, r Registration) (*Client, error) {
	folded, err := username.Fold(r.Username)
	if err != nil {
		return nil, err
	}
	c, err := Open(ctx, o, r.Password)
	switch {
	case errors.Is(err, ErrNoProfile):
		if c, err = create(ctx, o, r, folded, nil); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case c.account.Registered:
		return nil, ErrProfileExists
	case c.account.Username != folded || c.account.Server != r.Server:
		return nil, ErrOtherName
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(transport.CloseNormal, "")
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	calls := rpc.NewClient(conn)
	err = c.registerAt(ctx, calls, r)
	loggedIn := false
	if rpc.CodeOf(err) == qpcpb.CodeNameTaken || rpc.CodeOf(err) == qpcpb.CodeIdentityTaken {
		// Perhaps it is ours: an earlier answer may have been lost.
		switch loginErr := c.loginAt(ctx, calls, r.Password); {
		case loginErr == nil:
			err, loggedIn = nil, true
		case rpc.CodeOf(loginErr) != qpcpb.CodeBadCredentials:
			err = loginErr // whose it is stays open
		}
	}
	if err != nil {
		return nil, err
	}
	c.account.Registered = true
	if err := c.saveAccount(ctx); err != nil {
		return nil, err
	}
	if !loggedIn {
		if err := c.loginAt(ctx, calls, r.Password); err != nil {
			return c, err
		}
	}
	return c, c.introduce(ctx, &link{rpc: calls})
}

// create makes the local half of a profile, with an identity seed that there is
// already, or a new one for nil.
func create(ctx context.Context, o Options, r Registration, folded string, identitySeed []byte) (*Client, error) {
	kdf := o.KDF
	if kdf == (e2ee.KDF{}) {
		kdf = e2ee.DefaultKDF()
	}
	vault, header, err := e2ee.NewVault(o.Rand, r.Password, kdf)
	if err != nil {
		return nil, err
	}
	secret := make([]byte, 2*e2ee.SeedSize+e2ee.DeviceIDSize)
	if _, err := io.ReadFull(o.Rand, secret); err != nil {
		return nil, fmt.Errorf("making an identity: %w", err)
	}
	if identitySeed == nil {
		identitySeed = secret[:e2ee.SeedSize]
	}
	a := account{
		Server: r.Server, Username: folded, DeviceName: r.Device,
		IdentitySeed: identitySeed, HybridSeed: secret[e2ee.SeedSize : 2*e2ee.SeedSize],
		DeviceID: rpc.DeviceID(secret[2*e2ee.SeedSize:]),
	}
	c, err := newClient(o, vault, a)
	if err != nil {
		return nil, err
	}
	profile, err := json.Marshal(Profile{Server: r.Server, Username: folded, Identity: c.Identity()})
	if err != nil {
		return nil, err
	}
	b := c.box.batch()
	b.changes = append(b.changes, Change{keyProfile, profile}, Change{keyVault, header})
	b.put(keyAccount, a)
	return c, b.apply(ctx)
}

// Open opens the profile in a store with its password: ErrNoProfile,
// e2ee.ErrPassword.
func Open(ctx context.Context, o Options, password []byte) (*Client, error) {
	vault, err := openVault(ctx, o.Store, keyVault, password)
	if errors.Is(err, e2ee.ErrPassword) {
		// A change of password may have been cut off.
		if next, nextErr := openVault(ctx, o.Store, keyNextVault, password); nextErr == nil {
			vault, err = next, nil
		}
	}
	if err != nil {
		return nil, err
	}
	var a account
	if known, err := (&box{store: o.Store, vault: vault, random: o.Rand}).get(ctx, keyAccount, &a); err != nil {
		return nil, err
	} else if !known {
		return nil, ErrNoProfile
	}
	return newClient(o, vault, a)
}

func openVault(ctx context.Context, s Store, key string, password []byte) (*e2ee.Vault, error) {
	header, err := s.Get(ctx, key)
	if errors.Is(err, ErrNotStored) {
		return nil, ErrNoProfile
	}
	if err != nil {
		return nil, fmt.Errorf("reading the profile: %w", err)
	}
	return e2ee.OpenVault(header, password)
}

func newClient(o Options, vault *e2ee.Vault, a account) (*Client, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	self, err := e2ee.NewIdentity(a.IdentitySeed)
	if err != nil {
		return nil, err
	}
	hybrid, err := e2ee.NewHybridKey(a.HybridSeed)
	if err != nil {
		return nil, err
	}
	return &Client{
		options:     o,
		box:         &box{store: o.Store, vault: vault, random: o.Rand},
		account:     a,
		self:        self,
		device:      self.FirstDevice(),
		hybrid:      hybrid,
		events:      make(chan Event, maxEvents),
		outbox:      make(signal, 1),
		lookups:     make(chan struct{}, 1),
		groups:      make(map[rpc.ChannelID][]*chatGroup),
		fresh:       make(map[rpc.IdentityKey]bool),
		freshHybrid: make(map[rpc.IdentityKey]bool),
		paused:      make(map[Conversation]time.Time),
		slow:        make(map[slowMember]time.Time),
		commits:     make(signal, 1),
		rooms:       make(map[rpc.ChannelID]*roomWork),
		waiters:     make(map[string]chan error),
		nothingHeld: make(map[rpc.ChannelID]bool),
		gapGrace:    gapGrace,
	}, nil
}

func (c *Client) saveAccount(ctx context.Context) error {
	b := c.box.batch()
	b.put(keyAccount, c.account)
	return b.apply(ctx)
}

// registerAt runs an OPAQUE registration (RFC 9807, section 5).
func (c *Client) registerAt(ctx context.Context, calls *rpc.Client, r Registration) error {
	auth := qpcpb.NewAuthClient(calls)
	registration, request, err := opaque.NewRegistration(c.options.Rand, r.Password)
	if err != nil {
		return err
	}
	start, err := auth.OpaqueRegisterStart(ctx, &qpcpb.OpaqueRegisterStartRequest{Username: c.account.Username, Request: request})
	if err != nil {
		return err
	}
	upload, _, err := registration.Finish(start.Response)
	if err != nil {
		return fmt.Errorf("registering: %w", err)
	}
	identity := c.Identity()
	_, err = auth.OpaqueRegisterFinish(ctx, &qpcpb.OpaqueRegisterFinishRequest{
		Username: c.account.Username, Upload: upload, IdentityKey: identity[:], Invite: r.Invite,
		IdentityProof: c.self.IdentityProof(c.account.Username, upload),
	})
	return err
}

// loginAt runs an OPAQUE login (RFC 9807, section 6) and stores the session.
func (c *Client) loginAt(ctx context.Context, calls *rpc.Client, password []byte) error {
	login, ke1, err := opaque.NewLogin(c.options.Rand, password)
	if err != nil {
		return err
	}
	return c.finishLogin(ctx, calls, login, ke1)
}

// finishLogin makes a login of a begun one, and stores the session.
func (c *Client) finishLogin(ctx context.Context, calls *rpc.Client, login *opaque.Login, ke1 []byte) error {
	auth := qpcpb.NewAuthClient(calls)
	start, err := auth.OpaqueLoginStart(ctx, &qpcpb.OpaqueLoginStartRequest{Username: c.account.Username, Request: ke1})
	if err != nil {
		return err
	}
	ke3, _, _, _, err := login.Finish(start.Response)
	if errors.Is(err, opaque.ErrAuthentication) {
		return rpc.Errorf(qpcpb.CodeBadCredentials, "name or password is wrong")
	}
	if err != nil {
		return fmt.Errorf("logging in: %w", err)
	}
	identity, deviceID := c.Identity(), c.DeviceID()
	finish, err := auth.OpaqueLoginFinish(ctx, &qpcpb.OpaqueLoginFinishRequest{
		Username: c.account.Username, Finalization: ke3, IdentityKey: identity[:], DeviceId: deviceID[:],
	})
	if err != nil {
		return err
	}
	b := c.box.batch()
	b.put(keySession, session{Token: finish.SessionToken})
	return b.apply(ctx)
}

// Login logs the account in anew, after a logout or when the session has
// ended.
func (c *Client) Login(ctx context.Context, password []byte) error {
	return c.withConnection(ctx, func(ctx context.Context, calls *rpc.Client) error {
		if err := c.loginAt(ctx, calls, password); err != nil {
			return err
		}
		// The server may have forgotten the device meanwhile.
		c.account.Introduced = false
		return c.introduce(ctx, &link{rpc: calls})
	})
}

func (c *Client) withConnection(ctx context.Context, f func(context.Context, *rpc.Client) error) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(transport.CloseNormal, "")
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx, rpc.NewClient(conn))
}

// Call runs f with a connection that is logged in, for a program that makes
// one call and ends. Inside of Run use the methods of Client.
func (c *Client) Call(ctx context.Context, f func(context.Context, *rpc.Client) error) error {
	conn, err := c.resume(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(transport.CloseNormal, "")
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return f(ctx, rpc.NewClient(conn))
}

// Logout ends this session, or all sessions of the account. The profile stays.
func (c *Client) Logout(ctx context.Context, all bool) error {
	err := c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		_, err := qpcpb.NewAuthClient(calls).Logout(ctx, &qpcpb.LogoutRequest{AllSessions: all})
		return err
	})
	if err != nil && !errors.Is(err, ErrLoginRequired) {
		return err
	}
	b := c.box.batch()
	b.remove(keySession)
	return b.apply(ctx)
}

// ChangePassword changes the password of the account and of this profile.
// When it is cut off, either password may be the right one: both open the
// profile until the change is repeated.
func (c *Client) ChangePassword(ctx context.Context, password []byte) error {
	kdf := c.options.KDF
	if kdf == (e2ee.KDF{}) {
		kdf = e2ee.DefaultKDF()
	}
	header, err := c.box.vault.Rewrap(c.options.Rand, password, kdf)
	if err != nil {
		return err
	}
	if err := c.box.store.Apply(ctx, Change{keyNextVault, header}); err != nil {
		return fmt.Errorf("changing the password: %w", err)
	}
	err = c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		return c.changePasswordAt(ctx, calls, password)
	})
	var refused *rpc.Error
	if errors.As(err, &refused) {
		return errors.Join(err, c.box.store.Apply(ctx, Change{keyNextVault, nil}))
	}
	if err != nil {
		return err
	}
	return c.box.store.Apply(ctx, Change{keyVault, header}, Change{keyNextVault, nil})
}

// changePasswordAt changes the password at the server. The recovery bundles
// come first, so that they open the account whenever it is cut off.
func (c *Client) changePasswordAt(ctx context.Context, calls *rpc.Client, password []byte) error {
	auth := qpcpb.NewAuthClient(calls)
	registration, request, err := opaque.NewRegistration(c.options.Rand, password)
	if err != nil {
		return err
	}
	start, err := auth.ChangePasswordStart(ctx, &qpcpb.ChangePasswordStartRequest{Request: request})
	if err != nil {
		return err
	}
	upload, _, key, err := registration.FinishKeeping(start.Response)
	if err != nil {
		return fmt.Errorf("changing the password: %w", err)
	}
	if err := c.renewRecovery(ctx, calls, key); err != nil {
		return fmt.Errorf("renewing the recovery bundles: %w", err)
	}
	if _, err := auth.ChangePasswordFinish(ctx, &qpcpb.ChangePasswordFinishRequest{Upload: upload}); err != nil {
		return err
	}
	return c.confirmRecovery(ctx, key)
}

// DeleteAccount removes the account from the server. The store is the
// caller's to remove.
func (c *Client) DeleteAccount(ctx context.Context) error {
	return c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		_, err := qpcpb.NewAuthClient(calls).DeleteAccount(ctx, &qpcpb.DeleteAccountRequest{})
		return err
	})
}

// introduce registers the device, the hybrid key and key packages, once. Before
// anything else the key that the server signs with is pinned.
func (c *Client) introduce(ctx context.Context, l *link) error {
	if _, err := c.serverLog(ctx, l.rpc); err != nil {
		return err
	}
	if c.account.Introduced {
		return nil
	}
	deviceID, identity := c.DeviceID(), c.Identity()
	name := c.account.DeviceName
	if name == "" {
		name = "qpc"
	}
	if _, err := qpcpb.NewDeviceClient(l.rpc).RegisterDevice(ctx, &qpcpb.RegisterDeviceRequest{DeviceId: deviceID[:], DeviceName: name}); err != nil {
		return fmt.Errorf("registering this device: %w", err)
	}
	if _, err := qpcpb.NewKeyClient(l.rpc).UploadHybridKey(ctx, &qpcpb.UploadHybridKeyRequest{IdentityKey: identity[:], HybridPublicKey: c.hybrid.Public()}); err != nil {
		return fmt.Errorf("publishing the hybrid key: %w", err)
	}
	if err := c.publishKeyPackages(ctx, l, 1, true); err != nil {
		return err
	}
	if err := c.publishKeyPackages(ctx, l, keyPackageTarget, false); err != nil {
		return err
	}
	c.account.Introduced = true
	return c.saveAccount(ctx)
}

// storedPackage is the private part of a key package.
type storedPackage struct {
	Private    []byte
	LastResort bool
	Made       time.Time
}

// publishKeyPackages makes key packages, storing the private part of each
// before the public part is out.
func (c *Client) publishKeyPackages(ctx context.Context, l *link, count int, lastResort bool) error {
	identity, deviceID := c.Identity(), c.DeviceID()
	for range count {
		public, private, ref, err := e2ee.NewKeyPackage(c.device, e2ee.NewLifetime(c.options.Now()), lastResort)
		if err != nil {
			return fmt.Errorf("making a key package: %w", err)
		}
		b := c.box.batch()
		b.put(packageKey(ref), storedPackage{Private: private, LastResort: lastResort, Made: c.options.Now()})
		if err := b.apply(ctx); err != nil {
			return err
		}
		_, err = qpcpb.NewKeyClient(l.rpc).UploadKeyPackage(ctx, &qpcpb.UploadKeyPackageRequest{
			IdentityKey: identity[:], Package: public, LastResort: lastResort, DeviceId: deviceID[:],
		})
		if rpc.CodeOf(err) == qpcpb.CodeKeyPackageLimit {
			return nil // there are plenty
		}
		if err != nil {
			return fmt.Errorf("publishing a key package: %w", err)
		}
	}
	return nil
}
