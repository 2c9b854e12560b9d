package e2ee

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// The metadata that a server keeps of a group (PROTOCOL 7.7) is sealed under a
// key that MLS exports from an epoch (RFC 9420, section 8.5): whoever is a member
// in that epoch can read it, who joins later or was removed before cannot. It is
// sealed anew after each change of members.
//
//	0      1        9         33
//	+------+--------+---------+-------------------+
//	| 0x01 | epoch  | nonce   | ciphertext ‖ tag  |
//	|      | 8      | 24      | padded to 256     |
//	+------+--------+---------+-------------------+
//
// XChaCha20-Poly1305; associated data: group id, version and epoch.
const (
	metadataVersion = 0x01
	metadataHeader  = 1 + 8 + chacha20poly1305.NonceSizeX
	// metadataBlock hides how long a name is.
	metadataBlock = 256
	// maxMetadata is what the server takes (PROTOCOL 7.7).
	maxMetadata = 16 << 10
)

// SealMetadata seals what the members of the current epoch may know.
func (g *Group) SealMetadata(random io.Reader, metadata []byte) ([]byte, error) {
	blocks := (4 + len(metadata) + metadataBlock - 1) / metadataBlock
	if blocks*metadataBlock > maxMetadata-metadataHeader-chacha20poly1305.Overhead {
		return nil, fmt.Errorf("sealing metadata of %d bytes: %w", len(metadata), ErrMalformed)
	}
	out := binary.BigEndian.AppendUint64([]byte{metadataVersion}, g.Epoch())
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	if _, err := io.ReadFull(random, nonce); err != nil {
		return nil, fmt.Errorf("reading randomness for metadata: %w", err)
	}
	key, err := g.metadataKey()
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("sealing metadata: %w", err)
	}
	plain := binary.BigEndian.AppendUint32(make([]byte, 0, blocks*metadataBlock), uint32(len(metadata)))
	plain = append(plain, metadata...)
	plain = plain[:blocks*metadataBlock]
	bound := append(bytes.Clone(g.id), out...)
	return aead.Seal(append(out, nonce...), nonce, plain, bound), nil
}

// OpenMetadata reads what a member sealed in the current epoch. ErrPastEpoch and
// ErrFutureEpoch: it was sealed in another. ErrDecrypt: not by a member.
func (g *Group) OpenMetadata(sealed []byte) ([]byte, error) {
	if len(sealed) < metadataHeader || len(sealed) > maxMetadata || sealed[0] != metadataVersion {
		return nil, fmt.Errorf("metadata of %d bytes: %w", len(sealed), ErrMalformed)
	}
	switch epoch := binary.BigEndian.Uint64(sealed[1:]); {
	case epoch < g.Epoch():
		return nil, fmt.Errorf("metadata of epoch %d, we are at %d: %w", epoch, g.Epoch(), ErrPastEpoch)
	case epoch > g.Epoch():
		return nil, fmt.Errorf("metadata of epoch %d, we are at %d: %w", epoch, g.Epoch(), ErrFutureEpoch)
	}
	key, err := g.metadataKey()
	if err != nil {
		return nil, err
	}
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("opening metadata: %w", err)
	}
	bound := append(bytes.Clone(g.id), sealed[:9]...)
	plain, err := aead.Open(nil, sealed[9:metadataHeader], sealed[metadataHeader:], bound)
	if err != nil {
		return nil, fmt.Errorf("opening metadata: %w", ErrDecrypt)
	}
	d := messageDecoder{rest: plain}
	if plain = d.take(d.number(4)); d.bad {
		return nil, fmt.Errorf("metadata: %w", ErrMalformed)
	}
	return plain, nil
}

func (g *Group) metadataKey() ([]byte, error) {
	if g.removed {
		return nil, fmt.Errorf("key for the metadata of group %x: %w", g.id, ErrRemoved)
	}
	lib, err := unpackLibrary(g.core)
	if err != nil {
		return nil, err
	}
	key, err := lib.Export(labelGroupMetadata, g.id, chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("key for the metadata of group %x: %w", g.id, libraryError(ErrState, err))
	}
	return key, nil
}

// StateHash names the current epoch: it is equal for two members exactly when
// they have the same history of commits, and so the same keys.
func (g *Group) StateHash() [sha256.Size]byte { return sha256.Sum256(g.current().context) }
