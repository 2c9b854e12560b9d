package interop_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"testing"

	"github.com/quicprochat/qpcd/internal/interop/outside"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// opaqueClient is the client's half of OPAQUE: ours or opaque-ke's.
type opaqueClient interface {
	// register answers what the server answers to the request that it makes,
	// by exchange, with an upload.
	register(password string, exchange func(request []byte) (response []byte)) (upload, exportKey []byte, err error)
	// logIn does the same with KE1, KE2 and KE3. The error is errRefused when
	// the password is wrong or the name unknown.
	logIn(password string, exchange func(ke1 []byte) (ke2 []byte)) (ke3, exportKey []byte, err error)
}

var errRefused = errors.New("refused")

// ours is pkg/opaque.
type ours struct{}

func (ours) register(password string, exchange func([]byte) []byte) ([]byte, []byte, error) {
	registration, request, err := opaque.NewRegistration(rand.Reader, []byte(password))
	if err != nil {
		return nil, nil, err
	}
	return registration.Finish(exchange(request))
}

func (ours) logIn(password string, exchange func([]byte) []byte) ([]byte, []byte, error) {
	login, ke1, err := opaque.NewLogin(rand.Reader, []byte(password))
	if err != nil {
		return nil, nil, err
	}
	ke3, _, exportKey, _, err := login.Finish(exchange(ke1))
	if errors.Is(err, opaque.ErrAuthentication) {
		err = errRefused
	}
	return ke3, exportKey, err
}

// serenity is @serenity-kit/opaque.
type serenity struct{ node *outside.Node }

func (s serenity) register(password string, exchange func([]byte) []byte) ([]byte, []byte, error) {
	var start struct{ Request base64URL }
	if err := s.node.Call("startRegistration", map[string]any{"password": password}, &start); err != nil {
		return nil, nil, err
	}
	var finish struct{ Upload, ExportKey base64URL }
	err := s.node.Call("finishRegistration", map[string]any{"response": base64URL(exchange(start.Request))}, &finish)
	return finish.Upload, finish.ExportKey, err
}

func (s serenity) logIn(password string, exchange func([]byte) []byte) ([]byte, []byte, error) {
	var start struct{ Request base64URL }
	if err := s.node.Call("startLogin", map[string]any{"password": password}, &start); err != nil {
		return nil, nil, err
	}
	var finish struct{ Finalization, ExportKey base64URL }
	err := s.node.Call("finishLogin", map[string]any{"response": base64URL(exchange(start.Request))}, &finish)
	if err == outside.Refused("refused") {
		err = errRefused
	}
	return finish.Finalization, finish.ExportKey, err
}

// base64URL is bytes that JSON carries as unpadded base64url.
type base64URL []byte

func (b base64URL) MarshalText() ([]byte, error) {
	return base64.RawURLEncoding.AppendEncode(nil, b), nil
}

func (b *base64URL) UnmarshalText(text []byte) (err error) {
	*b, err = base64.RawURLEncoding.AppendDecode(nil, text)
	return err
}

// visitor makes calls of its own on a connection of its own.
type visitor struct {
	t    *testing.T
	auth qpcpb.AuthClient
	ctx  context.Context
}

func (h *house) visit(ctx context.Context, t *testing.T) *visitor {
	t.Helper()
	conn, err := transport.Dial(ctx, transport.DialOptions{
		Address: h.addr.String(), Trust: transport.TrustFirstUse(&pins{known: map[string]transport.Pin{}})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(transport.CloseNormal, "") })
	return &visitor{t: t, ctx: ctx, auth: qpcpb.NewAuthClient(rpc.NewClient(conn))}
}

func (v *visitor) register(c opaqueClient, name, password string, identity rpc.IdentityKey) (exportKey []byte) {
	v.t.Helper()
	upload, exportKey, err := c.register(password, func(request []byte) []byte {
		start, err := v.auth.OpaqueRegisterStart(v.ctx, &qpcpb.OpaqueRegisterStartRequest{Username: name, Request: request})
		if err != nil {
			v.t.Fatalf("registering %s: %v", name, err)
		}
		return start.Response
	})
	if err != nil {
		v.t.Fatalf("registering %s: %v", name, err)
	}
	if _, err := v.auth.OpaqueRegisterFinish(v.ctx, &qpcpb.OpaqueRegisterFinishRequest{
		Username: name, Upload: upload, IdentityKey: identity[:]}); err != nil {
		v.t.Fatalf("registering %s: %v", name, err)
	}
	return exportKey
}

// logIn returns the answer of the client's half, or else that of the server.
func (v *visitor) logIn(c opaqueClient, name, password string, identity rpc.IdentityKey) (token, exportKey []byte, err error) {
	v.t.Helper()
	ke3, exportKey, err := c.logIn(password, func(ke1 []byte) []byte {
		start, err := v.auth.OpaqueLoginStart(v.ctx, &qpcpb.OpaqueLoginStartRequest{Username: name, Request: ke1})
		if err != nil {
			v.t.Fatalf("logging in as %s: %v", name, err)
		}
		return start.Response
	})
	if err != nil {
		return nil, nil, err
	}
	finish, err := v.auth.OpaqueLoginFinish(v.ctx, &qpcpb.OpaqueLoginFinishRequest{
		Username: name, Finalization: ke3, IdentityKey: identity[:]})
	if err != nil {
		return nil, nil, err
	}
	return finish.SessionToken, exportKey, nil
}

// An account made with opaque-ke is one like any other, and the other way
// round: whichever client made it, both log in, and reach the same export key.
func TestOPAQUE(t *testing.T) {
	theirs := serenity{outside.Start(t, "serenity", "peer.mjs")}
	h := newHouse(t)
	h.start(home(), home().build(t))
	defer h.stop()

	clients := []struct {
		name string
		opaqueClient
	}{{"serenity", theirs}, {"ours", ours{}}}
	for i, maker := range clients {
		name, password := "by-"+maker.name, "pässword of "+maker.name
		identity := rpc.IdentityKey{byte(i + 1)}
		exported := h.visit(t.Context(), t).register(maker, name, password, identity)
		if len(exported) != opaque.ExportKeyLength {
			t.Errorf("the export key of %s has %d bytes", name, len(exported))
		}
		for _, c := range clients {
			t.Run(fmt.Sprintf("%s logs in as %s", c.name, name), func(t *testing.T) {
				v := h.visit(t.Context(), t)
				token, again, err := v.logIn(c, name, password, identity)
				if err != nil || len(token) != 32 {
					t.Fatalf("a token of %d bytes, %v", len(token), err)
				}
				if string(again) != string(exported) {
					t.Error("the export key is another than at registration")
				}
				if _, err := v.auth.Logout(t.Context(), &qpcpb.LogoutRequest{}); err != nil {
					t.Errorf("the connection is not logged in: %v", err)
				}
				// The client's half alone tells that a password is wrong, and
				// cannot tell a name without an account from it.
				v = h.visit(t.Context(), t)
				for _, wrong := range []struct{ name, password string }{
					{name, "password"}, {name, ""}, {"nobody", password},
				} {
					if _, _, err := v.logIn(c, wrong.name, wrong.password, identity); !errors.Is(err, errRefused) {
						t.Errorf("%s with password %q: %v", wrong.name, wrong.password, err)
					}
				}
				if _, _, err := v.logIn(c, name, password, identity); err != nil {
					t.Errorf("after wrong passwords: %v", err)
				}
				if _, _, err := v.logIn(c, name, password, rpc.IdentityKey{0xff}); rpc.CodeOf(err) != qpcpb.CodeBadCredentials {
					t.Errorf("with another's identity key: %v", err)
				}
			})
		}
	}
}
