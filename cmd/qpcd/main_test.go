package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// patience is how long a script waits for what must happen: far longer than
// it takes, so that only a defect reaches it.
const patience = 30 * time.Second

// poll is the pause between two looks at a log.
const poll = 2 * time.Millisecond

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"qpcd": main})
}

// TestScripts runs testdata/script: the program as it is typed. Beside the
// commands of testscript there are:
//
//	code N qpcd ARG...       run it; the exit code must be N
//	start NAME ARG...        run it beside the script and wait until it listens;
//	                         its log is NAME.log, $NAME its address
//	launch NAME ARG...       the same without waiting
//	signal NAME TERM|INT|HUP|KILL|STOP|CONT
//	logs NAME REGEXP         wait for a line of the log
//	ends NAME N              wait for its end; the exit code must be N (-9: killed)
//	healthy ADDR CERT        the server there presents CERT and answers Health
//	follows ADDR CERT        a client that pinned the key of CERT is content
//	connect ADDR             connect and stay
//	goodbye                  the server closes that connection in order
//	certificate CERT KEY     make a pair
//	poke FILE OFFSET HEX     overwrite bytes
//	list FILE DIR            write names, modes, sizes and hashes of DIR to FILE
//	register ADDR NAME       make an account with a device
//	shape JSON WANT          the names and types in JSON are those of WANT
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			// The race detector else sleeps a second at every exit.
			e.Setenv("GORACE", "atexit_sleep_ms=0 "+e.Getenv("GORACE"))
			e.Values[stateKey{}] = &state{processes: map[string]*process{}}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code": cmdCode, "start": cmdStart, "launch": cmdLaunch, "signal": cmdSignal, "logs": cmdLogs, "ends": cmdEnds,
			"healthy": cmdHealthy, "follows": cmdFollows, "connect": cmdConnect, "goodbye": cmdGoodbye,
			"certificate": cmdCertificate, "poke": cmdPoke, "list": cmdList,
			"register": cmdRegister, "shape": cmdShape,
		},
	})
}

// state is what the commands of one script share.
type state struct {
	processes map[string]*process
	conn      transport.Conn // of connect
}

type stateKey struct{}

func stateOf(ts *testscript.TestScript) *state { return ts.Value(stateKey{}).(*state) }

// process is a qpcd that runs beside a script.
type process struct {
	cmd  *exec.Cmd
	log  string        // file
	done chan struct{} // closed at its end
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func usageOf(ts *testscript.TestScript, neg bool, ok bool, usage string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", usage)
	}
}

// prepare makes a run in the script's directory and environment.
func prepare(ts *testscript.TestScript, name string, args []string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = ts.MkAbs(".")
	names := []string{"PATH", "GORACE", "TMPDIR"}
	for _, s := range config.Settings() {
		names = append(names, s.Env())
	}
	for _, name := range names {
		if value := ts.Getenv(name); name != "" && value != "" {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
	}
	return cmd
}

func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) >= 2, "code N COMMAND ARG...")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := prepare(ts, args[1], args[2:])
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	ts.Check(cmd.Start())
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		ts.Fatalf("%v", err)
	}
	if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

func cmdLaunch(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) >= 1, "launch NAME ARG...")
	p := &process{cmd: prepare(ts, "qpcd", args[1:]), log: ts.MkAbs(args[0] + ".log"), done: make(chan struct{})}
	log, err := os.Create(p.log)
	ts.Check(err)
	p.cmd.Stderr = log
	var out bytes.Buffer
	p.cmd.Stdout = &out
	ts.Check(p.cmd.Start())
	go func() {
		_ = p.cmd.Wait() // the exit code says it
		log.Close()
		close(p.done)
	}()
	ts.Defer(func() {
		if !p.ended() {
			_ = p.cmd.Process.Kill()
			<-p.done
		}
		if out.Len() > 0 {
			ts.Fatalf("%s wrote to its standard output: %s", args[0], out.String())
		}
	})
	stateOf(ts).processes[args[0]] = p
}

var listening = regexp.MustCompile(`msg"?[=:]"?listening.* ?"?addr"?[=:]"?([^ ",]+)`)

func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	cmdLaunch(ts, neg, args)
	ts.Setenv(args[0], waitLog(ts, args[0], listening)[1])
}

// waitLog waits for a line of a process's log and returns the submatches.
func waitLog(ts *testscript.TestScript, name string, re *regexp.Regexp) []string {
	p := stateOf(ts).processes[name]
	for deadline := time.Now().Add(patience); ; time.Sleep(poll) {
		last := p.ended() || time.Now().After(deadline)
		log, err := os.ReadFile(p.log)
		ts.Check(err)
		if m := re.FindSubmatch(log); m != nil {
			found := make([]string, len(m))
			for i := range m {
				found[i] = string(m[i])
			}
			return found
		}
		if last {
			ts.Fatalf("the log of %s has no %s:\n%s", name, re, log)
		}
	}
}

func cmdLogs(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 2, "logs NAME REGEXP")
	re, err := regexp.Compile(`(?m)` + args[1])
	ts.Check(err)
	waitLog(ts, args[0], re)
}

func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}
	usageOf(ts, neg, len(args) == 2 && signals[args[1]] != 0, "signal NAME TERM|INT|HUP|KILL|STOP|CONT")
	ts.Check(stateOf(ts).processes[args[0]].cmd.Process.Signal(signals[args[1]]))
}

func cmdEnds(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 2, "ends NAME N")
	p := stateOf(ts).processes[args[0]]
	select {
	case <-p.done:
	case <-time.After(patience):
		ts.Fatalf("%s does not end", args[0])
	}
	got := p.cmd.ProcessState.ExitCode()
	if status := p.cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() {
		got = -int(status.Signal())
	}
	if strconv.Itoa(got) != args[1] {
		log, _ := os.ReadFile(p.log)
		ts.Fatalf("exit code %d, want %s:\n%s", got, args[1], log)
	}
}

func dial(ts *testscript.TestScript, addr string, trust transport.Trust) transport.Conn {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := transport.Dial(ctx, transport.DialOptions{Address: addr, Trust: trust})
	ts.Check(err)
	return conn
}

func health(ts *testscript.TestScript, conn transport.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	answer, err := qpcpb.NewHealthClient(rpc.NewClient(conn)).Health(ctx, &qpcpb.HealthRequest{})
	ts.Check(err)
	if answer.GetStatus() != "ok" || answer.GetVersion() != "dev" {
		ts.Fatalf("health: %v", answer)
	}
}

func cmdHealthy(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 2, "healthy ADDR CERT")
	trust, err := transport.TrustCertificateFile(ts.MkAbs(args[1]))
	ts.Check(err)
	conn := dial(ts, args[0], trust)
	health(ts, conn)
	ts.Check(conn.Close(transport.CloseNormal, ""))
}

func cmdFollows(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 2, "follows ADDR CERT")
	der, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	cert, err := x509.ParseCertificate(der)
	ts.Check(err)
	conn := dial(ts, args[0], transport.TrustPin(transport.PinOf(cert)))
	health(ts, conn)
	ts.Check(conn.Close(transport.CloseNormal, ""))
}

// anyServer forgets every server, so that each is met for the first time.
type anyServer struct{}

func (anyServer) Lookup(string) (transport.Pin, bool, error)         { return transport.Pin{}, false, nil }
func (anyServer) Remember(string, transport.Pin) error               { return nil }
func (anyServer) Replace(string, transport.Pin, transport.Pin) error { return nil }

func cmdConnect(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 1, "connect ADDR")
	s := stateOf(ts)
	s.conn = dial(ts, args[0], transport.TrustFirstUse(anyServer{}))
	ts.Defer(func() { _ = s.conn.Close(transport.CloseNormal, "") })
	health(ts, s.conn)
}

func cmdGoodbye(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 0, "goodbye")
	s := stateOf(ts)
	select {
	case <-s.conn.Context().Done():
	case <-time.After(patience):
		ts.Fatalf("the server does not close the connection")
	}
	var closed *transport.ClosedError
	if _, err := s.conn.OpenStream(context.Background()); !errors.As(err, &closed) || closed.Code != transport.CloseNormal || !closed.Remote {
		ts.Fatalf("the connection ended with %v", err)
	}
}

func cmdCertificate(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 2, "certificate CERT KEY")
	_, err := transport.LoadOrCreate(ts.MkAbs(args[0]), ts.MkAbs(args[1]), []string{"localhost"}, nil, nil)
	ts.Check(err)
}

func cmdPoke(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 3, "poke FILE OFFSET HEX")
	offset, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	b, err := hex.DecodeString(args[2])
	ts.Check(err)
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_WRONLY, 0)
	ts.Check(err)
	_, err = f.WriteAt(b, offset)
	ts.Check(errors.Join(err, f.Close()))
}

func cmdList(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 2, "list FILE DIR")
	var b strings.Builder
	ts.Check(filepath.WalkDir(ts.MkAbs(args[1]), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		sum := [sha256.Size]byte{}
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum = sha256.Sum256(data)
		}
		fmt.Fprintf(&b, "%s %s %s %x\n", d.Name(), info.Mode(), info.ModTime().UTC().Format(time.RFC3339Nano), sum)
		return nil
	}))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(b.String()), 0o600))
}

// TestReleaseVersion: what OpenWrt's build sets is what --version prints, whole.
func TestReleaseVersion(t *testing.T) {
	if testing.Short() {
		t.Skip("links the program")
	}
	program := filepath.Join(t.TempDir(), "qpcd")
	if out, err := exec.Command("go", "build", "-ldflags", "-X main.version=0.1.0", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	for _, arg := range []string{"version", "--version"} {
		cmd := exec.Command(program, arg)
		cmd.Env = []string{"QPC_LISTEN=nonsense"}
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "0.1.0\n" {
			t.Errorf("qpcd %s: %q, %v; want 0.1.0", arg, out, err)
		}
	}
}

// TestExitCodes: every code has one row, and wrapping does not hide an error's.
func TestExitCodes(t *testing.T) {
	for i, e := range exits() {
		if e.code != i || e.when == "" {
			t.Errorf("row %d is %+v", i, e)
		}
	}
	if code := exitCode(errors.New("anything")); code != 1 {
		t.Errorf("an unknown error ends with %d", code)
	}
}
