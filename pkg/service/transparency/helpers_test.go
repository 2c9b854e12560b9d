package transparency_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/service/transparency"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const serverName = "home.example"

func signingKey() ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, ed25519.SeedSize))
}

// house is a log with a server around it.
type house struct {
	*servicetest.House
	t       testing.TB
	log     *transparency.Service
	book    *book
	mu      sync.Mutex
	revoked []rpc.IdentityKey // as the log has told
	lines   bytes.Buffer
}

// book is a list of accounts, as another domain keeps it, by name.
type book struct{ accounts []transparency.Binding }

func (b *book) add(names ...string) {
	for _, name := range names {
		b.accounts = append(b.accounts, transparency.Binding{Username: name, Identity: servicetest.Key(name)})
	}
	slices.SortFunc(b.accounts, func(x, y transparency.Binding) int { return strings.Compare(x.Username, y.Username) })
}

func (b *book) CountTx(*store.Tx) (int, error) { return len(b.accounts), nil }

func (b *book) BindingsTx(_ *store.Tx, after string, limit int) (page []transparency.Binding, err error) {
	for _, a := range b.accounts {
		if a.Username > after && len(page) < limit {
			page = append(page, a)
		}
	}
	return page, nil
}

func open(t testing.TB) *house {
	h := &house{House: servicetest.New(t), t: t, book: &book{}}
	h.log = h.service(serverName, signingKey())
	h.backfill()
	return h
}

// service makes a log on the database of the house.
func (h *house) service(name string, key ed25519.PrivateKey) *transparency.Service {
	h.t.Helper()
	s, err := transparency.New(transparency.Options{
		DB: h.DB, Log: slog.New(slog.NewTextHandler(&h.lines, nil)), Now: h.Wall.Now,
		ServerName: name, Key: key, Accounts: h.book,
		Revoked: func(_ *store.Tx, identity rpc.IdentityKey) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.revoked = append(h.revoked, identity)
			return nil
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// told returns the keys that the log has said are revoked.
func (h *house) told() []rpc.IdentityKey {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.revoked)
}

func (h *house) backfill() {
	h.t.Helper()
	if err := h.log.Backfill(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

// serve opens the front door.
func (h *house) serve() {
	qpcpb.RegisterTransparencyServer(h.Server, h.log)
	h.Open()
}

func (h *house) bind(names ...string) {
	h.t.Helper()
	h.book.add(names...)
	h.Write(func(tx *store.Tx) error {
		for _, name := range names {
			if err := h.log.BindTx(tx, name, servicetest.Key(name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// verified runs Verify, which must find nothing.
func (h *house) verified() transparency.Report {
	h.t.Helper()
	r, err := h.log.Verify(h.t.Context())
	if err != nil || len(r.Problems) > 0 {
		h.t.Fatalf("verifying the log: %v, %q", err, r.Problems)
	}
	return r
}

// checkpoint opens a signed head.
func checkpoint(t testing.TB, signed string) tlog.Checkpoint {
	t.Helper()
	c, err := tlog.Open(signed, tlog.Origin(serverName), signingKey().Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// proof returns what ResolveUser would carry for a name.
func (h *house) proof(name string) *qpcpb.InclusionProof {
	h.t.Helper()
	var p qpcpb.InclusionProof
	err := h.DB.Read(h.t.Context(), func(tx *store.Tx) error {
		b, err := h.log.InclusionProofTx(tx, name, servicetest.Key(name))
		if err != nil {
			return err
		}
		return proto.Unmarshal(b, &p)
	})
	if err != nil {
		h.t.Fatalf("proving %s: %v", name, err)
	}
	return &p
}

// number is a leaf that is told from all others.
func number(n uint64) tlog.Hash { return sha256.Sum256(binary.BigEndian.AppendUint64(nil, n)) }

// grow appends numbered leaves until the log has size leaves.
func (h *house) grow(size uint64) {
	h.t.Helper()
	const batch = 200
	for done := false; !done; {
		h.Write(func(tx *store.Tx) error {
			for range batch {
				index, err := h.log.AppendTx(tx, number(0))
				if done = index+1 >= size; err != nil || done {
					return err
				}
			}
			return nil
		})
	}
}

// naive is RFC 6962, section 2.1, word for word.
func naive(leaves []tlog.Hash) tlog.Hash {
	switch n := len(leaves); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leaves[0]
	default:
		k := 1
		for k*2 < n {
			k *= 2
		}
		l, r := naive(leaves[:k]), naive(leaves[k:])
		return sha256.Sum256(append(append([]byte{1}, l[:]...), r[:]...))
	}
}
