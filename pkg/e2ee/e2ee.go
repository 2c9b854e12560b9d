// Package e2ee is what clients encrypt: identities, MLS groups, the hybrid
// envelope, application messages and safety numbers (PROTOCOL section 9), and the
// vault that seals what they store.
//
// What it promises:
//
//   - No cryptography of its own: MLS is mls-go, X-Wing is circl, the rest the
//     standard library and golang.org/x/crypto. What is added is bookkeeping and
//     refusals.
//   - It is pure. No file, no socket, no clock, no goroutine, no logger. State
//     goes in as bytes and comes out as bytes, so that a caller can store a new
//     state and the message that belongs to it in one transaction.
//   - A failed operation changes nothing. The Group that returned an error is
//     the Group from before the call.
//   - Hostile bytes give errors, never a panic and never unbounded work.
//
// The way of one message, from the sender's text to the reader's:
//
//	Message.Encode         0x01 ‖ type ‖ body ‖ tags
//	  → Group.Encrypt      MLS PrivateMessage, padded     (RFC 9420, section 6.3)
//	    → SealHybrid       X-Wing + ChaCha20-Poly1305 envelope
//	      → the server queues it
//	    → HybridKey.Open
//	  → Group.Process      Event with the sender's identity
//	DecodeMessage
//
// Group keeps the state of one MLS group. Group.Marshal gives all of it as one
// blob; LoadGroup takes it back. The blob holds secrets: whoever stores it seals
// it. Two blobs never share anything, so two groups with one group id (a peer
// that lost its state starts again under the same id) live side by side.
//
// MLS (RFC 9420) is github.com/thomas-vilte/mls-go. Around it stands what it
// leaves to its caller (credentials; only Add, Update and Remove; the rules of
// section 12.2 where it is lenient), what it forgets when its state is stored
// (which messages were read), and bounds on what hostile bytes may cost it
// (checkPublicMessage, checkWelcome, epochKeys.header).
//
// # Limits
//
// What follows from mls-go 1.6.0 and is weaker than RFC 9420 allows. A reader of
// docs/security.md should find the same list there.
//
//   - Forward secrecy is per epoch, not per message. The state keeps the epoch's
//     encryption secret, and that of PastEpochs older epochs: who steals it
//     (and the password of the vault) can read every message that was sent in
//     them, also those already read. Refresh begins a new epoch.
//   - Secrets are not reliably wiped from memory: mls-go keeps copies, and its
//     state passes through JSON.
//   - Late messages open as long as their epoch is kept, at most maxGaps gaps per
//     sender, and up to generation maxLateGeneration of the epoch; what is beyond
//     counts as read (ErrReplayed) and is lost.
//   - Commits and proposals are PublicMessages: signed, but not encrypted by MLS.
//     Only the hybrid envelope hides from the server who adds and removes whom.
//   - Commits and proposals of other programs are read as PublicMessages, or as
//     PrivateMessages of at most maxPrivateHandshakeSize without padding.
//   - A member (nobody else) can make us work for up to about a second with one message.
//   - A commit that removes us is believed on the signature of a member: its
//     confirmation tag cannot be checked without the new epoch's secrets.
//   - All randomness of MLS is the operating system's.
//   - mls-go has not been audited.
//
// A Group and the other types are not safe for concurrent use, except Identity,
// Device and HybridKey, which never change.
package e2ee

import "errors"

// Limits. Each bounds memory, stored bytes or work that a peer can cause.
const (
	// maxForwardGenerations is how far ahead of the last message of a sender a
	// message may be. A gap is honest when messages expired or were refused by the
	// server; each step costs mls-go two hashes, so 65,536 of them cost about 0.2 s
	// on a desktop and a few seconds on a small router.
	maxForwardGenerations = 1 << 16

	// maxLateGeneration is the last generation at which a late message still
	// opens: mls-go walks to it from the beginning of the epoch.
	maxLateGeneration = 1 << 17

	// maxGaps is how many gaps in what was read are remembered per ratchet. The
	// server delivers each queue in order, so gaps are rare. 8 bytes each.
	maxGaps = 16

	// PastEpochs is how many epochs before the current one can still be read: a
	// message sent just before a commit was accepted arrives after it, and in a
	// group several members may commit before it does. Each costs forward secrecy
	// and about 50 stored bytes for each member. A direct chat has one epoch.
	PastEpochs = 5

	// maxProposals is how many proposals may wait for a commit in one epoch.
	maxProposals = 64

	// MaxMembers is how many leaves (devices) a group may have: 256 members
	// (PROTOCOL 7.7), most with one or two devices.
	MaxMembers = 1024

	// maxLeaves bounds the leaves of a ratchet tree, empty ones included: removals
	// leave gaps, and the tree is rounded up to a power of two.
	maxLeaves = 2 * MaxMembers

	// MaxMessageSize bounds an MLSMessage that Process or JoinGroup look at:
	// what one frame can carry (PROTOCOL 2).
	MaxMessageSize = 4 << 20

	// maxPlaintextSize bounds an application message: MaxMessageSize less a step
	// of padding and what framing and hybrid envelope add.
	maxPlaintextSize = MaxMessageSize - 32<<10

	// maxHandshakeSize bounds a commit or proposal. A commit that rewrites the
	// whole path of MaxMembers blank leaves and adds many is below it.
	maxHandshakeSize = 1 << 20

	// maxPrivateHandshakeSize bounds a commit or proposal of another program that
	// comes as a PrivateMessage. mls-go takes quadratic time on what a member
	// malformed; the bound keeps it below a second. A commit of a direct chat has
	// about 700 bytes.
	maxPrivateHandshakeSize = 4 << 10

	// maxTreeSize bounds the ratchet tree in a Welcome. One of MaxMembers linked
	// devices has about 400 KiB.
	maxTreeSize = 512 << 10

	// maxKeyPackageSize is what the server stores (PROTOCOL 7.6).
	maxKeyPackageSize = 16 << 10

	// Bounds on what the header of a vault may ask of the machine, so that a
	// planted one cannot exhaust it: 1 GiB of memory, 64 passes over it.
	maxVaultMemoryKiB = 1 << 20
	maxVaultPasses    = 64

	// maxStateSize bounds a state blob that LoadGroup looks at.
	maxStateSize = 16 << 20

	// maxGroupIDSize bounds a group id: its length is one byte on the wire. Ours
	// have 16 bytes.
	maxGroupIDSize = 63
)

// Errors a caller decides on. All errors of this package wrap one of them or say
// in plain words what was wrong with an argument.
var (
	// ErrMalformed: the bytes are not what they should be. Drop them.
	ErrMalformed = errors.New("malformed")
	// ErrDecrypt: the bytes have the right shape but do not open with our keys.
	ErrDecrypt = errors.New("cannot be decrypted")
	// ErrReplayed: this message was read before, or its key was thrown away
	// because too many later ones were read first. Acknowledge and drop it.
	ErrReplayed = errors.New("message was already read")
	// ErrTooFarAhead: more than maxForwardGenerations messages are missing before it.
	ErrTooFarAhead = errors.New("too many messages are missing before this one")
	// ErrFutureEpoch: the message belongs to an epoch we have not reached. Keep it
	// and try again after the next commit.
	ErrFutureEpoch = errors.New("message is from a later epoch")
	// ErrPastEpoch: the message belongs to an epoch whose keys are gone, or is a
	// commit or proposal for an epoch that is over. Drop it.
	ErrPastEpoch = errors.New("message is from an epoch that is over")
	// ErrWrongGroup: the message belongs to another group id.
	ErrWrongGroup = errors.New("message is for another group")
	// ErrOwnMessage: our own message came back. Drop it.
	ErrOwnMessage = errors.New("message is our own")
	// ErrCredential: a member's credential is not bound to its signature key.
	ErrCredential = errors.New("credential is not valid")
	// ErrNotAllowed: valid MLS that this protocol does not use or permit.
	ErrNotAllowed = errors.New("not allowed in this protocol")
	// ErrProposalsPending: RFC 9420, section 12.4, forbids application messages
	// while a proposal waits. Call Refresh (which commits it) first.
	ErrProposalsPending = errors.New("proposals wait for a commit")
	// ErrCommitPending: a staged commit must be merged or discarded first.
	ErrCommitPending = errors.New("a staged commit waits")
	// ErrNoCommitPending: there is no staged commit.
	ErrNoCommitPending = errors.New("no staged commit")
	// ErrRemoved: we are no longer a member; only reading the past is left.
	ErrRemoved = errors.New("no longer a member of the group")
	// ErrNotMember: no such member.
	ErrNotMember = errors.New("not a member of the group")
	// ErrAlreadyMember: the device is in the group.
	ErrAlreadyMember = errors.New("already a member of the group")
	// ErrProposalUnknown: a commit refers to a proposal that never came. Wait for
	// the proposal, or start the group afresh.
	ErrProposalUnknown = errors.New("commit refers to a proposal that was not received")
	// ErrAlone: the only member of a group has nobody to rotate keys with.
	ErrAlone = errors.New("the group has no other member")
	// ErrKeyPackageUnknown: a Welcome for key packages we do not have.
	ErrKeyPackageUnknown = errors.New("welcome is for no key package of ours")
	// ErrPassword: the password does not open the vault, or its header was changed.
	ErrPassword = errors.New("wrong password")
	// ErrState: a stored blob cannot be used.
	ErrState = errors.New("stored state cannot be used")
)
