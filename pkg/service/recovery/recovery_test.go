package recovery_test

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/service/recovery"
	"github.com/quicprochat/qpcd/pkg/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type house struct {
	*servicetest.House
	recovery *recovery.Service
}

func open(t *testing.T) house {
	h := house{House: servicetest.New(t)}
	h.recovery = recovery.New(recovery.Options{DB: h.DB, Accounts: h.Accounts, Now: h.Wall.Now})
	qpcpb.RegisterRecoveryServer(h.Server, h.recovery)
	h.Open()
	return h
}

type person struct {
	qpcpb.RecoveryClient
	t *testing.T
}

func (h house) person(t *testing.T, name string) person {
	return person{qpcpb.NewRecoveryClient(h.Connect(name)), t}
}

// stranger connects from an address of this machine.
func (h house) stranger(t *testing.T, from string) person {
	return person{qpcpb.NewRecoveryClient(h.StrangerFrom(netip.MustParseAddr(from))), t}
}

func hash(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }

func (p person) stores(n byte, bundle string) error {
	_, err := p.StoreRecoveryBundle(servicetest.Within(p.t), &qpcpb.StoreRecoveryBundleRequest{TokenHash: hash(n), Bundle: []byte(bundle)})
	return err
}

func (p person) deletes(n byte) error {
	_, err := p.DeleteRecoveryBundle(servicetest.Within(p.t), &qpcpb.DeleteRecoveryBundleRequest{TokenHash: hash(n)})
	return err
}

func (p person) fetches(n byte) (string, error) {
	got, err := p.FetchRecoveryBundle(servicetest.Within(p.t), &qpcpb.FetchRecoveryBundleRequest{TokenHash: hash(n)})
	return string(got.GetBundle()), err
}

func (p person) finds(n byte, want string) {
	p.t.Helper()
	if got, err := p.fetches(n); err != nil || got != want {
		p.t.Errorf("under %d lies %q, %v, want %q", n, got, err, want)
	}
}

func (p person) findsNothing(n byte) {
	p.t.Helper()
	_, err := p.fetches(n)
	servicetest.WantCode(p.t, err, qpcpb.CodeBundleNotFound)
}

func TestStoreFetchDelete(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	servicetest.WantCode(t, alice.stores(1, "first"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.stores(2, "second"), qpcpb.CodeUnspecified)
	h.stranger(t, "127.0.0.2").finds(1, "first")
	servicetest.WantCode(t, alice.stores(1, "renewed"), qpcpb.CodeUnspecified)
	h.stranger(t, "127.0.0.2").finds(1, "renewed")
	h.stranger(t, "127.0.0.2").findsNothing(3)
	if n := h.Count("recovery_bundle"); n != 2 {
		t.Errorf("%d bundles stored", n)
	}
	servicetest.WantCode(t, bob.deletes(1), qpcpb.CodeBundleNotFound)
	servicetest.WantCode(t, alice.deletes(1), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.deletes(1), qpcpb.CodeBundleNotFound)
	h.stranger(t, "127.0.0.2").findsNothing(1)
	h.stranger(t, "127.0.0.2").finds(2, "second")

	// The token hash itself, by which a bundle is fetched, is not stored.
	err := h.DB.Read(t.Context(), func(tx *store.Tx) error {
		n := 0
		err := tx.QueryRow(`SELECT count(*) FROM recovery_bundle WHERE lookup_hash = ?`, hash(2)).Scan(&n)
		if n != 0 {
			t.Error("the database tells what to fetch with")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Whoever uses another's hash gets the same answers as for one of their own,
// and takes nothing away.
func TestOneHashOfTwo(t *testing.T) {
	h := open(t)
	alice, mallory := h.person(t, "alice"), h.person(t, "mallory")
	servicetest.WantCode(t, alice.stores(1, "alice's"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, mallory.stores(1, "mallory's"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, mallory.stores(1, "mallory's again"), qpcpb.CodeUnspecified)
	h.stranger(t, "127.0.0.2").finds(1, "alice's")
	servicetest.WantCode(t, alice.stores(1, "alice's, renewed"), qpcpb.CodeUnspecified)
	h.stranger(t, "127.0.0.2").finds(1, "alice's, renewed")
	servicetest.WantCode(t, mallory.deletes(1), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, mallory.deletes(1), qpcpb.CodeBundleNotFound)
	h.stranger(t, "127.0.0.2").finds(1, "alice's, renewed")
}

func TestAtMostEight(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	for n := range byte(recovery.MaxBundles) {
		servicetest.WantCode(t, alice.stores(n, "x"), qpcpb.CodeUnspecified)
	}
	servicetest.WantCode(t, alice.stores(100, "x"), qpcpb.CodeBundleLimit)
	servicetest.WantCode(t, alice.stores(3, "replaced"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, bob.stores(100, "x"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.deletes(0), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.stores(100, "x"), qpcpb.CodeUnspecified)
	if n := h.Count("recovery_bundle"); n != recovery.MaxBundles+1 {
		t.Errorf("%d bundles stored", n)
	}
}

func TestSizes(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	for size, code := range map[int]qpcpb.Code{
		0: qpcpb.CodeInvalidField, 1: qpcpb.CodeUnspecified, recovery.MaxBundle: qpcpb.CodeUnspecified, recovery.MaxBundle + 1: qpcpb.CodePayloadTooLarge,
	} {
		servicetest.WantCode(t, alice.stores(1, string(make([]byte, size))), code)
	}
	for _, n := range []int{0, 16, 31, 33, 64} {
		_, err := alice.StoreRecoveryBundle(servicetest.Within(t), &qpcpb.StoreRecoveryBundleRequest{TokenHash: make([]byte, n), Bundle: []byte("x")})
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
		_, err = alice.FetchRecoveryBundle(servicetest.Within(t), &qpcpb.FetchRecoveryBundleRequest{TokenHash: make([]byte, n)})
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
		_, err = alice.DeleteRecoveryBundle(servicetest.Within(t), &qpcpb.DeleteRecoveryBundleRequest{TokenHash: make([]byte, n)})
		servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	}
	// What was refused for its form was not counted against the address.
	for range 5 {
		alice.findsNothing(9)
	}
}

// Five an hour from one address, found or not; the address next door does not
// suffer.
func TestFiveAnHour(t *testing.T) {
	h := open(t)
	servicetest.WantCode(t, h.person(t, "alice").stores(1, "x"), qpcpb.CodeUnspecified)
	mallory := h.stranger(t, "127.0.0.7")
	for n := range byte(5) {
		if n == 2 {
			mallory.finds(1, "x")
			continue
		}
		mallory.findsNothing(50 + n)
	}
	_, err := mallory.fetches(1)
	servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
	if e := err.(*rpc.Error); e.RetryAfter < 10*time.Minute || e.RetryAfter > 12*time.Minute {
		t.Errorf("told to wait %v", e.RetryAfter)
	}
	_, err = h.stranger(t, "127.0.0.7").fetches(1) // another connection
	servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
	h.stranger(t, "127.0.0.8").finds(1, "x")
	h.Wall.Advance(12 * time.Minute)
	mallory.finds(1, "x")
	_, err = mallory.fetches(1)
	servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
}

func TestErase(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	for _, p := range []person{alice, bob} {
		servicetest.WantCode(t, p.stores(1, "x"), qpcpb.CodeUnspecified)
		servicetest.WantCode(t, p.stores(2, "x"), qpcpb.CodeUnspecified)
	}
	h.Write(func(tx *store.Tx) error { return h.recovery.EraseTx(tx, servicetest.Key("alice")) })
	h.Accounts.Remove("alice") // deleted while a call is on its way
	servicetest.WantCode(t, alice.stores(3, "late"), qpcpb.CodeUnauthenticated)
	if n := h.Count("recovery_bundle"); n != 2 {
		t.Errorf("%d bundles left", n)
	}
	servicetest.WantCode(t, bob.deletes(1), qpcpb.CodeUnspecified)
}
