package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

// A peer's answer about a name counts only with its log.
func TestAPeerThatLiesAboutItsLog(t *testing.T) {
	t.Parallel()
	a := newRealm(t, "a.example")
	alice := a.resident("alice")
	type change = func(*qpcpb.ProxyResolveUserResponse)
	var lie atomic.Pointer[change]
	var forged atomic.Bool
	liar := &realm{t: t, domain: "liar.example"}
	liar.house = open(t, t.TempDir(), func(c *config.Config) {
		c.ServerName, c.ControlSocket = liar.domain, ""
	}, func(s *Server) {
		s.calls.Register(qpcpb.MethodProxyResolveUser, func(ctx context.Context, r proto.Message) (proto.Message, error) {
			answer, err := s.federation.ProxyResolveUser(ctx, r.(*qpcpb.ProxyResolveUserRequest))
			if f := lie.Load(); err == nil && f != nil {
				(*f)(answer)
			}
			return answer, err
		})
		s.calls.Register(qpcpb.MethodFederationHealth, func(ctx context.Context, r proto.Message) (proto.Message, error) {
			answer, err := s.federation.FederationHealth(ctx, r.(*qpcpb.FederationHealthRequest))
			if forged.Load() {
				answer.ServerKey = random(32)
			}
			return answer, err
		})
	})
	liar.listen = liar.s.Addrs()[0]
	befriend(a, liar)
	eve, mallory := liar.resident("eve"), liar.resident("mallory")
	resolve := func(f change) error {
		if lie.Store(nil); f != nil {
			lie.Store(&f)
		}
		_, err := qpcpb.NewDirectoryClient(alice.client).ResolveUser(within(t), &qpcpb.ResolveUserRequest{Username: "eve@liar.example"})
		return err
	}
	var old *qpcpb.ProxyResolveUserResponse
	if err := resolve(func(r *qpcpb.ProxyResolveUserResponse) { old = proto.CloneOf(r) }); err != nil {
		t.Fatal(err)
	}
	liar.resident("frank") // the log grows
	if err := resolve(nil); err != nil {
		t.Fatal("the log has grown:", err)
	}

	secrets, err := loadSecrets(within(t), liar.s.db, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// signed makes an answer of a log that the key signs, in which eve is alone
	// among so many.
	signed := func(key ed25519.PrivateKey, origin string, size uint64) change {
		signer, err := tlog.NewSigner(origin, key)
		if err != nil {
			t.Fatal(err)
		}
		leaf := tlog.BindingLeaf("eve", eve.key)
		root, hashes := leaf, [][]byte(nil)
		for n := uint64(1); n < size; n++ { // a chain of right neighbours: sizes 2 and 3 are such
			right := random(32)
			hashes = append(hashes, right)
			root = tlog.Hash(tlog.Node(root[:], right))
		}
		checkpoint, err := signer.Sign(tlog.Checkpoint{Size: size, Root: root})
		if err != nil {
			t.Fatal(err)
		}
		inclusion := marshal(t, &qpcpb.InclusionProof{TreeSize: size, Hashes: hashes, Checkpoint: checkpoint})
		return func(r *qpcpb.ProxyResolveUserResponse) { r.InclusionProof = inclusion }
	}
	inclusion := func(f func(*qpcpb.InclusionProof)) change {
		return func(r *qpcpb.ProxyResolveUserResponse) {
			var p qpcpb.InclusionProof
			if err := proto.Unmarshal(r.InclusionProof, &p); err != nil {
				t.Error(err)
			}
			f(&p)
			r.InclusionProof = marshal(t, &p)
		}
	}
	_, other, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	origin := tlog.Origin(liar.domain)
	for name, test := range map[string]struct {
		lie  change
		want string
	}{
		"no proof":               {func(r *qpcpb.ProxyResolveUserResponse) { r.InclusionProof = nil }, "it gives no proof that eve@liar.example is in its log"},
		"not a proof":            {func(r *qpcpb.ProxyResolveUserResponse) { r.InclusionProof = []byte{0xff} }, "it gives no proof"},
		"another key":            {func(r *qpcpb.ProxyResolveUserResponse) { r.IdentityKey = mallory.key[:] }, "eve@liar.example is not in its log of names"},
		"no key":                 {func(r *qpcpb.ProxyResolveUserResponse) { r.IdentityKey = nil }, "something that is no identity key"},
		"another's place":        {inclusion(func(p *qpcpb.InclusionProof) { p.LeafIndex ^= 1 }), "is not in its log of names"},
		"another size":           {inclusion(func(p *qpcpb.InclusionProof) { p.TreeSize++ }), "its proof is for 4 entries, its checkpoint for 3"},
		"yesterday's log":        {func(r *qpcpb.ProxyResolveUserResponse) { r.InclusionProof = old.InclusionProof }, "its log has shrunk from 3 entries to 2"},
		"two logs of one size":   {signed(secrets.signing, origin, 3), "it shows two logs of 3 entries"},
		"a log that goes astray": {signed(secrets.signing, origin, 5), "its log does not continue the one known"},
		"a stranger's signature": {signed(other, origin, 4), "its checkpoint is not signed by its key"},
		"another log's":          {signed(secrets.signing, tlog.Origin("else.example"), 4), "its checkpoint is not signed by its key"},
	} {
		t.Run(name, func(t *testing.T) {
			wantCode(t, resolve(test.lie), qpcpb.CodeOriginMismatch)
			if !strings.Contains(a.status(liar.domain).LastError, test.want) || !strings.Contains(a.log.String(), test.want) {
				t.Errorf("the owner reads %q, want %q", a.status(liar.domain).LastError, test.want)
			}
			if err := resolve(nil); err != nil {
				t.Error("and honest again:", err)
			}
		})
	}

	// A new key of the log, under the old certificate, is not believed at all.
	forged.Store(true)
	test, err := a.s.federation.TestPeer(within(t), &qpcpb.TestPeerRequest{Domain: liar.domain})
	if err != nil || test.Reachable || !strings.Contains(test.Detail, "the key of its log of names has changed") {
		t.Errorf("got %v, %v", test, err)
	}
}
