package main

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// binaries are the programs under test, stripped as a release is.
type binaries struct {
	qpcd, bare string
	qpc        string // empty when there is no client program to build
}

// repositoryRoot finds the module that the harness belongs to, from the
// working directory.
func repositoryRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("asking go for the module: %w", err)
	}
	file := strings.TrimSpace(string(out))
	if file == "" || file == os.DevNull {
		return "", fmt.Errorf("this is not a Go module; run the harness in the repository")
	}
	return filepath.Dir(file), nil
}

// inRoot makes a path of the repository absolute.
func (b *bench) inRoot(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(b.root, path)
}

// build builds the bare server, and the programs under test unless only that
// is wanted.
func (b *bench) build(ctx context.Context, onlyBare bool) (bin binaries, err error) {
	for _, program := range []struct {
		source string
		to     *string
	}{{"cmd/qpcd", &bin.qpcd}, {"internal/bench/bareserver", &bin.bare}, {"cmd/qpc", &bin.qpc}} {
		if onlyBare && program.to != &bin.bare {
			continue
		}
		if _, err := os.Stat(b.inRoot(program.source)); err != nil && program.to == &bin.qpc {
			continue
		}
		*program.to = filepath.Join(b.dir, filepath.Base(program.source))
		fmt.Fprintf(b.progress, "bench: building %s ...\n", program.source)
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", *program.to, "./"+program.source)
		cmd.Dir, cmd.Env = b.root, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			if program.to == &bin.qpc {
				// The client program is measured by its size alone.
				fmt.Fprintf(b.progress, "bench: cmd/qpc does not build and is left out: %s\n", bytes.TrimSpace(out))
				bin.qpc = ""
				continue
			}
			return bin, fmt.Errorf("building %s: %w\n%s", program.source, err, out)
		}
	}
	return bin, nil
}

// measurePrograms adds the sizes of what was built here, and of the programs
// for other machines where `make cross` has left them in dist/.
func (b *bench) measurePrograms(context.Context) error {
	bare, err := os.Stat(b.bin.bare)
	if err != nil {
		return fmt.Errorf("looking at the bare server: %w", err)
	}
	for _, path := range []string{b.bin.qpcd, b.bin.qpc} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("looking at a program: %w", err)
		}
		b.add(figure{section: "Programs", name: "size of " + filepath.Base(path) + ", stripped", value: float64(info.Size()) / 1e6, unit: "MB",
			limits: []limit{{"bare quic-go server", float64(bare.Size()) / 1e6}}})
	}
	crossed, err := crossBuilt(b.inRoot("dist"))
	if err != nil {
		return err
	}
	for _, p := range crossed {
		b.add(figure{section: "Programs", name: "size of dist/" + p.name, value: float64(p.size) / 1e6, unit: "MB", detail: p.machine})
	}
	return nil
}

// program is an executable for some machine.
type program struct {
	name, machine string
	size          int64
}

// crossBuilt finds the ELF programs below a directory; none when it does not
// exist.
func crossBuilt(dir string) (found []program, err error) {
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err):
			return nil
		case err != nil:
			return err
		case !entry.Type().IsRegular():
			return nil
		}
		file, err := elf.Open(path)
		if err != nil {
			return nil // an archive, a checksum: not a program
		}
		defer file.Close()
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		found = append(found, program{name, strings.TrimPrefix(file.Machine.String(), "EM_") + " " + strings.TrimPrefix(file.Data.String(), "ELFDATA2"), info.Size()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("looking for programs in %s: %w", dir, err)
	}
	slices.SortFunc(found, func(a, b program) int { return strings.Compare(a.name, b.name) })
	return found, nil
}
