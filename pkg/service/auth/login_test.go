package auth_test

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// raw makes a call and returns the answer's bytes, header and all.
func (c client) raw(method qpcpb.MethodID, request proto.Message) []byte {
	c.t.Helper()
	payload, err := proto.Marshal(request)
	if err != nil {
		c.t.Fatal(err)
	}
	stream, err := c.Conn().OpenStream(servicetest.Within(c.t))
	if err != nil {
		c.t.Fatal(err)
	}
	b := frame.AppendRequestHeader(nil, uint16(method), 7, uint32(len(payload)))
	if _, err := stream.Write(append(b, payload...)); err != nil {
		c.t.Fatal(err)
	}
	if err := stream.Close(); err != nil {
		c.t.Fatal(err)
	}
	answer, err := io.ReadAll(stream)
	if err != nil {
		c.t.Fatal(err)
	}
	return answer
}

func TestFailuresLookAlike(t *testing.T) {
	h := open(t)
	alice, nobody := person("alice"), person("nobody")
	h.registers(alice)
	c := h.from("192.0.2.1")

	answers := make(map[string][]byte)
	for _, a := range []account{alice, nobody} {
		ke2, err := c.begins(a.name)
		if err != nil || len(ke2) != opaque.KE2Length {
			t.Fatalf("%s: got %d bytes and %v, want %d bytes", a.name, len(ke2), err, opaque.KE2Length)
		}
		identity := a.identity()
		answers[a.name] = c.raw(qpcpb.MethodOpaqueLoginFinish, &qpcpb.OpaqueLoginFinishRequest{
			Username: a.name, Finalization: make([]byte, opaque.KE3Length), IdentityKey: identity[:],
		})
	}
	login, ke2, err := c.beginsWith(alice)
	if err != nil {
		t.Fatal(err)
	}
	ke3, _, _, _, err := login.Finish(ke2)
	if err != nil {
		t.Fatal(err)
	}
	identity := nobody.identity()
	answers["another key"] = c.raw(qpcpb.MethodOpaqueLoginFinish, &qpcpb.OpaqueLoginFinishRequest{
		Username: "alice", Finalization: ke3, IdentityKey: identity[:],
	})
	if first := answers["alice"]; first[0] != byte(qpcpb.StatusUnauthorized) {
		t.Fatalf("a wrong password is answered with status %d", first[0])
	}
	for what, answer := range answers {
		if !bytes.Equal(answer, answers["alice"]) {
			t.Errorf("%s is answered\n%q, a wrong password\n%q", what, answer, answers["alice"])
		}
	}
	if n := h.Count("auth_session"); n != 0 {
		t.Errorf("%d sessions came of it", n)
	}
	if c.works() == nil {
		t.Error("the connection is logged in")
	}
}

func TestSixRefusedCredentialsCloseTheConnection(t *testing.T) {
	h := open(t)
	h.Open()
	c := h.quic()
	for i := range 6 {
		a := person(fmt.Sprint("nobody", i))
		if _, err := c.begins(a.name); err != nil {
			t.Fatal(err)
		}
		_, err := c.ends(a, make([]byte, opaque.KE3Length))
		servicetest.WantCode(t, err, qpcpb.CodeBadCredentials)
	}
	select {
	case <-c.Conn().Context().Done():
	case <-time.After(10 * time.Second):
		t.Fatal("the connection was not closed")
	}
	_, err := c.begins("alice")
	if code, _, _, ok := transport.CloseError(err); !ok || code != transport.CloseBanned {
		t.Errorf("the connection ended with %v, want close code 1", err)
	}
}

func TestMalformedLogin(t *testing.T) {
	h := open(t)
	alice := person("alice")
	h.registers(alice)
	c := h.from("192.0.2.1")
	for _, n := range []int{0, 95, 96, 97} { // 96 zeros hold the identity element
		_, err := c.OpaqueLoginStart(servicetest.Within(t), &qpcpb.OpaqueLoginStartRequest{Username: "alice", Request: make([]byte, n)})
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	for _, n := range []int{0, 63, 65} {
		if _, err := c.begins("alice"); err != nil {
			h.passes(time.Hour)
		}
		_, err := c.ends(alice, make([]byte, n))
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
		h.passes(2 * time.Hour)
	}
	for _, r := range []*qpcpb.OpaqueLoginFinishRequest{
		{Username: "alice", IdentityKey: make([]byte, 31)},
		{Username: "alice", IdentityKey: make([]byte, 32), DeviceId: make([]byte, 15)},
		{Username: "alice", IdentityKey: make([]byte, 32), DeviceId: make([]byte, 17)},
	} {
		_, err := c.OpaqueLoginFinish(servicetest.Within(t), r)
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
}

// Here a garbage KE3 asks whether a login is pending: BAD_CREDENTIALS when it
// is, LOGIN_EXPIRED when not.
func TestPendingLogin(t *testing.T) {
	h := open(t)
	alice, bob := person("alice"), person("bob")
	begun := func() client {
		t.Helper()
		h.passes(2 * time.Hour) // past all limits
		c := h.from("192.0.2.1")
		if _, err := c.begins("alice"); err != nil {
			t.Fatal(err)
		}
		return c
	}
	wants := func(c client, a account, code qpcpb.Code) {
		t.Helper()
		_, err := c.ends(a, make([]byte, opaque.KE3Length))
		servicetest.WantCode(t, err, code)
	}
	t.Run("one attempt", func(t *testing.T) {
		c := begun()
		wants(c, alice, qpcpb.CodeBadCredentials)
		wants(c, alice, qpcpb.CodeLoginExpired)
	})
	t.Run("none", func(t *testing.T) { wants(h.from("192.0.2.1"), alice, qpcpb.CodeLoginExpired) })
	t.Run("another connection", func(t *testing.T) {
		c := begun()
		wants(h.from("192.0.2.1"), alice, qpcpb.CodeLoginExpired)
		wants(c, alice, qpcpb.CodeBadCredentials)
	})
	t.Run("another name", func(t *testing.T) {
		c := begun()
		wants(c, bob, qpcpb.CodeLoginExpired)
		wants(c, alice, qpcpb.CodeLoginExpired)
	})
	t.Run("five minutes", func(t *testing.T) {
		c := begun()
		h.Wall.Advance(5 * time.Minute)
		wants(c, alice, qpcpb.CodeBadCredentials)
		c = begun()
		h.Wall.Advance(5*time.Minute + time.Millisecond)
		wants(c, alice, qpcpb.CodeLoginExpired)
	})
	t.Run("the later one counts", func(t *testing.T) {
		c := begun()
		if _, err := c.begins("bob"); err != nil {
			t.Fatal(err)
		}
		wants(c, bob, qpcpb.CodeBadCredentials)
		wants(c, alice, qpcpb.CodeLoginExpired)
	})
}

// tries begins logins until one must wait, and returns how many were free and
// that wait.
func tries(t *testing.T, c client, name string) (free int, err error) {
	t.Helper()
	for ; ; free++ {
		if free > 200 {
			t.Fatal("there is no limit")
		}
		if _, err = c.begins(name); err != nil {
			return free, err
		}
	}
}

func TestFailuresOfANameFromAnAddress(t *testing.T) {
	h := open(t)
	c := h.from("192.0.2.1")
	free, err := tries(t, c, "alice")
	if free != 6 {
		t.Errorf("%d attempts were free of waiting, want 6: 5 free, and the one that brings the first wait", free)
	}
	for _, want := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900} {
		wantWait(t, err, time.Duration(want)*time.Second)
		// Asking while waiting costs nothing, and a moment too early is early.
		h.passes(time.Duration(want)*time.Second - time.Millisecond)
		_, err = c.begins("ALICE")
		wantWait(t, err, time.Millisecond)
		// Another address and another name are not held back.
		if _, err := h.from("192.0.2.2").begins(fmt.Sprint("alice", want)); err != nil {
			t.Fatal(err)
		}
		h.passes(time.Millisecond)
		if _, err := c.begins("alice"); err != nil {
			t.Fatal(err)
		}
		_, err = c.begins("alice")
	}
	if _, err := h.from(home).begins("alice"); err != nil {
		t.Error("the owner is locked out by what happens elsewhere:", err)
	}
	h.passes(time.Hour + 16*time.Minute)
	if free, _ := tries(t, c, "alice"); free != 6 {
		t.Errorf("after an hour of rest %d attempts were free, want 6", free)
	}
}

func TestFailuresOfAnAddress(t *testing.T) {
	h := open(t)
	// The addresses of one IPv6 /64 are one.
	several := []client{h.from("2001:db8:1:2::1"), h.from("2001:db8:1:2:ffff::7"), h.from("2001:db8:1:2::3")}
	attempt := func(i int) error {
		_, err := several[i%len(several)].begins(fmt.Sprint("name", i))
		return err
	}
	for i := range 21 {
		if err := attempt(i); err != nil {
			t.Fatalf("attempt %d: %v", i+1, err)
		}
	}
	for i, want := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900} {
		wantWait(t, attempt(100+i), time.Duration(want)*time.Second)
		h.passes(time.Duration(want) * time.Second)
		if err := attempt(200 + i); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.from("2001:db8:1:3::1").begins("name1"); err != nil {
		t.Error("another network is held back:", err)
	}
}

func TestFailuresOfANameEverywhere(t *testing.T) {
	h := open(t)
	alice := person("alice")
	h.registers(alice)
	next := 0
	attempt := func() error {
		next++
		_, err := h.from(netip.AddrFrom4([4]byte{10, 0, byte(next >> 8), byte(next)}).String()).begins("alice")
		return err
	}
	for i := range 51 {
		if err := attempt(); err != nil {
			t.Fatalf("attempt %d: %v", i+1, err)
		}
	}
	for _, want := range []int{1, 2, 4, 8, 16, 30, 30, 30} {
		wantWait(t, attempt(), time.Duration(want)*time.Second)
		h.passes(time.Duration(want) * time.Second)
		if err := attempt(); err != nil {
			t.Fatal(err)
		}
	}
	// The owner waits with the rest, half a minute at most, and is in.
	h.passes(30 * time.Second)
	h.from(home).mustLogin(alice)
}

func TestSuccessTakesItsAttemptBack(t *testing.T) {
	h := open(t)
	alice := person("alice")
	h.registers(alice)
	c := h.from("192.0.2.1")
	for range 3 {
		if _, err := c.begins("alice"); err != nil {
			t.Fatal(err)
		}
		c.mustLogin(alice)
	}
	if free, _ := tries(t, c, "alice"); free != 6 {
		t.Errorf("after a success %d attempts were free, want 6", free)
	}
}

// With one KE2 in hand, each answer to a registration's first message tests
// one guess, since the OPRF key belongs to the name.
func TestRegisterStartIsNoWayAroundTheLimit(t *testing.T) {
	h := open(t, func(o *auth.Options) { o.Limits.RegistrationBurst = 1000 })
	h.registers(person("alice"))
	registration, request, err := opaque.NewRegistration(bytes.NewReader(bytes.Repeat([]byte{1}, 1000)), []byte("guess"))
	if err != nil || registration == nil {
		t.Fatal(err)
	}
	for i, name := range []string{"alice", "nobody"} {
		c := h.from(fmt.Sprint("192.0.2.", i+1))
		start := func() error {
			_, err := c.OpaqueRegisterStart(servicetest.Within(t), &qpcpb.OpaqueRegisterStartRequest{Username: name, Request: request})
			return err
		}
		for range 6 {
			if err := start(); err != nil {
				t.Fatal(err)
			}
		}
		wantWait(t, start(), time.Second)
		_, err := c.begins(name)
		wantWait(t, err, time.Second)
	}
}

func TestRegistrationsOfAnAddress(t *testing.T) {
	h := open(t)
	h.registers(person("alice"))
	_, request, err := opaque.NewRegistration(bytes.NewReader(bytes.Repeat([]byte{1}, 1000)), []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	starts := func(c client, name string) error {
		_, err := c.OpaqueRegisterStart(servicetest.Within(t), &qpcpb.OpaqueRegisterStartRequest{Username: name, Request: request})
		return err
	}
	c, other := h.from("192.0.2.1"), h.from("192.0.2.2")
	for i := range 30 {
		if err := starts(c, fmt.Sprint("name", i)); err != nil {
			t.Fatalf("registration %d: %v", i+1, err)
		}
		// The second half alone would tell which names are taken.
		servicetest.WantCode(t, c.finishRegistration(account{"alice", "x", person("bob").key}), qpcpb.CodeNameTaken)
	}
	wantWait(t, starts(c, "one-more"), time.Minute)
	wantWait(t, c.finishRegistration(account{"alice", "x", person("bob").key}), time.Minute)
	if err := starts(other, "one-more"); err != nil {
		t.Error("another address is held back:", err)
	}
	h.passes(time.Minute)
	if err := starts(c, "one-more"); err != nil {
		t.Error(err)
	}
}

// A login that began before the password was changed ends with the old one.
func TestChangedPasswordOpensNoPendingLogin(t *testing.T) {
	h := open(t)
	alice := person("alice")
	h.registers(alice)
	thief := h.from("192.0.2.1")
	login, ke2, err := thief.beginsWith(alice)
	if err != nil {
		t.Fatal(err)
	}
	ke3, _, _, _, err := login.Finish(ke2)
	if err != nil {
		t.Fatal(err)
	}
	owner := h.from(home)
	if err := owner.Resume(servicetest.Within(t), h.session(alice, nil)); err != nil {
		t.Fatal(err)
	}
	if err := owner.changePassword(alice, "new"); err != nil {
		t.Fatal(err)
	}
	_, err = thief.ends(alice, ke3)
	servicetest.WantCode(t, err, qpcpb.CodeBadCredentials)
	if thief.works() == nil {
		t.Error("the thief is logged in")
	}
}
