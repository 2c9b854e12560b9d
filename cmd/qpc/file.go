package main

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// progressPause is how often a progress bar is drawn.
const progressPause = 100 * time.Millisecond

// openFile opens the file to send, and refuses what cannot be sent before
// anybody is asked for a password.
func (cmd *sendCmd) openFile() (*os.File, error) {
	switch {
	case len(cmd.Text) > 0:
		return nil, usageError{errors.New("a file goes without a text; send that by itself")}
	case cmd.NoWait:
		return nil, usageError{errors.New("a file cannot be sent with --no-wait: it is read while it is sent")}
	}
	f, err := os.Open(cmd.File)
	if err != nil {
		return nil, fmt.Errorf("the file cannot be read: %w", err)
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = usageError{fmt.Errorf("%s is not a file; a directory can be sent as an archive", cmd.File)}
	case st.Size() > e2ee.MaxFile:
		err = fmt.Errorf("%s has %d bytes; a file may have at most %d", cmd.File, st.Size(), int64(e2ee.MaxFile))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// file sends a file.
func (c *counter) file(ctx context.Context, f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("the file cannot be read: %w", err)
	}
	name := filepath.Base(f.Name())
	if !utf8.ValidString(name) {
		name = strings.ToValidUTF8(name, "_")
	}
	ctx, end := c.tracker.whileRunning(ctx)
	defer end()
	progress, done := c.tracker.session.app.progress("sending " + name)
	u, err := c.tracker.session.Upload(ctx, client.File{
		Name: name, MIME: mime.TypeByExtension(filepath.Ext(name)), Size: st.Size(), Content: f,
	}, progress)
	done()
	if err == nil {
		err = c.tracker.sendFile(ctx, c.peer, u)
	}
	if err != nil {
		return cutOff(err)
	}
	c.messages++
	c.bytes += int(st.Size())
	return nil
}

// cutOff tells what to do about a transfer that did not come to its end.
func cutOff(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return withHint(errors.New("ended early"), "the same command goes on where it was")
	}
	return err
}

// whileRunning returns a context that ends, too, when the connection has ended
// for good or the peer's key has changed.
func (t *tracker) whileRunning(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() { cancel(t.until(ctx, func() bool { return false })) }()
	return ctx, func() { cancel(nil) }
}

// sendFile stores the message of an uploaded file to be sent.
func (t *tracker) sendFile(ctx context.Context, peer rpc.IdentityKey, u client.Uploaded) error {
	// Under the lock, so that the event does not overtake the number.
	t.mu.Lock()
	defer t.mu.Unlock()
	m, err := t.session.SendFile(ctx, peer, u)
	if err == nil && m.Status == client.StatusQueued {
		t.pending[m.No] = true
	}
	return err
}

// progress returns what shows the progress of a transfer on a terminal, and
// what takes it away; elsewhere they say nothing.
func (a *app) progress(what string) (show client.Progress, done func()) {
	if !isTerminal(a.errs) {
		return nil, func() {}
	}
	var bar *progressbar.ProgressBar
	show = func(n, total int64) {
		if bar == nil {
			bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(a.errs), progressbar.OptionSetDescription(forTerminal(what)),
				progressbar.OptionShowBytes(true), progressbar.OptionThrottle(progressPause), progressbar.OptionClearOnFinish())
		}
		_ = bar.Set64(n) // a bar that cannot be drawn is no matter
	}
	return show, func() {
		if bar != nil {
			_ = bar.Clear()
		}
	}
}

// fileInWords says what a message with a file is.
func fileInWords(m client.Message) string {
	hint := ""
	switch {
	case m.Mine:
	case m.File == nil:
		hint = "; it cannot be fetched"
	default:
		hint = "; to keep it: qpc save " + fmt.Sprint(m.No)
	}
	return fmt.Sprintf("(sends the file %s, %s%s)", m.Name, byteSize(m.Size), hint)
}

// byteSize shows a number of bytes for people.
func byteSize(n uint64) string {
	const step = 1024
	if n < step {
		return fmt.Sprintf("%d bytes", n)
	}
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	value, unit := float64(n)/step, 0
	for value >= step && unit < len(units)-1 {
		value, unit = value/step, unit+1
	}
	return fmt.Sprintf("%.1f %s", value, units[unit])
}
