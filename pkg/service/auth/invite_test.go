package auth_test

import (
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

// registersWith sends the last message of a registration with a code.
func (h *house) registersWith(a account, code string) error {
	h.t.Helper()
	r := a.finish(h.t)
	r.Invite = code
	return h.from(home).finishWith(r)
}

func (h *house) createsInvite(validFor time.Duration, note string) (auth.Invite, string) {
	h.t.Helper()
	made, code, err := h.auth.CreateInvite(servicetest.Within(h.t), validFor, note)
	if err != nil {
		h.t.Fatal(err)
	}
	return made, code
}

func (h *house) resets(name string) string {
	h.t.Helper()
	_, code, err := h.auth.ResetPassword(servicetest.Within(h.t), name, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	return code
}

func (h *house) openInvites() []auth.Invite {
	h.t.Helper()
	all, err := h.auth.Invites(servicetest.Within(h.t))
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

// renewed is the same name with another key and password.
func (a account) renewed() account {
	other := person(a.name + " renewed")
	return account{a.name, other.password, other.key}
}

func TestOwnerInvites(t *testing.T) {
	h := open(t, func(o *auth.Options) { o.Registration = auth.RegistrationInvite })
	forAlice, code := h.createsInvite(0, "for alice")
	if forAlice.ExpiresAt.Sub(forAlice.CreatedAt) != 7*day || len(forAlice.ID) != 8 {
		t.Errorf("made %+v", forAlice)
	}
	_, short := h.createsInvite(time.Hour, "")
	forCarol, revoked := h.createsInvite(0, "")
	if all := h.openInvites(); len(all) != 3 || !slices.Contains(all, forAlice) {
		t.Errorf("open are %+v", all)
	}
	// As people type it, and once.
	servicetest.WantCode(t, h.registersWith(person("alice"), strings.ToLower(strings.ReplaceAll(code, "-", " "))), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, h.registersWith(person("bob"), code), qpcpb.CodeInviteInvalid)
	// Revoked, once.
	servicetest.WantCode(t, h.auth.RevokeInvite(t.Context(), strings.ToUpper(forCarol.ID)), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, h.auth.RevokeInvite(t.Context(), forCarol.ID), qpcpb.CodeInviteNotFound)
	servicetest.WantCode(t, h.auth.RevokeInvite(t.Context(), forAlice.ID), qpcpb.CodeInviteNotFound)
	servicetest.WantCode(t, h.auth.RevokeInvite(t.Context(), ""), qpcpb.CodeInviteNotFound)
	servicetest.WantCode(t, h.registersWith(person("carol"), revoked), qpcpb.CodeInviteInvalid)
	// Expired, by time in service and not by what the clock says.
	h.Wall.Advance(400 * day)
	if all := h.openInvites(); len(all) != 1 || all[0].ExpiresAt.Sub(h.Wall.Now()) > time.Hour {
		t.Errorf("open are %+v", all)
	}
	h.Service.Advance(time.Hour)
	if all := h.openInvites(); len(all) != 0 {
		t.Errorf("open are %+v", all)
	}
	servicetest.WantCode(t, h.registersWith(person("bob"), short), qpcpb.CodeInviteInvalid)
	// Survives a restart.
	_, lasting := h.createsInvite(0, "")
	h.restart()
	servicetest.WantCode(t, h.registersWith(person("bob"), lasting), qpcpb.CodeUnspecified)
}

func TestInviteBounds(t *testing.T) {
	h := open(t)
	for name, create := range map[string]func() error{
		"a long note":    func() error { _, _, err := h.auth.CreateInvite(t.Context(), 0, strings.Repeat("ж", 101)); return err },
		"a broken note":  func() error { _, _, err := h.auth.CreateInvite(t.Context(), 0, "a\nb"); return err },
		"too long":       func() error { _, _, err := h.auth.CreateInvite(t.Context(), 366*day, ""); return err },
		"too short":      func() error { _, _, err := h.auth.CreateInvite(t.Context(), time.Millisecond, ""); return err },
		"a reset for so": func() error { _, _, err := h.auth.ResetPassword(t.Context(), "alice", -1); return err },
	} {
		if code := rpc.CodeOf(create()); code != qpcpb.CodeInvalidField {
			t.Errorf("%s: %v", name, code)
		}
	}
	h.createsInvite(0, strings.Repeat("ж", 100))
	for range 255 {
		h.createsInvite(time.Hour, "")
	}
	_, _, err := h.auth.CreateInvite(t.Context(), 0, "")
	servicetest.WantCode(t, err, qpcpb.CodeQuotaExceeded)
	if n := len(h.openInvites()); n != 256 {
		t.Errorf("%d are listed", n)
	}
	h.Service.Advance(time.Hour) // what has expired takes no room, swept or not
	h.createsInvite(0, "")
}

// An open server uses up an invite that it is shown and minds no other.
func TestInviteAtAnOpenServer(t *testing.T) {
	h := open(t)
	_, code := h.createsInvite(0, "")
	servicetest.WantCode(t, h.registersWith(person("alice"), code), qpcpb.CodeUnspecified)
	if n := len(h.openInvites()); n != 0 {
		t.Errorf("%d are open", n)
	}
	servicetest.WantCode(t, h.registersWith(person("bob"), code), qpcpb.CodeUnspecified)
}

// A password reset from beginning to end, in each kind of registration.
func TestPasswordReset(t *testing.T) {
	for _, registration := range []auth.Registration{auth.RegistrationOpen, auth.RegistrationInvite, auth.RegistrationClosed} {
		t.Run(string(registration), func(t *testing.T) {
			var order []string
			var gone rpc.IdentityKey
			note := func(what string) func(*store.Tx, rpc.IdentityKey) error {
				return func(_ *store.Tx, identity rpc.IdentityKey) error {
					order, gone = append(order, what), identity
					return nil
				}
			}
			h := open(t, func(o *auth.Options) {
				o.Erase, o.Superseded = note("erased"), note("superseded")
				o.Registered = func(_ *store.Tx, name string, _ rpc.IdentityKey) error {
					order = append(order, "registered "+name)
					return nil
				}
			})
			h.Open()
			alice, bob := person("alice"), person("bob")
			h.registers(alice, bob)
			h.options.Registration = registration
			h.build()
			phone := h.quic()
			phone.mustLogin(alice)
			stale := h.resets("Alice")
			code := h.resets("alice") // the newest alone works
			if all := h.openInvites(); len(all) != 1 || all[0].Username != "alice" || all[0].ExpiresAt.Sub(all[0].CreatedAt) != day {
				t.Fatalf("open are %+v", all)
			}
			// Until it is used the account works as before, and the code is good
			// for nobody else's name, nor for the same key.
			phone.mustLogin(alice)
			renewed := alice.renewed()
			order = nil
			taken := qpcpb.CodeInviteInvalid
			switch registration {
			case auth.RegistrationOpen:
				taken = qpcpb.CodeNameTaken
			case auth.RegistrationClosed:
				taken = qpcpb.CodeRegistrationClosed
			}
			servicetest.WantCode(t, h.registersWith(renewed, stale), taken)
			servicetest.WantCode(t, h.registersWith(bob.renewed(), code), taken)
			servicetest.WantCode(t, h.registersWith(alice, code), qpcpb.CodeIdentityTaken)
			servicetest.WantCode(t, h.registersWith(account{"alice", "x", bob.key}, code), qpcpb.CodeIdentityTaken)
			if registration == auth.RegistrationClosed {
				servicetest.WantCode(t, h.registersWith(person("carol"), code), taken)
			}
			phone.mustLogin(alice)
			order = nil

			// Both halves of a registration, as a client goes through them.
			c := h.from("192.0.2.7")
			upload := renewed.upload(t)
			started := c.registerStart(renewed)
			servicetest.WantCode(t, started, qpcpb.CodeUnspecified)
			servicetest.WantCode(t, c.finishWith(&qpcpb.OpaqueRegisterFinishRequest{
				Username: "ALICE", Upload: upload, IdentityKey: renewed.key.Public().(ed25519.PublicKey), Invite: code,
			}), qpcpb.CodeUnspecified)
			if want := []string{"superseded", "erased", "registered alice"}; !slices.Equal(order, want) || gone != alice.identity() {
				t.Errorf("happened %v to %v", order, gone)
			}
			select {
			case <-phone.Conn().Context().Done():
			case <-servicetest.Within(t).Done():
				t.Error("the old session goes on")
			}
			_, err := h.from("192.0.2.8").login(alice)
			servicetest.WantCode(t, err, qpcpb.CodeBadCredentials)
			h.from("192.0.2.9").mustLogin(renewed)
			h.from("192.0.2.9").mustLogin(bob)
			// Once, and closed to the first message again.
			servicetest.WantCode(t, h.registersWith(alice, code), taken)
			if registration == auth.RegistrationClosed {
				servicetest.WantCode(t, h.from("192.0.2.10").registerStart(alice), qpcpb.CodeRegistrationClosed)
			}
			if n := h.Count("auth_retired_name"); n != 0 {
				t.Errorf("%d names rest", n)
			}
		})
	}
}

// registerStart sends the first message of a registration.
func (c client) registerStart(a account) error {
	c.t.Helper()
	_, err := c.OpaqueRegisterStart(servicetest.Within(c.t), &qpcpb.OpaqueRegisterStartRequest{Username: a.name, Request: registrationRequest(c.t)})
	return err
}

// A reset that fails at any of its steps has changed nothing.
func TestResetIsWholeOrNot(t *testing.T) {
	for _, step := range []string{"superseded", "erased", "registered"} {
		fail := fmt.Errorf("%s failed", step)
		failing := false
		at := func(name string) error {
			if failing && name == step {
				return fail
			}
			return nil
		}
		h := open(t, func(o *auth.Options) {
			o.Superseded = func(*store.Tx, rpc.IdentityKey) error { return at("superseded") }
			o.Erase = func(*store.Tx, rpc.IdentityKey) error { return at("erased") }
			o.Registered = func(*store.Tx, string, rpc.IdentityKey) error { return at("registered") }
		})
		alice := person("alice")
		h.registers(alice)
		code := h.resets("alice")
		failing = true
		servicetest.WantCode(t, h.registersWith(alice.renewed(), code), qpcpb.CodeInternal)
		failing = false
		h.from(home).mustLogin(alice)
		if len(h.openInvites()) != 1 {
			t.Errorf("%s: the code is used up", step)
		}
		servicetest.WantCode(t, h.registersWith(alice.renewed(), code), qpcpb.CodeUnspecified)
	}
}

// A code that was made for an account does not outlive it.
func TestResetGoesWithTheAccount(t *testing.T) {
	h := open(t, func(o *auth.Options) { o.Registration = auth.RegistrationInvite })
	_, invite := h.createsInvite(0, "")
	_, again := h.createsInvite(0, "")
	alice := person("alice")
	servicetest.WantCode(t, h.registersWith(alice, invite), qpcpb.CodeUnspecified)
	code := h.resets("alice")
	servicetest.WantCode(t, h.auth.RemoveAccount(t.Context(), "alice", true), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, h.registersWith(person("mallory"), code), qpcpb.CodeInviteInvalid)
	servicetest.WantCode(t, h.registersWith(alice.renewed(), code), qpcpb.CodeInviteInvalid)
	servicetest.WantCode(t, h.registersWith(alice.renewed(), again), qpcpb.CodeUnspecified)
	_, _, err := h.auth.ResetPassword(t.Context(), "nobody", 0)
	servicetest.WantCode(t, err, qpcpb.CodeUserNotFound)
	_, _, err = h.auth.ResetPassword(t.Context(), "no body", 0)
	servicetest.WantCode(t, err, qpcpb.CodeInvalidUsername)
}

func TestOwnerRemovesAnAccount(t *testing.T) {
	erased := 0
	h := open(t, func(o *auth.Options) {
		o.Erase = func(*store.Tx, rpc.IdentityKey) error { erased++; return nil }
	})
	h.Open()
	alice := person("alice")
	h.registers(alice)
	c := h.quic()
	c.mustLogin(alice)
	remove := func(name string, free bool, want qpcpb.Code) {
		t.Helper()
		servicetest.WantCode(t, h.auth.RemoveAccount(t.Context(), name, free), want)
	}
	remove("al ice", false, qpcpb.CodeInvalidUsername)
	remove("nobody", true, qpcpb.CodeUserNotFound)
	remove("Alice", false, qpcpb.CodeUnspecified)
	select {
	case <-c.Conn().Context().Done():
	case <-servicetest.Within(t).Done():
		t.Error("its session goes on")
	}
	remove("alice", false, qpcpb.CodeUserNotFound)
	servicetest.WantCode(t, h.from(netip.MustParseAddr("192.0.2.3").String()).finishRegistration(alice.renewed()), qpcpb.CodeNameTaken)
	remove("alice", true, qpcpb.CodeUnspecified) // the name alone
	remove("alice", true, qpcpb.CodeUserNotFound)
	h.registers(alice.renewed())
	remove("alice", true, qpcpb.CodeUnspecified)
	h.registers(alice)
	if erased != 2 {
		t.Errorf("erased %d times", erased)
	}
}
