package client_test

import (
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// appoints makes somebody the server's admin.
func (h *house) appoints(p *person) {
	h.t.Helper()
	p.opened(func(c *client.Client) {
		key := c.Identity()
		h.args = append(h.args, "--admin", hex.EncodeToString(key[:]))
	})
	h.close()
	h.start()
}

func TestReports(t *testing.T) {
	h := newHouse(t)
	alice, bob, root := h.register("alice").on(), h.register("bob").on(), h.register("root")
	var rude client.Message
	for _, text := range []string{"one", "two", "three", "four", "five", "six", "something rude"} {
		bob.says(alice, text)
		rude = alice.reads(bob, text)
	}
	mine := alice.says(bob, "stop it")
	if err := alice.ReportMessage(t.Context(), rude, ""); !errors.Is(err, client.ErrNoModerator) {
		t.Errorf("reporting where nobody reads: %v", err)
	}
	h.appoints(root)
	if err := alice.ReportMessage(t.Context(), mine, ""); err == nil {
		t.Error("reporting oneself works")
	}
	if err := alice.ReportMessage(t.Context(), rude, "this is rude"); err != nil {
		t.Fatal(err)
	}
	if _, err := alice.Reports(t.Context()); rpc.CodeOf(err) != qpcpb.CodeAdminRequired {
		t.Errorf("reading reports as anybody: %v", err)
	}
	// The text is as long as a message can be; what does not fit is cut.
	bob.says(alice, strings.Repeat("<ä\x01>", client.MaxChunk/5))
	long := alice.reads(bob, strings.Repeat("<ä\x01>", client.MaxChunk/5))
	if err := alice.ReportMessage(t.Context(), long, ""); err != nil {
		t.Fatal(err)
	}

	root.opened(func(c *client.Client) {
		reports, err := c.Reports(t.Context())
		if err != nil || len(reports) != 2 {
			t.Fatalf("%d reports, %v", len(reports), err)
		}
		first := reports[0]
		if first.Reporter != alice.Identity() || first.Problem != "" || time.Since(first.At) > time.Minute {
			t.Errorf("got %+v", first)
		}
		bobs := bob.Identity()
		r := first.Report
		if r.Reported != hex.EncodeToString(bobs[:]) || r.Name != "bob" || r.Reason != "this is rude" || r.Message.Text != "something rude" || r.Message.ID == "" || r.Message.SentAt.IsZero() {
			t.Errorf("got %+v", r)
		}
		var context []string
		for _, m := range r.Context {
			context = append(context, m.Text)
		}
		if want := []string{"two", "three", "four", "five", "six"}; !slices.Equal(context, want) {
			t.Errorf("the context is %q", context)
		}
		if cut := reports[1].Report.Message; !strings.HasPrefix(long.Text, cut.Text) || len(cut.Text) == 0 || cut.Cut != (cut.Text != long.Text) {
			t.Errorf("of %d bytes %d are reported, cut %v", len(long.Text), len(cut.Text), cut.Cut)
		}
	})
	for _, p := range []*person{alice, bob} {
		p.off()
	}
	h.close()
	if found := grep(t, h.args[1], "something rude"); found != "" {
		t.Errorf("the server's %s holds the report in the open", found)
	}
}

// A ban ends everything at once, and the banned learn why when they log in.
func TestBan(t *testing.T) {
	h := newHouse(t)
	alice, root := h.register("alice"), h.register("root")
	h.appoints(root)
	alice.on()
	alice.until("the connection", func(e client.Event) bool { return e.Kind == client.EventCaughtUp })
	key := alice.Identity()
	root.opened(func(c *client.Client) {
		if err := c.Ban(t.Context(), c.Identity(), "", 0); rpc.CodeOf(err) != qpcpb.CodeInvalidField {
			t.Errorf("banning oneself: %v", err)
		}
		if err := c.Ban(t.Context(), key, "too loud", time.Hour); err != nil {
			t.Fatal(err)
		}
		bans, err := c.Banned(t.Context())
		if err != nil || len(bans) != 1 {
			t.Fatalf("%d bans, %v", len(bans), err)
		}
		if b := bans[0]; b.Identity != key || b.Reason != "too loud" || time.Until(b.Until) > time.Hour || time.Until(b.Until) < 59*time.Minute {
			t.Errorf("got %+v", b)
		}
	})
	if err := <-alice.done; !errors.Is(err, client.ErrLoginRequired) {
		t.Errorf("the banned client ended with %v", err)
	}
	alice.stop = nil
	if err := alice.Close(); err != nil {
		t.Error(err)
	}
	login := func() (err error) {
		alice.opened(func(c *client.Client) { err = c.Login(t.Context(), password("alice")) })
		return err
	}
	if err := login(); rpc.CodeOf(err) != qpcpb.CodeUserBanned || !strings.Contains(err.Error(), "too loud") {
		t.Errorf("logging in: %v", err)
	}
	root.opened(func(c *client.Client) {
		for _, want := range []qpcpb.Code{qpcpb.CodeUnspecified, qpcpb.CodeBanNotFound} {
			if err := c.Unban(t.Context(), key); rpc.CodeOf(err) != want {
				t.Errorf("ending the ban: %v", err)
			}
		}
	})
	if err := login(); err != nil {
		t.Errorf("logging in after the ban: %v", err)
	}
}

func TestBlock(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	bob.says(alice, "hello")
	alice.reads(bob, "hello")
	if err := alice.Block(t.Context(), alice.contact(bob).Identity); err != nil {
		t.Fatal(err)
	}
	bob.learns(client.StatusSent, bob.says(alice, "are you there?"))
	if err := alice.Unblock(t.Context(), alice.contact(bob).Identity); err != nil {
		t.Fatal(err)
	}
	bob.says(alice, "and now?")
	alice.reads(bob, "and now?")
}
