package server

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/control"
	"github.com/quicprochat/qpcd/pkg/invite"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// owner is whoever sits at the machine.
func (h *house) owner() qpcpb.ControlClient {
	return qpcpb.NewControlClient(control.Client{Path: h.s.config.ControlSocket})
}

func (h *house) status() *qpcpb.GetStatusResponse {
	h.t.Helper()
	status, err := h.owner().GetStatus(within(h.t), &qpcpb.GetStatusRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return status
}

// The owner follows the server from its start to its end.
func TestOwnerSeesTheServer(t *testing.T) {
	t.Parallel()
	h := open(t, t.TempDir(), nil)
	socket := h.s.config.ControlSocket
	if info, err := os.Lstat(socket); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Fatalf("the socket is %v, %v", info.Mode(), err)
	}
	alice, bob := h.settle(person("alice")), h.settle(person("bob"))
	before := h.status()
	if before.Status != "ok" || before.Version != "test" || before.Accounts != 2 || before.Connections != 0 || before.QueuedMessages != 0 ||
		before.ServerName != "router" || before.Registration != "open" || before.LastError != nil || before.MemoryBytes == 0 || before.CallsInFlight != 0 {
		t.Errorf("at the start: %v", before)
	}
	if len(before.Listeners) != 2 || before.Listeners[0].Address != h.s.Addrs()[0].String() || before.Listeners[1].Address != socket {
		t.Errorf("it listens on %v", before.Listeners)
	}
	if c := before.Certificate; c.Pin != h.s.Pin().String() || !c.SelfSigned || len(c.PinWords) != 12 || len(c.Names) == 0 {
		t.Errorf("its certificate is %v", c)
	}
	if st := before.Storage; st.DatabaseBytes == 0 || st.FreeBytes == 0 || st.ReadOnly {
		t.Errorf("its storage is %v", st)
	}

	phone := h.dial("").resume(alice)
	if _, err := qpcpb.NewDeliveryClient(phone).Enqueue(within(t), &qpcpb.EnqueueRequest{RecipientKey: bob.key[:], Payload: make([]byte, 1000)}); err != nil {
		t.Fatal(err)
	}
	h.s.log.Error("something failed", "error", errors.New("a"+strings.Repeat("ж", 1000)))
	h.sleep(10 * time.Second)
	after := h.status()
	if after.Connections != 1 || after.Sessions != 1 || after.QueuedMessages != 1 || after.QueuedBytes != 1000 || after.UptimeSecs < 10 {
		t.Errorf("with somebody there: %v", after)
	}
	if last := after.LastError; last == nil || !strings.HasPrefix(last.Message, "something failed: aж") || len(last.Message) > maxLastError {
		t.Errorf("the last error is %v", last)
	}
	shown, err := h.owner().GetAccount(within(t), &qpcpb.GetAccountRequest{Username: "bob"})
	if err != nil || shown.Account.QueuedMessages != 1 || shown.Account.QueuedBytes != 1000 || shown.Account.Online || !bytes.Equal(shown.Account.IdentityKey, bob.key[:]) {
		t.Errorf("bob is %v, %v", shown, err)
	}
	all, err := h.owner().ListAccounts(within(t), &qpcpb.ListAccountsRequest{Limit: 1, After: "a"})
	if err != nil || len(all.Accounts) != 1 || all.Accounts[0].Username != "alice" || !all.Accounts[0].Online {
		t.Errorf("the first is %v, %v", all, err)
	}

	h.stop()
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	if _, err := h.owner().GetStatus(within(t), &qpcpb.GetStatusRequest{}); !errors.Is(err, control.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// A reset from the owner's word to the log that all can read.
func TestPasswordResetIsLogged(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	reset, err := s.owner().ResetPassword(within(t), &qpcpb.ResetPasswordRequest{Username: "alice"})
	if err != nil {
		t.Fatal(err)
	}
	link, err := invite.Parse(reset.Link)
	if err != nil || link.Code != reset.Code || link.Username != "alice" || link.Pin != s.s.Pin() || link.Addresses[0].String() != s.s.Addrs()[0].String() {
		t.Fatalf("the link is %+v, %v", link, err)
	}
	renewed := person("alice renewed")
	renewed.name = "alice"
	request := s.registerFinish(renewed)
	request.Invite = strings.ToLower(reset.Code)
	if _, err := qpcpb.NewAuthClient(s.stranger).OpaqueRegisterFinish(within(t), request); err != nil {
		t.Fatal(err)
	}
	s.user.wantClosed(4)
	bob := s.pipe().resume(s.bob)
	revoked, err := qpcpb.NewTransparencyClient(bob).CheckRevocation(within(t), &qpcpb.CheckRevocationRequest{IdentityKey: s.alice.key[:]})
	if err != nil || !revoked.Revoked || revoked.Reason != "superseded" {
		t.Errorf("the old key is %v, %v", revoked, err)
	}
	found, err := qpcpb.NewDirectoryClient(bob).ResolveUser(within(t), &qpcpb.ResolveUserRequest{Username: "alice"})
	if err != nil || !bytes.Equal(found.IdentityKey, renewed.key[:]) || len(found.InclusionProof) == 0 {
		t.Errorf("alice is %v, %v", found, err)
	}
	log, err := s.owner().VerifyLog(within(t), &qpcpb.VerifyLogRequest{})
	if err != nil || len(log.Problems) > 0 || log.TreeSize != 5 { // three accounts, the end of a key, a new one
		t.Errorf("the log is %v, %v", log, err)
	}
	_, err = qpcpb.NewAuthClient(s.stranger).OpaqueRegisterFinish(within(t), request)
	if rpc.CodeOf(err) != qpcpb.CodeNameTaken { // registration is open: the code no longer matters
		t.Errorf("once more: %v", err)
	}
}

// One socket serves one server, and a start that is refused leaves it alone.
func TestControlSocketInUse(t *testing.T) {
	t.Parallel()
	h := open(t, t.TempDir(), nil)
	cfg := *h.s.config
	cfg.DataDir = t.TempDir()
	cfg.TLSCert, cfg.TLSKey = filepath.Join(cfg.DataDir, "c"), filepath.Join(cfg.DataDir, "k")
	refused := func(want string) {
		t.Helper()
		s, err := New(t.Context(), &cfg, Options{Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			t.Fatal("it started", s.Addrs())
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("refused with %v", err)
		}
	}
	refused(control.ErrInUse.Error())
	cfg.ControlSocket = filepath.Join(cfg.DataDir, strings.Repeat("x", 108))
	refused("107 are possible; choose a shorter control_socket")
	h.status()
	// None at all is a choice.
	silent := open(t, t.TempDir(), func(c *config.Config) { c.ControlSocket = "" })
	if _, err := silent.owner().GetStatus(within(t), &qpcpb.GetStatusRequest{}); err == nil {
		t.Error("somebody answers")
	}
}
