package client_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// opened runs f with the person's client, which is switched off.
func (p *person) opened(f func(c *client.Client)) {
	p.t.Helper()
	c, err := client.Open(p.t.Context(), p.options(), password(p.name))
	if err != nil {
		p.t.Fatalf("opening the profile of %s: %v", p.name, err)
	}
	f(c)
	if err := c.Close(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) setsUpRecovery() (codes []e2ee.RecoveryCode) {
	p.t.Helper()
	p.opened(func(c *client.Client) {
		var err error
		if codes, err = c.SetUpRecovery(p.t.Context(), password(p.name)); err != nil {
			p.t.Fatalf("setting up recovery: %v", err)
		}
	})
	return codes
}

// loses is the person on another machine, with nothing.
func (p *person) loses() *person {
	p.t.Helper()
	p.off()
	fresh := &person{t: p.t, house: p.house, name: p.name, path: filepath.Join(p.t.TempDir(), p.name, "profile.db"),
		pins: &pins{known: map[string]transport.Pin{}}, more: make(chan struct{}, 1)}
	p.t.Cleanup(fresh.off)
	return fresh
}

func (p *person) recovers(name string, code e2ee.RecoveryCode) error {
	p.t.Helper()
	o := p.options()
	c, err := client.Recover(p.t.Context(), o, client.Comeback{Server: "home", Username: name, Code: code, Password: password(p.name), Device: "new"})
	if c == nil {
		o.Store.Close()
		return err
	}
	if err := c.Close(); err != nil {
		p.t.Error(err)
	}
	return err
}

// Alice loses her machine and her password, and comes back with a code: she is
// who she was, and the conversation goes on.
func TestRecovery(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice"), h.register("bob")
	codes := alice.setsUpRecovery()
	alice.on()
	bob.on()
	before := alice.Identity()
	alice.says(bob, "hello")
	bob.reads(alice, "hello")
	bob.says(alice, "hello too")
	alice.reads(bob, "hello too")

	lost := alice.loses()
	if err := lost.recovers("ALICE", codes[5]); err != nil {
		t.Fatal(err)
	}
	lost.on()
	if lost.Identity() != before {
		t.Errorf("alice came back as %s", lost.Identity())
	}
	// Bob has not been told anything but that she is there.
	bob.until("alice", func(e client.Event) bool {
		return e.Kind == client.EventPresence && e.On && e.Peer == before
	})
	bob.says(lost, "are you back?")
	lost.reads(bob, "are you back?")
	lost.says(bob, "I am")
	bob.reads(lost, "I am")

	// The machine that was lost has lost access, its password too.
	alice.opened(func(c *client.Client) {
		err := c.Call(t.Context(), func(context.Context, *rpc.Client) error { return nil })
		if !errors.Is(err, client.ErrLoginRequired) {
			t.Errorf("a call from the lost machine: %v", err)
		}
	})
	lost.off()
	lost.opened(func(c *client.Client) {
		err := c.Call(t.Context(), func(ctx context.Context, calls *rpc.Client) error {
			devices, err := qpcpb.NewDeviceClient(calls).ListDevices(ctx, &qpcpb.ListDevicesRequest{})
			if err == nil && (len(devices.Devices) != 1 || devices.Devices[0].DeviceName != "new") {
				t.Errorf("the devices are %v", devices.Devices)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		if r, err := c.RecoveryStatus(t.Context()); err != nil || r.Codes != e2ee.RecoveryCodes || r.SetUp.IsZero() {
			t.Errorf("the recovery of who came back: %+v, %v", r, err)
		}
	})
}

// Every code stays good: after another was used, after the password was
// changed, and after a change of it that was cut off, whether it took effect or
// not.
func TestCodesStayGood(t *testing.T) {
	h := newHouse(t)
	alice := h.register("alice")
	codes := alice.setsUpRecovery()
	alice.opened(func(c *client.Client) {
		if err := c.ChangePassword(t.Context(), []byte("changed")); err != nil {
			t.Fatal(err)
		}
		if err := client.CutOffPasswordChange(t.Context(), c, []byte("never arrives"), false); err != nil {
			t.Fatal(err)
		}
	})
	second := alice.loses()
	if err := second.recovers("alice", codes[0]); err != nil {
		t.Fatalf("after a change of password: %v", err)
	}
	if err := second.recovers("alice", codes[0]); !errors.Is(err, client.ErrProfileExists) {
		t.Errorf("into a profile that is there: %v", err)
	}
	second.opened(func(c *client.Client) {
		if err := client.CutOffPasswordChange(t.Context(), c, []byte("arrives"), true); err != nil {
			t.Fatal(err)
		}
	})
	third := second.loses()
	if err := third.recovers("alice", codes[0]); err != nil {
		t.Fatalf("with the same code again: %v", err)
	}
	fourth := third.loses()
	if err := fourth.recovers("alice", codes[7]); err != nil {
		t.Fatalf("with another code: %v", err)
	}
}

func TestWhatDoesNotRecover(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice"), h.register("bob")
	codes := alice.setsUpRecovery()
	alice.opened(func(c *client.Client) {
		if _, err := c.SetUpRecovery(t.Context(), []byte("wrong")); rpc.CodeOf(err) != qpcpb.CodeBadCredentials {
			t.Errorf("setting up with a wrong password: %v", err)
		}
		if r, err := c.RecoveryStatus(t.Context()); err != nil || r.Codes != e2ee.RecoveryCodes {
			t.Errorf("the codes of before: %+v, %v", r, err)
		}
	})
	bob.opened(func(c *client.Client) {
		if r, err := c.RecoveryStatus(t.Context()); err != nil || r != (client.Recovery{}) {
			t.Errorf("bob's recovery: %+v, %v", r, err)
		}
		if err := c.RemoveRecovery(t.Context()); err != nil {
			t.Errorf("removing none: %v", err)
		}
	})
	lost := alice.loses()
	wrong := func(what, name string, code e2ee.RecoveryCode, want qpcpb.Code) {
		t.Helper()
		if err := lost.recovers(name, code); rpc.CodeOf(err) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	wrong("another's name", "bob", codes[0], qpcpb.CodeBundleNotFound)
	newer := alice.setsUpRecovery()
	wrong("a code of before", "alice", codes[0], qpcpb.CodeBundleNotFound)
	alice.opened(func(c *client.Client) {
		if err := c.RemoveRecovery(t.Context()); err != nil {
			t.Error(err)
		}
	})
	wrong("a code that was removed", "alice", newer[0], qpcpb.CodeBundleNotFound)
	wrong("a fourth", "alice", e2ee.RecoveryCode{1}, qpcpb.CodeBundleNotFound)
	wrong("a fifth", "alice", e2ee.RecoveryCode{2}, qpcpb.CodeBundleNotFound)
	wrong("a sixth in an hour", "alice", e2ee.RecoveryCode{3}, qpcpb.CodeRateLimited)
}
