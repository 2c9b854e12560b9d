package device_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/device"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type house struct {
	*servicetest.House
	devices *device.Service
}

func open(t *testing.T, forget ...device.Forget) house {
	h := house{House: servicetest.New(t)}
	h.devices = device.New(device.Options{DB: h.DB, Accounts: h.Accounts, Sessions: h.Hub, Forget: forget, Now: h.Wall.Now})
	qpcpb.RegisterDeviceServer(h.Server, h.devices)
	h.Open()
	return h
}

// person is somebody with a connection, and says what a test wants done.
type person struct {
	*servicetest.Client
	qpcpb.DeviceClient
	t *testing.T
}

func (h house) person(t *testing.T, name string) person {
	c := h.Connect(name)
	return person{c, qpcpb.NewDeviceClient(c), t}
}

// personOn is the same from a device.
func (h house) personOn(t *testing.T, name, deviceName string) person {
	h.Accounts.Add(name)
	c := h.ConnectAs(rpc.Principal{Identity: servicetest.Key(name), Username: name, Device: servicetest.Device(deviceName), HasDevice: true})
	return person{c, qpcpb.NewDeviceClient(c), t}
}

func id(name string) []byte {
	id := servicetest.Device(name)
	return id[:]
}

func (p person) register(deviceID []byte, name string) error {
	_, err := p.RegisterDevice(servicetest.Within(p.t), &qpcpb.RegisterDeviceRequest{DeviceId: deviceID, DeviceName: name})
	return err
}

func (p person) revoke(deviceID []byte) error {
	_, err := p.RevokeDevice(servicetest.Within(p.t), &qpcpb.RevokeDeviceRequest{DeviceId: deviceID})
	return err
}

func (p person) list() []*qpcpb.Device {
	p.t.Helper()
	got, err := p.ListDevices(servicetest.Within(p.t), &qpcpb.ListDevicesRequest{})
	if err != nil {
		p.t.Fatal(err)
	}
	return got.Devices
}

// sees compares the list of devices with names in order.
func (p person) sees(want ...string) {
	p.t.Helper()
	var got []string
	for _, d := range p.list() {
		got = append(got, d.DeviceName)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		p.t.Errorf("devices are %q, want %q", got, want)
	}
}

func TestRegisterListRename(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	alice.sees()
	start := uint64(h.Wall.Now().Unix())
	servicetest.WantCode(t, alice.register(id("phone"), "Telefon 📱"), qpcpb.CodeUnspecified)
	h.Wall.Advance(time.Hour)
	servicetest.WantCode(t, alice.register(id("desk"), "desk"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.register(id("phone"), "new phone"), qpcpb.CodeUnspecified)
	alice.sees("new phone", "desk")
	if d := alice.list()[0]; string(d.DeviceId) != string(id("phone")) || d.RegisteredAt != start || d.LastSeen != start+3600 {
		t.Errorf("got %v, want registered at %d and seen an hour later", d, start)
	}
	h.person(t, "bob").sees()
}

func TestTimesBefore1970AreZero(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	h.Wall.Advance(-time.Duration(h.Wall.Now().Unix()+3600) * time.Second)
	servicetest.WantCode(t, alice.register(id("phone"), "phone"), qpcpb.CodeUnspecified)
	if d := alice.list()[0]; d.RegisteredAt != 0 || d.LastSeen != 0 {
		t.Errorf("got %v", d)
	}
}

func TestNames(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	for name, test := range map[string]struct {
		name string
		code qpcpb.Code
	}{
		"empty":               {"", qpcpb.CodeInvalidField},
		"64 characters":       {strings.Repeat("ü", 64), qpcpb.CodeUnspecified},
		"65 characters":       {strings.Repeat("a", 65), qpcpb.CodeInvalidField},
		"NUL":                 {"a\x00b", qpcpb.CodeInvalidField},
		"line feed":           {"a\nb", qpcpb.CodeInvalidField},
		"escape":              {"\x1b[2J", qpcpb.CodeInvalidField},
		"delete":              {"a\x7f", qpcpb.CodeInvalidField},
		"C1 control":          {"a\u0085b", qpcpb.CodeInvalidField},
		"line separator":      {"a\u2028b", qpcpb.CodeInvalidField},
		"paragraph separator": {"a\u2029b", qpcpb.CodeInvalidField},
		"family emoji":        {"👩‍👩‍👧", qpcpb.CodeUnspecified},
	} {
		t.Run(name, func(t *testing.T) {
			before := h.Count("device_device")
			servicetest.WantCode(t, alice.register(id(name), test.name), test.code)
			if test.code != qpcpb.CodeUnspecified && h.Count("device_device") != before {
				t.Error("a refused device was stored")
			}
		})
	}
}

func TestInvalidUTF8DoesNotParse(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	// Field 2 (device_name) with one byte 0xff, which proto3 refuses in a string.
	request := &qpcpb.RegisterDeviceRequest{DeviceId: id("phone")}
	request.ProtoReflect().SetUnknown([]byte{2<<3 | 2, 1, 0xff})
	_, err := alice.RegisterDevice(servicetest.Within(t), request)
	servicetest.WantCode(t, err, qpcpb.CodeMalformed)
	if h.Count("device_device") != 0 {
		t.Error("a refused device was stored")
	}
}

func TestIDLengths(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	for _, n := range []int{0, 1, 15, 17, 32} {
		servicetest.WantCode(t, alice.register(make([]byte, n), "name"), qpcpb.CodeInvalidField)
		servicetest.WantCode(t, alice.revoke(make([]byte, n)), qpcpb.CodeInvalidField)
	}
	if h.Count("device_device") != 0 {
		t.Error("a refused device was stored")
	}
}

func TestAtMostSixteen(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	for i := range device.MaxDevices {
		servicetest.WantCode(t, alice.register(id(fmt.Sprint(i)), "name"), qpcpb.CodeUnspecified)
	}
	servicetest.WantCode(t, alice.register(id("one too many"), "name"), qpcpb.CodeDeviceLimit)
	servicetest.WantCode(t, alice.register(id("3"), "renamed"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, bob.register(id("0"), "bob's"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.revoke(id("5")), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, alice.register(id("one too many"), "name"), qpcpb.CodeUnspecified)
	if n := h.Count("device_device"); n != device.MaxDevices+1 {
		t.Errorf("%d devices stored", n)
	}
}

func TestRevokeForgetsEverywhereAndEndsSessions(t *testing.T) {
	var (
		mu        sync.Mutex
		forgotten []string
	)
	note := func(domain string) device.Forget {
		return func(_ *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) error {
			if identity != servicetest.Key("alice") || device != servicetest.Device("phone") {
				return fmt.Errorf("forgetting %s of %s", device, identity)
			}
			mu.Lock()
			defer mu.Unlock()
			forgotten = append(forgotten, domain)
			return nil
		}
	}
	wantForgotten := func(want ...string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if fmt.Sprint(forgotten) != fmt.Sprint(want) {
			t.Errorf("forgotten by %v, want %v", forgotten, want)
		}
	}
	h := open(t, note("delivery"), note("keys"), note("auth"))
	desk, phone := h.personOn(t, "alice", "desk"), h.personOn(t, "alice", "phone")
	bob := h.personOn(t, "bob", "phone") // the same id, another identity
	for _, p := range []person{desk, bob} {
		servicetest.WantCode(t, p.register(id("phone"), "phone"), qpcpb.CodeUnspecified)
	}
	servicetest.WantCode(t, desk.revoke(id("desk")), qpcpb.CodeDeviceNotFound)
	wantForgotten()
	servicetest.WantCode(t, desk.revoke(id("phone")), qpcpb.CodeUnspecified)
	wantForgotten("delivery", "keys", "auth")
	phone.wantEnded()
	desk.sees()
	bob.sees("phone")
	servicetest.WantCode(t, desk.revoke(id("phone")), qpcpb.CodeDeviceNotFound)
}

// wantEnded waits for SessionEnded and the end of the connection.
func (p person) wantEnded() {
	p.t.Helper()
	event := p.Event()
	var ended qpcpb.SessionEnded
	if err := proto.Unmarshal(event.Payload, &ended); err != nil || event.Kind != qpcpb.EventSessionEnded || ended.Reason == "" {
		p.t.Errorf("got %s %v (%v), want SessionEnded with a reason", event.Kind, &ended, err)
	}
	select {
	case <-p.Conn().Context().Done():
	case <-servicetest.Within(p.t).Done():
		p.t.Fatal("the connection was not closed")
	}
	_, err := p.Conn().OpenStream(context.Background())
	var closed *transport.ClosedError
	if !errors.As(err, &closed) || closed.Code != transport.CloseSessionRevoked {
		p.t.Errorf("the connection ended with %v, want code %d", err, transport.CloseSessionRevoked)
	}
}

func TestRevokingItselfIsAnsweredFirst(t *testing.T) {
	h := open(t)
	phone := h.personOn(t, "alice", "phone")
	servicetest.WantCode(t, phone.register(id("phone"), "phone"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, phone.revoke(id("phone")), qpcpb.CodeUnspecified)
	phone.wantEnded()
}

func TestFailedForgetUndoesTheRevocation(t *testing.T) {
	h := open(t, func(tx *store.Tx, identity rpc.IdentityKey, _ rpc.DeviceID) error {
		_, err := tx.Exec(`DELETE FROM device_device WHERE identity_key = ?`, identity)
		return errors.Join(err, errors.New("broken"))
	})
	phone := h.personOn(t, "alice", "phone")
	servicetest.WantCode(t, phone.register(id("phone"), "phone"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, phone.revoke(id("phone")), qpcpb.CodeInternal)
	phone.sees("phone") // and the connection works
}

func TestSeenIsCoarseAndBearsClockJumps(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	servicetest.WantCode(t, alice.register(id("phone"), "phone"), qpcpb.CodeUnspecified)
	seen := func() int64 { return int64(alice.list()[0].LastSeen) }
	writes := func() uint64 { return h.DB.Stats().Writes }
	start := h.Wall.Now().Unix()
	for _, step := range []struct {
		name    string
		advance time.Duration
		want    time.Duration // after start
		writes  uint64
	}{
		{"at once", 0, 0, 0},
		{"before ten minutes", 10*time.Minute - time.Second, 0, 0},
		{"after ten minutes", time.Second, 10 * time.Minute, 1},
		{"the clock goes back", -time.Hour, -50 * time.Minute, 1},
	} {
		h.Wall.Advance(step.advance)
		before := writes()
		if err := h.devices.Seen(t.Context(), servicetest.Key("alice"), servicetest.Device("phone")); err != nil {
			t.Fatal(err)
		}
		if got := writes() - before; got != step.writes {
			t.Errorf("%s: %d writes, want %d", step.name, got, step.writes)
		}
		if got := seen() - start; got != int64(step.want/time.Second) {
			t.Errorf("%s: seen %d s after the start, want %v", step.name, got, step.want)
		}
	}
	if err := h.devices.Seen(t.Context(), servicetest.Key("alice"), servicetest.Device("unknown")); err != nil {
		t.Error("an unknown device:", err)
	}
	if n := h.Count("device_device"); n != 1 {
		t.Errorf("%d devices, want 1", n)
	}
}

func TestTwinsAndErase(t *testing.T) {
	h := open(t)
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	for _, name := range []string{"phone", "desk"} {
		servicetest.WantCode(t, alice.register(id(name), name), qpcpb.CodeUnspecified)
		servicetest.WantCode(t, bob.register(id(name), name), qpcpb.CodeUnspecified)
		h.Wall.Advance(time.Minute)
	}
	check := func(owner string, want ...rpc.DeviceID) {
		t.Helper()
		err := h.DB.Read(t.Context(), func(tx *store.Tx) error {
			got, err := h.devices.ListTx(tx, servicetest.Key(owner))
			if err != nil {
				return err
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s has %v, want %v", owner, got, want)
			}
			ok, err := h.devices.ExistsTx(tx, servicetest.Key(owner), servicetest.Device("desk"))
			if ok != (len(want) > 0) {
				t.Errorf("%s has a desk: %v", owner, ok)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	check("alice", servicetest.Device("phone"), servicetest.Device("desk"))
	h.Write(func(tx *store.Tx) error { return h.devices.EraseTx(tx, servicetest.Key("alice")) })
	check("alice")
	check("bob", servicetest.Device("phone"), servicetest.Device("desk"))

	h.Accounts.Remove("alice")
	servicetest.WantCode(t, alice.register(id("late"), "late"), qpcpb.CodeUnauthenticated)
	check("alice")
}
