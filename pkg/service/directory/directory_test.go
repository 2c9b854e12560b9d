package directory_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/directory"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// book is a list of accounts, as another domain keeps it.
type book struct {
	mu       sync.Mutex
	accounts []directory.Account // by name
	asked    [2]string           // prefix and after of the last ListTx
}

func (b *book) add(name string, lastSeen int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accounts = append(b.accounts, directory.Account{Identity: servicetest.Key(name), Username: name, LastSeenAt: lastSeen})
	slices.SortFunc(b.accounts, func(x, y directory.Account) int { return strings.Compare(x.Username, y.Username) })
}

func (b *book) remove(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.accounts = slices.DeleteFunc(b.accounts, func(a directory.Account) bool { return a.Username == name })
}

func (b *book) find(is func(directory.Account) bool) (directory.Account, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.IndexFunc(b.accounts, is); i >= 0 {
		return b.accounts[i], true, nil
	}
	return directory.Account{}, false, nil
}

func (b *book) FindByNameTx(_ *store.Tx, folded string) (directory.Account, bool, error) {
	return b.find(func(a directory.Account) bool { return a.Username == folded })
}

func (b *book) FindByKeyTx(_ *store.Tx, identity rpc.IdentityKey) (directory.Account, bool, error) {
	return b.find(func(a directory.Account) bool { return a.Identity == identity })
}

func (b *book) ListTx(_ *store.Tx, prefix, after string, limit int) ([]directory.Account, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = [2]string{prefix, after}
	var out []directory.Account
	for _, a := range b.accounts {
		if strings.HasPrefix(a.Username, prefix) && a.Username > after && len(out) < limit {
			out = append(out, a)
		}
	}
	return out, nil
}

func (b *book) lastAsked() [2]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

type house struct {
	*servicetest.House
	book      *book
	directory *directory.Service
}

func open(t *testing.T, prover directory.Prover) house {
	h := house{House: servicetest.New(t), book: &book{}}
	h.directory = directory.New(directory.Options{DB: h.DB, Accounts: h.book, Presence: h.Hub, Prover: prover})
	qpcpb.RegisterDirectoryServer(h.Server, h.directory)
	h.Open()
	return h
}

// person is somebody with a connection and an account.
type person struct {
	qpcpb.DirectoryClient
	t *testing.T
}

func (h house) person(t *testing.T, name string) person {
	h.book.add(name, 0)
	return person{qpcpb.NewDirectoryClient(h.Connect(name)), t}
}

func (p person) resolve(name string) (*qpcpb.ResolveUserResponse, error) {
	return p.ResolveUser(servicetest.Within(p.t), &qpcpb.ResolveUserRequest{Username: name})
}

func (p person) block(identity []byte) error {
	_, err := p.BlockUser(servicetest.Within(p.t), &qpcpb.BlockUserRequest{IdentityKey: identity})
	return err
}

func (p person) unblock(identity []byte) error {
	_, err := p.UnblockUser(servicetest.Within(p.t), &qpcpb.UnblockUserRequest{IdentityKey: identity})
	return err
}

func TestResolve(t *testing.T) {
	h := open(t, nil)
	alice := h.person(t, "alice")
	h.book.add("bjørn_1", 0)
	for name, test := range map[string]struct {
		name string
		code qpcpb.Code
	}{
		"as stored":    {"bjørn_1", qpcpb.CodeUnspecified},
		"upper case":   {"BJØRN_1", qpcpb.CodeUnspecified},
		"full width":   {"ｂｊøｒｎ_１", qpcpb.CodeUnspecified},
		"nobody":       {"bjørn", qpcpb.CodeUserNotFound},
		"empty":        {"", qpcpb.CodeInvalidUsername},
		"NUL":          {"bjørn_1\x00", qpcpb.CodeInvalidUsername},
		"with domain":  {"bjørn_1@other.example", qpcpb.CodeInvalidUsername},
		"32, nobody":   {strings.Repeat("a", 32), qpcpb.CodeUserNotFound},
		"33":           {strings.Repeat("a", 33), qpcpb.CodeInvalidUsername},
		"very long":    {strings.Repeat("a", 100_000), qpcpb.CodePayloadTooLarge},
		"SQL wildcard": {"bj%", qpcpb.CodeInvalidUsername},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := alice.resolve(test.name)
			servicetest.WantCode(t, err, test.code)
			if err == nil && (rpc.IdentityKey(got.IdentityKey) != servicetest.Key("bjørn_1") || len(got.InclusionProof) != 0) {
				t.Errorf("got %v", got)
			}
		})
	}

	got, err := alice.ResolveIdentity(servicetest.Within(t), &qpcpb.ResolveIdentityRequest{IdentityKey: servicetest.Bytes("bjørn_1")})
	if err != nil || got.Username != "bjørn_1" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, test := range []struct {
		identity []byte
		code     qpcpb.Code
	}{
		{servicetest.Bytes("nobody"), qpcpb.CodeUserNotFound},
		{nil, qpcpb.CodeInvalidField},
		{make([]byte, 31), qpcpb.CodeInvalidField},
		{make([]byte, 33), qpcpb.CodeInvalidField},
	} {
		_, err := alice.ResolveIdentity(servicetest.Within(t), &qpcpb.ResolveIdentityRequest{IdentityKey: test.identity})
		servicetest.WantCode(t, err, test.code)
	}
}

func TestInvalidUTF8DoesNotParse(t *testing.T) {
	h := open(t, nil)
	alice := h.person(t, "alice")
	bad := []byte{1<<3 | 2, 1, 0xff} // field 1, a string of the byte 0xff
	name := &qpcpb.ResolveUserRequest{}
	name.ProtoReflect().SetUnknown(bad)
	_, err := alice.ResolveUser(servicetest.Within(t), name)
	servicetest.WantCode(t, err, qpcpb.CodeMalformed)
	prefix := &qpcpb.ListUsersRequest{}
	prefix.ProtoReflect().SetUnknown(bad)
	_, err = alice.ListUsers(servicetest.Within(t), prefix)
	servicetest.WantCode(t, err, qpcpb.CodeMalformed)
}

type prover struct{ err error }

func (p prover) InclusionProofTx(_ *store.Tx, username string, identity rpc.IdentityKey) ([]byte, error) {
	return []byte(username + " " + identity.String()), p.err
}

func TestProofRidesAlong(t *testing.T) {
	h := open(t, prover{})
	alice := h.person(t, "alice")
	got, err := alice.resolve("ALICE")
	if err != nil || string(got.InclusionProof) != "alice "+servicetest.Key("alice").String() {
		t.Errorf("got %q, %v", got.GetInclusionProof(), err)
	}
}

func TestNoProofNoAnswer(t *testing.T) {
	h := open(t, prover{errors.New("the log is broken")})
	_, err := h.person(t, "alice").resolve("alice")
	servicetest.WantCode(t, err, qpcpb.CodeInternal)
}

func TestListUsers(t *testing.T) {
	h := open(t, nil)
	alice := h.person(t, "alice")
	h.book.add("albert", 1234)
	h.book.add("bob", -5) // a router that believes it is 1969
	list := func(prefix, after string, limit uint32) []*qpcpb.User {
		t.Helper()
		got, err := alice.ListUsers(servicetest.Within(t), &qpcpb.ListUsersRequest{Prefix: prefix, After: after, Limit: limit})
		if err != nil {
			t.Fatal(err)
		}
		return got.Users
	}
	for _, test := range []struct {
		prefix, after string
		limit         uint32
		want          string
	}{
		{"", "", 0, "[albert alice bob]"},
		{"al", "", 0, "[albert alice]"},
		{"AL", "", 0, "[albert alice]"},
		{"Ａｌ", "", 0, "[albert alice]"}, // full width
		{"al", "ALBERT", 0, "[alice]"},
		{"", "", 2, "[albert alice]"},
		{"", "alice", 2, "[bob]"},
		{"", "bob", 2, "[]"},
		{"%", "", 0, "[]"},
		{"a_", "", 0, "[]"},
		{"a\x00", "", 0, "[]"},
		{"@", "", 0, "[]"},
	} {
		var names []string
		for _, u := range list(test.prefix, test.after, test.limit) {
			names = append(names, u.Username)
		}
		if fmt.Sprint(names) != test.want {
			t.Errorf("prefix %q after %q limit %d: %v, want %s", test.prefix, test.after, test.limit, names, test.want)
		}
	}
	users := list("", "", 0)
	for i, want := range []struct {
		name     string
		online   bool
		lastSeen uint64
	}{{"albert", false, 1234}, {"alice", true, 0}, {"bob", false, 0}} {
		u := users[i]
		if u.Username != want.name || u.Online != want.online || u.LastSeen != want.lastSeen || rpc.IdentityKey(u.IdentityKey) != servicetest.Key(want.name) {
			t.Errorf("got %v, want %+v", u, want)
		}
	}
	// The first half of a right-to-left name breaks the rules for whole names.
	list("א1", "", 0)
	if asked := h.book.lastAsked(); asked[0] != "א1" {
		t.Errorf("asked for %q", asked)
	}
	for _, request := range []*qpcpb.ListUsersRequest{
		{Prefix: strings.Repeat("a", 513)}, {After: strings.Repeat("a", 513)},
	} {
		_, err := alice.ListUsers(servicetest.Within(t), request)
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	if got := list(strings.Repeat("a", 512), "", 0); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestPagesHoldAtMost500(t *testing.T) {
	h := open(t, nil)
	alice := h.person(t, "alice")
	for i := range directory.MaxUsers + 100 {
		h.book.add(fmt.Sprintf("user%04d%s", i, strings.Repeat("𐐨", 24)), 1<<40) // the longest names
	}
	for limit, want := range map[uint32]int{0: 500, 1: 1, 499: 499, 500: 500, 501: 500, 1<<32 - 1: 500} {
		got, err := alice.ListUsers(servicetest.Within(t), &qpcpb.ListUsersRequest{Limit: limit})
		if err != nil || len(got.Users) != want {
			t.Errorf("limit %d: %d users, %v; want %d", limit, len(got.GetUsers()), err, want)
		}
	}
	// Page by page, everybody once.
	seen, after := map[string]bool{}, ""
	for {
		got, err := alice.ListUsers(servicetest.Within(t), &qpcpb.ListUsersRequest{Limit: 250, After: after})
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Users) == 0 {
			break
		}
		for _, u := range got.Users {
			if seen[u.Username] {
				t.Fatalf("%s came twice", u.Username)
			}
			seen[u.Username] = true
			after = u.Username
		}
	}
	if len(seen) != directory.MaxUsers+101 {
		t.Errorf("%d users in all", len(seen))
	}
}

// wantBlocked checks what delivery asks.
func (h house) wantBlocked(t *testing.T, blocker, blocked string, want bool) {
	t.Helper()
	err := h.DB.Read(t.Context(), func(tx *store.Tx) error {
		got, err := h.directory.BlockedTx(tx, servicetest.Key(blocker), servicetest.Key(blocked))
		if got != want {
			t.Errorf("%s has blocked %s: %v, want %v", blocker, blocked, got, want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestBlockAndUnblock(t *testing.T) {
	h := open(t, nil)
	alice := h.person(t, "alice")
	h.book.add("bob", 0)
	bob := servicetest.Bytes("bob")
	h.wantBlocked(t, "alice", "bob", false)
	for range 2 {
		servicetest.WantCode(t, alice.block(bob), qpcpb.CodeUnspecified)
		h.wantBlocked(t, "alice", "bob", true)
		h.wantBlocked(t, "bob", "alice", false)
	}
	for range 2 {
		servicetest.WantCode(t, alice.unblock(bob), qpcpb.CodeUnspecified)
		h.wantBlocked(t, "alice", "bob", false)
	}
	for name, call := range map[string]func([]byte) error{"block": alice.block, "unblock": alice.unblock} {
		t.Run(name, func(t *testing.T) {
			servicetest.WantCode(t, call(servicetest.Bytes("alice")), qpcpb.CodeInvalidField)
			servicetest.WantCode(t, call(servicetest.Bytes("nobody")), qpcpb.CodeUserNotFound)
			servicetest.WantCode(t, call(nil), qpcpb.CodeInvalidField)
			servicetest.WantCode(t, call(bob[:31]), qpcpb.CodeInvalidField)
			servicetest.WantCode(t, call(append(bob[:32:32], 0)), qpcpb.CodeInvalidField)
		})
	}
	h.book.remove("alice") // deleted while a call is on its way
	servicetest.WantCode(t, alice.block(bob), qpcpb.CodeUnauthenticated)
	if n := h.Count("directory_block"); n != 0 {
		t.Errorf("%d blocks stored", n)
	}
}

func TestAtMostAThousandBlocks(t *testing.T) {
	h := open(t, nil)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	h.Write(func(tx *store.Tx) error {
		for i := range directory.MaxBlocks - 1 {
			if _, err := tx.Exec(`INSERT INTO directory_block VALUES (?, ?)`, servicetest.Bytes("alice"), servicetest.Bytes(fmt.Sprint(i))); err != nil {
				return err
			}
		}
		return nil
	})
	h.book.add("carol", 0)
	servicetest.WantCode(t, alice.block(servicetest.Bytes("bob")), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.block(servicetest.Bytes("carol")), qpcpb.CodeBlockLimit)
	servicetest.WantCode(t, alice.block(servicetest.Bytes("bob")), qpcpb.CodeUnspecified) // blocked already
	servicetest.WantCode(t, bob.block(servicetest.Bytes("carol")), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.unblock(servicetest.Bytes("bob")), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.block(servicetest.Bytes("carol")), qpcpb.CodeUnspecified)
}

func TestEraseRemovesBlocksOfBothKinds(t *testing.T) {
	h := open(t, nil)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	h.book.add("carol", 0)
	servicetest.WantCode(t, alice.block(servicetest.Bytes("bob")), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, bob.block(servicetest.Bytes("alice")), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, bob.block(servicetest.Bytes("carol")), qpcpb.CodeUnspecified)
	h.Write(func(tx *store.Tx) error { return h.directory.EraseTx(tx, servicetest.Key("alice")) })
	h.wantBlocked(t, "alice", "bob", false)
	h.wantBlocked(t, "bob", "alice", false)
	h.wantBlocked(t, "bob", "carol", true)
	if n := h.Count("directory_block"); n != 1 {
		t.Errorf("%d blocks left, want 1", n)
	}
}
