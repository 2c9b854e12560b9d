package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine is where and when a run was made.
type machine struct {
	date, cpu, kernel, memory, disk, load string
}

// describeMachine describes the machine; dir is on the disk that is measured.
// What cannot be found out is "unknown".
func describeMachine(dir string, now time.Time) machine {
	m := machine{
		date: now.UTC().Format("2006-01-02 15:04 UTC"), cpu: "unknown processor", kernel: "unknown kernel",
		memory: "unknown", disk: fileSystem(dir), load: "unknown",
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for _, name := range []string{"model name", "cpu model", "Hardware", "system type"} {
			if model := parseProc(string(b))[name]; model != "" {
				m.cpu = model
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if kib, err := parseProc(string(b)).number("MemTotal"); err == nil {
			m.memory = fmt.Sprintf("%.1f GiB", float64(kib)/(1<<20))
		}
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		m.load, _, _ = strings.Cut(string(b), " ")
	}
	return m
}

// String is one line.
func (m machine) String() string {
	return fmt.Sprintf("%s, %d cores of %s, %s of memory, %s, %s, %s %s/%s; load average before the run %s",
		m.date, runtime.NumCPU(), m.cpu, m.memory, m.disk, m.kernel, runtime.Version(), runtime.GOOS, runtime.GOARCH, m.load)
}

// fileSystem names the kind of file system under dir, since fdatasync on one
// in memory is no measure of anything.
func fileSystem(dir string) string {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return "unknown file system"
	}
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.F2FS_SUPER_MAGIC: "f2fs", unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
		unix.TMPFS_MAGIC: "tmpfs (in memory: no measure of a disk)",
	}
	if name, ok := names[int64(s.Type)]; ok {
		return name
	}
	return fmt.Sprintf("file system %#x", s.Type)
}
