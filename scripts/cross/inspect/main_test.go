package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// build compiles a program of one line into a folder of that name.
func build(t *testing.T, folder string, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	source, out := filepath.Join(dir, "main.go"), filepath.Join(dir, folder, "program")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() { println(1) }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-o", out, source)
	cmd.Env = append(os.Environ(), append([]string{"GOOS=linux", "CGO_ENABLED=0", "GOFLAGS=-trimpath"}, env...)...)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, b)
	}
	return out
}

// system returns a program of this machine that needs its libraries, in a
// folder of its architecture.
func system(t *testing.T) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), runtime.GOARCH, "env")
	path, err := exec.LookPath("env")
	if err == nil {
		err = os.Mkdir(filepath.Dir(link), 0o700)
	}
	if err == nil {
		err = os.Symlink(path, link)
	}
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestInspect(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the programs are Linux's")
	}
	amd64 := []string{"GOARCH=amd64", "GOAMD64=v1"}
	for _, c := range []struct {
		name string
		path string
		want string // in the error; empty: none
	}{
		{"as promised", build(t, "amd64", amd64...), ""},
		{"in another's folder", build(t, "arm64", amd64...), "EM_X86_64"},
		{"in no folder of ours", build(t, "vax", amd64...), `"vax" is no architecture`},
		{"paths left in", build(t, "amd64", append(amd64, "GOFLAGS=")...), "not built with -trimpath=true"},
		{"linked dynamically", system(t), "dynamically"},
		{"no program", "main.go", "no architecture"},
	} {
		size, err := inspect(c.path)
		switch {
		case c.want == "" && (err != nil || size < 1e5):
			t.Errorf("%s: %d bytes, %v", c.name, size, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
	}
}
