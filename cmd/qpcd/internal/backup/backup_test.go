package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/server"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// home is a data directory with a database, a certificate and two files.
func home(t *testing.T) *config.Config {
	t.Helper()
	dir := t.TempDir()
	cfg := &config.Config{
		DataDir: dir, ServerName: "router",
		TLSCert: filepath.Join(dir, "server-cert.der"), TLSKey: filepath.Join(dir, "server-key.der"),
	}
	if err := server.AdoptRestored(t.Context(), dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if _, err := transport.LoadOrCreate(cfg.TLSCert, cfg.TLSKey, []string{"router"}, nil, nil); err != nil {
		t.Fatal(err)
	}
	file(t, dir, "one file", "")
	file(t, dir, "another", "")
	return cfg
}

// file stores a blob, under another's name if as is given.
func file(t *testing.T, dataDir, content, as string) {
	t.Helper()
	if as == "" {
		as = content
	}
	sum := sha256.Sum256([]byte(as))
	path := server.BlobPath(dataDir, hex.EncodeToString(sum[:]))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tree reads all files below a directory.
func tree(t interface{ Fatal(...any) }, dir string) map[string]string {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func call(t testing.TB, cfg *config.Config, file string) (*command.Call, func() string) {
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	in, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	return &command.Call{Config: cfg, Args: []string{file}, In: in, Out: out, Err: new(bytes.Buffer), Version: "test"}, func() string {
		b, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func save(t *testing.T, cfg *config.Config) (file, said string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "qpcd.backup")
	c, out := call(t, cfg, file)
	if err := Backup(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	return file, out()
}

// A damaged backup changes nothing, wherever it is damaged.
func TestDamagedBackupChangesNothing(t *testing.T) {
	cfg := home(t)
	path, _ := save(t, cfg)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file(t, cfg.DataDir, "newer than the backup", "")
	before := tree(t, cfg.DataDir)
	bad := filepath.Join(t.TempDir(), "bad.backup")
	rapid.Check(t, func(r *rapid.T) {
		b := bytes.Clone(whole)
		switch rapid.IntRange(0, 2).Draw(r, "damage") {
		case 0:
			b[rapid.IntRange(0, len(b)-1).Draw(r, "offset")] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
		case 1:
			b = b[:rapid.IntRange(0, len(b)-1).Draw(r, "length")]
		case 2:
			b = append(b, rapid.SliceOfN(rapid.Byte(), 1, 100).Draw(r, "extra")...)
		}
		if err := os.WriteFile(bad, b, 0o600); err != nil {
			r.Fatal(err)
		}
		c, _ := call(t, cfg, bad)
		if err := Restore(context.Background(), c); err == nil || !strings.Contains(err.Error(), "untouched") {
			r.Fatalf("the error is %v", err)
		}
		if diff := cmp.Diff(before, tree(r, cfg.DataDir)); diff != "" {
			r.Fatalf("the state changed: %s", diff)
		}
	})
}

// A file that is damaged on the disk does not keep the others from coming back.
func TestDamagedFileIsLeftOut(t *testing.T) {
	cfg := home(t)
	file(t, cfg.DataDir, "not what was stored", "what was stored")
	path, said := save(t, cfg)
	if !strings.Contains(said, "1 files are damaged") {
		t.Errorf("it says %q", said)
	}
	to := home(t)
	c, out := call(t, to, path)
	if err := Restore(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out(), "1 files were damaged already") {
		t.Errorf("it says %q", out())
	}
	n := 0
	for name := range tree(t, to.DataDir) {
		if strings.HasPrefix(name, "blobs/") {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d files came back, want 2", n)
	}
}

// Certificates outside the data directory belong to another program.
func TestCertificateElsewhere(t *testing.T) {
	path, _ := save(t, home(t))
	elsewhere := t.TempDir()
	to := &config.Config{DataDir: t.TempDir(), ServerName: "router", TLSCert: filepath.Join(elsewhere, "fullchain.pem"), TLSKey: filepath.Join(elsewhere, "key.pem")}
	c, out := call(t, to, path)
	if err := Restore(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	placed := tree(t, elsewhere)
	if len(placed) != 2 || strings.Contains(out(), "outside") {
		t.Errorf("where there were none: %d files, %s", len(placed), out())
	}
	if info, err := os.Stat(to.TLSKey); err != nil || info.Mode() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	if err := os.WriteFile(to.TLSCert, []byte("renewed"), 0o644); err != nil {
		t.Fatal(err)
	}
	placed["fullchain.pem"] = "renewed"
	c, out = call(t, to, path)
	if err := Restore(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(placed, tree(t, elsewhere)); diff != "" || !strings.Contains(out(), "was left as it is") {
		t.Errorf("where there is another one: %s\n%s", diff, out())
	}
	if _, there := tree(t, to.DataDir)["server-key.der"]; there {
		t.Error("a key lies where the settings do not look for it")
	}
}

// Disks are too small, or not what they seem.
func TestPlacesThatCannotBe(t *testing.T) {
	cfg := home(t)
	for _, to := range []string{t.TempDir(), "/dev/null", filepath.Join(t.TempDir(), "none", "file")} {
		c, _ := call(t, cfg, to)
		if err := Backup(context.Background(), c); err == nil {
			t.Errorf("a backup to %s", to)
		}
	}
	path, _ := save(t, cfg)
	blobs := server.BlobDir(cfg.DataDir)
	mount(t, blobs)
	before := tree(t, cfg.DataDir)
	c, _ := call(t, cfg, path)
	if err := Restore(context.Background(), c); err == nil || !strings.Contains(err.Error(), "file system of its own") {
		t.Errorf("onto a mount point: %v", err)
	}
	if diff := cmp.Diff(before, tree(t, cfg.DataDir)); diff != "" {
		t.Error(diff)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 bytes", 10_239: "10239 bytes", 10_240: "10 KiB", 12 << 20: "12 MiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

func TestPassphraseFiles(t *testing.T) {
	for content, want := range map[string]string{"word\n": "word", "a sentence": "a sentence", "first\nsecond": "first", "dos\r\n": "dos", "": "", "\nx": "", strings.Repeat("x", maxPassphrase+1): ""} {
		path := filepath.Join(t.TempDir(), "passphrase")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readPassphrase(path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%.20q: %q, %v", content, got, err)
		}
	}
	if _, err := readPassphrase(fmt.Sprint(t.TempDir(), "/none")); err == nil {
		t.Error("no file is a passphrase")
	}
}
