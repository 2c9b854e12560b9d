package server

import (
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/reach"
)

// A message for somebody who is away wakes their device by an empty POST;
// whoever is there, and whoever is blocked, wakes nobody.
func TestWakeUp(t *testing.T) {
	woken := make(chan string, 8)
	phone := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		woken <- r.Method + " " + r.URL.Path
	}))
	t.Cleanup(phone.Close)
	roots := x509.NewCertPool()
	roots.AddCert(phone.Certificate())
	h := openWith(t, t.TempDir(), Options{PushRoots: roots}, func(c *config.Config) { c.PushHosts = []string{"127.0.0.1"} })
	alice, bob, mallory := h.settle(person("alice")), h.settle(person("bob")), h.settle(person("mallory"))
	sender, blocked, sleeper := h.dial("").resume(alice), h.dial("").resume(mallory), h.dial("").resume(bob)
	device := make([]byte, 16)
	if _, err := qpcpb.NewDeviceClient(sleeper).RegisterDevice(within(t), &qpcpb.RegisterDeviceRequest{DeviceId: device, DeviceName: "phone"}); err != nil {
		t.Fatal(err)
	}
	if _, err := qpcpb.NewDirectoryClient(sleeper).BlockUser(within(t), &qpcpb.BlockUserRequest{IdentityKey: mallory.key[:]}); err != nil {
		t.Fatal(err)
	}
	_, err := qpcpb.NewPushTokenClient(sleeper).RegisterPushToken(within(t), &qpcpb.RegisterPushTokenRequest{
		Platform: reach.PlatformUnifiedPush, Token: phone.URL + "/up", DeviceId: device,
	})
	if err != nil {
		t.Fatal(err)
	}
	send := func(by *client) {
		t.Helper()
		if _, err := qpcpb.NewDeliveryClient(by).Enqueue(within(t), &qpcpb.EnqueueRequest{RecipientKey: bob.key[:], Payload: []byte("x")}); err != nil {
			t.Fatal(err)
		}
	}
	quiet := func() {
		t.Helper()
		select {
		case got := <-woken:
			t.Fatalf("woken by %s", got)
		case <-time.After(200 * time.Millisecond):
		}
	}
	send(sender)
	quiet() // bob is there
	sleeper.leave()
	for h.s.hub.Online(bob.key) {
		time.Sleep(time.Millisecond)
	}
	send(blocked)
	quiet()
	send(sender)
	select {
	case got := <-woken:
		if got != "POST /up" {
			t.Errorf("woken by %s", got)
		}
	case <-time.After(patience):
		t.Fatalf("nobody was woken: %s", &h.log)
	}
}
