package client_test

import (
	"context"
	"errors"
	"testing"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

func TestAuditOfTheLog(t *testing.T) {
	h := newHouse(t)
	alice := h.register("alice")
	h.register("bob")
	h.register("carol")
	alice.liar = newLiar(t)
	c := alice.open()
	audit, err := c.AuditLog(t.Context())
	if err != nil || audit.Entries != 3 {
		t.Fatalf("%+v, %v", audit, err)
	}
	lie := func(f func(*qpcpb.AuditKeyTransparencyResponse)) {
		alice.liar.about(qpcpb.MethodAuditKeyTransparency, change(t, f))
	}
	for name, f := range map[string]func(*qpcpb.AuditKeyTransparencyResponse){
		"an entry changed": func(r *qpcpb.AuditKeyTransparencyResponse) { r.LeafHashes[1][0] ^= 1 },
		"two entries change": func(r *qpcpb.AuditKeyTransparencyResponse) {
			r.LeafHashes[0], r.LeafHashes[1] = r.LeafHashes[1], r.LeafHashes[0]
		},
	} {
		lie(func(r *qpcpb.AuditKeyTransparencyResponse) {
			if len(r.LeafHashes) > 0 {
				f(r)
			}
		})
		_, err := c.AuditLog(t.Context())
		var e *client.ErrServerLog
		if !errors.As(err, &e) || e.Problem != client.LogMismatch {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, f := range map[string]func(*qpcpb.AuditKeyTransparencyResponse){
		"no entry":      func(r *qpcpb.AuditKeyTransparencyResponse) { r.LeafHashes = nil },
		"too many":      func(r *qpcpb.AuditKeyTransparencyResponse) { r.LeafHashes = append(r.LeafHashes, make([]byte, 32)) },
		"a short entry": func(r *qpcpb.AuditKeyTransparencyResponse) { r.LeafHashes = [][]byte{{1}} },
	} {
		lie(f)
		if _, err := c.AuditLog(t.Context()); !errors.Is(err, rpc.ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	alice.liar.about(qpcpb.MethodAuditKeyTransparency, nil)
	if again, err := c.AuditLog(t.Context()); err != nil || again.Root != audit.Root {
		t.Errorf("the truth afterwards: %v", err)
	}
}

func TestRevokedKey(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice"), h.register("bob")
	a, b := alice.open(), bob.open()
	if r, err := a.CheckRevocation(t.Context(), b.Identity()); err != nil || r.Revoked {
		t.Fatalf("before: %+v, %v", r, err)
	}
	if err := b.RevokeKey(t.Context(), "because"); rpc.CodeOf(err) != qpcpb.CodeInvalidField {
		t.Errorf("another reason: %v", err)
	}
	if err := b.RevokeKey(t.Context(), tlog.ReasonCompromised); err != nil {
		t.Fatal(err)
	}
	if r, err := a.CheckRevocation(t.Context(), b.Identity()); err != nil || !r.Revoked || r.Reason != tlog.ReasonCompromised || r.At.IsZero() {
		t.Errorf("after: %+v, %v", r, err)
	}
	if err := b.Call(t.Context(), func(context.Context, *rpc.Client) error { return nil }); !errors.Is(err, client.ErrLoginRequired) {
		t.Errorf("its session: %v", err)
	}
	if err := b.Login(t.Context(), password("bob")); rpc.CodeOf(err) != qpcpb.CodeKeyRevoked {
		t.Errorf("its login: %v", err)
	}
}
