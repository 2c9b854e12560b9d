package backup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
	"testing/iotest"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// memory is a backup's content: what goes in, or what came out.
type memory map[string][]byte

func (m memory) sources(names ...string) (all []Source) {
	for _, name := range names {
		all = append(all, Source{Name: name, Open: func() (io.ReadCloser, int64, error) {
			b, ok := m[name]
			if !ok {
				return nil, 0, fs.ErrNotExist
			}
			return io.NopCloser(bytes.NewReader(b)), int64(len(b)), nil
		}})
	}
	return all
}

func (m memory) target() Target {
	return Target{Create: func(name string, _ int64) (io.WriteCloser, error) {
		return &sink{in: m, name: name}, nil
	}}
}

type sink struct {
	bytes.Buffer
	in   memory
	name string
}

func (s *sink) Close() error {
	s.in[s.name] = bytes.Clone(s.Bytes())
	return nil
}

func blob(content string) (name string) {
	sum := sha256.Sum256([]byte(content))
	return BlobName(hex.EncodeToString(sum[:]))
}

// home is a small state with two blobs.
func home() (memory, []string) {
	m := memory{Database: bytes.Repeat([]byte("a page of the database\n"), 2000), Certificate: []byte("certificate"), Key: []byte("key")}
	names := []string{Database, Certificate, Key}
	for _, content := range []string{"one file", strings.Repeat("another file ", 1000)} {
		m[blob(content)] = []byte(content)
		names = append(names, blob(content))
	}
	return m, names
}

func size(m memory) (n int64) {
	for _, b := range m {
		n += int64(len(b))
	}
	return n
}

var testHeader = Header{Version: "0.1.0", Schema: 7, ServerName: "home", CreatedAt: 1_700_000_000}

func pack(t interface{ Fatal(...any) }, m memory, names []string, seal Sealing) []byte {
	h := testHeader
	h.Bytes = size(m)
	var b bytes.Buffer
	if _, err := Write(&b, h, m.sources(names...), seal, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	m, names := home()
	for name, seal := range map[string]Sealing{"plain": {}, "encrypted": {Passphrase: "a sentence", WorkFactor: MinWorkFactor}} {
		t.Run(name, func(t *testing.T) {
			file := pack(t, m, names, seal)
			if got := Encrypted(file[:32]); got != (seal.Passphrase != "") {
				t.Errorf("encrypted: %v", got)
			}
			out := memory{}
			// Readers that give a byte at a time must not matter.
			manifest, err := Extract(iotest.OneByteReader(bytes.NewReader(file)), seal.Passphrase, out.target())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(m, out); diff != "" {
				t.Errorf("(-in +out)\n%s", diff)
			}
			if manifest.ServerName != "home" || manifest.Format != Format || len(manifest.Parts) != len(m) {
				t.Errorf("manifest: %+v", manifest)
			}
		})
	}
}

// Any tar reads a backup, and finds no surprise at its end.
func TestTarReadsIt(t *testing.T) {
	m, names := home()
	zip, err := gzip.NewReader(bytes.NewReader(pack(t, m, names, Sealing{})))
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewReader(zip)
	var found []string
	for {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, entry.Name)
	}
	if diff := cmp.Diff(append(append([]string{headerName}, names...), manifestName), found); diff != "" {
		t.Error(diff)
	}
	if _, err := io.Copy(io.Discard, zip); err != nil {
		t.Error(err)
	}
}

// A bit that flips anywhere, an end that is missing, bytes too many: refused.
func TestDamageIsRefused(t *testing.T) {
	m, names := home()
	plain := pack(t, m, names, Sealing{})
	const passphrase = "a sentence"
	sealed := pack(t, m, names, Sealing{Passphrase: passphrase, WorkFactor: MinWorkFactor})
	refused := func(t *rapid.T, file []byte, passphrase string) {
		_, err := Extract(bytes.NewReader(file), passphrase, memory{}.target())
		known := errors.Is(err, ErrCorrupt) || errors.Is(err, ErrForeign) || errors.Is(err, ErrPassphrase) ||
			errors.Is(err, ErrNewer) || errors.Is(err, ErrNotEncrypted)
		if err == nil || !known {
			t.Fatalf("not refused as damaged: %v", err)
		}
	}
	t.Run("flipped", rapid.MakeCheck(func(t *rapid.T) {
		file := bytes.Clone(plain)
		file[rapid.IntRange(0, len(file)-1).Draw(t, "offset")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		refused(t, file, "")
	}))
	t.Run("every bit of both ends", func(t *testing.T) {
		for offset := range plain {
			if offset > 40 && offset < len(plain)-140 {
				continue
			}
			for bit := range 8 {
				file := bytes.Clone(plain)
				file[offset] ^= 1 << bit
				if _, err := Extract(bytes.NewReader(file), "", memory{}.target()); err == nil {
					t.Fatalf("bit %d of byte %d of %d does not matter", bit, offset, len(plain))
				}
			}
		}
	})
	t.Run("cut", rapid.MakeCheck(func(t *rapid.T) {
		refused(t, plain[:rapid.IntRange(0, len(plain)-1).Draw(t, "length")], "")
	}))
	t.Run("longer", rapid.MakeCheck(func(t *rapid.T) {
		extra := rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "extra")
		refused(t, append(bytes.Clone(plain), extra...), "")
	}))
	t.Run("twice", func(t *testing.T) {
		if _, err := Extract(bytes.NewReader(append(bytes.Clone(plain), plain...)), "", memory{}.target()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("the error is %v", err)
		}
	})
	// Each try costs a passphrase's stretching, so these are few.
	for _, offset := range []int{20, 60, len(sealed) / 2, len(sealed) - 1} {
		file := bytes.Clone(sealed)
		file[offset] ^= 4
		if _, err := Extract(bytes.NewReader(file), passphrase, memory{}.target()); err == nil {
			t.Errorf("byte %d of the encrypted backup does not matter", offset)
		}
	}
	for _, file := range [][]byte{sealed[:len(sealed)-1], sealed[:len(sealed)/2], append(bytes.Clone(sealed), 'x')} {
		if _, err := Extract(bytes.NewReader(file), passphrase, memory{}.target()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes instead of %d: %v", len(file), len(sealed), err)
		}
	}
}

func TestPassphrases(t *testing.T) {
	m, names := home()
	plain := pack(t, m, names, Sealing{})
	sealed := pack(t, m, names, Sealing{Passphrase: "right", WorkFactor: MinWorkFactor})
	for _, c := range []struct {
		file       []byte
		passphrase string
		want       error
	}{
		{sealed, "wrong", ErrPassphrase},
		{sealed, "", ErrEncrypted},
		{plain, "any", ErrNotEncrypted},
		{[]byte("text"), "any", ErrForeign},
		{[]byte("text"), "", ErrForeign},
		{nil, "", ErrForeign},
	} {
		if _, err := Extract(bytes.NewReader(c.file), c.passphrase, memory{}.target()); !errors.Is(err, c.want) {
			t.Errorf("%.10q with %q: %v, want %v", c.file, c.passphrase, err, c.want)
		}
	}
}

// forge makes a file of the right form around any archive.
func forge(write func(archive *tar.Writer)) []byte {
	var out bytes.Buffer
	sum := sha256.New()
	zip := gzip.NewWriter(io.MultiWriter(&out, sum))
	archive := tar.NewWriter(zip)
	write(archive)
	archive.Close()
	zip.Close()
	out.Write(trailer(sum))
	return out.Bytes()
}

// Files that somebody has made to do harm, or for something else.
func TestForgedFiles(t *testing.T) {
	add := func(archive *tar.Writer, name, content string) {
		archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o600})
		io.WriteString(archive, content)
	}
	header := func(format int, n int64) string {
		return fmt.Sprintf(`{"kind":"qpcd backup","format":%d,"bytes":%d}`, format, n)
	}
	for name, c := range map[string]struct {
		write func(archive *tar.Writer)
		want  error
	}{
		"a tar of something else": {func(a *tar.Writer) { add(a, "etc/passwd", "root") }, ErrForeign},
		"another program's backup": {func(a *tar.Writer) {
			add(a, headerName, `{"kind":"other","format":1}`)
		}, ErrForeign},
		"a newer format":        {func(a *tar.Writer) { add(a, headerName, header(2, 0)) }, ErrNewer},
		"no database":           {func(a *tar.Writer) { add(a, headerName, header(1, 0)); add(a, manifestName, header(1, 0)) }, ErrCorrupt},
		"a path that leads out": {func(a *tar.Writer) { add(a, headerName, header(1, 9)); add(a, "../../etc/passwd", "root") }, ErrCorrupt},
		"a path below blobs":    {func(a *tar.Writer) { add(a, headerName, header(1, 9)); add(a, "blobs/../x", "root") }, ErrCorrupt},
		"an absolute path":      {func(a *tar.Writer) { add(a, headerName, header(1, 9)); add(a, "/etc/passwd", "root") }, ErrCorrupt},
		"a part twice": {func(a *tar.Writer) {
			add(a, headerName, header(1, 99))
			add(a, Key, "one")
			add(a, Key, "two")
		}, ErrCorrupt},
		"more than it says": {func(a *tar.Writer) { add(a, headerName, header(1, 3)); add(a, Database, "long") }, ErrCorrupt},
		"a link": {func(a *tar.Writer) {
			add(a, headerName, header(1, 9))
			a.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: Database, Linkname: "/etc/passwd"})
		}, ErrCorrupt},
		"a huge header": {func(a *tar.Writer) { add(a, headerName, strings.Repeat(" ", maxHeader+1)) }, ErrCorrupt},
		"a wrong sum": {func(a *tar.Writer) {
			add(a, headerName, header(1, 9))
			add(a, Database, "db")
			add(a, manifestName, `{"kind":"qpcd backup","format":1,"bytes":9,"parts":[{"name":"qpcd.db","size":2,"sha256":"00"}]}`)
		}, ErrCorrupt},
		"no manifest": {func(a *tar.Writer) { add(a, headerName, header(1, 9)); add(a, Database, "db") }, ErrCorrupt},
		"after the end": {func(a *tar.Writer) {
			m, _ := home()
			writeArchive(struct{ io.Writer }{io.Discard}, testHeader, m.sources(Database), nil)
			add(a, headerName, header(1, 0))
			add(a, manifestName, header(1, 0))
			add(a, Key, "")
		}, ErrCorrupt},
		"an empty archive": {func(*tar.Writer) {}, ErrForeign},
	} {
		t.Run(name, func(t *testing.T) {
			out := memory{}
			if _, err := Extract(bytes.NewReader(forge(c.write)), "", out.target()); !errors.Is(err, c.want) {
				t.Errorf("the error is %v, want %v", err, c.want)
			}
			for name := range out {
				if !known(name) {
					t.Errorf("%q was extracted", name)
				}
			}
		})
	}
}

// The caller's refusals reach the caller as they are.
func TestTargetRefuses(t *testing.T) {
	m, names := home()
	file := pack(t, m, names, Sealing{})
	mine := errors.New("no room")
	_, err := Extract(bytes.NewReader(file), "", Target{Begin: func(h Header) error {
		if h.Bytes != size(m) {
			t.Errorf("the header says %d bytes", h.Bytes)
		}
		return mine
	}})
	if !errors.Is(err, mine) || errors.Is(err, ErrCorrupt) {
		t.Errorf("the error is %v", err)
	}
	_, err = Extract(bytes.NewReader(file), "", Target{Create: func(string, int64) (io.WriteCloser, error) { return nil, mine }})
	if !errors.Is(err, mine) || errors.Is(err, ErrCorrupt) {
		t.Errorf("the error is %v", err)
	}
}

// Blobs go and break while a backup is written. The rest is in it.
func TestBlobsOnTheirWayOut(t *testing.T) {
	m, names := home()
	gone, torn, wrong := blob("gone"), blob("torn"), blob("what it should be")
	m[wrong] = []byte("what it is")
	sources := m.sources(append(names, gone, wrong)...)
	sources = append(sources, Source{Name: torn, Open: func() (io.ReadCloser, int64, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader("to"), iotest.ErrReader(errors.New("bad sector")))), 4, nil
	}})
	var file bytes.Buffer
	read := 0
	h := testHeader
	h.Bytes = 1 << 20
	if _, err := Write(&file, h, sources, Sealing{}, func(n int) { read += n }); err != nil {
		t.Fatal(err)
	}
	if want := int(size(m)) + 4; read != want {
		t.Errorf("progress was told of %d bytes, want %d", read, want)
	}
	manifest, err := Extract(&file, "", memory{}.target())
	if err != nil {
		t.Fatal(err)
	}
	damaged := map[string]bool{}
	for _, part := range manifest.Parts {
		damaged[part.Name] = part.Damaged
	}
	if _, there := damaged[gone]; there || !damaged[torn] || !damaged[wrong] || damaged[names[3]] {
		t.Errorf("damaged: %v", damaged)
	}
	// What is no blob must be whole.
	sources = []Source{{Name: Database, Open: func() (io.ReadCloser, int64, error) {
		return io.NopCloser(iotest.ErrReader(errors.New("bad sector"))), 4, nil
	}}}
	if _, err := Write(io.Discard, h, sources, Sealing{}, nil); err == nil {
		t.Error("a database that cannot be read makes a backup")
	}
}

func TestWorkFactor(t *testing.T) {
	for memory, want := range map[uint64]int{0: 14, 64 << 20: 14, 128 << 20: 15, 512 << 20: 17, 1 << 30: 18, 1 << 40: 18} {
		if got := WorkFactor(memory); got != want {
			t.Errorf("%d bytes: %d, want %d", memory, got, want)
		}
	}
}

// What is encrypted must be one of ours as well.
func TestForeignWithinEncryption(t *testing.T) {
	recipient, err := age.NewScryptRecipient("a sentence")
	if err != nil {
		t.Fatal(err)
	}
	recipient.SetWorkFactor(MinWorkFactor)
	var file bytes.Buffer
	w, err := age.Encrypt(&file, recipient)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "a letter")
	w.Close()
	if _, err := Extract(&file, "a sentence", memory{}.target()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the error is %v", err)
	}
}

func FuzzExtract(f *testing.F) {
	m, names := home()
	file := pack(f, m, names, Sealing{})
	f.Add(file)
	f.Add(file[:len(file)/2])
	f.Add([]byte(ageMagic + "v1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		out := memory{}
		manifest, err := Extract(bytes.NewReader(b), "", out.target())
		if err == nil && len(manifest.Parts) != len(out) {
			t.Errorf("%d parts in the manifest, %d extracted", len(manifest.Parts), len(out))
		}
	})
}
