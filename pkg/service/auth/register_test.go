package auth_test

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/invite"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

func TestRegisterThenLogIn(t *testing.T) {
	h := open(t)
	h.Open()
	alice := person("alice")
	c := h.quic()
	if err := c.register(alice, "ＡＬice"); err != nil { // full width, mixed case
		t.Fatal(err)
	}
	if c.works() == nil {
		t.Error("registering logged the connection in")
	}
	loud := alice
	loud.name = "ALICE"
	token := c.mustLogin(loud)
	if len(token) != 32 {
		t.Errorf("the token has %d bytes, want 32", len(token))
	}
	if err := c.works(); err != nil {
		t.Error(err)
	}
	if !h.resumes(token) {
		t.Error("the token does not resume the session")
	}
}

func TestInvalidNames(t *testing.T) {
	h := open(t)
	for _, name := range []string{"", "-x", ".x", "_x", "a b", "a@b", "a\x00b", "a/b", strings.Repeat("x", 33), strings.Repeat("x", 1000), "😀"} {
		t.Run(fmt.Sprintf("%.8q", name), func(t *testing.T) {
			c := h.from("192.0.2.1")
			c.t = t
			a := person("alice")
			a.name = name
			_, err := c.OpaqueRegisterStart(servicetest.Within(t), &qpcpb.OpaqueRegisterStartRequest{Username: name, Request: make([]byte, 32)})
			servicetest.WantCode(t, err, qpcpb.CodeInvalidUsername)
			servicetest.WantCode(t, c.finishWith(&qpcpb.OpaqueRegisterFinishRequest{Username: name}), qpcpb.CodeInvalidUsername)
			_, err = c.begins(name)
			servicetest.WantCode(t, err, qpcpb.CodeInvalidUsername)
			_, err = c.ends(a, make([]byte, opaque.KE3Length))
			servicetest.WantCode(t, err, qpcpb.CodeInvalidUsername)
		})
	}
	h.registers(person(strings.Repeat("ж", 32))) // 64 bytes, 32 characters
}

func TestMalformedFields(t *testing.T) {
	h := open(t)
	alice := person("alice")
	c := h.from("192.0.2.1")
	for _, request := range [][]byte{nil, make([]byte, 31), make([]byte, 32), make([]byte, 33)} { // 32 zeros are the identity element
		_, err := c.OpaqueRegisterStart(servicetest.Within(t), &qpcpb.OpaqueRegisterStartRequest{Username: fmt.Sprint("name", len(request)), Request: request})
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	finish := func(change func(r *qpcpb.OpaqueRegisterFinishRequest)) error {
		r := alice.finish(t)
		change(r)
		return c.finishWith(r)
	}
	for _, change := range []func(r *qpcpb.OpaqueRegisterFinishRequest){
		func(r *qpcpb.OpaqueRegisterFinishRequest) { r.Upload = nil },
		func(r *qpcpb.OpaqueRegisterFinishRequest) { r.Upload = r.Upload[:191] },
		func(r *qpcpb.OpaqueRegisterFinishRequest) { r.Upload = append(r.Upload[:192:192], 0) },
		func(r *qpcpb.OpaqueRegisterFinishRequest) { r.IdentityKey = nil },
		func(r *qpcpb.OpaqueRegisterFinishRequest) { r.IdentityKey = r.IdentityKey[:31] },
		func(r *qpcpb.OpaqueRegisterFinishRequest) { r.IdentityKey = append(r.IdentityKey[:32:32], 0) },
	} {
		servicetest.WantCode(t, finish(change), qpcpb.CodeInvalidField)
	}
	if n := h.Count("auth_account"); n != 0 {
		t.Errorf("%d accounts came of it", n)
	}
}

func TestTakenOnlyAtFinish(t *testing.T) {
	h := open(t)
	alice, bob := person("alice"), person("bob")
	h.registers(alice)

	c := h.from("192.0.2.1")
	_, request, err := opaque.NewRegistration(rand.Reader, []byte("guess"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alice", "bob"} {
		got, err := c.OpaqueRegisterStart(servicetest.Within(t), &qpcpb.OpaqueRegisterStartRequest{Username: name, Request: request})
		if err != nil || len(got.Response) != 64 {
			t.Errorf("%s: got %d bytes and %v, want 64 bytes", name, len(got.GetResponse()), err)
		}
	}

	imposter := account{name: "alice", password: "other", key: bob.key}
	servicetest.WantCode(t, c.finishRegistration(imposter), qpcpb.CodeNameTaken)
	second := account{name: "alice2", password: "other", key: alice.key}
	servicetest.WantCode(t, c.finishRegistration(second), qpcpb.CodeIdentityTaken)
	servicetest.WantCode(t, c.finishRegistration(alice), qpcpb.CodeNameTaken)
	if n := h.Count("auth_account"); n != 1 {
		t.Errorf("there are %d accounts, want 1", n)
	}
	h.from(home).mustLogin(alice)
}

func TestClosedRegistration(t *testing.T) {
	h := open(t, func(o *auth.Options) { o.Registration = auth.RegistrationClosed })
	c := h.from("192.0.2.1")
	servicetest.WantCode(t, c.register(person("alice"), "alice"), qpcpb.CodeRegistrationClosed)
	servicetest.WantCode(t, c.finishRegistration(person("alice")), qpcpb.CodeRegistrationClosed)
}

// invites makes the code known as an invite.
func (h *house) invites(code string, validFor time.Duration) {
	h.t.Helper()
	h.Write(func(tx *store.Tx) error {
		_, err := tx.Exec("INSERT INTO auth_invite (code_hash, created_at, valid_until) VALUES (?, 0, ?)",
			invite.Hash(code), h.DB.ServiceTime()+int64(validFor/time.Second))
		return err
	})
}

func TestInvites(t *testing.T) {
	h := open(t, func(o *auth.Options) { o.Registration = auth.RegistrationInvite })
	c := h.from("192.0.2.1")
	with := func(a account, code string) error {
		r := a.finish(t)
		r.Invite = code
		return c.finishWith(r)
	}
	alice, bob, carol := person("alice"), person("bob"), person("carol")
	h.invites("first", day)
	servicetest.WantCode(t, with(alice, ""), qpcpb.CodeInviteRequired)
	servicetest.WantCode(t, with(alice, "guess"), qpcpb.CodeInviteInvalid)
	servicetest.WantCode(t, with(alice, "first"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, with(bob, "first"), qpcpb.CodeInviteInvalid)

	// Without an invite nobody learns which names are taken; a registration
	// that fails otherwise leaves the invite unused.
	h.invites("second", day)
	servicetest.WantCode(t, with(account{"alice", "other", bob.key}, "guess"), qpcpb.CodeInviteInvalid)
	servicetest.WantCode(t, with(account{"alice", "other", bob.key}, "second"), qpcpb.CodeNameTaken)
	h.Wall.Advance(400 * day) // only time in service counts
	servicetest.WantCode(t, with(bob, "second"), qpcpb.CodeUnspecified)

	h.invites("third", day)
	h.Service.Advance(day)
	servicetest.WantCode(t, with(carol, "third"), qpcpb.CodeInviteInvalid)
}

func TestIdentityProof(t *testing.T) {
	upload := person("alice").upload(t) // any valid one does
	other := person("other")
	for _, required := range []bool{false, true} {
		h := open(t, func(o *auth.Options) { o.RequireIdentityProof = required })
		missing := qpcpb.CodeUnspecified
		if required {
			missing = qpcpb.CodeIdentityProofRequired
		}
		for i, test := range []struct {
			what  string
			proof func(a account) []byte
			want  qpcpb.Code
		}{
			{"by the key", func(a account) []byte { return proof.SignIdentity(a.key, a.name, upload) }, qpcpb.CodeUnspecified},
			{"missing", func(account) []byte { return nil }, missing},
			{"by another key", func(a account) []byte { return proof.SignIdentity(other.key, a.name, upload) }, qpcpb.CodeIdentityProofInvalid},
			{"of another name", func(a account) []byte { return proof.SignIdentity(a.key, "bob", upload) }, qpcpb.CodeIdentityProofInvalid},
			{"of the name unfolded", func(a account) []byte { return proof.SignIdentity(a.key, strings.ToUpper(a.name), upload) }, qpcpb.CodeIdentityProofInvalid},
			{"of another upload", func(a account) []byte { return proof.SignIdentity(a.key, a.name, []byte("upload")) }, qpcpb.CodeIdentityProofInvalid},
			{"cut short", func(a account) []byte { return proof.SignIdentity(a.key, a.name, upload)[:63] }, qpcpb.CodeIdentityProofInvalid},
			{"zeros", func(account) []byte { return make([]byte, 64) }, qpcpb.CodeIdentityProofInvalid},
		} {
			t.Run(fmt.Sprintf("%s, required %v", test.what, required), func(t *testing.T) {
				a := person(fmt.Sprint("alice", i))
				identity := a.identity()
				servicetest.WantCode(t, h.from("192.0.2.1").finishWith(&qpcpb.OpaqueRegisterFinishRequest{
					Username: strings.ToUpper(a.name), Upload: upload, IdentityKey: identity[:], IdentityProof: test.proof(a),
				}), test.want)
			})
		}
	}
}

func TestDeletedNameRests(t *testing.T) {
	h := open(t)
	alice, bob := person("alice"), person("bob")
	h.registers(alice)
	c := h.from("192.0.2.1")
	if err := c.Resume(servicetest.Within(t), h.session(alice, nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DeleteAccount(servicetest.Within(t), &qpcpb.DeleteAccountRequest{}); err != nil {
		t.Fatal(err)
	}
	// The name rests for everybody, the key for nobody.
	heir := account{name: "alice", password: "new", key: bob.key}
	h.Wall.Advance(100 * 365 * day)
	h.Service.Advance(30*day - time.Second)
	h.sweep()
	servicetest.WantCode(t, h.from(home).finishRegistration(heir), qpcpb.CodeNameTaken)
	servicetest.WantCode(t, h.from(home).finishRegistration(alice), qpcpb.CodeNameTaken)
	other := account{name: "alice2", password: "new", key: alice.key}
	h.registers(other)
	h.restart()
	h.Service.Advance(time.Second)
	h.registers(heir)
	if n := h.Count("auth_retired_name"); n != 0 {
		t.Errorf("%d names rest although they are in use", n)
	}
}

// sweep runs to the end.
func (h *house) sweep() (rounds int) {
	h.t.Helper()
	for rounds = 1; ; rounds++ {
		more, err := h.auth.Sweep(h.t.Context())
		if err != nil {
			h.t.Fatal(err)
		}
		if !more {
			return rounds
		}
		if rounds > 100 {
			h.t.Fatal("the sweep does not end")
		}
	}
}

func TestSweepIsBounded(t *testing.T) {
	h := open(t)
	alice := person("alice")
	h.registers(alice)
	const expired = 450
	h.Write(func(tx *store.Tx) error {
		now := h.DB.ServiceTime()
		for i := range 2 * expired {
			until := now + int64(i%2)*100 // every second one is to stay
			hash := sha256.Sum256([]byte{byte(i), byte(i >> 8)})
			if _, err := tx.Exec("INSERT INTO auth_session (token_hash, account_id, valid_until) SELECT ?, id, ? FROM auth_account", hash, until); err != nil {
				return err
			}
			if _, err := tx.Exec("INSERT INTO auth_invite (code_hash, created_at, valid_until) VALUES (?, 0, ?)", hash, until); err != nil {
				return err
			}
			if _, err := tx.Exec("INSERT INTO auth_retired_name (username, taken_until) VALUES (?, ?)", fmt.Sprint("name", i), until); err != nil {
				return err
			}
		}
		return nil
	})
	h.Wall.Advance(-50 * 365 * day) // changes nothing
	if more, err := h.auth.Sweep(t.Context()); err != nil || !more {
		t.Fatalf("got more %v and %v after the first of several sweeps", more, err)
	}
	tables := []string{"auth_session", "auth_invite", "auth_retired_name"}
	for _, table := range tables {
		if n := h.Count(table); n < 2*expired-250 || n == 2*expired {
			t.Errorf("one sweep brought %s from %d to %d rows", table, 2*expired, n)
		}
	}
	h.sweep()
	for _, table := range tables {
		if n := h.Count(table); n != expired {
			t.Errorf("%s has %d rows left, want the %d that are valid", table, n, expired)
		}
	}
}
