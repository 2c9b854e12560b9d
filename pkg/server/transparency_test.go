package server

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/keys"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/tlog"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// Alice registers and is in the log; she loses her key and revokes it. That
// ends everything of it, and nothing brings it back.
func TestStoryOfARevokedKey(t *testing.T) {
	t.Parallel()
	h := open(t, filepath.Join(t.TempDir(), "data"), nil)
	alice, bob := person("alice"), person("bob")
	a, phone, b := h.dial(""), h.dial(""), h.dial("")
	a.signUp(alice)
	b.signUp(bob)
	phone.resume(alice)
	if _, err := qpcpb.NewKeyClient(a).UploadKeyPackage(within(t), &qpcpb.UploadKeyPackageRequest{IdentityKey: alice.key[:], Package: keyPackage(100)}); err != nil {
		t.Fatal(err)
	}
	if _, err := qpcpb.NewKeyClient(a).UploadHybridKey(within(t), &qpcpb.UploadHybridKeyRequest{IdentityKey: alice.key[:], HybridPublicKey: make([]byte, keys.HybridKeySize)}); err != nil {
		t.Fatal(err)
	}

	// Bob verifies what he is told of her, from the answer alone.
	head, err := qpcpb.NewTransparencyClient(b).GetCheckpoint(within(t), &qpcpb.GetCheckpointRequest{})
	if err != nil || !bytes.Equal(head.ServerKey, h.serverKey()) {
		t.Fatal(head, err)
	}
	verify := func() {
		t.Helper()
		r, err := qpcpb.NewDirectoryClient(b).ResolveUser(within(t), &qpcpb.ResolveUserRequest{Username: "alice"})
		if err != nil {
			t.Fatal(err)
		}
		var p qpcpb.InclusionProof
		if err := proto.Unmarshal(r.InclusionProof, &p); err != nil {
			t.Fatal(err)
		}
		c, err := tlog.Open(p.Checkpoint, "router/qpc", head.ServerKey)
		if err != nil {
			t.Fatal(err)
		}
		if err := tlog.VerifyInclusion(c, p.LeafIndex, tlog.BindingLeaf("alice", alice.key), p.Hashes); err != nil {
			t.Error(err)
		}
	}
	verify()

	log := qpcpb.NewTransparencyClient(a)
	_, err = qpcpb.NewTransparencyClient(b).RevokeKey(within(t), &qpcpb.RevokeKeyRequest{IdentityKey: alice.key[:], Reason: "compromised"})
	wantCode(t, err, qpcpb.CodeNotYours)
	revoked, err := log.RevokeKey(within(t), &qpcpb.RevokeKeyRequest{IdentityKey: alice.key[:], Reason: "compromised"})
	if err != nil || revoked.LeafIndex != 2 {
		t.Fatal(revoked, err)
	}
	// The answer came; then every connection of hers ends.
	for _, c := range []*client{a, phone} {
		c.event(qpcpb.EventSessionEnded)
		c.wantClosed(transport.CloseSessionRevoked)
	}
	if err := h.dial("").Resume(within(t), alice.token); !errors.Is(err, rpc.ErrSessionRefused) {
		t.Errorf("her session: %v", err)
	}
	again := h.dial("")
	_, err = qpcpb.NewAuthClient(again).OpaqueLoginFinish(within(t), again.login(alice))
	wantCode(t, err, qpcpb.CodeKeyRevoked)
	if r, err := qpcpb.NewKeyClient(b).FetchKeyPackage(within(t), &qpcpb.FetchKeyPackageRequest{IdentityKey: alice.key[:]}); err != nil || len(r.Package) > 0 {
		t.Errorf("her key packages: %v, %v", r, err)
	}
	if r, err := qpcpb.NewKeyClient(b).FetchHybridKey(within(t), &qpcpb.FetchHybridKeyRequest{IdentityKey: alice.key[:]}); err != nil || len(r.HybridPublicKey) > 0 {
		t.Errorf("her hybrid key: %v, %v", r, err)
	}
	if r, err := qpcpb.NewTransparencyClient(b).CheckRevocation(within(t), &qpcpb.CheckRevocationRequest{IdentityKey: alice.key[:]}); err != nil || !r.Revoked || r.Reason != "compromised" {
		t.Errorf("bob asks: %v, %v", r, err)
	}
	verify() // that it was hers stays true

	// Without the account the key is still over, under any name.
	if err := h.s.db.Write(within(t), func(tx *store.Tx) error {
		if err := h.s.eraseTx(tx, alice.key); err != nil {
			return err
		}
		_, err := tx.Exec(`DELETE FROM auth_account WHERE identity_key = ?`, alice.key)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	anew := *alice
	anew.name = "alice2"
	_, err = qpcpb.NewAuthClient(again).OpaqueRegisterFinish(within(t), again.registration(&anew))
	wantCode(t, err, qpcpb.CodeKeyRevoked)
	if _, err := qpcpb.NewDirectoryClient(b).ResolveUser(within(t), &qpcpb.ResolveUserRequest{Username: "alice2"}); rpc.CodeOf(err) != qpcpb.CodeUserNotFound {
		t.Errorf("alice2: %v", err)
	}
	if r, err := h.s.keyLog.Verify(within(t)); err != nil || r.Size != 3 || len(r.Problems) > 0 {
		t.Errorf("verified: %+v, %v", r, err)
	}
}

// A database from before the log: the accounts get their leaves when the server
// starts, before anybody asks for them.
func TestAccountsFromBeforeTheLog(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	h := open(t, dir, nil)
	alice := h.settle(person("alice"))
	h.settle(person("bob"))
	if err := h.s.db.Write(within(t), func(tx *store.Tx) error {
		for _, table := range []string{"leaf", "node", "head", "binding", "revocation"} {
			if _, err := tx.Exec(`DELETE FROM transparency_` + table); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	h.stop()
	h = open(t, dir, nil)
	r, err := qpcpb.NewDirectoryClient(h.dial("").resume(alice)).ResolveUser(within(t), &qpcpb.ResolveUserRequest{Username: "bob"})
	if err != nil || len(r.InclusionProof) == 0 {
		t.Errorf("got %v, %v", r, err)
	}
	if r, err := h.s.keyLog.Verify(within(t)); err != nil || r.Size != 2 || len(r.Problems) > 0 {
		t.Errorf("verified: %+v, %v", r, err)
	}
}
