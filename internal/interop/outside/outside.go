// Package outside gets tests at programs that this project did not write:
// packages of npm at the versions that a lock file pins, and node processes
// that speak JSON lines. What is not installed skips the test with a sentence
// that says how to install it; with QPC_INTEROP=required it fails the test.
//
// A node process reads one command a line, {"op": name, …}, and answers each
// with one line, {"ok": …} or {"error": text}.
package outside

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// EnvRequired names the environment variable that, set to "required", turns
// skips into failures: where everything is meant to be installed, a test that
// did not run must show.
const EnvRequired = "QPC_INTEROP"

// exitUnavailable is scripts/npm-ci.sh's code for no npm, or no registry.
const exitUnavailable = 77

// Missing ends the test because what it needs is not there.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(EnvRequired) == "required" {
		t.Fatalf("%s (and %s=required)", fmt.Sprintf(format, args...), EnvRequired)
	}
	t.Skipf(format, args...)
}

// Program returns the path of an installed program; without it the test ends,
// naming the Debian package to install.
func Program(t testing.TB, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Missing(t, "%s is not installed (Debian: apt-get install %s)", name, debian)
	}
	return path
}

// Root returns the root of the module that the test belongs to.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
			return at
		}
		if at == filepath.Dir(at) {
			t.Fatalf("no go.mod above %s", dir)
		}
	}
}

// Modules returns a node_modules folder with the packages that
// dir/package-lock.json pins. The first call of a lock file downloads them.
func Modules(t testing.TB, dir string) string {
	t.Helper()
	var words strings.Builder
	cmd := exec.CommandContext(t.Context(), filepath.Join(Root(t), "scripts", "npm-ci.sh"), dir)
	cmd.Stderr = &words
	path, err := cmd.Output()
	said := strings.TrimSpace(words.String())
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == exitUnavailable {
		Missing(t, "the npm packages of %s are not here: %s", dir, said[strings.LastIndexByte(said, '\n')+1:])
	}
	if err != nil {
		t.Fatalf("installing the npm packages of %s: %v\n%s", dir, err, said)
	}
	return strings.TrimSpace(string(path))
}

// Node is a node process.
type Node struct {
	in  io.Writer
	out *bufio.Reader
}

// Start runs dir/script on the packages that dir/package-lock.json pins, until
// the test ends. The process must end when its standard input does.
func Start(t testing.TB, dir, script string) *Node {
	t.Helper()
	modules := Modules(t, dir)
	source, err := os.ReadFile(filepath.Join(dir, script))
	if err != nil {
		t.Fatal(err)
	}
	// node looks for packages beside the script, so the two meet in a folder.
	folder := t.TempDir()
	if err := os.Symlink(modules, filepath.Join(folder, "node_modules")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, script)
	if err := os.WriteFile(path, source, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "node", path)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	return &Node{in: in, out: bufio.NewReader(out)}
}

// Refused is the error that a node process answered with.
type Refused string

func (r Refused) Error() string { return string(r) }

// Call sends one command and decodes its answer into answer, which may be nil.
// The error is a [Refused] when the process said no.
func (n *Node) Call(op string, args map[string]any, answer any) error {
	command := map[string]any{"op": op}
	maps.Copy(command, args)
	line, err := json.Marshal(command)
	if err != nil {
		return fmt.Errorf("encoding %s: %w", op, err)
	}
	if _, err := n.in.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("telling node to %s: %w", op, err)
	}
	line, err = n.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("waiting for node to %s: %w", op, err)
	}
	var got struct {
		OK    json.RawMessage
		Error *string
	}
	if err := json.Unmarshal(line, &got); err != nil {
		return fmt.Errorf("reading what node answered to %s (%q): %w", op, line, err)
	}
	if got.Error != nil {
		return Refused(*got.Error)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(got.OK, answer); err != nil {
		return fmt.Errorf("reading what node answered to %s: %w", op, err)
	}
	return nil
}
