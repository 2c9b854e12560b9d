package client_test

import (
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

func TestEndpoints(t *testing.T) {
	h := newHouse(t)
	alice, bob, carol := h.register("alice").on(), h.register("bob").on(), h.register("carol").on()
	alice.says(bob, "hi") // they share a channel
	bob.reads(alice, "hi")
	key := alice.Identity()
	resolve := func(p *person) (client.Endpoint, error) { return p.ResolveEndpoint(t.Context(), key) }
	if _, err := resolve(bob); rpc.CodeOf(err) != qpcpb.CodeEndpointNotFound {
		t.Errorf("before it is published: %v", err)
	}
	if err := alice.PublishEndpoint(t.Context(), []byte("[2001:db8::1]:5002"), 2*time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*person{alice, bob} {
		e, err := resolve(p)
		if left := time.Until(e.Expires); err != nil || string(e.Address) != "[2001:db8::1]:5002" || left > 2*time.Hour || left < 119*time.Minute {
			t.Errorf("%s: %+v, %v", p.name, e, err)
		}
	}
	if _, err := resolve(carol); rpc.CodeOf(err) != qpcpb.CodeEndpointNotFound {
		t.Errorf("a stranger: %v", err)
	}
	if err := alice.Block(t.Context(), bob.Identity()); err != nil {
		t.Fatal(err)
	}
	if _, err := resolve(bob); rpc.CodeOf(err) != qpcpb.CodeEndpointNotFound {
		t.Errorf("somebody blocked: %v", err)
	}
	if err := alice.PublishEndpoint(t.Context(), nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := resolve(alice); rpc.CodeOf(err) != qpcpb.CodeEndpointNotFound {
		t.Errorf("after it was taken back: %v", err)
	}
}

// Where the owner has listed no host, nobody can be woken. TestWakeUp of
// pkg/server has one who is.
func TestPushIsOffUnlessListed(t *testing.T) {
	const address = "https://push.example/up?secret"
	h := newHouse(t)
	alice := h.register("alice").on()
	if err := alice.RegisterPushToken(t.Context(), address); rpc.CodeOf(err) != qpcpb.CodePushHostRefused {
		t.Errorf("without a list: %v", err)
	}
	alice.off()
	h.args = append(h.args, "--push-host", "push.example")
	h.close()
	h.start()
	alice.on()
	for _, a := range []string{address, ""} {
		if err := alice.RegisterPushToken(t.Context(), a); err != nil {
			t.Errorf("registering %q: %v", a, err)
		}
	}
	if err := alice.RegisterPushToken(t.Context(), "https://other.example/x"); rpc.CodeOf(err) != qpcpb.CodePushHostRefused {
		t.Errorf("another host: %v", err)
	}
}
