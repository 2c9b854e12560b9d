package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/pieces"
	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// inputPause is how long the input of send - may say nothing before what was
// read of it goes out.
const inputPause = 200 * time.Millisecond

type sendCmd struct {
	Name    string        `arg:"" help:"Whom to."`
	Text    []string      `arg:"" optional:"" help:"The message, or - to send standard input."`
	File    string        `placeholder:"PATH" help:"Send a file instead of a text. When it is cut off, the same command goes on where it was."`
	NoWait  bool          `help:"Do not wait for the server: it is enough that the message is stored on this machine."`
	Timeout time.Duration `placeholder:"DURATION" help:"How long to wait for the server; for ever unless given."`
	JSON    bool          `name:"json" help:"Print JSON when done."`
}

// Help is the long help of the command.
func (sendCmd) Help() string {
	return "With -, standard input must be UTF-8. It arrives byte for byte, cut into messages on its way, and what was read goes out whenever the input pauses. The exit code is 0 only when the server has stored everything (with --no-wait, when this machine has). A message that begins with a hyphen stands behind --."
}

// sentJSON is the answer of send.
type sentJSON struct {
	Peer     string `json:"peer"`
	PeerKey  string `json:"peer_key"`
	Messages int    `json:"messages"`
	Bytes    int    `json:"bytes"`
	Stored   string `json:"stored"` // "server", or "here" with --no-wait
}

func (cmd *sendCmd) Run(ctx context.Context, a *app) error {
	stream := len(cmd.Text) == 1 && cmd.Text[0] == "-"
	text := strings.Join(cmd.Text, " ")
	var file *os.File
	switch {
	case cmd.File != "":
		var err error
		if file, err = cmd.openFile(); err != nil {
			return err
		}
		defer file.Close() // it is only read
	case len(cmd.Text) == 0:
		return usageError{errors.New("there is nothing to send: give a text, - for standard input, or --file PATH")}
	case !stream && !utf8.ValidString(text):
		return usageError{errors.New("the message is not UTF-8 text")}
	case stream:
		// What can be judged before anything is sent is.
		if err := checkInput(a.in); err != nil {
			return err
		}
	}
	s, err := a.open(ctx, cmd.Name)
	if err != nil {
		return err
	}
	defer s.close()
	bounded := ctx
	if cmd.Timeout > 0 {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, cmd.Timeout)
		defer cancel()
	}
	t := newTracker(s)
	done := t.follow(ctx, s.start(context.WithoutCancel(ctx)))
	defer func() { s.cancel(); <-done }()
	peer, err := t.find(bounded, cmd.Name)
	if err != nil {
		return err
	}
	counted := &counter{tracker: t, peer: peer.Identity, noWait: cmd.NoWait}
	if file != nil {
		err = counted.file(bounded, file)
	} else if stream {
		err = counted.stream(bounded, a.in)
	} else {
		err = counted.text(bounded, text)
	}
	if err == nil && !cmd.NoWait {
		err = t.flush(bounded)
	}
	if err != nil || !cmd.JSON {
		return err
	}
	stored := "server"
	if cmd.NoWait {
		stored = "here"
	}
	return a.json(sentJSON{Peer: peer.Name, PeerKey: peer.Identity.String(), Messages: counted.messages, Bytes: counted.bytes, Stored: stored})
}

// follow takes the events of a session that only sends.
func (t *tracker) follow(ctx context.Context, events <-chan client.Event) (done <-chan struct{}) {
	ended := make(chan struct{})
	watch := watcher{app: t.session.app}
	go func() {
		defer close(ended)
		for e := range events {
			watch.see(e)
			t.see(e)
			t.check(ctx, e)
		}
		t.end()
	}()
	return ended
}

// counter sends and counts.
type counter struct {
	tracker         *tracker
	peer            rpc.IdentityKey
	noWait          bool
	messages, bytes int
}

func (c *counter) send(ctx context.Context, text string, part e2ee.Part) error {
	var err error
	if c.noWait { // nothing bounds what waits here
		_, err = c.tracker.session.Send(ctx, c.peer, text, part)
	} else {
		_, err = c.tracker.send(ctx, c.peer, text, part)
	}
	if err == nil {
		c.messages++
		c.bytes += len(text)
	}
	return err
}

// text sends what was typed in the command.
func (c *counter) text(ctx context.Context, text string) error {
	if len(text) <= client.MaxChunk {
		return c.send(ctx, text, e2ee.PartWhole)
	}
	return c.stream(ctx, strings.NewReader(text))
}

// stream sends an input in parts. Whatever happens, the text is ended for the
// reader if it was begun.
func (c *counter) stream(ctx context.Context, in io.Reader) error {
	open, err := c.unfinished(ctx)
	if err != nil {
		return err
	}
	if open { // a qpc that was killed left its text without an end
		if err := c.send(ctx, "", e2ee.PartLast); err != nil {
			return err
		}
	}
	began := false
	cutter := pieces.Cutter{Max: client.MaxChunk, Pause: inputPause}
	err = cutter.Cut(ctx, in, func(piece string, last bool) error {
		part := e2ee.PartMore
		if last {
			part = e2ee.PartLast
		}
		began = !last
		return c.send(ctx, piece, part)
	})
	if err == nil || !began {
		return err
	}
	if ctx.Err() != nil {
		err = errors.New("the input was not read to its end")
	}
	_, endErr := c.tracker.session.Send(context.WithoutCancel(ctx), c.peer, "", e2ee.PartLast)
	return errors.Join(withHint(fmt.Errorf("%w; only what came before was sent", err), "the reader sees a text that ends there"), endErr)
}

// unfinished reports whether the last text to the peer has no end.
func (c *counter) unfinished(ctx context.Context) (open bool, err error) {
	err = c.tracker.session.History(ctx, c.peer, 0, func(m client.Message) bool {
		if m.Mine {
			open = goesOn(m, open)
		}
		return true
	})
	return open, err
}

// checkInput looks through a regular file that is not UTF-8 before a part of
// it is sent. Any other input is judged as it comes.
func checkInput(in *os.File) error {
	if st, err := in.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil
	}
	at, err := in.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil
	}
	if err := pieces.Check(in); err != nil {
		return err
	}
	if _, err := in.Seek(at, io.SeekStart); err != nil {
		return fmt.Errorf("reading the input again: %w", err)
	}
	return nil
}
