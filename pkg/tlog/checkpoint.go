package tlog

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/transparency-dev/formats/log"
	"golang.org/x/mod/sumdb/note"
)

const (
	// MaxCheckpoint bounds a signed checkpoint, in bytes: three lines, a
	// signature, and room for those of some witnesses.
	MaxCheckpoint = 4096

	originSuffix = "/qpc"
)

// Errors of Open. Both mean that the text is worth nothing.
var (
	// ErrMalformed reports text that is no checkpoint of this log.
	ErrMalformed = errors.New("malformed checkpoint")
	// ErrSignature reports a checkpoint that the key has not signed.
	ErrSignature = errors.New("the checkpoint is not signed by the server's key")
)

// Checkpoint is the head of a log: how long it is and what it hashes to. As a
// signed note (C2SP tlog-checkpoint) it looks like this:
//
//	<server name>/qpc
//	<size, decimal>
//	<root, base64>
//
//	— <server name>/qpc <base64 of key hash 4 ‖ Ed25519 signature 64>
type Checkpoint struct {
	Size uint64
	Root Hash
}

// String names a checkpoint for people: its size and the beginning of its root.
func (c Checkpoint) String() string { return fmt.Sprintf("%d entries, root %x", c.Size, c.Root[:8]) }

// Origin returns the name of the log of a server.
func Origin(serverName string) string { return serverName + originSuffix }

// ServerName undoes Origin.
func ServerName(origin string) (name string, ok bool) {
	name, ok = strings.CutSuffix(origin, originSuffix)
	return name, ok && name != ""
}

// Signer signs the checkpoints of one log.
type Signer struct {
	verifier note.Verifier
	origin   string
	key      ed25519.PrivateKey
}

// NewSigner returns a Signer for the log of an origin, which must be fit for
// the name of a note's key: not empty, no space, no plus sign.
func NewSigner(origin string, key ed25519.PrivateKey) (*Signer, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("the signing key of the log has %d bytes where %d are wanted", len(key), ed25519.PrivateKeySize)
	}
	verifier, err := newVerifier(origin, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	return &Signer{verifier: verifier, origin: origin, key: key}, nil
}

// Origin returns the log's name.
func (s *Signer) Origin() string { return s.origin }

// Key returns the public key that checks what the Signer signs.
func (s *Signer) Key() ed25519.PublicKey { return s.key.Public().(ed25519.PublicKey) }

// Sign returns a checkpoint as a signed note. The same checkpoint always gives
// the same text.
func (s *Signer) Sign(c Checkpoint) (string, error) {
	body := log.Checkpoint{Origin: s.origin, Size: c.Size, Hash: c.Root[:]}.Marshal()
	signed, err := note.Sign(&note.Note{Text: string(body)}, noteSigner{s.verifier, s.key})
	if err != nil {
		return "", fmt.Errorf("sign a checkpoint: %w", err)
	}
	return string(signed), nil
}

// noteSigner is a note.Signer.
type noteSigner struct {
	note.Verifier // name and key hash
	key           ed25519.PrivateKey
}

func (s noteSigner) Sign(message []byte) ([]byte, error) { return ed25519.Sign(s.key, message), nil }

func newVerifier(origin string, key []byte) (note.Verifier, error) {
	if len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("the key of the log has %d bytes where %d are wanted", len(key), ed25519.PublicKeySize)
	}
	text, err := note.NewEd25519VerifierKey(origin, ed25519.PublicKey(key))
	if err != nil {
		return nil, fmt.Errorf("the log cannot have the name %q: %w", origin, err)
	}
	verifier, err := note.NewVerifier(text)
	if err != nil {
		return nil, fmt.Errorf("the log cannot have the name %q: %w", origin, err)
	}
	return verifier, nil
}

// Open reads a signed checkpoint of the log of an origin, checking the
// signature of the server's key of 32 bytes. Signatures of others, such as
// witnesses, are passed over. Errors wrap ErrMalformed or ErrSignature.
func Open(signed, origin string, serverKey []byte) (Checkpoint, error) {
	if len(signed) > MaxCheckpoint {
		return Checkpoint{}, fmt.Errorf("%w: it has %d bytes where %d are allowed", ErrMalformed, len(signed), MaxCheckpoint)
	}
	verifier, err := newVerifier(origin, serverKey)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	n, err := note.Open([]byte(signed), note.VerifierList(verifier))
	if unverified := (*note.UnverifiedNoteError)(nil); errors.As(err, &unverified) {
		return Checkpoint{}, ErrSignature
	} else if invalid := (*note.InvalidSignatureError)(nil); errors.As(err, &invalid) {
		return Checkpoint{}, ErrSignature
	} else if err != nil {
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return parse(n.Text, origin)
}

// parse reads the signed text of a checkpoint. C2SP tlog-checkpoint allows
// lines after the third; there is nothing to say in them here, so that one
// text stands for one head.
func parse(text, origin string) (Checkpoint, error) {
	var c log.Checkpoint
	switch _, err := c.Unmarshal([]byte(text)); {
	case err != nil:
		return Checkpoint{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	case c.Origin != origin:
		return Checkpoint{}, fmt.Errorf("%w: it is of the log %q where %q is meant", ErrMalformed, c.Origin, origin)
	case len(c.Hash) != sha256.Size:
		return Checkpoint{}, fmt.Errorf("%w: its root has %d bytes where %d are wanted", ErrMalformed, len(c.Hash), sha256.Size)
	case c.Size > math.MaxInt64:
		return Checkpoint{}, fmt.Errorf("%w: no log has %d entries", ErrMalformed, c.Size)
	case text != string(c.Marshal()):
		return Checkpoint{}, fmt.Errorf("%w: it has another form, or says more than a checkpoint does", ErrMalformed)
	}
	return Checkpoint{Size: c.Size, Root: Hash(c.Hash)}, nil
}

// OriginOf returns the first line of a checkpoint, unchecked: the name under
// which a log that is met for the first time presents itself.
func OriginOf(signed string) (string, error) {
	origin, _, ok := strings.Cut(signed, "\n")
	if _, named := ServerName(origin); !ok || !named || len(signed) > MaxCheckpoint {
		return "", fmt.Errorf("%w: it does not begin with the name of a log", ErrMalformed)
	}
	return origin, nil
}
