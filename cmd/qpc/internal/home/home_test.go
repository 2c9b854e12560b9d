package home_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/home"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// add makes an account as a registration does.
func add(t *testing.T, h *home.Home, server, name string) home.Profile {
	t.Helper()
	address, err := transport.ParseAddress(server)
	if err != nil {
		t.Fatal(err)
	}
	p, err := h.Profile(address, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Begin(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Database(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := p.Finish(); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestChoose(t *testing.T) {
	h := home.New(filepath.Join(t.TempDir(), "[home]*"))
	choose := func(w home.Wanted) string {
		p, more, err := h.Choose(w)
		if err != nil {
			return err.Error()
		}
		if more {
			return "+" + p.Name
		}
		return p.Name
	}
	check := func(w home.Wanted, want string) {
		t.Helper()
		if got := choose(w); !strings.HasPrefix(got, want) {
			t.Errorf("%+v chose %q, want %q", w, got, want)
		}
	}
	check(home.Wanted{}, home.ErrNone.Error())
	add(t, h, "127.0.0.1", "alice")
	check(home.Wanted{}, "alice")
	check(home.Wanted{Peer: "alice"}, "alice")
	bob := add(t, h, "127.0.0.1", "bob")
	check(home.Wanted{}, "+bob")
	check(home.Wanted{Peer: "Bob"}, "+alice")
	check(home.Wanted{Peer: "alice"}, "+bob")
	check(home.Wanted{Name: "ALICE"}, "+alice")
	add(t, h, "127.0.0.1", "carol")
	check(home.Wanted{Peer: "carol"}, "several accounts are possible: alice@127.0.0.1:5001, bob@")
	add(t, h, "[fe80::1%eth/0]:5002", "Жуля")
	check(home.Wanted{Server: "[fe80::1%eth/0]:5002"}, "+жуля")
	check(home.Wanted{Name: "nobody"}, home.ErrNone.Error())
	if err := bob.Remove(); err != nil {
		t.Fatal(err)
	}
	check(home.Wanted{Name: "bob"}, home.ErrNone.Error())
}

func TestServers(t *testing.T) {
	dir := t.TempDir()
	s := home.New(dir).Servers()
	a, b := transport.Pin{1}, transport.Pin{2}
	if _, ok, err := s.Lookup("a:1"); ok || err != nil {
		t.Fatalf("an empty store knows a server: %v", err)
	}
	for server, pin := range map[string]transport.Pin{"a:1": a, "b:1": b} {
		if err := s.Remember(server, pin); err != nil {
			t.Fatal(err)
		}
	}
	if pin, ok, err := s.Lookup("a:1"); pin != a || !ok || err != nil {
		t.Fatalf("got %v %v %v", pin, ok, err)
	}
	if err := s.Remember("a:1", b); !isChanged(err) {
		t.Errorf("another pin of a known server: %v", err)
	}
	if known, err := s.Forget("a:1"); !known || err != nil {
		t.Errorf("forget: %v %v", known, err)
	}
	if _, ok, _ := s.Lookup("a:1"); ok {
		t.Error("a forgotten server is known")
	}
	if _, ok, _ := s.Lookup("b:1"); !ok {
		t.Error("another server was forgotten")
	}
	if err := os.WriteFile(filepath.Join(dir, "known_servers"), []byte("c:1 nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Lookup("c:1"); err == nil {
		t.Error("a broken line looks like a first meeting")
	}
}

func isChanged(err error) bool {
	_, ok := errors.AsType[*transport.ErrPinChanged](err)
	return ok
}
