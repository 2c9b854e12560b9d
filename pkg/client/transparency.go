package client

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

// A server writes every name and its key into a log (PROTOCOL 7.9). A client
// keeps the last signed head of it, and believes an answer to ResolveUser only
// with a proof that the binding stands in a log which begins with the one it
// knows: a server that shows different people different keys under one name
// must sign two logs, and is caught when either is compared with the other.
//
// Names of other servers (name@domain) come without such a proof. The home
// server checks the log of the other one; a client trusts it in that, and
// compares safety numbers.

// knownLog is what a profile remembers of its server: the key that signs
// delivery proofs and checkpoints, from the first meeting on, and the newest
// checkpoint that was accepted.
type knownLog struct {
	ServerKey  []byte
	Origin     string
	Checkpoint string // as it was signed
}

// open reads the checkpoint that was accepted last.
func (k knownLog) open() (tlog.Checkpoint, error) {
	return tlog.Open(k.Checkpoint, k.Origin, k.ServerKey)
}

// LogProblem says what is wrong with a server's log.
type LogProblem string

// The problems of a log, from the mildest to the plainest lie.
const (
	// LogAbsent: the server keeps no log.
	LogAbsent LogProblem = "absent"
	// LogNoProof: the server gives a key without a proof.
	LogNoProof LogProblem = "no proof"
	// LogBadProof: the proof is of something else.
	LogBadProof LogProblem = "bad proof"
	// LogMismatch: the entries of the log are not what the server has signed.
	LogMismatch LogProblem = "mismatch"
	// LogRenamed: the key is the known one, the name of the log is not.
	LogRenamed LogProblem = "renamed"
	// LogOtherKey: the server signs with another key than before.
	LogOtherKey LogProblem = "other key"
	// LogForged: a checkpoint is not signed by the server's key.
	LogForged LogProblem = "forged"
	// LogShrunk: the log has fewer entries than before.
	LogShrunk LogProblem = "shrunk"
	// LogForked: the log has as many entries as before, and others.
	LogForked LogProblem = "forked"
	// LogRewritten: the log has more entries than before, and does not begin
	// with the earlier ones.
	LogRewritten LogProblem = "rewritten"
)

// ErrServerLog says that a server's log of names and keys is not what it must
// be. The answer that came with it was not believed.
type ErrServerLog struct {
	Problem LogProblem
	Server  string // as it was given at registration
	Name    string // whose key was asked for, or empty
	// Known and Presented are the evidence: checkpoints as the server signed
	// them, where there were any. Two that the same key has signed and that
	// contradict each other convict a server before everybody.
	Known, Presented string
	// KnownKey and PresentedKey are the server's keys; the second is set only
	// when it is another.
	KnownKey, PresentedKey ed25519.PublicKey
	// Cause is what a program found, for its log.
	Cause error
}

func (e *ErrServerLog) Unwrap() error { return e.Cause }

func (e *ErrServerLog) Error() string {
	var head, why, ask string
	reset := fmt.Sprintf("If it was, start over with it by\n  qpc trust forget %s\nand compare safety numbers again. If not, do not write to anybody through it.", e.Server)
	switch e.Problem {
	case LogAbsent:
		head = fmt.Sprintf("SERVER %s KEEPS NO LIST OF NAMES AND KEYS", e.Server)
		why = "Without it nobody can see when somebody is given a wrong key."
		ask = "Ask whoever runs the server for a newer qpcd."
	case LogNoProof, LogBadProof:
		head = fmt.Sprintf("SERVER %s DOES NOT PROVE THAT THIS IS THE KEY OF %s", e.Server, strings.ToUpper(e.Name))
		why = fmt.Sprintf("A server writes every name and its key into a list that it cannot change later. This key\nis not shown to be in it: either the server is damaged, or somebody wants you to take a wrong\nkey for that of %s.", e.Name)
		ask = fmt.Sprintf("Ask whoever runs the server to run \"qpcd log verify\". Do not write to %s until it is well.", e.Name)
	case LogMismatch:
		head = fmt.Sprintf("THE LIST OF NAMES OF SERVER %s IS NOT THE ONE IT HAS SIGNED", e.Server)
		why = "Either the server is damaged, or it hides or changes entries."
		ask = "Ask whoever runs the server to run \"qpcd log verify\". Do not write to anybody through it until it is well."
	case LogRenamed:
		head = fmt.Sprintf("THE LIST OF NAMES OF SERVER %s HAS ANOTHER NAME THAN BEFORE", e.Server)
		why = "Either the server was given another name, or it shows you the list of another server."
		ask = "Ask whoever runs the server whether it was renamed. " + reset
	case LogOtherKey:
		head = fmt.Sprintf("THE SIGNING KEY OF SERVER %s HAS CHANGED", e.Server)
		why = "Either the server was set up anew, or somebody is impersonating it."
		ask = "Ask whoever runs the server whether it was set up anew. " + reset
	case LogForged:
		head = fmt.Sprintf("THE LIST OF NAMES OF SERVER %s IS NOT SIGNED BY IT", e.Server)
		why = "Either the server is damaged, or somebody has changed what it says."
		ask = "Ask whoever runs the server to run \"qpcd log verify\". Do not write to anybody through it until it is well."
	case LogShrunk:
		head = fmt.Sprintf("THE LIST OF NAMES OF SERVER %s IS SHORTER THAN BEFORE", e.Server)
		why = "The list only ever grows. Either the server was set back to an older state, or it hides\nentries from you."
		ask = "Ask whoever runs the server whether it was set back to a backup. " + reset
	default:
		head = fmt.Sprintf("SERVER %s SHOWS ANOTHER LIST OF NAMES THAN BEFORE", e.Server)
		why = "What once stands in the list never changes. Either the server was set back to an older state\nand went on from there, or it shows different people different keys."
		ask = "Ask whoever runs the server whether it was set back to a backup. " + reset
	}
	return head + "; nothing was sent.\n" + why + "\n" + e.evidence() + ask
}

// evidence puts what differs into lines.
func (e *ErrServerLog) evidence() string {
	var b strings.Builder
	line := func(label, text string) {
		if text != "" {
			fmt.Fprintf(&b, "  %-10s %s\n", label, text)
		}
	}
	switch e.Problem {
	case LogOtherKey:
		line("known:", fmt.Sprintf("%x", []byte(e.KnownKey)))
		line("presented:", fmt.Sprintf("%x", []byte(e.PresentedKey)))
	case LogAbsent, LogNoProof:
	case LogBadProof:
		line("list:", summary(e.Presented))
	default:
		line("known:", summary(e.Known))
		line("presented:", summary(e.Presented))
	}
	return b.String()
}

// summary is what a checkpoint says of itself, in one line: name, size, root.
func summary(signed string) string {
	const lines, most = 3, 120
	parts := strings.SplitN(signed, "\n", lines+1)
	text := strings.Join(parts[:min(lines, len(parts))], ", ")
	// What did not verify may hold anything.
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 {
			return '?'
		}
		return r
	}, text)
	return text[:min(most, len(text))]
}

// ErrDeliveryProof says that a server has answered a message without its
// signature that it is stored (PROTOCOL 7.4): the message counts as not sent.
type ErrDeliveryProof struct {
	Server    string
	Recipient rpc.IdentityKey
	Proof     []byte // as it came
}

func (e *ErrDeliveryProof) Error() string {
	return fmt.Sprintf(`SERVER %s DOES NOT CONFIRM WITH ITS SIGNATURE THAT IT HAS STORED THE MESSAGE.
It counts as not sent and stays on this machine; it is tried again. Either the server has another
signing key than before, or it is damaged. Ask whoever runs it whether it was set up anew. If it was,
start over with it by
  qpc trust forget %s`, e.Server, e.Server)
}

// ServerKey returns the key that the server signs with, as it was at the first
// meeting; ok is false before that.
func (c *Client) ServerKey(ctx context.Context) (key ed25519.PublicKey, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok, err := c.storedLog(ctx)
	return known.ServerKey, ok, err
}

// ForgetLog makes a profile forget the signing key and the log of its server,
// so that the next connection trusts what it meets. It needs no password. It
// reports whether anything was known.
func ForgetLog(ctx context.Context, s Store) (known bool, err error) {
	switch _, err := s.Get(ctx, keyServerLog); {
	case errors.Is(err, ErrNotStored):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("forgetting the log of the server: %w", err)
	}
	if err := s.Apply(ctx, Change{Key: keyServerLog}); err != nil {
		return true, fmt.Errorf("forgetting the log of the server: %w", err)
	}
	return true, nil
}

// storedLog returns what is known of the server's log. The caller holds c.mu.
func (c *Client) storedLog(ctx context.Context) (knownLog, bool, error) {
	if c.log != nil {
		return *c.log, true, nil
	}
	var known knownLog
	ok, err := c.box.get(ctx, keyServerLog, &known)
	if err != nil || !ok {
		return knownLog{}, false, err
	}
	c.log = &known
	return known, true, nil
}

// keepLog remembers what is known of the server's log. The caller holds c.mu.
func (c *Client) keepLog(ctx context.Context, known knownLog) error {
	b := c.box.batch()
	b.put(keyServerLog, known)
	if err := b.apply(ctx); err != nil {
		return err
	}
	c.log = &known
	return nil
}

// serverLog returns what is known of the server's log. At the first meeting it
// asks the server, and pins its key and the name of its log.
func (c *Client) serverLog(ctx context.Context, calls *rpc.Client) (knownLog, error) {
	c.mu.Lock()
	known, ok, err := c.storedLog(ctx)
	c.mu.Unlock()
	if err != nil || ok {
		return known, err
	}
	response, err := qpcpb.NewTransparencyClient(calls).GetCheckpoint(ctx, &qpcpb.GetCheckpointRequest{})
	if rpc.CodeOf(err) == qpcpb.CodeUnimplemented {
		return known, &ErrServerLog{Problem: LogAbsent, Server: c.account.Server, Cause: err}
	}
	if err != nil {
		return known, fmt.Errorf("asking for the log of names: %w", err)
	}
	known = knownLog{ServerKey: response.ServerKey, Checkpoint: response.Checkpoint}
	if known.Origin, err = tlog.OriginOf(response.Checkpoint); err == nil {
		_, err = known.open()
	}
	if err != nil {
		return known, &ErrServerLog{Problem: LogForged, Server: c.account.Server, Presented: response.Checkpoint, Cause: err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if other, ok, err := c.storedLog(ctx); err != nil || ok {
		return other, err // another goroutine was first
	}
	return known, c.keepLog(ctx, known)
}

// resolve asks the server whose name it is, and believes it only with a proof
// from a log that continues the one known.
//
// One lookup at a time: what is known must not grow between an answer and its
// comparison with it.
func (c *Client) resolve(ctx context.Context, l *link, folded string) (rpc.IdentityKey, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	select {
	case c.lookups <- struct{}{}:
		defer func() { <-c.lookups }()
	case <-ctx.Done():
		return rpc.IdentityKey{}, fmt.Errorf("looking %s up: %w", folded, ctx.Err())
	}
	known, err := c.serverLog(ctx, l.rpc)
	if err != nil {
		return rpc.IdentityKey{}, err
	}
	response, err := qpcpb.NewDirectoryClient(l.rpc).ResolveUser(ctx, &qpcpb.ResolveUserRequest{Username: folded})
	if err != nil {
		return rpc.IdentityKey{}, err
	}
	identity, err := rpc.ParseIdentityKey("identity_key", response.IdentityKey)
	if err != nil {
		return rpc.IdentityKey{}, fmt.Errorf("%w: %w", rpc.ErrProtocol, err)
	}
	if strings.Contains(folded, "@") {
		return identity, nil // of another server's log
	}
	return identity, c.checkBinding(ctx, l.rpc, known, folded, identity, response.InclusionProof)
}

// checkBinding verifies that the binding of a name to an identity key is in a
// log that continues the known one, and remembers that one. The caller has the
// turn of lookups.
func (c *Client) checkBinding(ctx context.Context, calls *rpc.Client, known knownLog, name string, identity rpc.IdentityKey, serialised []byte) error {
	broken := func(problem LogProblem, presented string, cause error) error {
		return &ErrServerLog{
			Problem: problem, Server: c.account.Server, Name: name, Cause: cause,
			Known: known.Checkpoint, Presented: presented, KnownKey: known.ServerKey,
		}
	}
	if len(serialised) == 0 {
		return broken(LogNoProof, "", nil)
	}
	var p qpcpb.InclusionProof
	if err := proto.Unmarshal(serialised, &p); err != nil {
		return broken(LogBadProof, "", err)
	}
	head, err := tlog.Open(p.Checkpoint, known.Origin, known.ServerKey)
	if err != nil {
		return c.explainSignature(ctx, calls, known, broken(LogForged, p.Checkpoint, err).(*ErrServerLog))
	}
	if err := c.checkGrowth(ctx, calls, known, head, p.Checkpoint, broken); err != nil {
		return err
	}
	if p.TreeSize != head.Size {
		return broken(LogBadProof, p.Checkpoint, fmt.Errorf("the proof is for %d entries, its checkpoint for %d", p.TreeSize, head.Size))
	}
	if err := tlog.VerifyInclusion(head, p.LeafIndex, tlog.BindingLeaf(name, identity), p.Hashes); err != nil {
		return broken(LogBadProof, p.Checkpoint, err)
	}
	if p.Checkpoint == known.Checkpoint {
		return nil
	}
	known.Checkpoint = p.Checkpoint
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keepLog(ctx, known)
}

// checkGrowth verifies that a signed head continues the log that is known.
func (c *Client) checkGrowth(ctx context.Context, calls *rpc.Client, known knownLog, head tlog.Checkpoint, signed string, broken func(LogProblem, string, error) error) error {
	last, err := known.open()
	if err != nil {
		return fmt.Errorf("reading the last checkpoint: %w", err)
	}
	switch {
	case head == last:
		return nil
	case head.Size < last.Size:
		return broken(LogShrunk, signed, nil)
	case head.Size == last.Size:
		return broken(LogForked, signed, nil)
	}
	response, err := qpcpb.NewTransparencyClient(calls).ProveConsistency(ctx, &qpcpb.ProveConsistencyRequest{OldSize: last.Size, NewSize: head.Size})
	if answer := (*rpc.Error)(nil); errors.As(err, &answer) && !passing(answer) {
		return broken(LogRewritten, signed, err)
	}
	if err != nil {
		return fmt.Errorf("asking whether the log of names has only grown: %w", err)
	}
	if err := tlog.VerifyConsistency(last, head, response.Hashes); err != nil {
		return broken(LogRewritten, signed, err)
	}
	return nil
}

// passing reports whether an answer says no more than that it is the wrong
// moment.
func passing(answer *rpc.Error) bool {
	switch answer.Status {
	case qpcpb.StatusRateLimited, qpcpb.StatusDeadlineExceeded, qpcpb.StatusUnavailable, qpcpb.StatusResourceExhausted, qpcpb.StatusUnauthorized:
		return true
	}
	return false
}

// explainSignature finds out why a checkpoint is not signed by the known key
// under the known name: the server may have another of either.
func (c *Client) explainSignature(ctx context.Context, calls *rpc.Client, known knownLog, e *ErrServerLog) error {
	origin, err := tlog.OriginOf(e.Presented)
	if err != nil {
		return e
	}
	if _, err := tlog.Open(e.Presented, origin, known.ServerKey); err == nil {
		e.Problem = LogRenamed
		return e
	}
	response, err := qpcpb.NewTransparencyClient(calls).GetCheckpoint(ctx, &qpcpb.GetCheckpointRequest{})
	if err != nil || bytes.Equal(response.ServerKey, known.ServerKey) {
		return e
	}
	if _, err := tlog.Open(e.Presented, origin, response.ServerKey); err == nil {
		e.Problem, e.PresentedKey = LogOtherKey, response.ServerKey
	}
	return e
}

// checkDelivery verifies the server's word that it has stored a message.
func (c *Client) checkDelivery(ctx context.Context, calls *rpc.Client, d proof.Delivery, word []byte) error {
	known, err := c.serverLog(ctx, calls)
	if err != nil {
		return err
	}
	if proof.VerifyDelivery(known.ServerKey, d, word) {
		return nil
	}
	refused := &ErrDeliveryProof{Server: c.account.Server, Recipient: d.Recipient, Proof: word}
	c.options.Log.Error("the server's proof of delivery does not verify; the message counts as not sent", "recipient", refused.Recipient, "seq", d.Seq)
	return refused
}

// enqueueAt is the call Enqueue, believed only with a delivery proof. Ephemeral
// messages have none.
func (c *Client) enqueueAt(ctx context.Context, calls *rpc.Client, request *qpcpb.EnqueueRequest) (*qpcpb.EnqueueResponse, error) {
	response, err := qpcpb.NewDeliveryClient(calls).Enqueue(ctx, request)
	if err != nil || request.Ephemeral {
		return response, err
	}
	d := delivery(request.RecipientKey, request.ChannelId, request.MessageId, request.Payload)
	d.Seq = response.Seq
	return response, c.checkDelivery(ctx, calls, d, response.DeliveryProof)
}

// enqueueBatchAt is the call BatchEnqueue. A result without its delivery proof
// comes back as one that has failed, with status INTERNAL, together with an
// *ErrDeliveryProof for the user; the others stand.
func (c *Client) enqueueBatchAt(ctx context.Context, calls *rpc.Client, request *qpcpb.BatchEnqueueRequest) (*qpcpb.BatchEnqueueResponse, error) {
	response, err := qpcpb.NewDeliveryClient(calls).BatchEnqueue(ctx, request)
	if err != nil || request.Ephemeral {
		return response, err
	}
	if len(response.Results) != len(request.RecipientKeys) {
		return nil, fmt.Errorf("%w: it answered %d recipients of %d", rpc.ErrProtocol, len(response.Results), len(request.RecipientKeys))
	}
	var unproven error
	for i, result := range response.Results {
		if qpcpb.Status(result.Status) != qpcpb.StatusOK {
			continue
		}
		payload := request.Payload
		if len(request.Payloads) > 0 {
			payload = request.Payloads[i]
		}
		d := delivery(request.RecipientKeys[i], request.ChannelId, request.MessageId, payload)
		d.Seq = result.Seq
		err := c.checkDelivery(ctx, calls, d, result.DeliveryProof)
		if err != nil && !errors.As(err, new(*ErrDeliveryProof)) {
			return nil, err
		}
		if err != nil {
			result.Status, unproven = uint32(qpcpb.StatusInternal), err
		}
	}
	return response, unproven
}

// delivery is what the proof for a message speaks of, but for its seq. The
// fields of the request have the lengths that the server wants.
func delivery(recipient, channel, id, payload []byte) proof.Delivery {
	d := proof.Delivery{Channel: channel, PayloadHash: sha256.Sum256(payload)}
	copy(d.Recipient[:], recipient)
	copy(d.MessageID[:], id)
	return d
}
