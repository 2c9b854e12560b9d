package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/quicprochat/qpcd/pkg/store"
)

// runHelper is the main function of a helper process.
func runHelper(name string, args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background()
	db, err := store.Open(ctx, options(args[0]))
	if err != nil {
		return fail(err)
	}
	switch name {
	case "hold": // keep the database open until stdin ends
		fmt.Println("open")
		io.Copy(io.Discard, os.Stdin)
	case "limit":
		if err := limited(db); err != nil {
			return fail(err)
		}
	case "crash": // write for ever, printing each acknowledged name
		var mu sync.Mutex
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					name := fmt.Sprintf("%s-%d-%d", args[1], worker, i)
					err := db.Write(ctx, func(tx *store.Tx) error { return insert(tx, name) })
					mu.Lock()
					if err == nil {
						fmt.Println(name)
					} else {
						fmt.Fprintln(os.Stderr, err)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	if err := db.Close(); err != nil {
		return fail(err)
	}
	return 0
}

// helper is a running helper process.
type helper struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Scanner
	errs  strings.Builder
}

// startHelper runs a helper program; it is killed at the end of the test.
func startHelper(t *testing.T, name string, args ...string) *helper {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := &helper{cmd: exec.Command(exe, args...)}
	h.cmd.Env = append(os.Environ(), helperEnv+"="+name)
	h.cmd.Stderr = &h.errs
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewScanner(out)
	err = h.cmd.Start()
	if errors.Is(err, syscall.ENOEXEC) {
		t.Skip("an emulated binary cannot start itself here")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.kill() })
	return h
}

// kill ends the helper with SIGKILL and waits for it.
func (h *helper) kill() {
	h.cmd.Process.Kill()
	h.cmd.Wait()
}
