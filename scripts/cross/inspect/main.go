// Command inspect looks at programs that scripts/cross/build.sh made, in
// folders named after their architectures, and prints a table of their sizes.
// It fails when one is of another architecture or would need a library of the
// machine it runs on.
//
//	inspect dist/mips/qpcd dist/arm_7/qpcd …
package main

import (
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

func main() {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "arch\tprogram\tMB\tbytes\t")
	failed := false
	for _, path := range os.Args[1:] {
		size, err := inspect(path)
		if err != nil {
			fmt.Fprintf(os.Stderr, "inspect: %s: %v\n", path, err)
			failed = true
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%.1f\t%d\t\n", filepath.Base(filepath.Dir(path)), filepath.Base(path), float64(size)/1e6, size)
	}
	table.Flush()
	if failed {
		os.Exit(1)
	}
}

// target is what a folder's name promises of the files in it.
type target struct {
	machine elf.Machine
	class   elf.Class
	data    elf.Data
	setting string // in the build information
}

func targets() map[string]target {
	little, big := elf.ELFDATA2LSB, elf.ELFDATA2MSB
	return map[string]target{
		"amd64":   {elf.EM_X86_64, elf.ELFCLASS64, little, "GOAMD64=v1"},
		"386":     {elf.EM_386, elf.ELFCLASS32, little, "GO386=sse2"},
		"arm64":   {elf.EM_AARCH64, elf.ELFCLASS64, little, "GOARCH=arm64"},
		"arm_5":   {elf.EM_ARM, elf.ELFCLASS32, little, "GOARM=5"},
		"arm_6":   {elf.EM_ARM, elf.ELFCLASS32, little, "GOARM=6"},
		"arm_7":   {elf.EM_ARM, elf.ELFCLASS32, little, "GOARM=7"},
		"mips":    {elf.EM_MIPS, elf.ELFCLASS32, big, "GOMIPS=softfloat"},
		"mipsle":  {elf.EM_MIPS, elf.ELFCLASS32, little, "GOMIPS=softfloat"},
		"riscv64": {elf.EM_RISCV, elf.ELFCLASS64, little, "GOARCH=riscv64"},
	}
}

// inspect returns a program's size in bytes.
func inspect(path string) (int64, error) {
	arch := filepath.Base(filepath.Dir(path))
	want, ok := targets()[arch]
	if !ok {
		return 0, fmt.Errorf("%q is no architecture that is built for", arch)
	}
	f, err := elf.Open(path)
	if err != nil {
		return 0, fmt.Errorf("reading it as ELF: %w", err)
	}
	defer f.Close()
	if f.Machine != want.machine || f.Class != want.class || f.Data != want.data {
		return 0, fmt.Errorf("it is %s, %s, %s; %s is %s, %s, %s", f.Machine, f.Class, f.Data, arch, want.machine, want.class, want.data)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			return 0, errors.New("it is linked dynamically; every program must run without a library of its machine")
		}
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("reading how it was built: %w", err)
	}
	for _, setting := range []string{want.setting, "CGO_ENABLED=0", "-trimpath=true"} {
		key, value, _ := strings.Cut(setting, "=")
		found := false
		for _, s := range info.Settings {
			found = found || s.Key == key && s.Value == value
		}
		if !found {
			return 0, fmt.Errorf("it was not built with %s", setting)
		}
	}
	stat, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return stat.Size(), nil
}
