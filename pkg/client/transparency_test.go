package client_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/client/localstore"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/tlog"
	"github.com/quicprochat/qpcd/pkg/username"
)

// open opens the profile of a person without connecting.
func (p *person) open() *client.Client {
	p.t.Helper()
	c, err := client.Open(p.t.Context(), p.options(), password(p.name))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { c.Close() })
	return c
}

// wantProblem checks an error, and that it says what happened and what to do.
func wantProblem(t *testing.T, err error, problem client.LogProblem, says ...string) *client.ErrServerLog {
	t.Helper()
	var e *client.ErrServerLog
	if !errors.As(err, &e) || e.Problem != problem {
		t.Fatalf("got %v, want the problem %q", err, problem)
	}
	text := e.Error()
	for _, want := range append(says, "nothing was sent.", "Ask whoever runs the server") {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
	for line := range strings.SplitSeq(text, "\n") {
		if len(line) > 130 {
			t.Errorf("a line is too long to read: %s", line)
		}
	}
	return e
}

// An answer that is not proven is not believed, by whichever way it comes, and
// the truth is afterwards.
func TestServerThatForges(t *testing.T) {
	h := newHouse(t)
	alice, bob, mallory := h.register("alice"), h.register("bob"), h.register("mallory")
	h.register("carol") // the tree is no complete one
	alice.liar = newLiar(t)
	c := alice.open()

	// What the server says of mallory.
	var ofMallory *qpcpb.ResolveUserResponse
	err := c.Call(t.Context(), func(_ context.Context, calls *rpc.Client) (err error) {
		ofMallory, err = qpcpb.NewDirectoryClient(calls).ResolveUser(t.Context(), &qpcpb.ResolveUserRequest{Username: "mallory"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var theirs qpcpb.InclusionProof
	if err := proto.Unmarshal(ofMallory.InclusionProof, &theirs); err != nil {
		t.Fatal(err)
	}
	origin, err := tlog.OriginOf(theirs.Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	otherKey := ed25519.NewKeyFromSeed(make([]byte, 32))
	signer, err := tlog.NewSigner(origin, otherKey)
	if err != nil {
		t.Fatal(err)
	}
	bySomebody, err := signer.Sign(tlog.Checkpoint{Size: 4})
	if err != nil {
		t.Fatal(err)
	}
	resolve := func(f func(*qpcpb.ResolveUserResponse)) map[qpcpb.MethodID]lie {
		return map[qpcpb.MethodID]lie{qpcpb.MethodResolveUser: change(t, f)}
	}
	proven := func(f func(*qpcpb.InclusionProof)) map[qpcpb.MethodID]lie {
		return resolve(func(r *qpcpb.ResolveUserResponse) {
			var p qpcpb.InclusionProof
			if err := proto.Unmarshal(r.InclusionProof, &p); err != nil {
				t.Error(err)
			}
			f(&p)
			r.InclusionProof, _ = proto.Marshal(&p)
		})
	}
	notProven := "DOES NOT PROVE THAT THIS IS THE KEY OF BOB"
	notSigned := "IS NOT SIGNED BY IT"
	for _, test := range []struct {
		name    string
		lies    map[qpcpb.MethodID]lie
		problem client.LogProblem
		says    string
	}{
		{"no proof", resolve(func(r *qpcpb.ResolveUserResponse) { r.InclusionProof = nil }), client.LogNoProof, notProven},
		{"another key, no proof", resolve(func(r *qpcpb.ResolveUserResponse) { r.IdentityKey, r.InclusionProof = ofMallory.IdentityKey, nil }), client.LogNoProof, notProven},
		{"another key, the right one's proof", resolve(func(r *qpcpb.ResolveUserResponse) { r.IdentityKey = ofMallory.IdentityKey }), client.LogBadProof, notProven},
		{"another key with its own proof", resolve(func(r *qpcpb.ResolveUserResponse) {
			r.IdentityKey, r.InclusionProof = ofMallory.IdentityKey, ofMallory.InclusionProof
		}), client.LogBadProof, notProven},
		{"a proof that does not parse", resolve(func(r *qpcpb.ResolveUserResponse) { r.InclusionProof = []byte{0xff} }), client.LogBadProof, notProven},
		{"another place", proven(func(p *qpcpb.InclusionProof) { p.LeafIndex++ }), client.LogBadProof, notProven},
		{"another size", proven(func(p *qpcpb.InclusionProof) { p.TreeSize++ }), client.LogBadProof, notProven},
		{"a hash changed", proven(func(p *qpcpb.InclusionProof) { p.Hashes[1][31] ^= 1 }), client.LogBadProof, notProven},
		{"a hash missing", proven(func(p *qpcpb.InclusionProof) { p.Hashes = p.Hashes[1:] }), client.LogBadProof, notProven},
		{"a short hash", proven(func(p *qpcpb.InclusionProof) { p.Hashes[0] = p.Hashes[0][1:] }), client.LogBadProof, notProven},
		{"no checkpoint", proven(func(p *qpcpb.InclusionProof) { p.Checkpoint = "" }), client.LogForged, notSigned},
		{"a size changed after signing", proven(func(p *qpcpb.InclusionProof) {
			p.Checkpoint = strings.Replace(p.Checkpoint, "\n4\n", "\n5\n", 1)
		}), client.LogForged, notSigned},
		{"signed by somebody", proven(func(p *qpcpb.InclusionProof) { p.Checkpoint = bySomebody }), client.LogForged, notSigned},
		{"signed by another key, which it admits", merge(
			proven(func(p *qpcpb.InclusionProof) { p.Checkpoint = bySomebody }),
			map[qpcpb.MethodID]lie{qpcpb.MethodGetCheckpoint: change(t, func(r *qpcpb.GetCheckpointResponse) {
				r.Checkpoint, r.ServerKey = bySomebody, otherKey.Public().(ed25519.PublicKey)
			})},
		), client.LogOtherKey, "THE SIGNING KEY OF SERVER home HAS CHANGED"},
		{"no proof that the log only grew", map[qpcpb.MethodID]lie{
			qpcpb.MethodProveConsistency: refuse(qpcpb.CodeInvalidField),
		}, client.LogRewritten, "SHOWS ANOTHER LIST OF NAMES THAN BEFORE"},
		{"a wrong proof that the log only grew", map[qpcpb.MethodID]lie{
			qpcpb.MethodProveConsistency: change(t, func(r *qpcpb.ProveConsistencyResponse) { r.Hashes[0][0] ^= 1 }),
		}, client.LogRewritten, "SHOWS ANOTHER LIST OF NAMES THAN BEFORE"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for method, f := range test.lies {
				alice.liar.about(method, f)
			}
			defer func() {
				for method := range test.lies {
					alice.liar.about(method, nil)
				}
			}()
			_, err := c.LookUp(t.Context(), "bob")
			e := wantProblem(t, err, test.problem, test.says)
			if e.Server != "home" || e.Name != "bob" || e.Known == "" {
				t.Errorf("the evidence is missing: %+v", e)
			}
			if _, err := c.AcceptIdentity(t.Context(), "bob"); !errors.As(err, &e) {
				t.Errorf("accepting it by hand: %v", err)
			}
		})
	}
	// What is not a lie but the wrong moment accuses nobody.
	alice.liar.about(qpcpb.MethodProveConsistency, refuse(qpcpb.CodeDraining))
	if _, err := c.LookUp(t.Context(), "bob"); rpc.CodeOf(err) != qpcpb.CodeDraining || errors.As(err, new(*client.ErrServerLog)) {
		t.Errorf("a server that stops: %v", err)
	}
	alice.liar.about(qpcpb.MethodProveConsistency, nil)
	c.Close()

	found := bob.open().Identity()
	alice.on()
	if got := alice.contact(bob); got.Identity != found {
		t.Errorf("afterwards bob is %v, want %v", got.Identity, found)
	}
	if got := alice.contact(mallory); got.Identity != rpc.IdentityKey(ofMallory.IdentityKey) {
		t.Errorf("afterwards mallory is %v", got.Identity)
	}
}

func merge(all ...map[qpcpb.MethodID]lie) map[qpcpb.MethodID]lie {
	merged := make(map[qpcpb.MethodID]lie)
	for _, lies := range all {
		for method, f := range lies {
			merged[method] = f
		}
	}
	return merged
}

// save stops the server and copies its data; restore puts them back.
func (h *house) save(t *testing.T) (restore func()) {
	t.Helper()
	data, saved := h.args[1], filepath.Join(t.TempDir(), "saved")
	h.close()
	if err := os.CopyFS(saved, os.DirFS(data)); err != nil {
		t.Fatal(err)
	}
	h.start()
	return func() {
		t.Helper()
		h.close()
		if err := errors.Join(os.RemoveAll(data), os.CopyFS(data, os.DirFS(saved))); err != nil {
			t.Fatal(err)
		}
		h.start()
	}
}

// A server that is set back, or that goes on from an earlier state as if
// nothing had been, is caught by whoever has seen more, with the two signatures
// that convict it. It is the same server with the same keys.
func TestServerThatRewindsOrEquivocates(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice"), h.register("bob")
	restore := h.save(t)
	h.register("carol") // the third
	if err := lookUp(alice, "bob"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		since   string // who registers after the restoration
		problem client.LogProblem
		says    string
	}{
		{"", client.LogShrunk, "IS SHORTER THAN BEFORE"},
		{"dave", client.LogForked, "SHOWS ANOTHER LIST OF NAMES THAN BEFORE"},
		{"dave erin", client.LogRewritten, "SHOWS ANOTHER LIST OF NAMES THAN BEFORE"},
	} {
		t.Run(string(test.problem), func(t *testing.T) {
			restore()
			for name := range strings.FieldsSeq(test.since) {
				h.register(name)
			}
			e := wantProblem(t, lookUp(alice, "bob"), test.problem, test.says, "qpc trust forget home")
			origin, _ := tlog.OriginOf(e.Known)
			known, err := tlog.Open(e.Known, origin, e.KnownKey)
			if err != nil {
				t.Fatalf("the known checkpoint: %v", err)
			}
			presented, err := tlog.Open(e.Presented, origin, e.KnownKey)
			if err != nil || known == presented || known.Size != 3 {
				t.Errorf("the evidence convicts nobody: %v, %v, %v", known, presented, err)
			}
		})
	}
	// Bob had seen less, and sees nothing wrong: a log that he knows goes on.
	if err := lookUp(bob, "alice"); err != nil {
		t.Errorf("bob: %v", err)
	}
	// Who has made sure that it is all right starts over.
	store, err := localstore.Open(t.Context(), alice.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if known, err := client.ForgetLog(t.Context(), store); known != want || err != nil {
			t.Errorf("forgetting %d: %v, %v", i, known, err)
		}
	}
	store.Close()
	if err := lookUp(alice, "bob"); err != nil {
		t.Errorf("after starting over: %v", err)
	}
}

// lookUp asks once, with a client that is opened for it.
func lookUp(p *person, name string) error {
	c, err := client.Open(p.t.Context(), p.options(), password(p.name))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.LookUp(p.t.Context(), name)
	return err
}

func TestServerThatIsRenamed(t *testing.T) {
	h := newHouse(t)
	alice := h.register("alice")
	h.register("bob")
	h.close()
	h.args = append(h.args, "--server-name", "elsewhere.example")
	h.start()
	wantProblem(t, lookUp(alice, "bob"), client.LogRenamed, "HAS ANOTHER NAME THAN BEFORE", "elsewhere.example/qpc")
}

func TestServerWithoutALog(t *testing.T) {
	h := newHouse(t)
	alice := h.register("alice")
	h.register("bob")
	store, err := localstore.Open(t.Context(), alice.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	// A profile from before there was a log.
	if known, err := client.ForgetLog(t.Context(), store); !known || err != nil {
		t.Fatal(known, err)
	}
	store.Close()
	alice.liar = newLiar(t)
	alice.liar.about(qpcpb.MethodGetCheckpoint, refuse(qpcpb.CodeUnimplemented))
	wantProblem(t, lookUp(alice, "bob"), client.LogAbsent, "KEEPS NO LIST")
	alice.liar.about(qpcpb.MethodGetCheckpoint, change(t, func(r *qpcpb.GetCheckpointResponse) { r.ServerKey[0] ^= 1 }))
	wantProblem(t, lookUp(alice, "bob"), client.LogForged)

	// It is pinned at the next contact.
	alice.liar = nil
	c := alice.open()
	if _, ok, err := c.ServerKey(t.Context()); ok || err != nil {
		t.Errorf("a key is known: %v", err)
	}
	if _, err := c.LookUp(t.Context(), "bob"); err != nil {
		t.Error(err)
	}
	if key, ok, err := c.ServerKey(t.Context()); !ok || len(key) != ed25519.PublicKeySize || err != nil {
		t.Errorf("no key is known: %v", err)
	}
}

// A name that comes with a message is believed only when it leads back to the
// key that has written it.
func TestNameOfAStrangerIsProven(t *testing.T) {
	h := newHouse(t)
	alice, bob, mallory := h.register("alice"), h.register("bob").on(), h.register("mallory").on()
	alice.liar = newLiar(t)
	alice.liar.about(qpcpb.MethodResolveIdentity, change(t, func(r *qpcpb.ResolveIdentityResponse) { r.Username = "bob" }))
	alice.on()
	mallory.says(alice, "it is me, bob")
	e := alice.until("a message", func(e client.Event) bool { return e.Kind == client.EventMessage })
	if e.PeerName != "" || e.Peer != mallory.Identity() {
		t.Errorf("it comes from %q", e.PeerName)
	}
	alice.liar.about(qpcpb.MethodResolveIdentity, nil)
	alice.liar.about(qpcpb.MethodResolveUser, change(t, func(r *qpcpb.ResolveUserResponse) { r.InclusionProof = nil }))
	bob.says(alice, "and me")
	e = alice.until("distrust", func(e client.Event) bool { return e.Kind == client.EventDistrust })
	wantProblem(t, e.Err, client.LogNoProof)
	alice.liar.about(qpcpb.MethodResolveUser, nil)
	bob.says(alice, "me again")
	alice.until("a message", func(e client.Event) bool { return e.Kind == client.EventMessage })
	alice.reads(bob, "me again")
}

// Without the server's word a message counts as not sent, and it arrives once
// the word is there.
func TestDeliveryProofsAreChecked(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice"), h.register("bob").on()
	alice.liar = newLiar(t)
	for _, test := range []struct {
		name string
		lie  func(*qpcpb.EnqueueResponse)
	}{
		{"changed", func(r *qpcpb.EnqueueResponse) { r.DeliveryProof[40] ^= 1 }},
		{"missing", func(r *qpcpb.EnqueueResponse) { r.DeliveryProof = nil }},
		{"for another seq", func(r *qpcpb.EnqueueResponse) { r.Seq++ }},
	} {
		t.Run(test.name, func(t *testing.T) {
			alice.liar.about(qpcpb.MethodEnqueue, change(t, test.lie))
			alice.on()
			m := alice.says(bob, test.name)
			e := alice.until("a wait", func(e client.Event) bool { return e.Kind == client.EventWaiting })
			var unproven *client.ErrDeliveryProof
			if !errors.As(e.Err, &unproven) || unproven.Recipient != bob.Identity() || !strings.Contains(e.Err.Error(), "qpc trust forget home") {
				t.Errorf("it waits because of %v", e.Err)
			}
			if n, err := alice.Unsent(t.Context()); n != 1 || err != nil {
				t.Errorf("%d messages wait, %v", n, err)
			}
			if alice.liar.times(qpcpb.MethodEnqueue) == 0 {
				t.Error("nobody lied")
			}
			alice.off()
			alice.liar.about(qpcpb.MethodEnqueue, nil)
			alice.on()
			alice.learns(client.StatusSent, m)
			bob.reads(alice, test.name)
			alice.off()
		})
	}
	if got := bob.history(alice); len(got) != 3 {
		t.Errorf("bob reads %q", got)
	}
}

func TestDeliveryProofsOfABatch(t *testing.T) {
	h := newHouse(t)
	alice, bob, carol := h.register("alice"), h.register("bob"), h.register("carol")
	alice.liar = newLiar(t)
	c := alice.open()
	b, k := bob.open().Identity(), carol.open().Identity()
	enqueue := func(request *qpcpb.BatchEnqueueRequest) (response *qpcpb.BatchEnqueueResponse, err error) {
		request.RecipientKeys = [][]byte{b[:], k[:], make([]byte, 32)}
		err = c.Call(t.Context(), func(_ context.Context, calls *rpc.Client) error {
			response, err = client.EnqueueBatchAt(c, t.Context(), calls, request)
			return err
		})
		return response, err
	}
	statuses := func(r *qpcpb.BatchEnqueueResponse) (all []qpcpb.Status) {
		for _, result := range r.GetResults() {
			all = append(all, qpcpb.Status(result.Status))
		}
		return all
	}
	id, err := e2ee.NewMessageID(strings.NewReader(strings.Repeat("x", 32)), time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []*qpcpb.BatchEnqueueRequest{
		{Payload: []byte("for all"), MessageId: id[:]},
		{Payloads: [][]byte{[]byte("one"), []byte("two"), []byte("three")}},
	} {
		response, err := enqueue(request)
		if got := statuses(response); err != nil || len(got) != 3 || got[0] != qpcpb.StatusOK || got[1] != qpcpb.StatusOK || got[2] != qpcpb.StatusNotFound {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	alice.liar.about(qpcpb.MethodBatchEnqueue, change(t, func(r *qpcpb.BatchEnqueueResponse) {
		r.Results[0].DeliveryProof, r.Results[1].DeliveryProof = r.Results[1].DeliveryProof, bytes.Clone(r.Results[1].DeliveryProof)
	}))
	response, err := enqueue(&qpcpb.BatchEnqueueRequest{Payload: []byte("for all")})
	if got := statuses(response); !errors.As(err, new(*client.ErrDeliveryProof)) || got[0] != qpcpb.StatusInternal || got[1] != qpcpb.StatusOK {
		t.Errorf("a proof of another's message: %v, %v", got, err)
	}
	alice.liar.about(qpcpb.MethodBatchEnqueue, change(t, func(r *qpcpb.BatchEnqueueResponse) { r.Results = r.Results[1:] }))
	if _, err := enqueue(&qpcpb.BatchEnqueueRequest{Payload: []byte("for all")}); !errors.Is(err, rpc.ErrProtocol) {
		t.Errorf("a result missing: %v", err)
	}
}

// A name of another server has no proof that this client could check; one at
// the own server's domain is checked like any other.
func TestNamesOfOtherServers(t *testing.T) {
	h := newHouse(t, "--server-name", "home.example")
	alice, bob := h.register("alice"), h.register("bob")
	alice.liar = newLiar(t)
	c := alice.open()
	key := bob.open().Identity()
	found, err := c.LookUp(t.Context(), "Bob@HOME.example")
	if err != nil || found.Name != "bob" || found.Identity != key {
		t.Errorf("got %+v, %v", found, err)
	}
	// A server that knows another one's user gives no proof.
	alice.liar.about(qpcpb.MethodResolveUser, func(request, _ []byte) ([]byte, qpcpb.Code) {
		var r qpcpb.ResolveUserRequest
		if err := proto.Unmarshal(request, &r); err != nil || r.Username != "zoë@other.example" {
			t.Errorf("asked for %q, %v", r.Username, err)
		}
		return nil, qpcpb.CodePeerUnreachable
	})
	if _, err := c.LookUp(t.Context(), "Zoe\u0308@Other.example"); rpc.CodeOf(err) != qpcpb.CodePeerUnreachable {
		t.Errorf("got %v", err)
	}
	alice.liar.about(qpcpb.MethodResolveUser, func(_, _ []byte) ([]byte, qpcpb.Code) {
		answer, _ := proto.Marshal(&qpcpb.ResolveUserResponse{IdentityKey: bytes.Repeat([]byte{7}, 32)})
		return answer, qpcpb.CodeUnspecified
	})
	if found, err = c.LookUp(t.Context(), "zoë@other.example"); err != nil || found.Name != "zoë@other.example" || found.Identity[0] != 7 {
		t.Errorf("got %+v, %v", found, err)
	}
	_, err = c.LookUp(t.Context(), "bob@home.example")
	wantProblem(t, err, client.LogNoProof)
	for _, name := range []string{"bob@", "bob@a b", "bob@-@-", "@home.example", "bob@a..b"} {
		if _, err := c.LookUp(t.Context(), name); !errors.Is(err, username.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
