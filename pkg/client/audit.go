package client

import (
	"context"
	"fmt"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

// maxAudited bounds the entries that an audit reads, 64 MiB of hashes: a home
// has hundreds, and a server that claims more must not keep a client busy for
// ever.
const maxAudited = 2_000_000

// Audit is what an audit of the server's log of names has found.
type Audit struct {
	Entries uint64
	Root    [32]byte
	// Checkpoint is the signed head that the entries were compared with, to be
	// compared with those of others.
	Checkpoint string
}

// AuditLog reads every entry of the server's log of names, computes its root
// anew, and compares it with the head that the server has signed, which must
// continue the one known. A log that does not hold is an *ErrServerLog. It
// makes a connection of its own.
func (c *Client) AuditLog(ctx context.Context) (a Audit, err error) {
	select {
	case c.lookups <- struct{}{}:
		defer func() { <-c.lookups }()
	case <-ctx.Done():
		return a, ctx.Err()
	}
	err = c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		a, err = c.auditAt(ctx, calls)
		return err
	})
	return a, err
}

// auditAt is AuditLog on a connection. The caller has the turn of lookups.
func (c *Client) auditAt(ctx context.Context, calls *rpc.Client) (Audit, error) {
	known, err := c.serverLog(ctx, calls)
	if err != nil {
		return Audit{}, err
	}
	log := qpcpb.NewTransparencyClient(calls)
	answer, err := log.AuditKeyTransparency(ctx, &qpcpb.AuditKeyTransparencyRequest{})
	if err != nil {
		return Audit{}, fmt.Errorf("asking for the log of names: %w", err)
	}
	signed := answer.Checkpoint
	broken := func(problem LogProblem, presented string, cause error) error {
		return &ErrServerLog{
			Problem: problem, Server: c.account.Server, Cause: cause,
			Known: known.Checkpoint, Presented: presented, KnownKey: known.ServerKey,
		}
	}
	head, err := tlog.Open(signed, known.Origin, known.ServerKey)
	if err != nil {
		return Audit{}, c.explainSignature(ctx, calls, known, broken(LogForged, signed, err).(*ErrServerLog))
	}
	if err := c.checkGrowth(ctx, calls, known, head, signed, broken); err != nil {
		return Audit{}, err
	}
	if head.Size > maxAudited {
		return Audit{}, fmt.Errorf("the log has %d entries; this client audits at most %d", head.Size, maxAudited)
	}
	builder := tlog.NewBuilder()
	for read := uint64(0); read < head.Size; {
		page, err := log.AuditKeyTransparency(ctx, &qpcpb.AuditKeyTransparencyRequest{Start: read, End: head.Size})
		if err != nil {
			return Audit{}, fmt.Errorf("reading the log of names from entry %d: %w", read, err)
		}
		if n := uint64(len(page.LeafHashes)); n == 0 || n > head.Size-read {
			return Audit{}, fmt.Errorf("%w: it answers with %d entries where up to %d are left", rpc.ErrProtocol, n, head.Size-read)
		}
		for _, leaf := range page.LeafHashes {
			if len(leaf) != len(tlog.Hash{}) {
				return Audit{}, fmt.Errorf("%w: an entry has %d bytes", rpc.ErrProtocol, len(leaf))
			}
			if err := builder.Append(tlog.Hash(leaf)); err != nil {
				return Audit{}, err
			}
			read++
		}
	}
	computed, err := builder.Head()
	if err != nil {
		return Audit{}, err
	}
	if computed != head {
		return Audit{}, broken(LogMismatch, signed, fmt.Errorf("its entries make %v", computed))
	}
	known.Checkpoint = signed
	c.mu.Lock()
	defer c.mu.Unlock()
	return Audit{Entries: head.Size, Root: head.Root, Checkpoint: signed}, c.keepLog(ctx, known)
}

// Revocation is what the server says of the end of an identity key.
type Revocation struct {
	Revoked bool
	Reason  string // compromised, superseded or user_revoked
	At      time.Time
}

// RevokeKey ends this account's identity key for good: it is written into the
// log of names, every session ends, and nobody logs in with it again. reason is
// compromised, superseded or user_revoked.
func (c *Client) RevokeKey(ctx context.Context, reason string) error {
	identity := c.Identity()
	return c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		_, err := qpcpb.NewTransparencyClient(calls).RevokeKey(ctx, &qpcpb.RevokeKeyRequest{IdentityKey: identity[:], Reason: reason})
		return err
	})
}

// CheckRevocation asks the server whether an identity key has been revoked.
func (c *Client) CheckRevocation(ctx context.Context, identity rpc.IdentityKey) (r Revocation, err error) {
	err = c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		answer, err := qpcpb.NewTransparencyClient(calls).CheckRevocation(ctx, &qpcpb.CheckRevocationRequest{IdentityKey: identity[:]})
		if err != nil || !answer.Revoked {
			return err
		}
		r = Revocation{Revoked: true, Reason: answer.Reason, At: time.Unix(int64(answer.RevokedAt), 0)}
		return nil
	})
	return r, err
}
