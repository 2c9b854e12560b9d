// Package tui is the chat on a terminal: a scrollback, a status line and an
// input line.
//
// It shows what is given to it and calls a Chat for everything it does to the
// conversation. A message counts as displayed once it is in sight: the
// scrollback is at its end and the terminal has the focus, or does not say. What
// came meanwhile stands below a line that says so.
//
// State: one bubbletea program owns the model; Run's only other goroutine
// hands it events and log lines until their channels close or Run has returned.
package tui

import (
	"context"
	"errors"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/quicprochat/qpcd/pkg/client"
)

const (
	// typingEvery is how often the peer is told that typing goes on, and
	// typingFor how long they believe it: two notices in a row may be lost.
	typingEvery = 4 * time.Second
	typingFor   = 10 * time.Second
	// maxMessages bounds the scrollback; `qpc history` has the rest.
	maxMessages = 5000
	// maxInput bounds the input line in characters.
	maxInput = 64 << 10
)

// Chat is what the screen does to the conversation.
type Chat interface {
	// Send stores a text to be sent. It must be quick: the screen waits.
	Send(ctx context.Context, text string) ([]client.Message, error)
	// Typing tells the peer whether this user types. It may wait for the
	// network.
	Typing(ctx context.Context, on bool)
	// Displayed notes that messages of the peer were seen.
	Displayed(ctx context.Context, messages []client.Message) error
	// Check asks whether the peer is still who they were.
	Check(ctx context.Context) error
}

// Options says what a screen shows.
type Options struct {
	Me        string
	Peer      client.Contact
	Messages  []client.Message // the end of the conversation, oldest first
	ShownUpTo uint64           // the number of the last message of the peer seen before
	Events    <-chan client.Event
	Log       <-chan string // lines to show beside the conversation
	In        io.Reader
	Out       io.Writer
	Chat      Chat
	Now       func() time.Time // nil: time.Now
}

// ErrEnded reports that the events have ended: the account cannot be used.
var ErrEnded = errors.New("the connection has ended for good")

// Run shows the screen until the user leaves or ctx ends.
func Run(ctx context.Context, o Options) error {
	m := newModel(ctx, o)
	p := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(o.In), tea.WithOutput(o.Out), tea.WithoutSignalHandler())
	done := make(chan struct{})
	defer close(done)
	go pump(p, o, done)
	_, err := p.Run()
	switch {
	case m.ended:
		return ErrEnded
	case ctx.Err() != nil || errors.Is(err, tea.ErrInterrupted):
		return nil
	}
	return err
}

// pump hands events to the program. p.Send returns at once when that has
// ended.
func pump(p *tea.Program, o Options, done <-chan struct{}) {
	for {
		select {
		case e, ok := <-o.Events:
			if !ok {
				p.Send(endedMsg{})
				return
			}
			p.Send(eventMsg(e))
		case line := <-o.Log:
			p.Send(noteMsg(line))
		case <-done:
			return
		}
	}
}

// The messages of the program.
type (
	eventMsg      client.Event
	noteMsg       string
	endedMsg      struct{}
	typingOverMsg struct{}
)
