package backup

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"

	"filippo.io/age"
)

// A Source is a part that is to be written.
type Source struct {
	Name string
	// Open returns the bytes and how many there are. For a blob that has
	// vanished since the database was copied, as an expired one does, it
	// returns [fs.ErrNotExist]: it is left out.
	Open func() (r io.ReadCloser, size int64, err error)
}

// Sealing says how a backup is encrypted. The zero value: not at all.
type Sealing struct {
	Passphrase string
	// WorkFactor is MinWorkFactor to MaxWorkFactor, see [WorkFactor].
	WorkFactor int
}

// Write writes a backup. The sources come in the order given; Database must be
// among them. progress, which may be nil, is told of the bytes as they are read.
func Write(w io.Writer, h Header, sources []Source, seal Sealing, progress func(bytes int)) (Manifest, error) {
	h.Kind, h.Format = kind, Format
	if seal.Passphrase == "" {
		return writeSummed(w, h, sources, progress)
	}
	recipient, err := age.NewScryptRecipient(seal.Passphrase)
	if err != nil {
		return Manifest{}, fmt.Errorf("use the passphrase: %w", err)
	}
	recipient.SetWorkFactor(min(max(seal.WorkFactor, MinWorkFactor), MaxWorkFactor))
	sealed, err := age.Encrypt(w, recipient)
	if err != nil {
		return Manifest{}, fmt.Errorf("encrypt the backup: %w", err)
	}
	m, err := writeSummed(sealed, h, sources, progress)
	if err != nil {
		return Manifest{}, err
	}
	if err := sealed.Close(); err != nil {
		return Manifest{}, fmt.Errorf("encrypt the backup: %w", err)
	}
	return m, nil
}

// writeSummed writes the archive and the sum of its bytes.
func writeSummed(w io.Writer, h Header, sources []Source, progress func(int)) (Manifest, error) {
	sum := sha256.New()
	zip := gzip.NewWriter(io.MultiWriter(w, sum))
	m, err := writeArchive(zip, h, sources, progress)
	if err != nil {
		return Manifest{}, err
	}
	if err := zip.Close(); err != nil {
		return Manifest{}, fmt.Errorf("write the backup: %w", err)
	}
	if _, err := w.Write(trailer(sum)); err != nil {
		return Manifest{}, fmt.Errorf("write the backup: %w", err)
	}
	return m, nil
}

// The two sides of the comment in a trailer, RFC 1952 section 2.3: magic, the
// method deflate, the flag FCOMMENT, no time, no hints, an unknown system; and
// the comment's end, a final block without symbols (RFC 1951, section 3.2.6), the
// CRC-32 and length of nothing.
const (
	trailerHead  = "\x1f\x8b\x08\x10\x00\x00\x00\x00\x00\xff" + "sha256 "
	trailerTail  = "\x00" + "\x03\x00" + "\x00\x00\x00\x00" + "\x00\x00\x00\x00"
	trailerBytes = len(trailerHead) + digits + len(trailerTail)
)

// trailer returns the empty gzip member that holds a sum.
func trailer(sum hash.Hash) []byte {
	return []byte(trailerHead + hex.EncodeToString(sum.Sum(nil)) + trailerTail)
}

func writeArchive(w io.Writer, h Header, sources []Source, progress func(int)) (Manifest, error) {
	m := Manifest{Header: h}
	archive := tar.NewWriter(w)
	if err := writeJSON(archive, headerName, h); err != nil {
		return m, err
	}
	for _, source := range sources {
		if !known(source.Name) {
			return m, fmt.Errorf("write the backup: %q is no name of a part", source.Name)
		}
		part, err := writePart(archive, source, progress)
		if errors.Is(err, fs.ErrNotExist) && part.Blob() != "" {
			continue
		}
		if err != nil {
			return m, fmt.Errorf("put %s into the backup: %w", source.Name, err)
		}
		m.Parts = append(m.Parts, part)
	}
	if err := writeJSON(archive, manifestName, m); err != nil {
		return m, err
	}
	if err := archive.Close(); err != nil {
		return m, fmt.Errorf("write the backup: %w", err)
	}
	return m, nil
}

func writeHead(archive *tar.Writer, name string, size int64) error {
	return archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, Format: tar.FormatPAX})
}

func writeJSON(archive *tar.Writer, name string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = writeHead(archive, name, int64(len(b)))
	}
	if err == nil {
		_, err = archive.Write(b)
	}
	if err != nil {
		return fmt.Errorf("put %s into the backup: %w", name, err)
	}
	return nil
}

// writePart writes one part. A blob that turns out to be unreadable is filled
// up with zeros and marked: one bad sector must not cost the backup.
func writePart(archive *tar.Writer, source Source, progress func(int)) (Part, error) {
	part := Part{Name: source.Name}
	r, size, err := source.Open()
	if err != nil {
		return part, err
	}
	defer r.Close()
	part.Size = size
	if err := writeHead(archive, part.Name, size); err != nil {
		return part, err
	}
	sum := sha256.New()
	out := &counted{w: io.MultiWriter(archive, sum), progress: progress}
	_, err = io.CopyN(out, r, size)
	if out.err != nil {
		return part, out.err
	}
	if err != nil {
		if part.Blob() == "" {
			return part, fmt.Errorf("read it: %w", err)
		}
		part.Damaged = true
		if _, err := io.CopyN(out, zeros{}, size-out.n); err != nil {
			return part, err
		}
	}
	part.SHA256 = hex.EncodeToString(sum.Sum(nil))
	if hash := part.Blob(); hash != "" && hash != part.SHA256 {
		part.Damaged = true
	}
	return part, nil
}

// counted counts what is written, and keeps errors of writing apart from those
// of reading.
type counted struct {
	w        io.Writer
	n        int64
	err      error
	progress func(int)
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	if err != nil {
		c.err = err
	}
	if c.progress != nil {
		c.progress(n)
	}
	return n, err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
