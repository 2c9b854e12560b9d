package auth_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/device"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestSessionSurvivesRestart(t *testing.T) {
	h := open(t)
	h.Open()
	alice := person("alice")
	h.registers(alice)
	token := h.quic().mustLogin(alice)
	h.restart()

	c := h.quic()
	if err := c.Resume(servicetest.Within(t), token); err != nil {
		t.Fatal(err)
	}
	if err := c.works(); err != nil {
		t.Error(err)
	}
	// The file knows the hash only.
	if err := h.DB.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(h.DB.Path())
	if err != nil {
		t.Fatal(err)
	}
	if hash := sha256.Sum256(token); !bytes.Contains(file, hash[:]) {
		t.Error("the hash of the token is not in the database: this test looks at the wrong place")
	}
	if bytes.Contains(file, token) {
		t.Error("the token is in the database")
	}
}

func TestWrongTokens(t *testing.T) {
	h := open(t)
	h.Open()
	alice := person("alice")
	h.registers(alice)
	good := h.session(alice, nil)
	flipped := bytes.Clone(good)
	flipped[31] ^= 1
	hash := sha256.Sum256(good)
	for what, token := range map[string][]byte{
		"empty": {}, "zeros": make([]byte, 32), "one bit off": flipped, "cut short": good[:31],
		"too long": append(good[:32:32], 0), "the stored hash": hash[:],
	} {
		c := h.quic()
		if err := c.Resume(servicetest.Within(t), token); !errors.Is(err, rpc.ErrSessionRefused) {
			t.Errorf("%s: got %v, want a refusal", what, err)
		}
		if c.works() == nil {
			t.Errorf("%s: the connection is logged in", what)
		}
		if _, err := c.begins("alice" + what[:1]); err != nil {
			t.Errorf("%s: the connection is not usable: %v", what, err)
		}
	}
}

func (h *house) validUntil(token []byte) (until int64) {
	h.t.Helper()
	err := h.DB.Read(h.t.Context(), func(tx *store.Tx) error {
		return tx.QueryRow("SELECT valid_until FROM auth_session WHERE token_hash = ?", sha256.Sum256(token)).Scan(&until)
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return until
}

func TestSessionLifeCountsFromLastUse(t *testing.T) {
	h := open(t)
	alice := person("alice")
	h.registers(alice)
	token := h.session(alice, nil)

	h.Wall.Advance(1000 * day) // a jump of the clock ends nothing
	h.Service.Advance(30*day - time.Second)
	h.sweep()
	if !h.resumes(token) {
		t.Fatal("the session ended before its time")
	}
	h.Service.Advance(30*day - time.Second)
	h.restart()
	if !h.resumes(token) {
		t.Fatal("using the session did not prolong it")
	}

	// Its use is written down once an hour.
	written := h.validUntil(token)
	h.Service.Advance(time.Hour - time.Second)
	if !h.resumes(token) || h.validUntil(token) != written {
		t.Error("the session was written within the hour")
	}
	h.Service.Advance(time.Second)
	if !h.resumes(token) || h.validUntil(token) != written+3600 {
		t.Errorf("an hour on the session lasts until %d, want %d", h.validUntil(token), written+3600)
	}

	h.Wall.Advance(-2000 * day)
	h.Service.Advance(30 * day)
	if h.resumes(token) {
		t.Error("the session outlived its time")
	}
	h.sweep()
	if n := h.Count("auth_session"); n != 0 {
		t.Errorf("%d expired sessions are left", n)
	}
}

func TestAtMost32Sessions(t *testing.T) {
	h := open(t)
	h.Open()
	alice, bob := person("alice"), person("bob")
	h.registers(alice, bob)
	bobs := h.session(bob, nil)
	now := h.DB.ServiceTime() + int64(30*day/time.Second)
	oldest := h.sessionUntil(alice, nil, now-1)
	var others [][]byte
	for range 31 {
		others = append(others, h.sessionUntil(alice, nil, now+10)) // ahead of what a login gets now
	}
	connected := h.quic()
	if err := connected.Resume(servicetest.Within(t), oldest); err != nil {
		t.Fatal(err)
	}

	c := h.quic()
	latest := c.mustLogin(alice)
	connected.endsWith(transport.CloseSessionRevoked)
	if h.resumes(oldest) {
		t.Error("the session that would have ended first is still there")
	}
	for i, token := range append(others, latest, bobs) {
		if !h.resumes(token) {
			t.Errorf("session %d of 33 has ended", i)
		}
	}
	// A login counts as made last even where the others are ahead of it.
	again := h.quic().mustLogin(alice)
	if !h.resumes(again) {
		t.Error("a login made room by ending itself")
	}
	if n := h.Count("auth_session"); n != 33 {
		t.Errorf("there are %d sessions, want 32 and bob's", n)
	}
}

// connected is a connection with the token of its session.
type connected struct {
	client
	token []byte
}

// connects resumes a new session.
func (h *house) connects(a account, device *rpc.DeviceID) connected {
	h.t.Helper()
	c := connected{h.quic(), h.session(a, device)}
	if err := c.Resume(servicetest.Within(h.t), c.token); err != nil {
		h.t.Fatal(err)
	}
	return c
}

// Each way to end sessions ends exactly those it should: the token is refused,
// the connection gets SessionEnded and close code 4, after the answer where it
// asked for it itself.
func TestWaysToEndSessions(t *testing.T) {
	phone := servicetest.Device("phone")
	for _, test := range []struct {
		name string
		end  func(c client, alice account) error
		// Whose sessions end: the caller's, another of the account, one of the
		// account on the phone.
		caller, other, phone bool
	}{
		{"logout", func(c client, _ account) error {
			_, err := c.Logout(servicetest.Within(c.t), &qpcpb.LogoutRequest{})
			return err
		}, true, false, false},
		{"log out everywhere", func(c client, _ account) error {
			_, err := c.Logout(servicetest.Within(c.t), &qpcpb.LogoutRequest{AllSessions: true})
			return err
		}, true, true, true},
		{"change of password", func(c client, alice account) error { return c.changePassword(alice, "new") }, false, true, true},
		{"device revoked", func(c client, _ account) error {
			_, err := qpcpb.NewDeviceClient(c.Client).RevokeDevice(servicetest.Within(c.t), &qpcpb.RevokeDeviceRequest{DeviceId: phone[:]})
			return err
		}, false, false, true},
		{"account deleted", func(c client, _ account) error {
			_, err := c.DeleteAccount(servicetest.Within(c.t), &qpcpb.DeleteAccountRequest{})
			return err
		}, true, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t)
			qpcpb.RegisterDeviceServer(h.Server, device.New(device.Options{
				DB: h.DB, Accounts: h.auth, Sessions: h.Hub, Now: h.Wall.Now, Forget: []device.Forget{h.auth.ForgetDeviceTx},
			}))
			h.Open()
			alice, bob := person("alice"), person("bob")
			h.registers(alice, bob)
			caller, other, onPhone, bobs := h.connects(alice, nil), h.connects(alice, nil), h.connects(alice, &phone), h.connects(bob, &phone)
			_, err := qpcpb.NewDeviceClient(caller.Client).RegisterDevice(servicetest.Within(t), &qpcpb.RegisterDeviceRequest{DeviceId: phone[:], DeviceName: "phone"})
			if err != nil {
				t.Fatal(err)
			}

			if err := test.end(caller.client, alice); err != nil {
				t.Fatal("the caller got no answer:", err)
			}
			for _, s := range []struct {
				who   string
				c     connected
				ended bool
			}{{"the caller", caller, test.caller}, {"the other session", other, test.other}, {"the phone", onPhone, test.phone}, {"bob", bobs, false}} {
				if s.ended {
					s.c.endsWith(transport.CloseSessionRevoked)
				} else if err := s.c.works(); err != nil {
					t.Errorf("%s: %v", s.who, err)
				}
				if got := h.resumes(s.c.token); got == s.ended {
					t.Errorf("%s: resuming the session answers %v", s.who, got)
				}
			}
		})
	}
}

func TestChangePassword(t *testing.T) {
	h := open(t)
	alice := person("alice")
	h.registers(alice)
	c := h.from(home)
	if err := c.Resume(servicetest.Within(t), h.session(alice, nil)); err != nil {
		t.Fatal(err)
	}
	if err := c.changePassword(alice, "new"); err != nil {
		t.Fatal(err)
	}
	_, err := h.from(home).login(alice)
	servicetest.WantCode(t, err, qpcpb.CodeBadCredentials)
	changed := alice
	changed.password = "new"
	h.from(home).mustLogin(changed)

	for _, upload := range [][]byte{nil, make([]byte, 191), make([]byte, 192), make([]byte, 193)} {
		_, err := c.ChangePasswordFinish(servicetest.Within(t), &qpcpb.ChangePasswordFinishRequest{Upload: upload})
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	for _, request := range [][]byte{nil, make([]byte, 31), make([]byte, 32)} {
		_, err := c.ChangePasswordStart(servicetest.Within(t), &qpcpb.ChangePasswordStartRequest{Request: request})
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	h.from(home).mustLogin(changed)
}

// A session that has ended on its way in must not change the password: it may
// have been ended by a change of password.
func TestEndedSessionChangesNoPassword(t *testing.T) {
	h := open(t)
	alice := person("alice")
	h.registers(alice)
	c := h.from(home)
	token := h.session(alice, nil)
	if err := c.Resume(servicetest.Within(t), token); err != nil {
		t.Fatal(err)
	}
	h.Write(func(tx *store.Tx) error {
		_, err := tx.Exec("DELETE FROM auth_session WHERE token_hash = ?", sha256.Sum256(token))
		return err
	})
	servicetest.WantCode(t, c.changePassword(alice, "stolen"), qpcpb.CodeUnauthenticated)
	h.from(home).mustLogin(alice)
}

func TestLoginOnBehalfOfADevice(t *testing.T) {
	var seen []rpc.DeviceID
	h := open(t, func(o *auth.Options) {
		o.DeviceSeen = func(_ *store.Tx, _ rpc.IdentityKey, id rpc.DeviceID) error {
			seen = append(seen, id) // on the writer, before the answer
			return nil
		}
		o.Admins = []rpc.IdentityKey{person("alice").identity()}
	})
	alice, bob := person("alice"), person("bob")
	h.registers(alice, bob)
	phone := servicetest.Device("phone")
	c := h.from(home)
	login, ke2, err := c.beginsWith(alice)
	if err != nil {
		t.Fatal(err)
	}
	ke3, _, _, _, err := login.Finish(ke2)
	if err != nil {
		t.Fatal(err)
	}
	identity := alice.identity()
	got, err := c.OpaqueLoginFinish(servicetest.Within(t), &qpcpb.OpaqueLoginFinishRequest{
		Username: "alice", Finalization: ke3, IdentityKey: identity[:], DeviceId: phone[:],
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) != 1 || seen[0] != phone {
		t.Errorf("devices seen: %v, want the phone", seen)
	}
	for _, test := range []struct {
		token []byte
		want  rpc.Principal
	}{
		{got.SessionToken, rpc.Principal{Identity: identity, Username: "alice", Device: phone, HasDevice: true, Admin: true}},
		{h.session(bob, nil), rpc.Principal{Identity: bob.identity(), Username: "bob"}},
	} {
		test.want.Session = sha256.Sum256(test.token)
		p, err := h.auth.ResumeSession(t.Context(), test.token)
		if err != nil || p != test.want {
			t.Errorf("got %+v and %v, want %+v", p, err, test.want)
		}
	}
}

func TestAccounts(t *testing.T) {
	h := open(t)
	alice, bob, carol := person("alice"), person("bob"), person("carol")
	h.registers(bob, carol, alice, person("al_bert"))
	err := h.DB.Read(t.Context(), func(tx *store.Tx) error {
		if n, err := h.auth.CountTx(tx); err != nil || n != 4 {
			t.Errorf("got %d accounts and %v, want 4", n, err)
		}
		for _, test := range []struct {
			prefix, after string
			limit         int
			want          string
		}{
			{"", "", 10, "al_bert alice bob carol "}, {"", "alice", 10, "bob carol "}, {"al", "", 10, "al_bert alice "},
			{"al_", "", 10, "al_bert "}, {"", "", 2, "al_bert alice "}, {"x", "", 10, ""}, {"%", "", 10, ""}, {"al", "al_bert", 1, "alice "},
		} {
			accounts, err := h.auth.ListTx(tx, test.prefix, test.after, test.limit)
			if err != nil {
				return err
			}
			got := ""
			for _, a := range accounts {
				got += a.Username + " "
			}
			if got != test.want {
				t.Errorf("prefix %q after %q limit %d: got %q, want %q", test.prefix, test.after, test.limit, got, test.want)
			}
		}
		if _, err := h.auth.FindByNameTx(tx, "dave"); !errors.Is(err, auth.ErrNoAccount) {
			t.Errorf("got %v for a name without account", err)
		}
		a, err := h.auth.FindByKeyTx(tx, bob.identity())
		if err != nil || a.Username != "bob" || a.RegisteredAt.Unix() != h.Wall.Now().Unix() {
			t.Errorf("got %+v and %v", a, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	// last_seen moves at most every ten minutes, and back with the clock.
	seen := func() (at int64) {
		h.auth.Seen(t.Context(), bob.identity())
		err := h.DB.Read(t.Context(), func(tx *store.Tx) error {
			a, err := h.auth.FindByNameTx(tx, "bob")
			at = a.LastSeenAt.Unix()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	start := seen()
	h.Wall.Advance(9 * time.Minute)
	if at := seen(); at != start {
		t.Error("last_seen was written within ten minutes")
	}
	h.Wall.Advance(2 * time.Minute)
	if at := seen(); at != start+11*60 {
		t.Errorf("last_seen is %d, want %d", at, start+11*60)
	}
	h.Wall.Advance(-365 * day)
	if at := seen(); at != h.Wall.Now().Unix() {
		t.Error("last_seen stays ahead of a clock that was put back")
	}
}
