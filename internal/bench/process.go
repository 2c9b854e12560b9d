package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// startPatience is how long a process may take until it says that it is
	// ready: a thousand handshakes on a busy machine.
	startPatience = time.Minute
	// stopPatience is how long it may take to end once it was told to; qpcd
	// drains for up to eight seconds.
	stopPatience = 15 * time.Second
	// lastLines is how much of a process's output an error shows.
	lastLines = 5

	// settleEvery, settleAtMost and settleBytes say when memory has settled: it
	// is looked at every settleEvery, and has not grown or shrunk by
	// settleBytes for as long as the plan says.
	settleEvery  = 50 * time.Millisecond
	settleAtMost = 6 * time.Second
	settleBytes  = 64 << 10
)

// process is a program that runs beside this one.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ended chan struct{} // closed when it has ended
	err   error         // how, once it has
	ready string        // the line that said that it is ready

	mu       sync.Mutex
	said     []string               // its last lines
	expected func(line string) bool // what expect waits for, or nil
	came     chan string
}

// startProcess starts a program and waits for the first line of its output
// that isReady takes. Both its outputs are read to their ends.
func startProcess(ctx context.Context, isReady func(line string) bool, name string, args ...string) (*process, error) {
	return startProcessWith(ctx, nil, isReady, name, args...)
}

// startProcessWith is startProcess with a beginning of the program's input, of
// no more than a pipe holds.
func startProcessWith(ctx context.Context, input []byte, isReady func(line string) bool, name string, args ...string) (*process, error) {
	// Not CommandContext: it would kill at the end of ctx, and whoever starts a
	// process here ends it.
	p := &process{cmd: exec.Command(name, args...), ended: make(chan struct{}), came: make(chan string, 1), expected: isReady}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p.cmd.Stdout, p.cmd.Stderr = writer, writer
	if p.stdin, err = p.cmd.StdinPipe(); err == nil {
		err = p.cmd.Start()
	}
	writer.Close()
	if err != nil {
		reader.Close()
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go p.listen(reader)
	if len(input) > 0 {
		_, err = p.stdin.Write(input)
	}
	if err == nil {
		p.ready, err = p.expect(ctx)
	}
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("starting %s: %w%s", name, err, p.lastWords())
	}
	return p, nil
}

// listen reads the output to its end and takes leave of the process.
func (p *process) listen(output io.ReadCloser) {
	defer close(p.ended)
	defer output.Close()
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		line := lines.Text()
		p.mu.Lock()
		p.said = append(p.said, line)
		p.said = p.said[max(0, len(p.said)-lastLines):]
		if p.expected != nil && p.expected(line) {
			p.expected = nil
			p.came <- line // there is room: only expect makes it full
		}
		p.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, output) // a line too long ended the scanner
	p.err = p.cmd.Wait()
}

// expect waits for the line that p.expected takes.
func (p *process) expect(ctx context.Context) (string, error) {
	timeout := time.NewTimer(startPatience)
	defer timeout.Stop()
	select {
	case line := <-p.came:
		return line, nil
	case <-p.ended:
		return "", fmt.Errorf("it ended: %v", p.err)
	case <-timeout.C:
		return "", errors.New("it did not say so in time")
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// tell writes a line to the process and waits for the line that answers it.
func (p *process) tell(ctx context.Context, line, answer string) error {
	p.mu.Lock()
	p.expected = func(line string) bool { return line == answer }
	p.mu.Unlock()
	_, err := io.WriteString(p.stdin, line+"\n")
	if err == nil {
		_, err = p.expect(ctx)
	}
	if err != nil {
		return fmt.Errorf("telling %s to %s: %w%s", p.cmd.Path, line, err, p.lastWords())
	}
	return nil
}

// lastWords is what the process said last, for errors.
func (p *process) lastWords() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return "; it said:\n" + strings.Join(p.said, "\n")
}

// stop tells the process to end, by a signal and by the end of its input, and
// waits for it.
func (p *process) stop(signal os.Signal) error {
	p.stdin.Close()
	if signal != nil {
		if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stopping %s: %w", p.cmd.Path, err)
		}
	}
	timeout := time.NewTimer(stopPatience)
	defer timeout.Stop()
	select {
	case <-p.ended:
	case <-timeout.C:
		p.kill()
		return fmt.Errorf("%s did not end in time%s", p.cmd.Path, p.lastWords())
	}
	if p.err != nil {
		return fmt.Errorf("%s ended badly: %w%s", p.cmd.Path, p.err, p.lastWords())
	}
	return nil
}

// kill ends the process as a power cut would, and waits.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it fails only when the process has ended
	<-p.ended
	p.stdin.Close()
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// cpu returns the processor time that the process has used, of all its threads
// and on both sides of the kernel's door.
func (p *process) cpu() (time.Duration, error) {
	// The clock of another process, as clock_getcpuclockid makes its number
	// (linux/posix-timers.h: the complement of the pid, and 2 for the
	// scheduler's clock).
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^p.pid()<<3|2), &t); err != nil {
		return 0, fmt.Errorf("reading the processor time of process %d: %w", p.pid(), err)
	}
	return time.Duration(t.Nano()), nil
}

// written is what a process has written since it began.
type written struct {
	disk  int64 // bytes of pages it has dirtied: what the disk gets
	calls int64 // bytes it gave to the kernel, sockets included
}

// written reads /proc/PID/io.
func (p *process) written() (w written, err error) {
	fields, err := p.proc("io")
	if err != nil {
		return w, err
	}
	if w.disk, err = fields.number("write_bytes"); err != nil {
		return w, err
	}
	w.calls, err = fields.number("wchar")
	return w, err
}

// memory is what a process holds, in bytes.
type memory struct {
	resident  int64 // VmRSS
	anonymous int64 // of these: not backed by a file
	peak      int64 // VmHWM
}

func (p *process) memory() (m memory, err error) {
	fields, err := p.proc("status")
	if err != nil {
		return m, err
	}
	for name, to := range map[string]*int64{"VmRSS": &m.resident, "RssAnon": &m.anonymous, "VmHWM": &m.peak} {
		if *to, err = fields.number(name); err != nil {
			return m, err
		}
		*to <<= 10
	}
	return m, nil
}

// settledMemory waits until the memory of the process has stayed the same for a
// time.
func (p *process) settledMemory(ctx context.Context, same time.Duration) (memory, error) {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	start := time.Now()
	last, since := memory{}, start
	for {
		m, err := p.memory()
		if err != nil {
			return m, err
		}
		if d := m.resident - last.resident; d > settleBytes || d < -settleBytes {
			last, since = m, time.Now()
		}
		if time.Since(since) >= same || time.Since(start) >= settleAtMost {
			return m, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return m, ctx.Err()
		}
	}
}

// procFields are the "name: value" lines of a file in /proc.
type procFields map[string]string

func (p *process) proc(file string) (procFields, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.pid(), file))
	if err != nil {
		return nil, fmt.Errorf("reading what the kernel counts of %s: %w", p.cmd.Path, err)
	}
	return parseProc(string(b)), nil
}

func parseProc(text string) procFields {
	fields := procFields{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return fields
}

// number reads a field that begins with a number.
func (f procFields) number(name string) (int64, error) {
	digits, _, _ := strings.Cut(f[name], " ")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the kernel says %q for %s, want a number", f[name], name)
	}
	return n, nil
}
