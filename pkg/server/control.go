package server

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/quicprochat/qpcd/pkg/config"
	socket "github.com/quicprochat/qpcd/pkg/control"
	"github.com/quicprochat/qpcd/pkg/invite"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/control"
	"github.com/quicprochat/qpcd/pkg/service/device"
	"github.com/quicprochat/qpcd/pkg/service/moderation"
	"github.com/quicprochat/qpcd/pkg/store"
)

// serveOwner makes the domain of the control socket, which asks all the others.
// A helper of the owner that is built later is one more line here.
func (s *Server) serveOwner(cfg *config.Config, o Options, accounts *auth.Service, devices *device.Service, bans *moderation.Service) {
	qpcpb.RegisterControlServer(s.calls, control.New(control.Options{
		DB: s.db, Accounts: ownedAccounts{accounts}, Devices: devices, Queues: s.delivery, Presence: s.hub, Now: o.Now,
		Version: o.Version, ServerName: cfg.ServerName, Registration: string(cfg.Registration), DataDir: wirePath(cfg.DataDir),
		Status: s.status, Listeners: s.listeners, Calls: s.calls.Running,
		Connections: func() int { return s.listener.Stats().Connections },
		Certificate: func() (*x509.Certificate, bool, []string) {
			return s.certs.Leaf(), s.certs.SelfSigned(), s.certs.Warnings()
		},
		Link:      s.inviteLink,
		Peers:     s.federation,
		LastError: s.lastError.get,
		Blobs:     s.blobs,
		BanTx: func(tx *store.Tx, identity rpc.IdentityKey) (banned bool, reason string, expiresAt uint64, err error) {
			ban, banned, err := bans.BannedTx(tx, identity)
			if banned && !ban.ExpiresAt.IsZero() {
				expiresAt = uint64(max(0, ban.ExpiresAt.Unix()))
			}
			return banned, ban.Reason, expiresAt, err
		},
		ReadOnly:          s.db.ReadOnly,
		Backup:            s,
		Diagnose:          s.Diagnose,
		VerifyLog:         s.verifyLog,
		RotateCertificate: s.RotateCertificate,
	}))
}

// openControl listens on the control socket, if the settings name one.
func (s *Server) openControl(ctx context.Context) (err error) {
	if s.config.ControlSocket == "" {
		return nil
	}
	s.control, err = socket.Listen(ctx, s.config.ControlSocket, s.log, s.calls.ServeLocal)
	return err
}

// runControl serves the control socket until closeControl.
func (s *Server) runControl() {
	if s.control != nil {
		s.control.Run()
	}
}

// stopControl takes no more of the owner's calls; those under way go on.
func (s *Server) stopControl() {
	if s.control != nil {
		s.control.Stop()
	}
}

func (s *Server) closeControl() {
	if s.control != nil {
		s.control.Close()
	}
}

// listeners are what the server listens on.
func (s *Server) listeners() []*qpcpb.Listener {
	var all []*qpcpb.Listener
	for _, a := range s.listener.Addrs() {
		all = append(all, &qpcpb.Listener{Name: "quic", Address: a.String()})
	}
	for _, a := range s.page.addrs() {
		all = append(all, &qpcpb.Listener{Name: "metrics", Address: a.String()})
	}
	if s.control != nil {
		all = append(all, &qpcpb.Listener{Name: "control", Address: wirePath(s.control.Addr())})
	}
	return all
}

// wirePath shows a path, which may be any bytes, as the text that the wire wants.
func wirePath(path string) string { return strings.ToValidUTF8(path, "?") }

// inviteLink is the link of a code, by the addresses that the machine has now.
func (s *Server) inviteLink(code, name string) string {
	machine, err := net.InterfaceAddrs()
	if err != nil {
		machine = nil // the server's name must do
	}
	named := s.config.Origin("server_name").Source != config.FromDefault
	return invite.Link{
		Addresses: invite.Addresses(s.config.ServerName, named, s.listener.Addrs(), machine),
		Pin:       s.certs.Pin(), Code: code, Username: name,
	}.String()
}

// verifyLog shows the transparency log's report in the owner's terms.
func (s *Server) verifyLog(ctx context.Context) (size uint64, root [32]byte, problems []string, err error) {
	r, err := s.keyLog.Verify(ctx)
	return r.Size, r.Root, r.Problems, err
}

// supersededTx logs that another key takes the place of an identity's.
func (s *Server) supersededTx(tx *store.Tx, identity rpc.IdentityKey) error {
	_, err := s.keyLog.RevokeTx(tx, identity, "superseded")
	return err
}

// ownedAccounts shows the accounts to the owner's domain in its own terms.
type ownedAccounts struct{ *auth.Service }

func (o ownedAccounts) toOwned(a auth.Account) control.Account {
	return control.Account{
		Identity: a.Identity, Username: a.Username, Admin: o.IsAdmin(a.Identity),
		RegisteredAt: a.RegisteredAt.Unix(), LastSeenAt: a.LastSeenAt.Unix(),
	}
}

func (o ownedAccounts) FindByNameTx(tx *store.Tx, name string) (control.Account, error) {
	a, err := o.Service.FindByAnyNameTx(tx, name)
	return o.toOwned(a), err
}

func (o ownedAccounts) ListTx(tx *store.Tx, prefix, after string, limit int) ([]control.Account, error) {
	accounts, err := o.Service.ListTx(tx, prefix, after, limit)
	owned := make([]control.Account, len(accounts))
	for i, a := range accounts {
		owned[i] = o.toOwned(a)
	}
	return owned, err
}

func (o ownedAccounts) Remove(ctx context.Context, name string, freeName bool) error {
	return o.RemoveAccount(ctx, name, freeName)
}

func toInvite(i auth.Invite) control.Invite {
	return control.Invite{ID: i.ID, Note: i.Note, Username: i.Username, CreatedAt: i.CreatedAt.Unix(), ExpiresAt: i.ExpiresAt.Unix()}
}

func (o ownedAccounts) ResetPassword(ctx context.Context, name string, validFor time.Duration) (control.Invite, string, error) {
	made, code, err := o.Service.ResetPassword(ctx, name, validFor)
	return toInvite(made), code, err
}

func (o ownedAccounts) CreateInvite(ctx context.Context, validFor time.Duration, note string) (control.Invite, string, error) {
	made, code, err := o.Service.CreateInvite(ctx, validFor, note)
	return toInvite(made), code, err
}

func (o ownedAccounts) Invites(ctx context.Context) ([]control.Invite, error) {
	open, err := o.Service.Invites(ctx)
	all := make([]control.Invite, len(open))
	for i, o := range open {
		all[i] = toInvite(o)
	}
	return all, err
}

// maxLastError bounds what is kept of an error line, in bytes.
const maxLastError = 500

// lastError remembers the last line of level error that a server logs.
type lastError struct {
	mu   sync.Mutex
	last control.LastError
}

func (l *lastError) get() control.LastError {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// watch returns a log that passes everything on to log and has its errors
// remembered here, also those that the log leaves out as too many.
func (l *lastError) watch(log *slog.Logger) *slog.Logger {
	return slog.New(&watched{Handler: log.Handler(), last: l})
}

type watched struct {
	slog.Handler
	last *lastError
}

// Handle remembers a line's message and its error.
func (w *watched) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		text := r.Message
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "error" {
				text += ": " + a.Value.String()
			}
			return true
		})
		text = strings.ToValidUTF8(text[:min(len(text), maxLastError)], "") // the wire takes nothing else
		w.last.mu.Lock()
		w.last.last = control.LastError{Message: text, At: r.Time}
		w.last.mu.Unlock()
	}
	return w.Handler.Handle(ctx, r)
}

func (w *watched) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &watched{Handler: w.Handler.WithAttrs(attrs), last: w.last}
}

func (w *watched) WithGroup(name string) slog.Handler {
	return &watched{Handler: w.Handler.WithGroup(name), last: w.last}
}
