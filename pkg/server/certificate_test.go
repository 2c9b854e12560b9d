package server

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// A renewal in place, one file after the other and without a signal, as
// OpenWrt's acme does it.
func TestRenewedCertificateIsRead(t *testing.T) {
	t.Parallel()
	h := open(t, t.TempDir(), nil)
	ctx, stop := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	watch.Go(func() { h.s.watchCertificate(ctx, 10*time.Millisecond) })
	defer watch.Wait()
	defer stop()

	dir := t.TempDir()
	renewed, err := transport.LoadOrCreate(filepath.Join(dir, "cert"), filepath.Join(dir, "key"), []string{"router"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"cert": "server-cert.der", "key": "server-key.der"} {
		data, err := os.ReadFile(filepath.Join(dir, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(h.dir, to), data, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // the pair is half written for a moment
	}
	for deadline := time.Now().Add(10 * time.Second); h.s.Pin() != renewed.Pin(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the renewed certificate is not in use; the log says %s", h.log.String())
		}
	}
	h.dial("") // trusts the new pin alone
}

func TestRotatedCertificateIsFollowedAndKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := open(t, dir, nil)
	first := h.s.Pin()
	live := h.dial("")
	answer, err := h.s.RotateCertificate(t.Context(), &qpcpb.RotateCertificateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if answer.OldPin != first.String() || answer.NewPin != h.s.Pin().String() || answer.NewPin == answer.OldPin {
		t.Errorf("answered %v", answer)
	}
	if _, err := qpcpb.NewHealthClient(live).Health(within(t), &qpcpb.HealthRequest{}); err != nil {
		t.Errorf("a live connection: %v", err)
	}
	pinned := func(h *house) {
		t.Helper()
		conn, err := transport.Dial(within(t), transport.DialOptions{Address: h.s.Addrs()[0].String(), Trust: transport.TrustPin(first)})
		if err != nil {
			t.Fatalf("a client that knows the old key: %v", err)
		}
		conn.Close(transport.CloseNormal, "")
	}
	pinned(h)
	h.stop()
	pinned(open(t, dir, nil))
}
