package keys_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/service/keys"
	"github.com/quicprochat/qpcd/pkg/store"
)

// abroad is another server, where rita and ron live.
type abroad struct{ answers atomic.Pointer[answers] }

type answers struct {
	pkg, hybrid []byte
	err         error
}

func (*abroad) HomeTx(_ *store.Tx, identity rpc.IdentityKey) (string, bool, error) {
	if identity == servicetest.Key("rita") || identity == servicetest.Key("ron") {
		return "b.example", true, nil
	}
	return "", false, nil
}

func (a *abroad) KeyPackageOf(context.Context, string, rpc.IdentityKey) ([]byte, error) {
	now := a.answers.Load()
	return now.pkg, now.err
}

func (a *abroad) HybridKeyOf(_ context.Context, _ string, identity rpc.IdentityKey) ([]byte, error) {
	if identity == servicetest.Key("ron") {
		return nil, nil
	}
	now := a.answers.Load()
	return now.hybrid, now.err
}

// What another server gives is passed on when it has the form of a key, and the
// server is named when it has not.
func TestKeysFromAnotherServer(t *testing.T) {
	h := house{House: servicetest.New(t)}
	far := &abroad{}
	h.keys = keys.New(keys.Options{DB: h.DB, Accounts: h.Accounts, Push: h.Hub, Remote: far, Now: h.Wall.Now})
	qpcpb.RegisterKeyServer(h.Server, h.keys)
	h.Open()
	alice := h.person(t, "alice")
	rita := servicetest.Bytes("rita")
	down := rpc.Errorf(qpcpb.CodePeerUnreachable, "b.example cannot be reached now")
	key := make([]byte, keys.HybridKeySize)
	for name, test := range map[string]struct {
		given       answers
		pkg, hybrid qpcpb.Code
	}{
		"good":      {answers{pkg: pkg("hers"), hybrid: key}, 0, 0},
		"none":      {answers{}, 0, 0},
		"nonsense":  {answers{pkg: []byte("x"), hybrid: []byte("x")}, qpcpb.CodePeerUnreachable, qpcpb.CodePeerUnreachable},
		"too large": {answers{pkg: append(pkg(""), make([]byte, keys.MaxPackage)...), hybrid: append(key, 0)}, qpcpb.CodePeerUnreachable, qpcpb.CodePeerUnreachable},
		"away":      {answers{err: down}, qpcpb.CodePeerUnreachable, qpcpb.CodePeerUnreachable},
		"broken":    {answers{err: errors.New("x")}, qpcpb.CodeInternal, qpcpb.CodeInternal},
	} {
		t.Run(name, func(t *testing.T) {
			given := test.given
			far.answers.Store(&given)
			one, err := alice.FetchKeyPackage(servicetest.Within(t), &qpcpb.FetchKeyPackageRequest{IdentityKey: rita})
			servicetest.WantCode(t, err, test.pkg)
			if err == nil && string(one.Package) != string(given.pkg) {
				t.Errorf("one: %q", one.Package)
			}
			h.Wall.Advance(1 << 40)
			all, err := alice.FetchKeyPackages(servicetest.Within(t), &qpcpb.FetchKeyPackagesRequest{IdentityKey: rita})
			servicetest.WantCode(t, err, test.pkg)
			if n := len(all.GetPackages()); err == nil && (n == 1) != (len(given.pkg) > 0) {
				t.Errorf("all: %d", n)
			}
			// Somebody else without a key, and one of here, are no error.
			found, err := alice.FetchHybridKeys(servicetest.Within(t), &qpcpb.FetchHybridKeysRequest{
				IdentityKeys: [][]byte{servicetest.Bytes("alice"), servicetest.Bytes("ron"), rita},
			})
			servicetest.WantCode(t, err, test.hybrid)
			if n := len(found.GetKeys()); err == nil && (n == 1) != (len(given.hybrid) > 0) {
				t.Errorf("hybrid keys: %d", n)
			}
		})
	}
}
