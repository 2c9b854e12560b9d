// Package habits holds the house rules that no single package can test.
package habits

import (
	"encoding/json"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/quicprochat/qpcd/"

// rooms in the order of docs/architecture.md: a package imports rooms below
// its own only. A room ends with "/..." when its sub-packages belong to it.
var rooms = []string{
	"cmd/...",
	"internal/...",
	"pkg/server",
	"pkg/client/localstore",
	"pkg/client/storetest",
	"pkg/client",
	"pkg/service/...",
	"pkg/push",
	"pkg/e2ee",
	"pkg/opaque",
	"pkg/backup",
	"pkg/store",
	"pkg/metrics",
	"pkg/control",
	"pkg/rpc/...",
	"pkg/invite",
	"pkg/transport",
	"pkg/frame",
	"pkg/qpcpb",
	"pkg/config/...",
	"pkg/limit",
	"pkg/proof",
	"pkg/tlog",
	"pkg/username",
}

type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	list := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", "./pkg/...", "./cmd/...")
	list.Dir = filepath.Join("..", "..")
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := decoder.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func room(path string) int {
	path = strings.TrimPrefix(path, module)
	return slices.IndexFunc(rooms, func(room string) bool {
		prefix, tree := strings.CutSuffix(room, "/...")
		return path == prefix || tree && strings.HasPrefix(path, prefix+"/")
	})
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range packages(t) {
		from := room(p.ImportPath)
		if from < 0 {
			t.Errorf("%s is in no room: give it a place in rooms and in docs/architecture.md", p.ImportPath)
			continue
		}
		for _, imported := range p.Imports {
			if !strings.HasPrefix(imported, module) {
				continue
			}
			if to := room(imported); to < from {
				t.Errorf("%s imports %s, which lies above it", p.ImportPath, imported)
			}
		}
	}
}

// A domain that needs another declares a small interface, and pkg/server
// passes the other in.
func TestDomainsDoNotImportDomains(t *testing.T) {
	const services = module + "pkg/service/"
	for _, p := range packages(t) {
		if !strings.HasPrefix(p.ImportPath, services) || strings.Contains(p.ImportPath, "/internal/") {
			continue
		}
		for _, imported := range p.Imports {
			if strings.HasPrefix(imported, services) {
				t.Errorf("%s imports %s", p.ImportPath, imported)
			}
		}
	}
}

// Only a few rooms may hold a cryptographic primitive; the others call named
// operations of theirs (STYLE 16).
func TestPrimitivesPassFewDoors(t *testing.T) {
	primitives := []string{
		"crypto/aes", "crypto/cipher", "crypto/ecdh", "crypto/hkdf", "crypto/hmac", "crypto/mlkem",
		"golang.org/x/crypto/argon2", "golang.org/x/crypto/chacha20poly1305", "golang.org/x/crypto/hkdf",
	}
	allowed := []string{"pkg/opaque", "pkg/e2ee", "pkg/transport"}
	for _, p := range packages(t) {
		if slices.Contains(allowed, strings.TrimPrefix(p.ImportPath, module)) {
			continue
		}
		for _, imported := range p.Imports {
			if slices.Contains(primitives, imported) || strings.HasPrefix(imported, "github.com/cloudflare/circl") {
				t.Errorf("%s imports %s: give pkg/e2ee or pkg/opaque a named operation instead", p.ImportPath, imported)
			}
		}
	}
}

func TestEveryPackageIsDocumented(t *testing.T) {
	for _, p := range packages(t) {
		documented := false
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.PackageClauseOnly)
			if err != nil {
				t.Fatal(err)
			}
			documented = documented || file.Doc != nil
		}
		if !documented && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// No file holds two nouns.
func TestFilesAreShort(t *testing.T) {
	const most = 800
	for _, p := range packages(t) {
		for _, name := range p.GoFiles {
			if strings.HasSuffix(name, ".pb.go") || strings.HasSuffix(name, "_gen.go") {
				continue
			}
			data, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if lines := strings.Count(string(data), "\n"); lines > most {
				t.Errorf("%s/%s has %d lines", p.ImportPath, name, lines)
			}
		}
	}
}
