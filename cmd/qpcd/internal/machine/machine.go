// Package machine reads what the kernel tells of the machine.
package machine

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
)

// MemAvailable returns how many bytes of memory can be had without swapping, 0
// when that cannot be told.
func MemAvailable() uint64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	return memAvailable(f)
}

func memAvailable(r io.Reader) uint64 {
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && fields[0] == "MemAvailable:" && fields[2] == "kB" {
			n, err := strconv.ParseUint(fields[1], 10, 54)
			if err != nil {
				return 0
			}
			return n << 10
		}
	}
	return 0
}

// Number reads a file of /proc/sys that holds one number.
func Number(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
