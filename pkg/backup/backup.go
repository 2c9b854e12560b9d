// Package backup is the form of a backup file, and the way in which a restored
// state takes the place of the one that is there. It knows neither SQLite nor
// the network.
//
// What it promises:
//
//   - [Extract] returns success only for a file that is, to the bit, what
//     [Write] has made, and whose every part has the sum that the file says.
//   - [Swap] and [Recover] leave the old state or the new one, whole, wherever
//     the power fails.
//
// A backup file is a gzipped tar archive that any tar reads:
//
//	qpcd-backup.json   Header: what this is, and how much of it there is
//	qpcd.db            the database
//	server-cert.der    the certificate, whatever the name and form of its file
//	server-key.der     its key
//	blobs/<64 digits>  each stored file, named by its SHA-256
//	manifest.json      Manifest: the size and SHA-256 of each part before it
//
// After it comes a second, empty gzip member, whose comment holds the SHA-256 of
// every byte before. An encrypted backup is all that in one age file with a
// passphrase (https://age-encryption.org/v1).
package backup

import (
	"errors"
	"fmt"
	"strings"
)

// Format is the version of the form that this package writes, and the newest
// that it reads.
const Format = 1

// The names of the parts.
const (
	Database    = "qpcd.db"
	Certificate = "server-cert.der"
	Key         = "server-key.der"
	blobPrefix  = "blobs/"

	headerName   = "qpcd-backup.json"
	manifestName = "manifest.json"
	// kind stands in each header, so that no other archive is taken for one of
	// ours.
	kind = "qpcd backup"
)

const (
	// maxHeader bounds the header in bytes; it has a few hundred.
	maxHeader = 64 << 10
	// maxManifest bounds the manifest in bytes: with some 130 bytes a part,
	// for 500,000 parts.
	maxManifest = 64 << 20
	// maxSmall bounds the certificate and the key in bytes.
	maxSmall = 1 << 20
	// digits is the length of a SHA-256 in hexadecimal.
	digits = 64

	// MinWorkFactor and MaxWorkFactor bound the cost of guessing a passphrase,
	// as the exponent of scrypt's N: 16 MiB, which a router can spare beside the
	// server, and 256 MiB, age's own choice.
	MinWorkFactor = 14
	MaxWorkFactor = 18
	// workFactorMemory is what scrypt needs with MinWorkFactor, in bytes; each
	// step doubles it.
	workFactorMemory = 16 << 20
	// readWorkFactor is the most that is accepted of a file: 1 GiB.
	readWorkFactor = 20
)

// The errors of [Extract] that a caller tells apart. All else is the reading of
// the file or what the caller's own functions said.
var (
	// ErrForeign: the file is no backup of qpcd.
	ErrForeign = errors.New("this is no backup of qpcd")
	// ErrCorrupt: the file is damaged or cut short, or something was added.
	ErrCorrupt = errors.New("the backup is damaged")
	// ErrNewer: a newer version of qpcd has made the file.
	ErrNewer = errors.New("the backup is of a newer version of qpcd; update qpcd first")
	// ErrPassphrase: the passphrase is wrong, or the file's head is damaged,
	// which looks the same.
	ErrPassphrase = errors.New("the passphrase is wrong, or the backup is damaged")
	// ErrEncrypted: the file is encrypted and no passphrase was given.
	ErrEncrypted = errors.New("the backup is encrypted; give its passphrase")
	// ErrNotEncrypted: a passphrase was given for a file that has none. Whoever
	// expects an encrypted backup must not be handed another one.
	ErrNotEncrypted = errors.New("the backup is not encrypted, but a passphrase was given")
)

// Header says what a backup is.
type Header struct {
	Kind       string `json:"kind"`
	Format     int    `json:"format"`
	Version    string `json:"qpcd_version"`
	Schema     int    `json:"schema"` // the number of the database's newest migration
	ServerName string `json:"server_name"`
	CreatedAt  int64  `json:"created_at"` // Unix seconds, by the server's clock
	// Bytes is what the parts have together, blobs that vanish on the way
	// included: the room that a restore needs.
	Bytes int64 `json:"bytes"`
}

// Manifest lists what a backup holds.
type Manifest struct {
	Header
	Parts []Part `json:"parts"`
}

// Part is one file within a backup.
type Part struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
	// Damaged: a blob that could not be read, or does not have the sum it is
	// named by. Its bytes are worthless, and a restore leaves it out.
	Damaged bool `json:"damaged,omitempty"`
}

// Blob returns the hash of a part that is a blob, in hexadecimal, or "".
func (p Part) Blob() string {
	hash, ok := strings.CutPrefix(p.Name, blobPrefix)
	if !ok || !isDigits(hash) {
		return ""
	}
	return hash
}

// BlobName returns the name of the part that holds a blob.
func BlobName(hash string) string { return blobPrefix + hash }

// isDigits reports whether s is a SHA-256 in lower-case hexadecimal.
func isDigits(s string) bool {
	return len(s) == digits && strings.Trim(s, "0123456789abcdef") == ""
}

// known reports whether a part may have a name. Nothing else is ever extracted,
// so that no name can lead out of where the parts are put.
func known(name string) bool {
	switch name {
	case Database, Certificate, Key:
		return true
	}
	return Part{Name: name}.Blob() != ""
}

// WorkFactor returns the cost to give a passphrase where so many bytes of
// memory are available: a quarter of them at most.
func WorkFactor(available uint64) int {
	factor := MinWorkFactor
	for need := uint64(workFactorMemory); factor < MaxWorkFactor && 2*need <= available/4; need *= 2 {
		factor++
	}
	return factor
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}
