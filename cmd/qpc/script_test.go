package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"qpc": func() { os.Exit(run(os.Args[1:])) }})
}

// startTime bounds the start of a server.
const startTime = 20 * time.Second

// buildServer builds qpcd once for all scripts.
func buildServer(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "qpcd")
	out, err := exec.Command("go", "build", "-o", path, "../qpcd").CombinedOutput()
	if err != nil {
		t.Fatalf("building qpcd: %v\n%s", err, out)
	}
	return path
}

// servers are the qpcd processes of the scripts, by their directory.
type servers struct {
	path string
	mu   sync.Mutex
	runs map[string]*exec.Cmd
}

var listening = regexp.MustCompile(`msg=listening addr=(\S+)`)

// start starts a server in a directory and returns its address.
func (s *servers) start(dir, listen string, more ...string) (string, error) {
	cmd := exec.Command(s.path, append([]string{"--listen", listen, "--data-dir", dir}, more...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	logs, err := cmd.StderrPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	s.mu.Lock()
	s.runs[dir] = cmd
	s.mu.Unlock()
	found := make(chan string, 1)
	go func() {
		defer close(found)
		lines := bufio.NewScanner(logs)
		for lines.Scan() {
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				found <- m[1]
			}
		}
	}()
	select {
	case addr, ok := <-found:
		if ok {
			return addr, nil
		}
		return "", fmt.Errorf("qpcd ended at once: %v", cmd.Wait())
	case <-time.After(startTime):
		return "", fmt.Errorf("qpcd does not say that it listens")
	}
}

// kill ends a server with SIGKILL.
func (s *servers) kill(dir string) {
	s.mu.Lock()
	cmd := s.runs[dir]
	delete(s.runs, dir)
	s.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func TestScripts(t *testing.T) {
	all := &servers{path: buildServer(t), runs: make(map[string]*exec.Cmd)}
	conversation, err := filepath.Abs("../../testdata/conversation.txt")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("QPC_HOME", filepath.Join(env.WorkDir, "home"))
			env.Setenv("QPC_PASSWORD_FILE", filepath.Join(env.WorkDir, "pw"))
			env.Setenv("CONVERSATION", conversation)
			env.Setenv("PATH", filepath.Dir(all.path)+string(filepath.ListSeparator)+env.Getenv("PATH"))
			return os.WriteFile(filepath.Join(env.WorkDir, "pw"), []byte("a good password\n"), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// server start|restart|kill [DIR [ARG...]]: a qpcd of this script.
			// start and restart set QPC_SERVER; restart keeps the address.
			"server": func(ts *testscript.TestScript, _ bool, args []string) {
				dir := ts.MkAbs("server")
				if len(args) > 1 {
					dir = ts.MkAbs(args[1])
				}
				listen := "127.0.0.1:0"
				switch args[0] {
				case "kill":
					all.kill(dir)
					return
				case "restart":
					listen = ts.Getenv("QPC_SERVER")
				}
				var more []string
				if len(args) > 2 {
					more = args[2:]
				}
				addr, err := all.start(dir, listen, more...)
				ts.Check(err)
				ts.Setenv("QPC_SERVER", addr)
				ts.Defer(func() { all.kill(dir) })
			},
			// code N COMMAND...: the command ends with exit code N.
			"code": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				got := 0
				if exit, ok := err.(*exec.ExitError); ok {
					got = exit.ExitCode()
				} else if err != nil {
					ts.Fatalf("%v", err)
				}
				if fmt.Sprint(got) != args[0] {
					ts.Fatalf("exit code %d, want %s", got, args[0])
				}
			},
			// link FILE NAME: the link in the JSON of qpcd, as a variable.
			"link": func(ts *testscript.TestScript, _ bool, args []string) {
				var made struct{ Link string }
				ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &made))
				ts.Setenv(args[1], made.Link)
			},
			"sleep": func(ts *testscript.TestScript, _ bool, args []string) {
				d, err := time.ParseDuration(args[0])
				ts.Check(err)
				time.Sleep(d)
			},
		},
	})
}
