// Package control answers the owner of the server (methods 1100 to 1170): how
// the server is, who has an account, and what to do about either. It is served
// on the control socket alone.
//
// It has no tables and nearly no rules of its own: it looks accounts up by name
// and gathers what the other domains know, through the interfaces below. A part
// that a server lacks (federation, say) leaves its methods UNIMPLEMENTED.
//
// What it promises: nothing secret leaves through it but the codes that it has
// just made, and a page of accounts is bounded.
package control

import (
	"context"
	"crypto/x509"
	"sync"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// maxPage is the most accounts of one answer: 500 of them have 100 KiB.
	maxPage = 500
	// totalsFor is how long the totals of the queues are shown before they are
	// counted again, since counting walks over the message log.
	totalsFor = 10 * time.Second
	// maxPeers bounds the peers in a status: the federation's own list is for
	// reading them all.
	maxPeers = 64
)

// Account is what is known of an account. Times are Unix seconds.
type Account struct {
	Identity                 rpc.IdentityKey
	Username                 string
	RegisteredAt, LastSeenAt int64
	Admin                    bool
}

// Invite is a one-time code without the code. Times are Unix seconds.
type Invite struct {
	ID, Note, Username   string
	CreatedAt, ExpiresAt int64
}

// Accounts keeps accounts and invites. Its errors are *rpc.Error where the owner
// can mend them.
type Accounts interface {
	// FindByNameTx returns the account of a name, folded or not, or
	// USER_NOT_FOUND or INVALID_USERNAME.
	FindByNameTx(tx *store.Tx, name string) (Account, error)
	ListTx(tx *store.Tx, prefix, after string, limit int) ([]Account, error)
	CountTx(tx *store.Tx) (int, error)
	Remove(ctx context.Context, name string, freeName bool) error
	// ResetPassword and CreateInvite make a code; validFor 0 is their default.
	ResetPassword(ctx context.Context, name string, validFor time.Duration) (invite Invite, code string, err error)
	CreateInvite(ctx context.Context, validFor time.Duration, note string) (invite Invite, code string, err error)
	Invites(ctx context.Context) ([]Invite, error)
	RevokeInvite(ctx context.Context, id string) error
}

// Devices keeps the devices of accounts.
type Devices interface {
	DetailsTx(tx *store.Tx, identity rpc.IdentityKey) ([]*qpcpb.Device, error)
	Revoke(ctx context.Context, identity rpc.IdentityKey, device rpc.DeviceID) error
}

// Queues counts the messages that wait.
type Queues interface {
	Totals(ctx context.Context) (messages, bytes uint64, err error)
	WaitingTx(tx *store.Tx, identity rpc.IdentityKey) (messages, bytes uint64, err error)
}

// Blobs counts encrypted files.
type Blobs interface {
	Usage(ctx context.Context) (bytes, count uint64, err error)
	UsageOfTx(tx *store.Tx, identity rpc.IdentityKey) (bytes uint64, err error)
}

// Presence tells who is connected.
type Presence interface {
	Online(identity rpc.IdentityKey) bool
	// Connections is how many connections are logged in.
	Connections() int
}

// Peers steers the federation.
type Peers interface {
	AddPeer(context.Context, *qpcpb.AddPeerRequest) (*qpcpb.AddPeerResponse, error)
	ListPeers(context.Context, *qpcpb.ListPeersRequest) (*qpcpb.ListPeersResponse, error)
	RemovePeer(context.Context, *qpcpb.RemovePeerRequest) (*qpcpb.RemovePeerResponse, error)
	TestPeer(context.Context, *qpcpb.TestPeerRequest) (*qpcpb.TestPeerResponse, error)
}

// Backup makes the copies that a backup is made of.
type Backup interface {
	PrepareBackup(context.Context, *qpcpb.PrepareBackupRequest) (*qpcpb.PrepareBackupResponse, error)
	FinishBackup(context.Context, *qpcpb.FinishBackupRequest) (*qpcpb.FinishBackupResponse, error)
}

// LastError is the last error in the log. At is the zero time when there was
// none.
type LastError struct {
	Message string
	At      time.Time
}

// Options says what a Service is made of. What stands below Optional may be
// nil.
type Options struct {
	DB       *store.DB
	Accounts Accounts
	Devices  Devices
	Queues   Queues
	Presence Presence
	// Now is the clock, with a monotonic reading as that of time.Now.
	Now func() time.Time

	Version      string
	ServerName   string
	Registration string
	DataDir      string
	// Status is the word that Health answers.
	Status func() string
	// Listeners are what the server listens on, by now.
	Listeners func() []*qpcpb.Listener
	// Connections and Calls are how many of each there are now.
	Connections, Calls func() int
	// Certificate is the one in use, with what there is to warn of.
	Certificate func() (leaf *x509.Certificate, selfSigned bool, warnings []string)
	// Link makes the link of a code, for a name when it resets one.
	Link      func(code, username string) string
	LastError func() LastError

	// Optional.

	Blobs Blobs
	// ReadOnly tells whether the storage refuses writes, and why.
	ReadOnly func() (bool, string)
	// BanTx returns the ban of an identity that is in force. expiresAt is in
	// Unix seconds, 0 for never.
	BanTx func(tx *store.Tx, identity rpc.IdentityKey) (banned bool, reason string, expiresAt uint64, err error)
	// VerifyLog computes the transparency log anew.
	VerifyLog func(ctx context.Context) (size uint64, root [32]byte, problems []string, err error)
	Peers     Peers
	Backup    Backup
	// Diagnose and RotateCertificate answer their methods.
	Diagnose          func(context.Context, *qpcpb.DiagnoseRequest) (*qpcpb.DiagnoseResponse, error)
	RotateCertificate func(context.Context, *qpcpb.RotateCertificateRequest) (*qpcpb.RotateCertificateResponse, error)
}

// Service answers qpcpb.ControlServer. It is safe for concurrent use.
type Service struct {
	options Options
	start   time.Time

	verifying sync.Mutex // held while VerifyLog runs

	mu        sync.Mutex
	counted   time.Time // when totals were counted; zero: never
	totalSize totals
}

type totals struct{ messages, bytes uint64 }

var _ qpcpb.ControlServer = (*Service)(nil)

// New returns a Service whose uptime begins now.
func New(options Options) *Service { return &Service{options: options, start: options.Now()} }

// pinOf is the pin of a certificate as it is shown.
func pinOf(leaf *x509.Certificate) (hex string, words []string) {
	pin := transport.PinOf(leaf)
	return pin.String(), pin.Words()
}
