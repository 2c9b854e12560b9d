package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
	"github.com/quicprochat/qpcd/pkg/username"
)

// Whoever has lost every device and the password comes back with one of eight
// codes on paper: the same identity and name, a new device, a new password.
// Each code seals a bundle of its own with the same content:
//
//	identity_seed   who the account is
//	password_keys   what logs in at the server in place of the password
//	                (opaque.PasswordKey): no method sets a password without
//	                having been logged in
//	codes           what all eight bundles are sealed and found by, so that
//	                whoever comes back can renew them, and the paper stays good
//	set_up_at       when the codes were made, Unix seconds
//
// A change of password renews the bundles before it takes effect, and each then
// holds both keys: at whatever point it is cut off, one of them logs in.
const (
	// maxCandidates bounds the password keys of changes whose outcome is not
	// known: each is a change whose answer was lost.
	maxCandidates = 4
	// maxStale bounds the bundles that wait to be deleted.
	maxStale = 64
)

// recoveryContent is what a bundle holds.
type recoveryContent struct {
	IdentitySeed []byte             `json:"identity_seed"`
	PasswordKeys [][]byte           `json:"password_keys"`
	Codes        []e2ee.RecoveryKey `json:"codes"`
	SetUpAt      int64              `json:"set_up_at"`
}

// parseRecovery reads the content of a bundle, which only its owner can have
// sealed; but a program of another version may have.
func parseRecovery(content []byte) (recoveryContent, error) {
	var r recoveryContent
	if err := json.Unmarshal(content, &r); err != nil {
		return r, fmt.Errorf("the content of the recovery bundle: %w: %w", e2ee.ErrMalformed, err)
	}
	if len(r.IdentitySeed) != e2ee.SeedSize || len(r.PasswordKeys) == 0 || len(r.PasswordKeys) > 1+maxCandidates || len(r.Codes) > e2ee.RecoveryCodes {
		return r, fmt.Errorf("the content of the recovery bundle: %w", e2ee.ErrMalformed)
	}
	for _, key := range r.PasswordKeys {
		if len(key) != opaque.PasswordKeyLength {
			return r, fmt.Errorf("a key in the recovery bundle: %w", e2ee.ErrMalformed)
		}
	}
	for _, code := range r.Codes {
		if err := code.Check(); err != nil {
			return r, err
		}
	}
	return r, nil
}

// storedRecovery is what this machine keeps to renew the bundles with. It does
// not lead back to the codes.
type storedRecovery struct {
	Codes []e2ee.RecoveryKey
	// Confirmed is the key of the password that was the right one when it was
	// last looked at; Candidates are those of changes begun since, newest
	// first.
	Confirmed  []byte
	Candidates [][]byte `json:",omitempty"`
	// Stale are token hashes of bundles to delete.
	Stale [][]byte `json:",omitempty"`
	// SetUp is when the codes were given out; zero while they are being made.
	SetUp time.Time
}

func (c *Client) storedRecovery(ctx context.Context) (r storedRecovery, known bool, err error) {
	known, err = c.box.get(ctx, keyRecovery, &r)
	return r, known, err
}

func (c *Client) saveRecovery(ctx context.Context, r storedRecovery) error {
	b := c.box.batch()
	b.put(keyRecovery, r)
	return b.apply(ctx)
}

// Recovery is what is known here of the account's recovery codes.
type Recovery struct {
	// SetUp is when they were made; zero when there are none.
	SetUp time.Time
	// Codes is how many there are.
	Codes int
}

// RecoveryStatus tells whether recovery is set up, as far as this machine
// knows; the server is not asked.
func (c *Client) RecoveryStatus(ctx context.Context) (Recovery, error) {
	r, _, err := c.storedRecovery(ctx)
	if r.SetUp.IsZero() {
		return Recovery{}, err
	}
	return Recovery{SetUp: r.SetUp, Codes: len(r.Codes)}, err
}

// SetUpRecovery makes eight recovery codes and stores their bundles at the
// server. Earlier codes are worth nothing from then on. The codes are nowhere
// but in what it returns: the caller shows them, once. The error for a wrong
// password has CodeBadCredentials.
func (c *Client) SetUpRecovery(ctx context.Context, password []byte) ([]e2ee.RecoveryCode, error) {
	codes := make([]e2ee.RecoveryCode, e2ee.RecoveryCodes)
	next := storedRecovery{}
	for i := range codes {
		var err error
		if codes[i], err = e2ee.NewRecoveryCode(c.options.Rand); err != nil {
			return nil, err
		}
		key, err := codes[i].Key(c.account.Username)
		if err != nil {
			return nil, err
		}
		next.Codes = append(next.Codes, key)
	}
	before, _, err := c.storedRecovery(ctx)
	if err != nil {
		return nil, err
	}
	next.Stale = before.hashes()
	err = c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		if next.Confirmed, err = c.passwordKey(ctx, calls, password); err != nil {
			return err
		}
		// What is about to lie at the server is noted before it does.
		if err := c.saveRecovery(ctx, next); err != nil {
			return err
		}
		if err := deleteBundles(ctx, calls, next.Stale); err != nil {
			return err
		}
		made := next
		made.Stale, made.SetUp = nil, c.options.Now()
		if err := c.storeBundles(ctx, calls, made); err != nil {
			return err
		}
		return c.saveRecovery(ctx, made)
	})
	if err != nil {
		return nil, err
	}
	return codes, nil
}

// RemoveRecovery deletes the bundles at the server: the codes are worth nothing
// from then on.
func (c *Client) RemoveRecovery(ctx context.Context) error {
	r, known, err := c.storedRecovery(ctx)
	if err != nil || !known {
		return err
	}
	err = c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error { return deleteBundles(ctx, calls, r.hashes()) })
	if err != nil {
		return err
	}
	b := c.box.batch()
	b.remove(keyRecovery)
	return b.apply(ctx)
}

// hashes returns the token hashes of all bundles that may lie at the server.
func (r storedRecovery) hashes() [][]byte {
	all := r.Stale
	for _, code := range r.Codes {
		all = append(all, code.TokenHash)
	}
	return all[max(0, len(all)-maxStale):]
}

func deleteBundles(ctx context.Context, calls *rpc.Client, hashes [][]byte) error {
	for _, hash := range hashes {
		_, err := qpcpb.NewRecoveryClient(calls).DeleteRecoveryBundle(ctx, &qpcpb.DeleteRecoveryBundleRequest{TokenHash: hash})
		if err != nil && rpc.CodeOf(err) != qpcpb.CodeBundleNotFound {
			return fmt.Errorf("deleting a recovery bundle: %w", err)
		}
	}
	return nil
}

// storeBundles seals a bundle for each code and stores it.
func (c *Client) storeBundles(ctx context.Context, calls *rpc.Client, r storedRecovery) error {
	content, err := json.Marshal(recoveryContent{
		IdentitySeed: c.account.IdentitySeed, PasswordKeys: append([][]byte{r.Confirmed}, r.Candidates...), Codes: r.Codes, SetUpAt: r.SetUp.Unix(),
	})
	if err != nil {
		return err
	}
	for _, code := range r.Codes {
		bundle, err := e2ee.SealRecovery(c.options.Rand, code, content)
		if err != nil {
			return err
		}
		_, err = qpcpb.NewRecoveryClient(calls).StoreRecoveryBundle(ctx, &qpcpb.StoreRecoveryBundleRequest{TokenHash: code.TokenHash, Bundle: bundle})
		if err != nil {
			return fmt.Errorf("storing a recovery bundle: %w", err)
		}
	}
	return nil
}

// passwordKey checks the account's password with the server and returns its
// key. The login that it begins is not finished, so that no session comes of
// it.
func (c *Client) passwordKey(ctx context.Context, calls *rpc.Client, password []byte) (opaque.PasswordKey, error) {
	login, ke1, err := opaque.NewLogin(c.options.Rand, password)
	if err != nil {
		return nil, err
	}
	start, err := qpcpb.NewAuthClient(calls).OpaqueLoginStart(ctx, &qpcpb.OpaqueLoginStartRequest{Username: c.account.Username, Request: ke1})
	if err != nil {
		return nil, err
	}
	_, key, err := login.FinishKeeping(start.Response)
	if errors.Is(err, opaque.ErrAuthentication) {
		return nil, rpc.Errorf(qpcpb.CodeBadCredentials, "the password is wrong")
	}
	if err != nil {
		return nil, fmt.Errorf("checking the password: %w", err)
	}
	return key, nil
}

// renewRecovery makes the bundles hold the key of a password that is about to
// be the account's, beside the keys so far.
func (c *Client) renewRecovery(ctx context.Context, calls *rpc.Client, key opaque.PasswordKey) error {
	r, known, err := c.storedRecovery(ctx)
	if err != nil || !known || r.SetUp.IsZero() {
		return err
	}
	candidates := [][]byte{key}
	for _, k := range r.Candidates {
		if !bytes.Equal(k, key) && len(candidates) < maxCandidates {
			candidates = append(candidates, k)
		}
	}
	r.Candidates = candidates
	if err := c.saveRecovery(ctx, r); err != nil {
		return err
	}
	return c.storeBundles(ctx, calls, r)
}

// confirmRecovery notes that the password of a key is the account's now. The
// bundles keep the keys of before, which open nothing any more.
func (c *Client) confirmRecovery(ctx context.Context, key opaque.PasswordKey) error {
	r, known, err := c.storedRecovery(ctx)
	if err != nil || !known {
		return err
	}
	r.Confirmed, r.Candidates = key, nil
	return c.saveRecovery(ctx, r)
}

// ErrRecoveryStale reports a bundle that does not log in any more.
var ErrRecoveryStale = errors.New("the recovery code is right, but the account has another password since: it was changed by a program that did not renew the codes, or by the server's owner; ask the owner to reset it")

// Comeback is what it takes to come back.
type Comeback struct {
	Server   string // as the user gave it; kept with the profile
	Username string
	Code     e2ee.RecoveryCode
	Password []byte // from now on
	Device   string // what other devices see, "laptop" say
}

// Recover brings an account back with a recovery code, into a store without a
// profile: the same name and identity on a new device, with a new password.
//
// The devices of before lose access. What was written to them and lies at the
// server cannot be read on the new one; conversations go on in new MLS groups.
// The codes stay good.
//
// A recovery that was cut off is repeated with the same password. When it
// returns a client and an error, the account is back, and Login and Run make
// good what failed after it. The errors: CodeBundleNotFound for a wrong code or
// name, CodeRateLimited after five in an hour, ErrRecoveryStale.
func Recover(ctx context.Context, o Options, r Comeback) (*Client, error) {
	folded, err := username.Fold(r.Username)
	if err != nil {
		return nil, err
	}
	switch c, err := Open(ctx, o, r.Password); {
	case errors.Is(err, ErrNoProfile):
	case err != nil:
		return nil, err
	case c.account.Registered:
		return nil, ErrProfileExists
	case c.account.Username != folded || c.account.Server != r.Server:
		return nil, ErrOtherName
	}
	key, err := r.Code.Key(folded)
	if err != nil {
		return nil, err
	}
	conn, err := (&Client{options: o}).dial(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(transport.CloseNormal, "")
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	calls := rpc.NewClient(conn)
	response, err := qpcpb.NewRecoveryClient(calls).FetchRecoveryBundle(ctx, &qpcpb.FetchRecoveryBundleRequest{TokenHash: key.TokenHash})
	if err != nil {
		return nil, err
	}
	content, err := e2ee.OpenRecovery(key, response.Bundle)
	if err != nil {
		return nil, err
	}
	bundle, err := parseRecovery(content)
	if err != nil {
		return nil, err
	}
	// What an attempt that was cut off has left is sealed in its own vault.
	if err := o.Store.Apply(ctx, Change{Key: keySession}, Change{Key: keyRecovery}); err != nil {
		return nil, fmt.Errorf("preparing the profile: %w", err)
	}
	c, err := create(ctx, o, Registration{Server: r.Server, Username: r.Username, Password: r.Password, Device: r.Device}, folded, bundle.IdentitySeed)
	if err != nil {
		return nil, err
	}
	if err := c.comeBack(ctx, calls, bundle, r.Password); err != nil {
		return nil, err
	}
	return c, c.introduce(ctx, &link{rpc: calls})
}

// comeBack logs in with the keys of a bundle, and makes the account this
// machine's alone.
func (c *Client) comeBack(ctx context.Context, calls *rpc.Client, bundle recoveryContent, password []byte) error {
	stored := storedRecovery{Codes: bundle.Codes, SetUp: time.Unix(bundle.SetUpAt, 0)}
	err := error(ErrRecoveryStale)
	for _, key := range bundle.PasswordKeys {
		login, ke1, loginErr := opaque.NewLoginWithKey(c.options.Rand, key)
		if loginErr != nil {
			return loginErr
		}
		loginErr = c.finishLogin(ctx, calls, login, ke1)
		if rpc.CodeOf(loginErr) == qpcpb.CodeBadCredentials {
			continue
		}
		err, stored.Confirmed = loginErr, key
		break
	}
	if err != nil {
		return err
	}
	if err := c.saveRecovery(ctx, stored); err != nil {
		return err
	}
	if err := c.changePasswordAt(ctx, calls, password); err != nil {
		return err
	}
	devices, err := qpcpb.NewDeviceClient(calls).ListDevices(ctx, &qpcpb.ListDevicesRequest{})
	if err != nil {
		return fmt.Errorf("listing the devices of before: %w", err)
	}
	own := c.DeviceID()
	for _, d := range devices.Devices {
		if bytes.Equal(d.DeviceId, own[:]) {
			continue
		}
		_, err := qpcpb.NewDeviceClient(calls).RevokeDevice(ctx, &qpcpb.RevokeDeviceRequest{DeviceId: d.DeviceId})
		if err != nil && rpc.CodeOf(err) != qpcpb.CodeDeviceNotFound {
			return fmt.Errorf("revoking a device of before: %w", err)
		}
	}
	c.account.Registered = true
	return c.saveAccount(ctx)
}

// meet remembers the hybrid key of a peer who has written for the first time,
// so that it is noticed when they come back with another one.
func (c *Client) meet(ctx context.Context, l *link, events []Event) {
	for _, event := range events {
		if event.Kind != EventMessage || event.Message.Mine {
			continue
		}
		p, err := c.contact(ctx, event.Peer)
		if err == nil && p.HasChannel && p.Hybrid == nil {
			_, err = c.refreshHybrid(ctx, l, p)
		}
		if err != nil && ctx.Err() == nil {
			c.options.Log.Debug("a hybrid key is not remembered yet", "error", err)
		}
	}
}
