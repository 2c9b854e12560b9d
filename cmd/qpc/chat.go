package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/pieces"
	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

const (
	// maxLine bounds a line that is one message; a longer one is sent as
	// several that the reader sees as one.
	maxLine = 1 << 20
	// receiptGrace is how long the end of a chat waits for read receipts to
	// go out; they are stored and would go out another time.
	receiptGrace = 2 * time.Second
	// receiptPoll is how often that is looked at.
	receiptPoll = 20 * time.Millisecond
)

type chatCmd struct {
	Name    string        `arg:"" help:"Whom to chat with."`
	Timeout time.Duration `placeholder:"DURATION" help:"Without a terminal: how long to wait, at the end of input, until everything is sent. For ever unless given."`
}

// Help is the long help of the command.
func (chatCmd) Help() string {
	return "On a terminal: Enter sends, PgUp and PgDn scroll, Ctrl-C leaves. When input or output is not a terminal, each line read is a message and each message that arrives is printed as NAME: TEXT."
}

func (cmd *chatCmd) Run(ctx context.Context, a *app) error {
	screen := isTerminal(a.in, a.out)
	var screenLog *logQueue
	if screen {
		screenLog = newLogQueue(a)
	}
	s, err := a.open(ctx, cmd.Name)
	if err != nil {
		return err
	}
	defer s.close()
	if screen {
		return cmd.onScreen(ctx, a, s, screenLog)
	}
	return cmd.byLine(ctx, a, s)
}

// lineChat is a chat without a terminal.
type lineChat struct {
	cmd      *chatCmd
	app      *app
	session  *session
	tracker  *tracker
	ledger   *ledger
	peer     client.Contact
	midLine  bool
	caughtUp bool
	events   <-chan client.Event
	watch    watcher
}

// byLine runs a chat without a terminal.
func (cmd *chatCmd) byLine(ctx context.Context, a *app, s *session) error {
	l, err := openLedger(ctx, s.Client, a.out)
	if err != nil {
		return err
	}
	c := &lineChat{cmd: cmd, app: a, session: s, tracker: newTracker(s), ledger: l, watch: watcher{app: a}}
	// On an interrupt, what was typed is still sent: the connection lives on
	// until close.
	c.events = s.start(context.WithoutCancel(ctx))
	if err := c.meet(ctx); err != nil {
		return err
	}
	c.tracker.name = c.peer.Name
	if err := c.catchUp(ctx); err != nil {
		return err
	}
	lines, ends := make(chan string), make(chan error, 1)
	stop := make(chan struct{})
	defer close(stop)
	go func() { ends <- readLines(a.in, lines, stop) }()

	var ended <-chan time.Time // the bound on the end, once it is there
	input, result := (<-chan string)(lines), error(nil)
	for {
		select {
		case line := <-input:
			if err := c.say(ctx, line); err != nil {
				return err
			}
		case result = <-ends:
			input, ends = nil, nil
			if cmd.Timeout > 0 {
				ended = time.After(cmd.Timeout)
			}
		case e, ok := <-c.events:
			if !ok {
				return s.err()
			}
			if err := c.see(ctx, e); err != nil {
				return err
			}
		case <-ended:
			return errors.Join(result, c.left())
		case <-ctx.Done():
			return c.left()
		}
		if ends == nil && c.caughtUp && c.unsent() == 0 {
			c.receipts(ctx)
			return errors.Join(result, c.tracker.failed)
		}
	}
}

// meet finds the peer, taking events meanwhile.
func (c *lineChat) meet(ctx context.Context) error {
	for {
		if c.tracker.tried { // so that the server, if it is there, was asked
			peer, err := c.session.FindContact(ctx, c.cmd.Name)
			if !errors.Is(err, client.ErrOffline) {
				c.peer = peer
				return err
			}
		}
		select {
		case e, ok := <-c.events:
			if !ok {
				return c.session.err()
			}
			// What the peer writes meanwhile is stored, and shown by catchUp.
			c.note(e)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// note takes an event that is not a message of the peer.
func (c *lineChat) note(e client.Event) {
	c.watch.see(e)
	c.tracker.see(e)
	switch {
	case e.Kind == client.EventCaughtUp:
		c.caughtUp = true
	case e.Kind == client.EventMessage && c.peer.Name != "" && e.Peer != c.peer.Identity:
		c.app.note("%s has written to you", displayName(e.PeerName, e.Peer))
	}
}

func (c *lineChat) see(ctx context.Context, e client.Event) error {
	if e.Kind == client.EventMessage && e.Peer == c.peer.Identity && c.ledger.isNew(e.Message) {
		return c.show(ctx, []client.Message{e.Message})
	}
	c.note(e)
	c.tracker.check(ctx, e)
	return c.tracker.fatal
}

// catchUp shows what is on this machine and was not shown yet.
func (c *lineChat) catchUp(ctx context.Context) error {
	for {
		var waiting []client.Message
		err := c.session.History(ctx, c.peer.Identity, c.ledger.shown.Of(c.peer.Identity).UpTo, func(m client.Message) bool {
			if !m.Mine {
				waiting = append(waiting, m)
			}
			return len(waiting) < maxShownAtOnce
		})
		if err != nil || len(waiting) == 0 {
			return err
		}
		if err := c.show(ctx, waiting); err != nil {
			return err
		}
	}
}

// show prints messages and says that they were read.
func (c *lineChat) show(ctx context.Context, messages []client.Message) error {
	err := c.ledger.write(ctx, messages, func(m client.Message, open bool) ([]byte, error) {
		var b strings.Builder
		if !open || !c.midLine || m.Part == e2ee.PartWhole {
			if c.midLine {
				b.WriteByte('\n')
			}
			b.WriteString(c.peer.Name + ": ")
		}
		text := inWords(m)
		if isTerminal(c.app.out) {
			text = forTerminal(text)
		}
		b.WriteString(text)
		c.midLine = m.Part == e2ee.PartMore
		if m.Part == e2ee.PartWhole || m.Part == e2ee.PartLast && !strings.HasSuffix(text, "\n") {
			b.WriteByte('\n')
		}
		return []byte(b.String()), nil
	})
	for _, m := range messages {
		if err == nil && m.Part != e2ee.PartMore {
			err = c.session.MarkRead(ctx, m)
		}
	}
	return err
}

// say sends a line. While too much waits, events are taken.
func (c *lineChat) say(ctx context.Context, line string) error {
	if !utf8.ValidString(line) {
		return fmt.Errorf("%w; only the lines before it were sent", pieces.ErrNotText)
	}
	for c.unsent() >= maxUnsent {
		select {
		case e, ok := <-c.events:
			if !ok {
				return c.session.err()
			}
			if err := c.see(ctx, e); err != nil {
				return err
			}
		case <-ctx.Done():
			return c.left()
		}
	}
	sent, err := c.session.sendParts(ctx, c.peer.Identity, line)
	for _, m := range sent {
		c.tracker.pending[m.No] = true
	}
	return err
}

// sendParts sends a text as one message or, when it is long, in parts.
func (s *session) sendParts(ctx context.Context, peer rpc.IdentityKey, text string) (sent []client.Message, err error) {
	texts := e2ee.SplitText(text, client.MaxChunk)
	for i, text := range texts {
		part := e2ee.PartMore
		switch {
		case len(texts) == 1:
			part = e2ee.PartWhole
		case i == len(texts)-1:
			part = e2ee.PartLast
		}
		m, err := s.Send(ctx, peer, text, part)
		if err != nil {
			return sent, err
		}
		sent = append(sent, m)
	}
	return sent, nil
}

func (c *lineChat) unsent() int { return len(c.tracker.pending) }

// left tells what was not sent.
func (c *lineChat) left() error {
	if c.unsent() == 0 {
		return nil
	}
	return withHint(fmt.Errorf("ended early; %d messages wait on this machine", c.unsent()),
		"they go out while any qpc chat, send or recv of this account runs")
}

// receipts lets read receipts go out, for a moment.
func (c *lineChat) receipts(ctx context.Context) {
	grace := time.After(receiptGrace)
	for {
		if n, err := c.session.Unsent(ctx); err != nil || n == 0 {
			return
		}
		select {
		case e, ok := <-c.events:
			if !ok || c.see(ctx, e) != nil {
				return
			}
		case <-time.After(receiptPoll):
		case <-grace:
			return
		case <-ctx.Done():
			return
		}
	}
}

// readLines gives every line, without its end, until the input ends.
func readLines(in io.Reader, lines chan<- string, stop <-chan struct{}) error {
	r := bufio.NewReader(in)
	for {
		line, err := readLine(r)
		if line != "" || err == nil {
			select {
			case lines <- line:
			case <-stop:
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the input: %w", err)
		}
	}
}

func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		piece, err := r.ReadSlice('\n')
		if line = append(line, piece...); len(line) > maxLine {
			return "", fmt.Errorf("a line has more than %d bytes; qpc send NAME - carries long texts", maxLine)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r"), err
		}
	}
}
