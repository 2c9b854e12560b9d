package backup

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"

	"filippo.io/age"
)

// ageMagic begins every age file.
const ageMagic = "age-encryption.org/"

// Encrypted reports whether a file that begins with head is encrypted; 32 bytes
// are enough.
func Encrypted(head []byte) bool { return bytes.HasPrefix(head, []byte(ageMagic)) }

// A Target takes what Extract reads.
type Target struct {
	// Begin, which may be nil, is told the header before any part comes, and
	// may refuse it.
	Begin func(Header) error
	// Create returns where a part of a size goes. Close is called once, also
	// after an error.
	Create func(name string, size int64) (io.WriteCloser, error)
}

// Extract reads a backup to its end. Until it has returned without an error,
// nothing that it gave to target may be relied on. Damaged blobs are given to
// the target too; the manifest tells which.
func Extract(r io.Reader, passphrase string, target Target) (Manifest, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(len(ageMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return Manifest{}, fmt.Errorf("read the backup: %w", err)
	}
	switch encrypted := Encrypted(head); {
	case encrypted && passphrase == "":
		return Manifest{}, ErrEncrypted
	case encrypted:
		return extractSealed(in, passphrase, target)
	case passphrase != "":
		if len(head) < 2 || head[0] != 0x1f || head[1] != 0x8b {
			return Manifest{}, ErrForeign
		}
		return Manifest{}, ErrNotEncrypted
	}
	return extractSummed(in, target)
}

func extractSealed(in io.Reader, passphrase string, target Target) (Manifest, error) {
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return Manifest{}, fmt.Errorf("use the passphrase: %w", err)
	}
	identity.SetMaxWorkFactor(readWorkFactor)
	watched := &watched{r: in}
	opened, err := age.Decrypt(watched, identity)
	if watched.err != nil {
		return Manifest{}, fmt.Errorf("read the backup: %w", watched.err)
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("%w (%v)", ErrPassphrase, err)
	}
	m, err := extractSummed(opened, target)
	if watched.err != nil {
		return Manifest{}, fmt.Errorf("read the backup: %w", watched.err)
	}
	if errors.Is(err, ErrForeign) {
		return Manifest{}, corrupt("what is encrypted is no backup")
	}
	return m, err
}

// watched keeps errors of reading apart from those of decrypting.
type watched struct {
	r   io.Reader
	err error
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		w.err = err
	}
	return n, err
}

// summed reads a stream but its trailer, and sums what it reads.
type summed struct {
	r   *bufio.Reader
	sum hash.Hash
}

func (s *summed) Read(b []byte) (int, error) {
	if _, err := s.r.Peek(trailerBytes + 1); err != nil {
		return 0, err
	}
	free := s.r.Buffered() - trailerBytes
	n, err := s.r.Read(b[:min(len(b), free)])
	s.sum.Write(b[:n])
	return n, err
}

func extractSummed(r io.Reader, target Target) (Manifest, error) {
	body := &summed{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}
	ours := &foreignErrors{r: body}
	member := bufio.NewReader(ours) // of which gzip takes not a byte too much
	zip, err := gzip.NewReader(member)
	if err != nil {
		return Manifest{}, ours.explain(err, ErrForeign)
	}
	zip.Multistream(false)
	m, err := extractArchive(zip, target)
	if err != nil {
		return Manifest{}, ours.explain(err, nil)
	}
	// What is left of the archive, and of the file, is nothing.
	if n, err := io.Copy(io.Discard, zip); err != nil || n > 0 {
		return Manifest{}, ours.explain(err, corrupt("the archive goes on after its end"))
	}
	if n, err := io.Copy(io.Discard, member); err != nil || n > 0 {
		return Manifest{}, ours.explain(err, corrupt("the file goes on after its end"))
	}
	last, err := io.ReadAll(body.r)
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if !bytes.Equal(last, trailer(body.sum)) {
		return Manifest{}, corrupt("its bytes do not have the sum that it says")
	}
	return m, nil
}

// foreignErrors remembers whether reading failed, other than by the file's end.
type foreignErrors struct {
	r   io.Reader
	err error
}

// Read implements io.Reader.
func (f *foreignErrors) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// explain says what an error means: reading failed, or else the bytes are not
// what they should be.
func (f *foreignErrors) explain(err, otherwise error) error {
	var said *saidError
	switch {
	case errors.As(err, &said):
		return said.error
	case f.err != nil:
		return fmt.Errorf("%w: %w", ErrCorrupt, f.err)
	case otherwise != nil:
		return otherwise
	case errors.Is(err, ErrForeign), errors.Is(err, ErrNewer), errors.Is(err, ErrCorrupt):
		return err
	}
	return corrupt("%v", err)
}

// saidError is an error of the caller's own functions.
type saidError struct{ error }

func (e *saidError) Unwrap() error { return e.error }

func extractArchive(r io.Reader, target Target) (m Manifest, err error) {
	archive := tar.NewReader(r)
	h, err := readHeader(archive)
	if err != nil {
		return m, err
	}
	if target.Begin != nil {
		if err := target.Begin(h); err != nil {
			return m, &saidError{err}
		}
	}
	var parts []Part
	seen := map[string]bool{}
	left := h.Bytes
	for {
		entry, err := archive.Next()
		if err != nil {
			return m, fmt.Errorf("it ends too early: %w", err)
		}
		if entry.Typeflag != tar.TypeReg {
			return m, corrupt("%q is no file", entry.Name)
		}
		if entry.Name == manifestName {
			if err := readJSON(archive, entry, maxManifest, &m); err != nil {
				return m, err
			}
			break
		}
		left -= entry.Size
		switch {
		case !known(entry.Name) || seen[entry.Name]:
			return m, corrupt("%q does not belong into it", entry.Name)
		case left < 0:
			return m, corrupt("it holds more than it says")
		case (entry.Name == Certificate || entry.Name == Key) && entry.Size > maxSmall:
			return m, corrupt("%s is too large", entry.Name)
		}
		seen[entry.Name] = true
		part, err := extractPart(archive, entry, target)
		if err != nil {
			return m, err
		}
		parts = append(parts, part)
	}
	if _, err := archive.Next(); !errors.Is(err, io.EOF) {
		return m, corrupt("something stands behind its manifest")
	}
	return m, agree(m, h, parts)
}

func extractPart(archive *tar.Reader, entry *tar.Header, target Target) (part Part, err error) {
	part = Part{Name: entry.Name, Size: entry.Size}
	out, err := target.Create(part.Name, part.Size)
	if err != nil {
		return part, &saidError{err}
	}
	sum := sha256.New()
	to := &counted{w: io.MultiWriter(out, sum)}
	_, err = io.Copy(to, archive)
	closed := out.Close()
	switch {
	case to.err != nil:
		return part, &saidError{fmt.Errorf("write %s: %w", part.Name, to.err)}
	case err != nil:
		return part, err
	case closed != nil:
		return part, &saidError{fmt.Errorf("write %s: %w", part.Name, closed)}
	}
	part.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return part, nil
}

func readHeader(archive *tar.Reader) (h Header, err error) {
	entry, err := archive.Next()
	if err != nil || entry.Name != headerName || entry.Typeflag != tar.TypeReg {
		return h, ErrForeign
	}
	if err := readJSON(archive, entry, maxHeader, &h); err != nil {
		return h, err
	}
	switch {
	case h.Kind != kind:
		return h, ErrForeign
	case h.Format > Format:
		return h, ErrNewer
	case h.Format < 1 || h.Bytes < 0:
		return h, corrupt("its header makes no sense")
	}
	return h, nil
}

func readJSON(archive *tar.Reader, entry *tar.Header, most int64, v any) error {
	if entry.Size > most {
		return corrupt("%s is too large", entry.Name)
	}
	b, err := io.ReadAll(archive)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return corrupt("%s cannot be read: %v", entry.Name, err)
	}
	return nil
}

// agree checks that what was read is what the manifest lists.
func agree(m Manifest, h Header, parts []Part) error {
	if m.Header != h || len(m.Parts) != len(parts) {
		return corrupt("its manifest is that of another backup")
	}
	database := false
	for i, part := range parts {
		listed := m.Parts[i]
		damaged := listed.Damaged
		listed.Damaged = false
		hash := part.Blob()
		switch {
		case listed != part:
			return corrupt("%s does not have the size and sum that the manifest says", part.Name)
		case damaged && hash == "":
			return corrupt("its manifest makes no sense")
		case hash != "" && hash != part.SHA256 && !damaged:
			return corrupt("%s does not have the sum of its name", part.Name)
		}
		database = database || part.Name == Database
	}
	if !database {
		return corrupt("it holds no database")
	}
	return nil
}
