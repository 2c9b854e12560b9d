// Package server is the composition root of qpcd: it builds every room from a
// config.Config, runs them, and stops them in order. To read it is to read the
// architecture:
//
//	storage → keys of the server → push hub → domains → dispatch → listener
//
// Stopping goes the other way: the listener takes no new connections, waiting
// calls return, calls under way are answered, connections are told and closed,
// and the database is closed last.
package server

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/control"
	"github.com/quicprochat/qpcd/pkg/metrics"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/auth"
	"github.com/quicprochat/qpcd/pkg/service/blob"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/device"
	"github.com/quicprochat/qpcd/pkg/service/directory"
	"github.com/quicprochat/qpcd/pkg/service/federation"
	"github.com/quicprochat/qpcd/pkg/service/group"
	"github.com/quicprochat/qpcd/pkg/service/health"
	"github.com/quicprochat/qpcd/pkg/service/keys"
	"github.com/quicprochat/qpcd/pkg/service/moderation"
	"github.com/quicprochat/qpcd/pkg/service/reach"
	"github.com/quicprochat/qpcd/pkg/service/recovery"
	"github.com/quicprochat/qpcd/pkg/service/transparency"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// applicationID marks a database as a qpcd server's: "qpcd" in ASCII.
	applicationID = 0x71706364
	// databaseFile is the database's name in the data directory.
	databaseFile = "qpcd.db"
	// blobDir is the directory of encrypted files beside it.
	blobDir = "blobs"
	// drainTimeout is how long calls under way may take to end. Ten seconds is
	// what procd grants before it kills.
	drainTimeout = 8 * time.Second
	// farewell is how long connections are kept after the last answer, so that
	// it arrives.
	farewell = 200 * time.Millisecond
	// sweepEvery is how often expired rows are looked for. Retention counts in
	// days, so that a minute is exact enough.
	sweepEvery = time.Minute
	// sweepPause keeps a long sweep from holding the writer.
	sweepPause = 50 * time.Millisecond
)

// Options are what a server takes from outside of its configuration.
type Options struct {
	Log     *slog.Logger
	Version string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Rand makes keys and tokens; nil is crypto/rand.
	Rand io.Reader
	// Registrations overrides the limits of registration; a benchmark
	// registers thousands from one address.
	Registrations auth.Limits
	// PushRoots judge the certificates of push hosts; nil is the system's.
	PushRoots *x509.CertPool
	// Transport overrides limits of the transport that no setting names.
	Transport transport.Limits
}

// Server is a server that listens. Make one with New and run it with Run.
type Server struct {
	config     *config.Config
	log        *slog.Logger
	db         *store.DB
	hub        *push.Hub
	calls      *rpc.Server
	listener   *transport.Listener
	control    *control.Listener // nil without a control_socket
	certs      *transport.CertificateStore
	version    string
	snapshots  *snapshots // for backups
	random     io.Reader
	metrics    *metrics.Metrics
	page       *metricsPage
	delivery   *delivery.Service
	blobs      *blob.Service
	reach      *reach.Service
	keyLog     *transparency.Service // the log of names and keys
	federation *federation.Service
	mayLogIn   []func(tx *store.Tx, identity rpc.IdentityKey) error
	erase      []func(tx *store.Tx, identity rpc.IdentityKey) error
	sweepers   []sweeper
	draining   atomic.Bool

	lastError lastError
}

// sweeper removes a bounded number of expired rows, and reports whether there
// may be more.
type sweeper func(ctx context.Context) (more bool, err error)

// New opens the storage and listens. On an error nothing is left open.
func New(ctx context.Context, cfg *config.Config, o Options) (_ *Server, err error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	s := &Server{config: cfg, version: o.Version, random: o.Rand}
	o.Log = s.lastError.watch(o.Log)
	s.log = o.Log

	if err := makeDataDir(cfg.DataDir); err != nil {
		return nil, err
	}
	if err := finishRestore(cfg, o.Log); err != nil {
		return nil, err
	}
	s.db, err = store.Open(ctx, databaseOptions(cfg, o.Log, o.Now))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.db.Close())
		}
	}()
	s.snapshots = &snapshots{db: s.db, dir: filepath.Join(cfg.DataDir, snapshotDir), now: o.Now}
	if err := s.snapshots.clear(); err != nil {
		o.Log.Warn("a copy that an earlier run made for a backup stays", "error", err)
	}
	secrets, err := loadSecrets(ctx, s.db, o.Rand)
	if err != nil {
		return nil, err
	}
	s.certs, err = loadCertificate(cfg, o)
	if err != nil {
		return nil, err
	}
	opaqueServer, err := opaque.NewServer(secrets.opaque)
	if err != nil {
		return nil, fmt.Errorf("starting OPAQUE: %w", err)
	}
	if err := s.build(cfg, o, secrets, opaqueServer); err != nil {
		return nil, err
	}
	if err := s.keyLog.Backfill(ctx); err != nil {
		return nil, err
	}
	if err := s.federation.Load(ctx); err != nil {
		return nil, err
	}

	s.page, err = openMetrics(ctx, cfg, s.metrics)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.page.close())
		}
	}()
	if err := s.openControl(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.closeControl()
		}
	}()
	limits := o.Transport
	limits.Connections = cfg.MaxConnections
	limits.ConnectionsPerSource = cfg.MaxConnectionsPerAddress
	s.listener, err = transport.Listen(ctx, transport.ServerOptions{
		Addresses:    addresses(cfg.Listen),
		Certificates: s.certs,
		Secret:       secrets.transport,
		Peers:        s.federation,
		Limits:       limits,
		Log:          o.Log,
		Now:          o.Now,
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// build makes the hub, the domains and the dispatcher, and passes each domain
// what it needs of the others.
func (s *Server) build(cfg *config.Config, o Options, secrets secrets, opaqueServer *opaque.Server) (err error) {
	// The hub and the dispatcher call into domains that are made after them.
	var (
		accounts *auth.Service
		devices  *device.Service
		groups   *group.Service
		names    *directory.Service
		packages *keys.Service
	)
	s.hub = push.NewHub(push.Options{
		Log: o.Log,
		Contacts: func(ctx context.Context, of rpc.IdentityKey) (contacts []rpc.IdentityKey, err error) {
			err = s.db.Read(ctx, func(tx *store.Tx) error {
				if contacts, err = groups.ContactsTx(tx, of); err != nil {
					return err
				}
				contacts, err = unblocked(tx, names, of, contacts)
				return err
			})
			return contacts, err
		},
		LastSeen: func(ctx context.Context, identity rpc.IdentityKey) { accounts.Seen(ctx, identity) },
	})
	s.metrics = s.measure(o)
	var observe func(rpc.Observation)
	if len(cfg.MetricsListen) > 0 {
		observe = s.metrics.Observe // else nobody reads what it would cost each call
	}
	s.calls = rpc.NewServer(rpc.ServerOptions{
		Log:     o.Log,
		Observe: observe,
		ResumeSession: func(ctx context.Context, token []byte) (rpc.Principal, error) {
			principal, err := accounts.ResumeSession(ctx, token)
			if err != nil && !errors.Is(err, auth.ErrNoSession) {
				err = fmt.Errorf("%w: %w", rpc.ErrCannotLook, err)
			}
			return principal, err
		},
		Authenticated: s.hub.Authenticated,
		Disconnected: func(p *rpc.Peer) {
			s.hub.Disconnected(p)
			accounts.Disconnected(p)
		},
		Describe: s.describe,
	})

	s.keyLog, err = transparency.New(transparency.Options{
		DB: s.db, Log: o.Log, Now: o.Now, ServerName: cfg.ServerName, Key: secrets.signing,
		Accounts: boundAccounts{&accounts},
		Revoked: func(tx *store.Tx, identity rpc.IdentityKey) error {
			if err := packages.EraseTx(tx, identity); err != nil {
				return err
			}
			return accounts.EndSessionsTx(tx.Context(), tx, identity, transport.CloseSessionRevoked, "the identity key was revoked")
		},
	})
	if err != nil {
		return err
	}
	s.mayLogIn = []func(*store.Tx, rpc.IdentityKey) error{s.keyLog.MayUseTx}
	accounts = auth.New(auth.Options{
		DB: s.db, Opaque: opaqueServer, Log: o.Log, Now: o.Now, Rand: o.Rand,
		Registration:         auth.Registration(cfg.Registration),
		RequireIdentityProof: cfg.RequireIdentityProof,
		SessionTTL:           cfg.SessionTTL,
		Admins:               admins(cfg.Admins),
		Sessions:             s.hub,
		Limits:               o.Registrations,
		Erase:                s.eraseTx,
		Registered:           s.keyLog.BindTx,
		Superseded:           s.supersededTx,
		MayLogIn:             s.mayLogInTx,
		DeviceSeen: func(tx *store.Tx, identity rpc.IdentityKey, id rpc.DeviceID) error {
			return devices.SeenTx(tx, identity, id)
		},
	})
	s.federation = s.federate(cfg, o, secrets, accounts, &groups, &packages)
	groups = group.New(group.Options{
		DB: s.db, Accounts: accounts, Names: usernames{accounts}, Devices: groupDevices{&devices}, Post: groupPost{s}, Push: s.hub,
		Remote: s.federation, Domain: cfg.ServerName, Now: o.Now, Random: o.Rand,
	})
	names = directory.New(directory.Options{DB: s.db, Accounts: accountBook{accounts}, Presence: s.hub, Prover: s.keyLog, Remote: s.federation})
	packages = keys.New(keys.Options{DB: s.db, Accounts: usableAccounts{accounts, s.keyLog}, Push: s.hub, Remote: s.federation, Now: o.Now})
	devices = device.New(device.Options{
		DB: s.db, Accounts: accounts, Sessions: s.hub, Now: o.Now,
		Forget: []device.Forget{
			func(tx *store.Tx, identity rpc.IdentityKey, id rpc.DeviceID) error {
				return s.delivery.ForgetDeviceTx(tx, identity, id)
			},
			packages.ForgetDeviceTx, accounts.ForgetDeviceTx,
			func(tx *store.Tx, identity rpc.IdentityKey, id rpc.DeviceID) error {
				return s.reach.ForgetDeviceTx(tx, identity, id)
			},
		},
	})
	bans := moderation.New(moderation.Options{DB: s.db, Accounts: accounts, Admins: admins(cfg.Admins), Now: o.Now})
	s.mayLogIn = append(s.mayLogIn, bans.MayLogInTx)
	bundles := recovery.New(recovery.Options{DB: s.db, Accounts: accounts, Now: o.Now})
	s.reach = reach.New(reach.Options{
		DB: s.db, Log: o.Log, Now: o.Now, Accounts: accounts, Devices: devices, Contacts: groups, Blocks: names,
		Presence: s.hub, Hosts: cfg.PushHosts, RootCAs: o.PushRoots,
	})
	s.delivery = delivery.New(delivery.Options{
		DB: s.db, Log: o.Log, Now: o.Now, Key: secrets.signing,
		Accounts: accounts, Blocks: names, Channels: groups, Devices: devices, Push: wakingHub{s.hub, s.reach}, Remote: relays{s.federation},
		Limits: delivery.Limits{
			Retention:     cfg.Retention,
			QueueMessages: int64(cfg.QueueMessages),
			QueueBytes:    cfg.QueueBytes,
			SendRate:      float64(cfg.SendRate),
			SendBurst:     cfg.SendBurst,
		},
	})
	s.blobs = blob.New(blob.Options{
		DB: s.db, Accounts: accounts, Log: o.Log, Now: o.Now, Rand: o.Rand,
		Dir: filepath.Join(cfg.DataDir, blobDir), Quota: cfg.BlobQuota,
	})
	s.erase = []func(*store.Tx, rpc.IdentityKey) error{
		s.delivery.EraseTx, packages.EraseTx, groups.EraseTx, names.EraseTx, devices.EraseTx, s.blobs.EraseTx, s.keyLog.EraseTx,
		bans.EraseTx, bundles.EraseTx, s.reach.EraseTx, s.federation.EraseTx,
	}
	s.sweepers = []sweeper{accounts.Sweep, s.delivery.Sweep, packages.Sweep, s.blobs.Sweep, bans.Sweep, s.reach.Sweep, s.federation.Sweep, s.snapshots.sweep}

	qpcpb.RegisterAuthServer(s.calls, accounts)
	qpcpb.RegisterDeliveryServer(s.calls, s.delivery)
	qpcpb.RegisterKeyServer(s.calls, packages)
	qpcpb.RegisterChannelServer(s.calls, groups)
	qpcpb.RegisterGroupServer(s.calls, groups)
	qpcpb.RegisterDirectoryServer(s.calls, names)
	qpcpb.RegisterDeviceServer(s.calls, devices)
	qpcpb.RegisterPushTokenServer(s.calls, s.reach)
	qpcpb.RegisterEndpointServer(s.calls, s.reach)
	qpcpb.RegisterModerationServer(s.calls, bans)
	qpcpb.RegisterRecoveryServer(s.calls, bundles)
	qpcpb.RegisterBlobServer(s.calls, s.blobs)
	qpcpb.RegisterTransparencyServer(s.calls, s.keyLog)
	qpcpb.RegisterFederationServer(s.calls, s.federation)
	s.serveOwner(cfg, o, accounts, devices, bans)
	qpcpb.RegisterHealthServer(s.calls, health.New(health.Options{Version: o.Version, Now: o.Now, Status: s.status}))
	return nil
}

// Addrs returns the addresses that the server listens on.
func (s *Server) Addrs() []netip.AddrPort { return s.listener.Addrs() }

// Pin returns the pin of the server's certificate.
func (s *Server) Pin() transport.Pin { return s.certs.Pin() }

// CertificateCreated reports whether this start made the certificate.
func (s *Server) CertificateCreated() bool { return s.certs.Created() }

// Run serves until ctx ends, then drains and closes everything. It returns nil
// after a clean stop.
func (s *Server) Run(ctx context.Context) error {
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var owned sync.WaitGroup
	owned.Go(func() { s.hub.Run(background) })
	owned.Go(func() { s.sweep(background) })
	owned.Go(func() { s.reach.Run(background) })
	owned.Go(func() { s.blobs.Run(background) })
	owned.Go(func() { s.federation.Run(background) })
	owned.Go(s.page.run)
	owned.Go(s.runControl)
	owned.Go(func() { s.watchCertificate(background, lookEvery) })

	var connections sync.WaitGroup
	owned.Go(func() {
		for {
			conn, err := s.listener.Accept(background)
			if err != nil {
				return
			}
			serve := s.calls.ServeConn
			if conn.ALPN() == transport.FederationALPN {
				serve = s.servePeer
			}
			connections.Go(func() { serve(conn) })
		}
	})

	<-ctx.Done()
	err := s.drain()
	err = errors.Join(err, s.listener.Close()) // ends the connections
	connections.Wait()
	s.closeControl()
	s.calls.Close()
	err = errors.Join(err, s.page.close())
	stop()
	owned.Wait()
	return errors.Join(err, s.db.Close())
}

// drain answers what is under way and says goodbye.
func (s *Server) drain() error {
	s.draining.Store(true)
	s.stopControl()
	s.listener.Drain()
	s.hub.SendAll(push.Event{Kind: qpcpb.EventDraining, Message: &qpcpb.Draining{Seconds: uint32(drainTimeout / time.Second)}})
	s.delivery.Drain()
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	err := s.calls.Drain(ctx)
	if err != nil {
		s.log.Warn("stopping before every call was answered", "error", err)
	}
	if s.listener.Stats().Connections > 0 {
		time.Sleep(farewell)
	}
	return nil
}

// status is the word that Health answers.
func (s *Server) status() string {
	if s.draining.Load() {
		return health.StatusDraining
	}
	if readOnly, _ := s.db.ReadOnly(); readOnly {
		return health.StatusReadOnly
	}
	return health.StatusOK
}

// sweep removes what has expired, a bounded number of rows at a time.
func (s *Server) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		for _, sweep := range s.sweepers {
			for {
				more, err := sweep(store.Freeing(ctx))
				if ctx.Err() != nil {
					return
				}
				if err != nil && !store.IsUnwritable(err) { // of which the store has told
					s.log.Warn("expired rows stay for now", "error", err)
				}
				if err != nil || !more {
					break
				}
				select {
				case <-time.After(sweepPause):
				case <-ctx.Done():
					return
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// makeDataDir makes the data directory when it is missing.
func makeDataDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return &store.Refusal{Kind: store.ErrNotWritable, Path: dir, Detail: "the data directory cannot be made; choose another data_dir or make it by hand", Cause: err}
	}
	return nil
}

func addresses(listen []netip.AddrPort) []string {
	all := make([]string, len(listen))
	for i, a := range listen {
		all[i] = a.String()
	}
	return all
}

func admins(keys []config.IdentityKey) []rpc.IdentityKey {
	all := make([]rpc.IdentityKey, len(keys))
	for i, key := range keys {
		all[i] = rpc.IdentityKey(key)
	}
	return all
}
