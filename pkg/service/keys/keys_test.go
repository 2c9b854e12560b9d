package keys_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/service/keys"
	"github.com/quicprochat/qpcd/pkg/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const month = 30 * 24 * time.Hour

type house struct {
	*servicetest.House
	keys *keys.Service
}

func open(t *testing.T) house {
	h := house{House: servicetest.New(t)}
	h.keys = keys.New(keys.Options{DB: h.DB, Accounts: h.Accounts, Push: h.Hub, Now: h.Wall.Now})
	qpcpb.RegisterKeyServer(h.Server, h.keys)
	h.Open()
	return h
}

// person is somebody with a connection, and says what a test wants done.
type person struct {
	*servicetest.Client
	qpcpb.KeyClient
	t    *testing.T
	name string
}

func (h house) person(t *testing.T, name string) person {
	c := h.Connect(name)
	return person{c, qpcpb.NewKeyClient(c), t, name}
}

// pkg is a key package as the server sees one.
func pkg(label string) []byte { return append([]byte{0, 1, 0, 1}, label...) }

func (p person) uploads(label string, device []byte, lastResort bool) *qpcpb.UploadKeyPackageResponse {
	p.t.Helper()
	got, err := p.UploadKeyPackage(servicetest.Within(p.t), &qpcpb.UploadKeyPackageRequest{
		IdentityKey: servicetest.Bytes(p.name), Package: pkg(label), DeviceId: device, LastResort: lastResort,
	})
	if err != nil {
		p.t.Fatalf("uploading %s: %v", label, err)
	}
	return got
}

// gets takes a package of somebody; "" stands for none.
func (p person) gets(of, label string, lastResort bool) {
	p.t.Helper()
	got, err := p.FetchKeyPackage(servicetest.Within(p.t), &qpcpb.FetchKeyPackageRequest{IdentityKey: servicetest.Bytes(of)})
	if err != nil {
		p.t.Fatal(err)
	}
	var want []byte
	if label != "" {
		want = pkg(label)
	}
	if !bytes.Equal(got.Package, want) || got.LastResort != lastResort {
		p.t.Fatalf("got %q (last resort %v), want %q (%v)", got.Package, got.LastResort, want, lastResort)
	}
}

// hears waits for KeyPackagesLow.
func (p person) hears(remaining uint32) {
	p.t.Helper()
	event := p.Event()
	var low qpcpb.KeyPackagesLow
	if err := proto.Unmarshal(event.Payload, &low); err != nil || event.Kind != qpcpb.EventKeyPackagesLow || low.Remaining != remaining {
		p.t.Fatalf("got %s %v (%v), want KeyPackagesLow %d", event.Kind, &low, err, remaining)
	}
}

func device(name string) []byte {
	id := servicetest.Device(name)
	return id[:]
}

func TestOldestGoesOutFirstAndOnlyOnce(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	for i, label := range []string{"one", "two", "three"} {
		got := alice.uploads(label, nil, false)
		if fingerprint := sha256.Sum256(pkg(label)); !bytes.Equal(got.Fingerprint, fingerprint[:]) || got.Remaining != uint32(i+1) {
			t.Errorf("upload %s: %v", label, got)
		}
	}
	alice.uploads("last", nil, true)
	bob.gets("alice", "one", false)
	bob.gets("alice", "two", false)
	bob.gets("alice", "three", false)
	bob.gets("alice", "last", true)
	bob.gets("alice", "last", true) // kept
	if got := alice.uploads("four", nil, false); got.Remaining != 1 {
		t.Errorf("remaining %d, want 1: a last-resort package does not count", got.Remaining)
	}
	bob.gets("alice", "four", false)
}

func TestNobodyAndNothingAreAnEmptyPackage(t *testing.T) {
	h := open(t)
	bob := h.person(t, "bob")
	bob.gets("bob", "", false)
	bob.gets("nobody", "", false)
	got, err := bob.FetchKeyPackages(servicetest.Within(t), &qpcpb.FetchKeyPackagesRequest{IdentityKey: servicetest.Bytes("nobody")})
	if err != nil || len(got.Packages) != 0 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestRepeatedUploadIsStoredOnce(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	alice.uploads("one", nil, false)
	if got := alice.uploads("one", nil, false); got.Remaining != 1 {
		t.Errorf("remaining %d after the same upload twice, want 1", got.Remaining)
	}
	alice.gets("alice", "one", false)
	alice.gets("alice", "", false)
}

func TestLastResortIsOnePerDeviceAndReplaced(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	alice.uploads("old", nil, true)
	alice.uploads("new", nil, true)
	if n := h.Count("keys_package"); n != 1 {
		t.Errorf("%d packages stored, want 1", n)
	}
	alice.gets("alice", "new", true)
	alice.uploads("phone", device("phone"), true)
	if n := h.Count("keys_package"); n != 2 {
		t.Errorf("%d packages stored, want one for each device", n)
	}
}

func TestOnePackageOfEachDevice(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	alice.uploads("desk 1", device("desk"), false)
	alice.uploads("phone 1", device("phone"), false)
	if got := alice.uploads("desk 2", device("desk"), false); got.Remaining != 2 {
		t.Errorf("remaining %d, want the 2 of this device", got.Remaining)
	}
	alice.uploads("phone last", device("phone"), true)
	alice.uploads("anon last", nil, true)

	for _, want := range []map[string]string{
		{"desk": "desk 1", "phone": "phone 1", "": "anon last*"},
		{"desk": "desk 2", "phone": "phone last*", "": "anon last*"},
		{"phone": "phone last*", "": "anon last*"},
	} {
		got, err := bob.FetchKeyPackages(servicetest.Within(t), &qpcpb.FetchKeyPackagesRequest{IdentityKey: servicetest.Bytes("alice")})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, entry := range got.Packages {
			name := ""
			for _, n := range []string{"desk", "phone"} {
				if bytes.Equal(entry.DeviceId, device(n)) {
					name = n
				}
			}
			label := string(entry.Package[4:])
			if entry.LastResort {
				label += "*"
			}
			found[name] = label
		}
		if len(got.Packages) != len(want) || fmt.Sprint(found) != fmt.Sprint(want) {
			t.Errorf("got %v (%d), want %v", found, len(got.Packages), want)
		}
	}
}

func TestOwnerIsToldWhenFewAreLeft(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	for i := range 11 {
		alice.uploads(fmt.Sprint(i), device("desk"), false)
	}
	bob.gets("alice", "0", false) // leaves 10: no word
	bob.gets("alice", "1", false)
	alice.hears(9)
	alice.uploads("phone", device("phone"), false)
	if _, err := bob.FetchKeyPackages(servicetest.Within(t), &qpcpb.FetchKeyPackagesRequest{IdentityKey: servicetest.Bytes("alice")}); err != nil {
		t.Fatal(err)
	}
	alice.hears(0) // of the device that has fewest
	select {
	case e := <-alice.Events:
		t.Errorf("one event too many: %v", e)
	default:
	}
}

func TestFetchesAreLimitedPerCallerAndIdentity(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	alice.uploads("last", nil, true)
	for range 9 {
		bob.gets("alice", "last", true)
	}
	request := &qpcpb.FetchKeyPackagesRequest{IdentityKey: servicetest.Bytes("alice")}
	if _, err := bob.FetchKeyPackages(servicetest.Within(t), request); err != nil {
		t.Fatal("the tenth:", err)
	}
	_, err := bob.FetchKeyPackage(servicetest.Within(t), &qpcpb.FetchKeyPackageRequest{IdentityKey: servicetest.Bytes("alice")})
	servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
	_, err = bob.FetchKeyPackages(servicetest.Within(t), request)
	servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
	var answer *rpc.Error
	if errors.As(err, &answer); answer.RetryAfter.Round(time.Second) != 6*time.Second {
		t.Errorf("retry after %v, want 6s", answer.RetryAfter)
	}
	bob.gets("bob", "", false)        // another identity
	alice.gets("alice", "last", true) // another caller
	h.Wall.Advance(5 * time.Second)
	_, err = bob.FetchKeyPackages(servicetest.Within(t), request)
	servicetest.WantCode(t, err, qpcpb.CodeRateLimited)
	h.Wall.Advance(time.Second)
	bob.gets("alice", "last", true)
}

func TestAtMostAHundredPackages(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	for i := range keys.MaxOneTime {
		alice.uploads(fmt.Sprint(i), device(fmt.Sprint("device ", i%3)), false)
	}
	upload := func() error {
		_, err := alice.UploadKeyPackage(servicetest.Within(t), &qpcpb.UploadKeyPackageRequest{IdentityKey: servicetest.Bytes("alice"), Package: pkg("next")})
		return err
	}
	servicetest.WantCode(t, upload(), qpcpb.CodeKeyPackageLimit)
	alice.uploads("7", device("device 1"), false) // stored already, so no more room is wanted
	alice.uploads("last", nil, true)              // counts apart
	if n := h.Count("keys_package"); n != keys.MaxOneTime+1 {
		t.Errorf("%d packages stored", n)
	}
	bob.uploads("bob", nil, false) // the limit is alice's
	bob.gets("alice", "0", false)
	servicetest.WantCode(t, upload(), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, upload(), qpcpb.CodeUnspecified) // the same again
	// Expired ones do not count, and do not pile up.
	h.Service.Advance(month)
	alice.uploads("fresh", nil, false)
	if n := h.Count("keys_package"); n != 2 {
		t.Errorf("%d packages stored after expiry, want bob's (unswept) and the fresh one", n)
	}
}

func TestAtMostSeventeenDevices(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	for i := range keys.MaxDevices {
		alice.uploads("last", device(fmt.Sprint(i)), true)
	}
	for _, lastResort := range []bool{true, false} {
		_, err := alice.UploadKeyPackage(servicetest.Within(t), &qpcpb.UploadKeyPackageRequest{
			IdentityKey: servicetest.Bytes("alice"), Package: pkg("x"), DeviceId: device("one too many"), LastResort: lastResort,
		})
		servicetest.WantCode(t, err, qpcpb.CodeKeyPackageLimit)
	}
	alice.uploads("last again", device("3"), true)
	alice.uploads("one-time", device("4"), false)
}

func TestExpiryFollowsServiceTimeOnly(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	alice.uploads("one", nil, false)
	alice.uploads("last", nil, true)
	h.Wall.Advance(100 * 365 * 24 * time.Hour)
	if more, err := h.keys.Sweep(t.Context()); err != nil || more || h.Count("keys_package") != 2 {
		t.Fatalf("a jump of the wall clock swept: %v %v, %d left", more, err, h.Count("keys_package"))
	}
	h.Service.Advance(month - 2*time.Second)
	alice.gets("alice", "one", false)
	alice.gets("alice", "last", true)
	alice.uploads("two", nil, false)
	h.Service.Advance(2 * time.Second)
	alice.gets("alice", "two", false)
	alice.gets("alice", "", false) // the last resort is over, though not swept
	if more, err := h.keys.Sweep(t.Context()); err != nil || more || h.Count("keys_package") != 0 {
		t.Errorf("after 30 days: %v %v, %d left", more, err, h.Count("keys_package"))
	}
}

func TestSweepIsBounded(t *testing.T) {
	h := house{House: servicetest.New(t)}
	h.keys = keys.New(keys.Options{DB: h.DB, Accounts: h.Accounts, Push: h.Hub, Now: h.Wall.Now})
	h.Write(func(tx *store.Tx) error {
		for i := range 600 {
			_, err := tx.Exec(`INSERT INTO keys_package (identity_key, device_id, package, last_resort, valid_until) VALUES (?, x'', x'00', 0, ?)`,
				servicetest.Bytes(fmt.Sprint(i)), i%2*1000)
			if err != nil {
				return err
			}
		}
		return nil
	})
	for _, want := range []struct {
		more bool
		left int
	}{{true, 600 - 256}, {false, 300}, {false, 300}} {
		more, err := h.keys.Sweep(t.Context())
		if err != nil || more != want.more || h.Count("keys_package") != want.left {
			t.Errorf("got more %v, %d left, %v; want %v, %d", more, h.Count("keys_package"), err, want.more, want.left)
		}
	}
}

func TestHybridKeys(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	fetch := func(of string) []byte {
		t.Helper()
		got, err := bob.FetchHybridKey(servicetest.Within(t), &qpcpb.FetchHybridKeyRequest{IdentityKey: servicetest.Bytes(of)})
		if err != nil {
			t.Fatal(err)
		}
		return got.HybridPublicKey
	}
	if got := fetch("alice"); len(got) != 0 {
		t.Errorf("a hybrid key before one was uploaded: %x", got)
	}
	for _, fill := range []byte{1, 2} { // the last one wins
		public := bytes.Repeat([]byte{fill}, keys.HybridKeySize)
		got, err := alice.UploadHybridKey(servicetest.Within(t), &qpcpb.UploadHybridKeyRequest{IdentityKey: servicetest.Bytes("alice"), HybridPublicKey: public})
		if err != nil || !got.Success {
			t.Fatal(got, err)
		}
		if !bytes.Equal(fetch("alice"), public) {
			t.Errorf("the hybrid key filled with %d did not come back", fill)
		}
	}

	names := make([][]byte, keys.MaxHybridKeys)
	for i := range names {
		names[i] = servicetest.Bytes(fmt.Sprint("nobody ", i))
	}
	names[100] = servicetest.Bytes("alice")
	got, err := bob.FetchHybridKeys(servicetest.Within(t), &qpcpb.FetchHybridKeysRequest{IdentityKeys: names})
	if err != nil || len(got.Keys) != 1 || !bytes.Equal(got.Keys[0].IdentityKey, names[100]) || got.Keys[0].HybridPublicKey[0] != 2 {
		t.Errorf("got %v, %v", got, err)
	}
	_, err = bob.FetchHybridKeys(servicetest.Within(t), &qpcpb.FetchHybridKeysRequest{IdentityKeys: append(names, names[0])})
	servicetest.WantCode(t, err, qpcpb.CodeInvalidField)
	got, err = bob.FetchHybridKeys(servicetest.Within(t), &qpcpb.FetchHybridKeysRequest{})
	if err != nil || len(got.Keys) != 0 {
		t.Errorf("for nobody: %v, %v", got, err)
	}
}

func TestBadRequestsChangeNothing(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	h.Accounts.Add("bob")
	own := servicetest.Bytes("alice")
	upload := func(identity, pkg, device []byte) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := alice.UploadKeyPackage(ctx, &qpcpb.UploadKeyPackageRequest{IdentityKey: identity, Package: pkg, DeviceId: device})
			return err
		}
	}
	hybrid := func(identity []byte, size int) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := alice.UploadHybridKey(ctx, &qpcpb.UploadHybridKeyRequest{IdentityKey: identity, HybridPublicKey: make([]byte, size)})
			return err
		}
	}
	large := func(size int) []byte { return append(pkg(""), make([]byte, size-4)...) }
	for name, test := range map[string]struct {
		call func(context.Context) error
		code qpcpb.Code
	}{
		"another's package":       {upload(servicetest.Bytes("bob"), pkg("x"), nil), qpcpb.CodeNotYours},
		"no identity":             {upload(nil, pkg("x"), nil), qpcpb.CodeInvalidField},
		"short identity":          {upload(own[:31], pkg("x"), nil), qpcpb.CodeInvalidField},
		"long identity":           {upload(append(own[:32:32], 0), pkg("x"), nil), qpcpb.CodeInvalidField},
		"short device":            {upload(own, pkg("x"), make([]byte, 15)), qpcpb.CodeInvalidField},
		"long device":             {upload(own, pkg("x"), make([]byte, 17)), qpcpb.CodeInvalidField},
		"no package":              {upload(own, nil, nil), qpcpb.CodeInvalidField},
		"cut package":             {upload(own, []byte{0, 1, 0}, nil), qpcpb.CodeInvalidField},
		"other version":           {upload(own, []byte{0, 2, 0, 1}, nil), qpcpb.CodeInvalidField},
		"other suite":             {upload(own, []byte{0, 1, 0, 2}, nil), qpcpb.CodeInvalidField},
		"MLSMessage around":       {upload(own, append([]byte{0, 1, 0, 5}, pkg("x")...), nil), qpcpb.CodeInvalidField},
		"package too large":       {upload(own, large(keys.MaxPackage+1), nil), qpcpb.CodePayloadTooLarge},
		"another's hybrid key":    {hybrid(servicetest.Bytes("bob"), keys.HybridKeySize), qpcpb.CodeNotYours},
		"hybrid of short id":      {hybrid(own[:16], keys.HybridKeySize), qpcpb.CodeInvalidField},
		"no hybrid key":           {hybrid(own, 0), qpcpb.CodeInvalidField},
		"hybrid key a byte short": {hybrid(own, keys.HybridKeySize-1), qpcpb.CodeInvalidField},
		"hybrid key a byte long":  {hybrid(own, keys.HybridKeySize+1), qpcpb.CodeInvalidField},
		"fetch of short id": {func(ctx context.Context) error {
			_, err := alice.FetchKeyPackage(ctx, &qpcpb.FetchKeyPackageRequest{IdentityKey: own[:31]})
			return err
		}, qpcpb.CodeInvalidField},
		"fetch all of no id": {func(ctx context.Context) error {
			_, err := alice.FetchKeyPackages(ctx, &qpcpb.FetchKeyPackagesRequest{})
			return err
		}, qpcpb.CodeInvalidField},
		"hybrid fetch of long id": {func(ctx context.Context) error {
			_, err := alice.FetchHybridKey(ctx, &qpcpb.FetchHybridKeyRequest{IdentityKey: make([]byte, 33)})
			return err
		}, qpcpb.CodeInvalidField},
		"one short id among good ones": {func(ctx context.Context) error {
			_, err := alice.FetchHybridKeys(ctx, &qpcpb.FetchHybridKeysRequest{IdentityKeys: [][]byte{own, own[:31]}})
			return err
		}, qpcpb.CodeInvalidField},
	} {
		t.Run(name, func(t *testing.T) {
			servicetest.WantCode(t, test.call(servicetest.Within(t)), test.code)
			if h.Count("keys_package") != 0 || h.Count("keys_hybrid") != 0 {
				t.Error("a refused call stored something")
			}
		})
	}
	servicetest.WantCode(t, upload(own, large(keys.MaxPackage), nil)(servicetest.Within(t)), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, upload(own, []byte{0, 1, 0, 1}, nil)(servicetest.Within(t)), qpcpb.CodeUnspecified)

	// An account that is deleted while the call is on its way leaves nothing.
	h.Accounts.Remove("alice")
	servicetest.WantCode(t, upload(own, pkg("late"), nil)(servicetest.Within(t)), qpcpb.CodeUnauthenticated)
	servicetest.WantCode(t, hybrid(own, keys.HybridKeySize)(servicetest.Within(t)), qpcpb.CodeUnauthenticated)
	if h.Count("keys_package") != 2 || h.Count("keys_hybrid") != 0 {
		t.Error("a deleted account stored something")
	}
}

func TestForgetAndErase(t *testing.T) {
	h := open(t)
	for _, name := range []string{"alice", "bob"} {
		p := h.person(t, name)
		for _, d := range [][]byte{nil, device("phone"), device("desk")} {
			p.uploads("one", d, false)
			p.uploads("last", d, true)
		}
		if _, err := p.UploadHybridKey(servicetest.Within(t), &qpcpb.UploadHybridKeyRequest{
			IdentityKey: servicetest.Bytes(name), HybridPublicKey: make([]byte, keys.HybridKeySize),
		}); err != nil {
			t.Fatal(err)
		}
	}
	h.Write(func(tx *store.Tx) error {
		return h.keys.ForgetDeviceTx(tx, servicetest.Key("alice"), servicetest.Device("phone"))
	})
	if n := h.Count("keys_package"); n != 12-2 {
		t.Errorf("%d packages left, want all but the device's two", n)
	}
	h.Write(func(tx *store.Tx) error { return h.keys.EraseTx(tx, servicetest.Key("alice")) })
	if n := h.Count("keys_package"); n != 6 {
		t.Errorf("%d packages left, want bob's six", n)
	}
	if n := h.Count("keys_hybrid"); n != 1 {
		t.Errorf("%d hybrid keys left, want bob's", n)
	}
	if got, err := h.person(t, "carol").FetchHybridKey(servicetest.Within(t), &qpcpb.FetchHybridKeyRequest{IdentityKey: servicetest.Bytes("alice")}); err != nil || len(got.HybridPublicKey) != 0 {
		t.Errorf("alice's hybrid key is still there: %v, %v", got, err)
	}
}

// Each of many callers at once gets a package of its own.
func TestConcurrentFetchesNeverShare(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	const callers = 10
	for i := range callers {
		alice.uploads(string(binary.BigEndian.AppendUint16(nil, uint16(i))), nil, false)
	}
	type result struct {
		pkg []byte
		err error
	}
	results := make(chan result, callers)
	bob := h.person(t, "bob")
	ctx := servicetest.Within(t)
	for range callers {
		go func() {
			got, err := bob.FetchKeyPackage(ctx, &qpcpb.FetchKeyPackageRequest{IdentityKey: servicetest.Bytes("alice")})
			results <- result{got.GetPackage(), err}
		}()
	}
	seen := map[string]bool{}
	for range callers {
		r := <-results
		if r.err != nil || len(r.pkg) == 0 || seen[string(r.pkg)] {
			t.Errorf("got %x (%v), seen before: %v", r.pkg, r.err, seen[string(r.pkg)])
		}
		seen[string(r.pkg)] = true
	}
}
