package e2ee

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// A file that is sent (PROTOCOL 7.8 and 9, FileRef) is cut into segments of
// 64 KiB, the last one shorter or as long, and each is sealed by itself: the
// STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár ("Online
// Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", 2015).
//
//	file     ┌ segment 0, 65536 ┬ segment 1, 65536 ┬ … ┬ last, 1-65536 ┐
//	blob     ┌ sealed 65552     ┬ sealed 65552     ┬ … ┬ sealed +16    ┐
//
//	key      HKDF-SHA-256(file key, salt empty, info "qpc file v1")
//	sealed   ChaCha20-Poly1305(key, nonce, segment), no associated data
//	nonce    ┌ 0, 3 bytes ┬ segment number u64 ┬ 1 for the last, else 0, u8 ┐
//
// The number in the nonce keeps segments in their order, and the mark of the
// last one tells a whole file from one that was cut. An empty file is one
// empty segment.
//
// The nonces count from 0 for every file, which is safe because a file key is
// random and seals one content. That is the caller's part: whoever seals again
// (to send the rest of a file after a break) must make sure that it is the same
// content before a byte of it leaves, or two plaintexts would stand under one
// nonce.
const (
	// FileSegment is how much of a file is sealed at once, in bytes.
	FileSegment = 64 << 10
	// FileSealedSegment is what it becomes.
	FileSealedSegment = FileSegment + chacha20poly1305.Overhead
	// MaxSealedFile is the largest blob (PROTOCOL 7.8).
	MaxSealedFile = 50 << 20
	// MaxFile is the largest file that fits it.
	MaxFile = MaxSealedFile/FileSealedSegment*FileSegment + MaxSealedFile%FileSealedSegment - chacha20poly1305.Overhead
)

// FileKey opens one file. It travels in tag 3 of its FileRef.
type FileKey [32]byte

// NewFileKey makes a key for one file.
func NewFileKey(random io.Reader) (key FileKey, err error) {
	if _, err := io.ReadFull(random, key[:]); err != nil {
		return FileKey{}, fmt.Errorf("making a file key: %w", err)
	}
	return key, nil
}

// FileCipher seals and opens the segments of one file. It never changes, and is
// safe for concurrent use.
type FileCipher struct {
	aead cipher.AEAD
	size int64
}

// NewFileCipher returns the cipher of a file of size bytes, at most MaxFile.
func NewFileCipher(key FileKey, size int64) (*FileCipher, error) {
	if size < 0 || size > MaxFile {
		return nil, fmt.Errorf("a file of %d bytes, where %d are allowed: %w", size, MaxFile, ErrMalformed)
	}
	derived, err := hkdf.Key(sha256.New, key[:], nil, labelFile, chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("deriving the key of a file: %w", err)
	}
	aead, err := chacha20poly1305.New(derived)
	if err != nil {
		return nil, fmt.Errorf("file cipher: %w", err)
	}
	return &FileCipher{aead: aead, size: size}, nil
}

// Segments returns how many segments the file has, at least one.
func (c *FileCipher) Segments() int64 { return max(1, (c.size+FileSegment-1)/FileSegment) }

// SealedSize returns the size of the sealed file.
func (c *FileCipher) SealedSize() int64 { return c.size + c.Segments()*chacha20poly1305.Overhead }

// SegmentSize returns how many bytes of the file the segment i has.
func (c *FileCipher) SegmentSize(i int64) int {
	return int(min(FileSegment, c.size-i*FileSegment))
}

func (c *FileCipher) nonce(i int64) []byte {
	nonce := make([]byte, 3, chacha20poly1305.NonceSize)
	nonce = binary.BigEndian.AppendUint64(nonce, uint64(i))
	if i == c.Segments()-1 {
		return append(nonce, 1)
	}
	return append(nonce, 0)
}

// Seal appends the sealed segment i to dst. It fails when the segment does not
// have the size that its place asks for.
func (c *FileCipher) Seal(dst []byte, i int64, segment []byte) ([]byte, error) {
	if i < 0 || i >= c.Segments() || len(segment) != c.SegmentSize(i) {
		return nil, fmt.Errorf("segment %d of a file, with %d bytes: %w", i, len(segment), ErrMalformed)
	}
	return c.aead.Seal(dst, c.nonce(i), segment, nil), nil
}

// Open appends the segment i to dst, or returns ErrDecrypt for what Seal did
// not make for that place.
func (c *FileCipher) Open(dst []byte, i int64, sealed []byte) ([]byte, error) {
	if i < 0 || i >= c.Segments() || len(sealed) != c.SegmentSize(i)+chacha20poly1305.Overhead {
		return nil, fmt.Errorf("sealed segment %d of a file, with %d bytes: %w", i, len(sealed), ErrMalformed)
	}
	segment, err := c.aead.Open(dst, c.nonce(i), sealed, nil)
	if err != nil {
		return nil, fmt.Errorf("segment %d of a file: %w", i, ErrDecrypt)
	}
	return segment, nil
}
