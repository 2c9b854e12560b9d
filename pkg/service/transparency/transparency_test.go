package transparency_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/service/transparency"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

// The log gives the published roots and consistency proofs.
func TestRFC6962(t *testing.T) {
	var v struct {
		Entries, Roots []string
		Consistency    []struct {
			Old, New uint64
			Hashes   []string
		}
	}
	data, err := os.ReadFile("../../tlog/testdata/rfc6962.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	h := open(t)
	h.serve()
	stranger := qpcpb.NewTransparencyClient(h.Stranger())
	check := func(size int) {
		t.Helper()
		r, err := stranger.GetCheckpoint(servicetest.Within(t), &qpcpb.GetCheckpointRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if c := checkpoint(t, r.Checkpoint); c.Size != uint64(size) || hex.EncodeToString(c.Root[:]) != v.Roots[size] {
			t.Errorf("%d leaves: %v", size, c)
		}
	}
	check(0)
	for i, entry := range v.Entries {
		b, err := hex.DecodeString(entry)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(func(tx *store.Tx) error {
			index, err := h.log.AppendTx(tx, sha256.Sum256(append([]byte{0}, b...)))
			if index != uint64(i) {
				t.Errorf("leaf %d is at %d", i, index)
			}
			return err
		})
		check(i + 1)
	}
	for _, p := range v.Consistency {
		r, err := stranger.ProveConsistency(servicetest.Within(t), &qpcpb.ProveConsistencyRequest{OldSize: p.Old, NewSize: p.New})
		if err != nil {
			t.Fatal(err)
		}
		got := []string{}
		for _, hash := range r.Hashes {
			got = append(got, hex.EncodeToString(hash))
		}
		if fmt.Sprint(got) != fmt.Sprint(p.Hashes) {
			t.Errorf("from %d to %d: %v, want %v", p.Old, p.New, got, p.Hashes)
		}
	}
	h.verified()
}

// Somebody outside follows the log: the head, the proofs, the leaves.
func TestAuditorFollowsTheLog(t *testing.T) {
	h := open(t)
	h.serve()
	auditor := qpcpb.NewTransparencyClient(h.Stranger())
	within := servicetest.Within(t)
	first, err := auditor.GetCheckpoint(within, &qpcpb.GetCheckpointRequest{})
	if err != nil || !bytes.Equal(first.ServerKey, signingKey().Public().(ed25519.PublicKey)) {
		t.Fatal(first, err)
	}
	empty := checkpoint(t, first.Checkpoint)
	if empty != (tlog.Checkpoint{Root: tlog.EmptyRoot()}) {
		t.Errorf("the empty log is %v", empty)
	}
	h.bind("alice", "bob", "carol")
	h.grow(1200)

	// All leaves, a thousand at most in one answer, give the signed root.
	var leaves []tlog.Hash
	var head tlog.Checkpoint
	for len(leaves) == 0 || uint64(len(leaves)) < head.Size {
		r, err := auditor.AuditKeyTransparency(within, &qpcpb.AuditKeyTransparencyRequest{Start: uint64(len(leaves)), End: 1200})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(r.LeafHashes); n == 0 || n > transparency.MaxLeaves || r.TreeSize != 1200 {
			t.Fatalf("%d leaves of %d", n, r.TreeSize)
		}
		for _, leaf := range r.LeafHashes {
			leaves = append(leaves, tlog.Hash(leaf))
		}
		head = checkpoint(t, r.Checkpoint)
	}
	if root := naive(leaves); head != (tlog.Checkpoint{Size: 1200, Root: root}) {
		t.Errorf("the head is %v, the leaves give %x", head, root)
	}
	for i, name := range []string{"alice", "bob", "carol"} {
		if leaves[i] != tlog.BindingLeaf(name, servicetest.Key(name)) {
			t.Errorf("leaf %d is not that of %s", i, name)
		}
		p := h.proof(name)
		if err := tlog.VerifyInclusion(checkpoint(t, p.Checkpoint), p.LeafIndex, leaves[i], p.Hashes); err != nil || p.TreeSize != 1200 || p.LeafIndex != uint64(i) {
			t.Errorf("the proof of %s: %v, %v", name, p, err)
		}
	}
	for _, old := range []uint64{0, 1, 3, 1024, 1199, 1200} {
		r, err := auditor.ProveConsistency(within, &qpcpb.ProveConsistencyRequest{OldSize: old, NewSize: 1200})
		if err != nil {
			t.Fatal(err)
		}
		if err := tlog.VerifyConsistency(tlog.Checkpoint{Size: old, Root: naive(leaves[:old])}, head, r.Hashes); err != nil {
			t.Errorf("from %d: %v", old, err)
		}
	}
	// The empty range asks for the size alone.
	for _, at := range []uint64{0, 7, 1200} {
		r, err := auditor.AuditKeyTransparency(within, &qpcpb.AuditKeyTransparencyRequest{Start: at, End: at})
		if err != nil || len(r.LeafHashes) != 0 || r.TreeSize != 1200 || checkpoint(t, r.Checkpoint) != head {
			t.Errorf("the empty range at %d: %v, %v", at, r, err)
		}
	}
	const huge = 1<<64 - 1
	for _, r := range []*qpcpb.AuditKeyTransparencyRequest{{Start: 2, End: 1}, {End: 1201}, {Start: 1200, End: 1201}, {Start: 1201, End: 1201}, {End: huge}, {Start: huge}, {Start: huge, End: huge}} {
		_, err := auditor.AuditKeyTransparency(within, r)
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	for _, r := range []*qpcpb.ProveConsistencyRequest{{OldSize: 2, NewSize: 1}, {NewSize: 1201}, {OldSize: 1201, NewSize: 1201}, {OldSize: huge, NewSize: huge}, {OldSize: huge}} {
		_, err := auditor.ProveConsistency(within, r)
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	if r := h.verified(); r.Size != 1200 || r.Root != head.Root {
		t.Errorf("verified %d, %x", r.Size, r.Root)
	}
}

func TestRevocation(t *testing.T) {
	h := open(t)
	h.serve()
	h.bind("alice", "bob")
	alice, bob := qpcpb.NewTransparencyClient(h.Connect("alice")), qpcpb.NewTransparencyClient(h.Connect("bob"))
	admin := qpcpb.NewTransparencyClient(h.ConnectAs(rpc.Principal{Identity: servicetest.Key("root"), Username: "root", Admin: true}))
	within := servicetest.Within(t)
	revoke := func(c qpcpb.TransparencyClient, name, reason string) (uint64, error) {
		r, err := c.RevokeKey(within, &qpcpb.RevokeKeyRequest{IdentityKey: servicetest.Bytes(name), Reason: reason})
		if err == nil && !r.Success {
			t.Error("no success and no error")
		}
		return r.GetLeafIndex(), err
	}
	wantRevoked := func(name string, revoked bool, reason string, at int64) {
		t.Helper()
		r, err := bob.CheckRevocation(within, &qpcpb.CheckRevocationRequest{IdentityKey: servicetest.Bytes(name)})
		if err != nil || r.Revoked != revoked || r.Reason != reason || r.RevokedAt != uint64(at) {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	wantRevoked("alice", false, "", 0)
	_, err := revoke(bob, "alice", tlog.ReasonCompromised)
	servicetest.WantCode(t, err, qpcpb.CodeNotYours)
	for _, reason := range []string{"", "lost", "superseded "} {
		_, err := revoke(alice, "alice", reason)
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	for _, key := range [][]byte{nil, make([]byte, 31), make([]byte, 33)} {
		_, err := alice.RevokeKey(within, &qpcpb.RevokeKeyRequest{IdentityKey: key, Reason: tlog.ReasonCompromised})
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
		_, err = alice.CheckRevocation(within, &qpcpb.CheckRevocationRequest{IdentityKey: key})
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	if h.Count("transparency_leaf") != 2 || len(h.told()) != 0 {
		t.Error("a refused revocation left something")
	}

	at := h.Wall.Now().Unix()
	index, err := revoke(alice, "alice", tlog.ReasonSuperseded)
	if err != nil || index != 2 {
		t.Fatal(index, err)
	}
	h.Wall.Advance(time.Hour)
	// Whoever repeats it, it stays the first.
	for _, c := range []qpcpb.TransparencyClient{alice, admin} {
		if again, err := revoke(c, "alice", tlog.ReasonCompromised); again != index || err != nil {
			t.Errorf("again: %d, %v", again, err)
		}
	}
	wantRevoked("alice", true, tlog.ReasonSuperseded, at)
	wantRevoked("bob", false, "", 0)
	if index, err := revoke(admin, "somebody unknown", tlog.ReasonUserRevoked); index != 3 || err != nil {
		t.Errorf("by the admin: %d, %v", index, err)
	}
	if told := h.told(); len(told) != 2 || told[0] != servicetest.Key("alice") {
		t.Errorf("told of %v", told)
	}
	r, err := bob.AuditKeyTransparency(within, &qpcpb.AuditKeyTransparencyRequest{Start: 2, End: 3})
	if err != nil || tlog.Hash(r.LeafHashes[0]) != tlog.RevocationLeaf(servicetest.Key("alice"), tlog.ReasonSuperseded) {
		t.Errorf("the leaf is %v, %v", r, err)
	}

	// The account goes; the key stays revoked, and nothing names it.
	h.Write(func(tx *store.Tx) error { return h.log.EraseTx(tx, servicetest.Key("alice")) })
	h.book.accounts = h.book.accounts[1:]
	wantRevoked("alice", true, tlog.ReasonSuperseded, at)
	err = h.DB.Write(t.Context(), func(tx *store.Tx) error { return h.log.BindTx(tx, "alice", servicetest.Key("alice")) })
	servicetest.WantCode(t, err, qpcpb.CodeKeyRevoked)
	err = h.DB.Read(t.Context(), func(tx *store.Tx) error { return h.log.MayUseTx(tx, servicetest.Key("alice")) })
	servicetest.WantCode(t, err, qpcpb.CodeKeyRevoked)
	err = h.DB.Read(t.Context(), func(tx *store.Tx) error { return h.log.MayUseTx(tx, servicetest.Key("bob")) })
	servicetest.WantCode(t, err, qpcpb.CodeUnspecified)
	if n := h.Count("transparency_binding"); n != 1 {
		t.Errorf("%d bindings are left", n)
	}
	err = h.DB.Write(t.Context(), func(tx *store.Tx) error {
		_, err := h.log.RevokeTx(tx, servicetest.Key("bob"), "no reason")
		return err
	})
	servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	h.verified()
}

// What fails with its transaction leaves neither leaf nor head.
func TestLeafGoesWithItsTransaction(t *testing.T) {
	h := open(t)
	h.bind("alice")
	before := h.verified()
	failed := errors.New("the rest of it failed")
	err := h.DB.Write(t.Context(), func(tx *store.Tx) error {
		if err := h.log.BindTx(tx, "bob", servicetest.Key("bob")); err != nil {
			return err
		}
		return failed
	})
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	if after := h.verified(); fmt.Sprint(after) != fmt.Sprint(before) || h.Count("transparency_binding") != 1 {
		t.Errorf("it left %+v", after)
	}
	// A deleted account may come back: a leaf of its own each time.
	h.Write(func(tx *store.Tx) error { return h.log.EraseTx(tx, servicetest.Key("alice")) })
	h.book.accounts = nil
	h.bind("alice")
	if p := h.proof("alice"); p.LeafIndex != 1 || p.TreeSize != 2 {
		t.Errorf("alice is proven by %v", p)
	}
}

// A database from before the log gets a leaf for each account, once.
func TestBackfill(t *testing.T) {
	h := open(t)
	h.bind("alice")
	for i := range 120 { // three transactions
		h.book.add(fmt.Sprintf("user%03d", i))
	}
	for range 2 {
		h.backfill()
		if r := h.verified(); r.Size != 121 {
			t.Fatalf("%d leaves", r.Size)
		}
	}
	for _, name := range []string{"alice", "user000", "user119"} {
		p := h.proof(name)
		if err := tlog.VerifyInclusion(checkpoint(t, p.Checkpoint), p.LeafIndex, tlog.BindingLeaf(name, servicetest.Key(name)), p.Hashes); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := strings.Count(h.lines.String(), "count=120"); n != 1 {
		t.Errorf("the owner reads %d times of it:\n%s", n, &h.lines)
	}
}

// Another name or key of the server: the head is signed anew, over the same
// tree.
func TestServerChangesItsName(t *testing.T) {
	h := open(t)
	h.bind("alice", "bob", "carol")
	before := h.verified()
	otherKey := ed25519.NewKeyFromSeed(make([]byte, 32))
	for _, test := range []struct {
		name string
		key  ed25519.PrivateKey
	}{{"other.example", signingKey()}, {"other.example", otherKey}} {
		h.lines.Reset()
		h.log = h.service(test.name, test.key)
		h.backfill()
		if after := h.verified(); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("the log is %+v, was %+v", after, before)
		}
		if !strings.Contains(h.lines.String(), "has changed") {
			t.Errorf("the owner is not told: %s", &h.lines)
		}
		h.lines.Reset()
		h.backfill()
		if h.lines.Len() > 0 {
			t.Errorf("told again: %s", &h.lines)
		}
	}
	h.bind("dave")
	if _, err := transparency.New(transparency.Options{ServerName: "not a name", Key: otherKey}); err == nil {
		t.Error("a log by an impossible name")
	}
}

// Whatever is changed behind its back, Verify names it; and nothing more is
// signed on top of what an append can see.
func TestDamage(t *testing.T) {
	const flip = `SET hash = zeroblob(32)`
	for name, test := range map[string]struct {
		sql     string
		problem string // that Verify finds
		appends bool   // the next registration still works
	}{
		"a leaf under a node":  {`UPDATE transparency_leaf ` + flip + ` WHERE leaf_index = 1`, "node 0 of level 1 is not what its leaves hash to", true},
		"the last leaf":        {`UPDATE transparency_leaf ` + flip + ` WHERE leaf_index = 6`, "the signed checkpoint says 7 entries", false},
		"a node":               {`UPDATE transparency_node ` + flip + ` WHERE position = 0`, "node 0 of level 1 is not what its leaves hash to", true},
		"a node at the top":    {`UPDATE transparency_node ` + flip + ` WHERE position = 2`, "node 0 of level 2 is not what its leaves hash to", false},
		"a node missing":       {`DELETE FROM transparency_node WHERE position = 2`, "7 leaves need 4 nodes; 3 are stored", false},
		"a leaf missing":       {`DELETE FROM transparency_leaf WHERE leaf_index = 1`, "leaf 1 is missing", true},
		"the end cut off":      {`DELETE FROM transparency_leaf WHERE leaf_index >= 6`, "the signed checkpoint says 7 entries", false},
		"the head missing":     {`DELETE FROM transparency_head WHERE id = 1`, "there is no signed checkpoint", false},
		"the head changed":     {`UPDATE transparency_head SET checkpoint = replace(checkpoint, '7', '6')`, "the signed checkpoint: ", false},
		"the head's size":      {`UPDATE transparency_head SET size = 6`, "is filed under size 6 and says 7", true},
		"a binding's name":     {`UPDATE transparency_binding SET username = 'mallory' WHERE username = 'bob'`, "not that of mallory and their key", true},
		"a binding's place":    {`UPDATE transparency_binding SET leaf_index = 99 WHERE username = 'bob'`, "the leaf of bob, number 99, is missing", true},
		"an account forgotten": {`DELETE FROM transparency_binding WHERE username = 'bob'`, "", true}, // Backfill finds it
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := open(t)
			h.bind("alice", "bob", "carol", "dave", "erin", "frank", "grace")
			h.Write(func(tx *store.Tx) error { _, err := tx.Exec(test.sql); return err })
			r, err := h.log.Verify(t.Context())
			if found := strings.Join(r.Problems, "; "); err != nil || (found == "") != (test.problem == "") || !strings.Contains(found, test.problem) {
				t.Errorf("Verify finds %q, %v; want %q", found, err, test.problem)
			}
			err = h.DB.Write(t.Context(), func(tx *store.Tx) error { return h.log.BindTx(tx, "heidi", servicetest.Key("heidi")) })
			if test.appends != (err == nil) || err != nil && !errors.Is(err, transparency.ErrDamaged) {
				t.Errorf("the next registration: %v", err)
			}
		})
	}
}

// A start on a damaged log goes well, says so, and signs nothing.
func TestStartOnADamagedLog(t *testing.T) {
	h := open(t)
	h.bind("alice", "bob", "carol")
	h.Write(func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE transparency_leaf SET hash = zeroblob(32) WHERE leaf_index = 2`)
		return err
	})
	h.lines.Reset()
	h.backfill()
	if !strings.Contains(h.lines.String(), "level=ERROR") || !strings.Contains(h.lines.String(), "qpcd log verify") {
		t.Errorf("the owner reads: %s", &h.lines)
	}
	if c := checkpoint(t, h.proof("alice").Checkpoint); c.Size != 3 || c.Root != naive([]tlog.Hash{
		tlog.BindingLeaf("alice", servicetest.Key("alice")), tlog.BindingLeaf("bob", servicetest.Key("bob")), tlog.BindingLeaf("carol", servicetest.Key("carol")),
	}) {
		t.Errorf("the head is %v", c)
	}
	// Under another name it would have to be signed anew, blindly.
	h.Write(func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM transparency_leaf WHERE leaf_index = 2`)
		return err
	})
	h.lines.Reset()
	h.log = h.service("other.example", signingKey())
	h.backfill()
	if !strings.Contains(h.lines.String(), "was signed with 3 leaves and has 2") {
		t.Errorf("the owner reads: %s", &h.lines)
	}
}

// Any sequence of bindings, revocations, deletions and failed transactions
// gives the tree that a naive reading of the RFC gives, with proofs for all of
// it.
func TestAgainstANaiveTree(t *testing.T) {
	h := open(t)
	h.serve()
	auditor := qpcpb.NewTransparencyClient(h.Stranger())
	var leaves []tlog.Hash
	heads := []tlog.Checkpoint{{Root: tlog.EmptyRoot()}}
	people := 0
	where := make(map[string]uint64)
	const most = 250 // leaves; beyond them only proofs are asked for
	append1 := func(leaf tlog.Hash) {
		leaves = append(leaves, leaf)
		heads = append(heads, tlog.Checkpoint{Size: uint64(len(leaves)), Root: naive(leaves)})
	}
	rapid.Check(t, func(rt *rapid.T) {
		rt.Repeat(map[string]func(*rapid.T){
			"bind": func(*rapid.T) {
				if people++; len(leaves) >= most {
					return
				}
				name := fmt.Sprintf("p%d", people)
				h.bind(name)
				where[name] = uint64(len(leaves))
				append1(tlog.BindingLeaf(name, servicetest.Key(name)))
			},
			"revoke": func(*rapid.T) {
				if people++; len(leaves) >= most {
					return
				}
				key := servicetest.Key(fmt.Sprintf("r%d", people))
				h.Write(func(tx *store.Tx) error { _, err := h.log.RevokeTx(tx, key, tlog.ReasonCompromised); return err })
				append1(tlog.RevocationLeaf(key, tlog.ReasonCompromised))
			},
			"fail": func(rt *rapid.T) {
				if len(leaves) >= most {
					return
				}
				err := h.DB.Write(t.Context(), func(tx *store.Tx) error {
					for range rapid.IntRange(1, 5).Draw(rt, "leaves") {
						if _, err := h.log.AppendTx(tx, number(1)); err != nil {
							return err
						}
					}
					return errors.New("undone")
				})
				if err == nil || err.Error() != "undone" {
					rt.Fatal(err)
				}
			},
			"erase": func(rt *rapid.T) {
				if len(where) == 0 {
					return
				}
				name := rapid.SampledFrom(slices.Sorted(maps.Keys(where))).Draw(rt, "who")
				h.Write(func(tx *store.Tx) error { return h.log.EraseTx(tx, servicetest.Key(name)) })
				delete(where, name)
			},
			"prove": func(rt *rapid.T) {
				if len(where) == 0 {
					return
				}
				name := rapid.SampledFrom(slices.Sorted(maps.Keys(where))).Draw(rt, "who")
				p := h.proof(name)
				c := checkpoint(t, p.Checkpoint)
				if c != heads[len(leaves)] || p.LeafIndex != where[name] || p.TreeSize != c.Size {
					rt.Fatalf("proof %v against %v", p, c)
				}
				if err := tlog.VerifyInclusion(c, p.LeafIndex, tlog.BindingLeaf(name, servicetest.Key(name)), p.Hashes); err != nil {
					rt.Fatal(err)
				}
			},
			"grown": func(rt *rapid.T) {
				newer := rapid.IntRange(0, len(leaves)).Draw(rt, "newer")
				older := rapid.IntRange(0, newer).Draw(rt, "older")
				r, err := auditor.ProveConsistency(servicetest.Within(t), &qpcpb.ProveConsistencyRequest{OldSize: uint64(older), NewSize: uint64(newer)})
				if err != nil {
					rt.Fatal(err)
				}
				if err := tlog.VerifyConsistency(heads[older], heads[newer], r.Hashes); err != nil {
					rt.Fatal(err)
				}
			},
		})
	})
	if r := h.verified(); r.Root != naive(leaves) {
		t.Errorf("%d leaves hash to %x", r.Size, r.Root)
	}
}
