package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/tui"
	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
)

const (
	// scrollback is how many messages of a conversation are shown at the
	// start, unless more were not read yet.
	scrollback = 500
	// maxUnread bounds those.
	maxUnread = 5000
)

// logQueue keeps log lines off the screen that the chat draws, and gives them
// to it. It never blocks: a line that finds it full is dropped.
type logQueue struct{ lines chan string }

// maxLogLines bounds the lines that wait.
const maxLogLines = 64

func newLogQueue(a *app) *logQueue {
	q := &logQueue{lines: make(chan string, maxLogLines)}
	a.log = slog.New(newLogHandler(q, a.cli.LogLevel))
	return q
}

func (q *logQueue) Write(line []byte) (int, error) {
	select {
	case q.lines <- strings.TrimSpace(string(line)):
	default:
	}
	return len(line), nil
}

// onScreen runs a chat on a terminal.
func (cmd *chatCmd) onScreen(ctx context.Context, a *app, s *session, log *logQueue) error {
	peer, err := s.known(ctx, cmd.Name)
	if err != nil {
		if peer, err = s.LookUp(ctx, cmd.Name); err != nil {
			return err
		}
	}
	shown, err := s.Shown(ctx)
	if err != nil {
		return err
	}
	if shown.Peers == nil {
		shown.Peers = make(map[string]client.Mark)
	}
	unread := 0
	err = s.History(ctx, peer.Identity, shown.Of(peer.Identity).UpTo, func(client.Message) bool {
		unread++
		return unread < maxUnread
	})
	if err != nil {
		return err
	}
	messages, err := s.last(ctx, peer.Identity, max(scrollback, unread))
	if err != nil {
		return err
	}
	events := s.start(context.WithoutCancel(ctx))
	err = tui.Run(ctx, tui.Options{
		Me: s.profile.Name, Peer: peer, Messages: messages, ShownUpTo: shown.Of(peer.Identity).UpTo,
		Events: events, Log: log.lines, In: a.in, Out: a.out,
		Chat: &screenChat{session: s, peer: peer, shown: shown},
	})
	if errors.Is(err, tui.ErrEnded) {
		return s.err()
	}
	if n, countErr := s.Unsent(context.WithoutCancel(ctx)); err == nil && countErr == nil && n > 0 {
		a.note("%d messages and receipts were not sent yet; they go out when qpc runs again", n)
	}
	return err
}

// screenChat is what the screen does to the conversation.
type screenChat struct {
	session *session
	peer    client.Contact

	mu    sync.Mutex
	shown client.Shown
}

// Send sends a text.
func (c *screenChat) Send(ctx context.Context, text string) ([]client.Message, error) {
	return c.session.sendParts(ctx, c.peer.Identity, text)
}

// Typing tells the peer that this user types.
func (c *screenChat) Typing(ctx context.Context, on bool) {
	_ = c.session.Typing(ctx, c.peer.Identity, on) // a hint
}

// Displayed marks messages of the peer as seen here and tells the peer.
func (c *screenChat) Displayed(ctx context.Context, messages []client.Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := c.peer.Identity.String()
	mark := c.shown.Peers[key]
	for _, m := range messages {
		if m.No > mark.UpTo { // of two calls the later may come first
			mark = client.Mark{UpTo: m.No, Open: goesOn(m, mark.Open)}
		}
	}
	c.shown.Peers[key] = mark
	if err := c.session.SetShown(ctx, c.shown); err != nil {
		return err
	}
	for _, m := range messages {
		if m.Part == e2ee.PartMore {
			continue // the last part answers for all
		}
		if err := c.session.MarkRead(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// Check asks the server whether the peer still has the key known here.
func (c *screenChat) Check(ctx context.Context) error {
	_, err := c.session.FindContact(ctx, c.peer.Name)
	return err
}
