package tui

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"charm.land/bubbles/v2/textinput"
	"charm.land/bubbles/v2/viewport"
	tea "charm.land/bubbletea/v2"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
)

// model is the state of the screen. Update alone changes it.
type model struct {
	ctx  context.Context
	o    Options
	now  func() time.Time
	text styles

	width, height int
	scroll        viewport.Model
	input         textinput.Model

	items  []item
	dirty  bool // items have changed since they were laid out
	follow bool // the scrollback stays at its end

	connection client.ConnectionState
	why        string    // why there is no connection
	waiting    string    // why messages wait
	peerOnline bool      // as far as the server told
	typingTill time.Time // until when the peer is taken to be typing
	told       time.Time // when the peer was last told that we type; zero: not typing

	blurred bool
	unseen  []client.Message // of the peer, not displayed yet
	mark    int              // index of the first item below the line "new"; -1 without
	ended   bool
}

// item is a line or more of the scrollback: a message, or a note beside it.
type item struct {
	message client.Message
	note    string // when it is no message
	alarm   bool
	lines   []string // laid out, for the present width
}

func newModel(ctx context.Context, o Options) *model {
	m := &model{ctx: ctx, o: o, now: o.Now, text: newStyles(), dirty: true, follow: true, mark: -1, connection: client.Connecting}
	if m.now == nil {
		m.now = time.Now
	}
	for _, message := range o.Messages {
		m.add(item{message: message})
		if !message.Mine && message.No > o.ShownUpTo {
			m.newcomer(message)
		}
	}
	m.scroll = viewport.New()
	m.scroll.SoftWrap = false // lines are laid out here
	m.input = textinput.New()
	m.input.Prompt = "> "
	m.input.CharLimit = maxInput
	m.input.SetVirtualCursor(false) // the terminal's own: no timer, and right with input methods
	m.input.Focus()
	return m
}

// Init marks what is in sight as seen.
func (m *model) Init() tea.Cmd { return m.see() }

// Update takes one message.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.resize(msg.Width, msg.Height)
		return m, nil
	case tea.FocusMsg:
		m.blurred = false
		return m, m.see()
	case tea.BlurMsg:
		m.blurred = true
		return m, nil
	case tea.KeyPressMsg:
		return m, m.key(msg)
	case eventMsg:
		return m, m.event(client.Event(msg))
	case noteMsg:
		m.add(item{note: string(msg)})
		return m, nil
	case alarmMsg:
		m.add(item{note: string(msg), alarm: true})
		return m, nil
	case typingOverMsg:
		return m, nil // drawing again is enough
	case endedMsg:
		m.ended = true
		return m, tea.Quit
	}
	return m, m.edit(msg)
}

// alarmMsg is a note that must be seen.
type alarmMsg string

// key acts on a key.
func (m *model) key(msg tea.KeyPressMsg) tea.Cmd {
	switch msg.String() {
	case "ctrl+c", "ctrl+d":
		return tea.Quit
	case "enter":
		return m.send()
	case "pgup", "pgdown", "up", "down", "ctrl+home", "ctrl+end":
		m.layOut()
		switch msg.String() {
		case "pgup":
			m.scroll.PageUp()
		case "pgdown":
			m.scroll.PageDown()
		case "up":
			m.scroll.ScrollUp(1)
		case "down":
			m.scroll.ScrollDown(1)
		case "ctrl+home":
			m.scroll.GotoTop()
		case "ctrl+end":
			m.scroll.GotoBottom()
		}
		m.follow = m.scroll.AtBottom()
		return m.see()
	}
	return m.edit(msg)
}

// edit gives a message to the input line and tells the peer of typing.
func (m *model) edit(msg tea.Msg) tea.Cmd {
	before := m.input.Value()
	var cmd tea.Cmd
	m.input, cmd = m.input.Update(msg)
	after := m.input.Value()
	switch {
	case after == before:
		return cmd
	case after == "":
		return tea.Batch(cmd, m.stopTyping())
	case m.now().Sub(m.told) >= typingEvery:
		m.told = m.now()
		return tea.Batch(cmd, m.typing(true))
	}
	return cmd
}

func (m *model) typing(on bool) tea.Cmd {
	return func() tea.Msg {
		m.o.Chat.Typing(m.ctx, on)
		return nil
	}
}

func (m *model) stopTyping() tea.Cmd {
	if m.told.IsZero() {
		return nil
	}
	m.told = time.Time{}
	return m.typing(false)
}

// send sends the input line. It is done here and not beside, so that quick
// messages keep their order.
func (m *model) send() tea.Cmd {
	text := m.input.Value()
	if strings.TrimSpace(text) == "" {
		return nil
	}
	sent, err := m.o.Chat.Send(m.ctx, text)
	if err != nil {
		m.add(item{note: "not sent: " + err.Error(), alarm: true})
		return nil
	}
	m.input.Reset()
	m.told = time.Time{} // the message itself tells that typing is over
	m.mark, m.follow = -1, true
	for _, message := range sent {
		m.add(item{message: message})
	}
	return m.see()
}

// event acts on what the client tells.
func (m *model) event(e client.Event) tea.Cmd {
	mine := e.Peer == m.o.Peer.Identity
	switch e.Kind {
	case client.EventConnection:
		m.connection, m.why = e.Connection, ""
		if e.Err != nil {
			m.why = e.Err.Error()
		}
		if e.Connection == client.Connected {
			m.waiting = ""
			return m.check()
		}
		m.peerOnline, m.typingTill = false, time.Time{}
	case client.EventMessage:
		if !mine {
			m.add(item{note: e.PeerName + " has written to you"})
			return nil
		}
		if e.Message.No <= m.o.ShownUpTo || m.has(e.Message.No) {
			return nil
		}
		m.typingTill = time.Time{}
		m.add(item{message: e.Message})
		m.newcomer(e.Message)
		return m.see()
	case client.EventStatus:
		for i := len(m.items) - 1; mine && i >= 0; i-- {
			if it := &m.items[i]; it.note == "" && it.message.No == e.Message.No {
				it.message, it.lines, m.dirty = e.Message, nil, true
				m.waiting = ""
				break
			}
		}
	case client.EventTyping:
		if !mine {
			return nil
		}
		m.typingTill = time.Time{}
		if e.On {
			m.typingTill = m.now().Add(typingFor)
			return tea.Tick(typingFor, func(time.Time) tea.Msg { return typingOverMsg{} })
		}
	case client.EventPresence:
		if mine {
			m.peerOnline = e.On
		}
	case client.EventWaiting:
		if mine && e.Err != nil {
			m.waiting = e.Err.Error()
		}
	case client.EventDistrust:
		return func() tea.Msg { return alarmMsg(e.Err.Error()) }
	}
	return nil
}

// has reports whether a message of the peer is shown already.
func (m *model) has(no uint64) bool {
	for i := len(m.items) - 1; i >= 0; i-- {
		if it := m.items[i]; it.note == "" && it.message.No == no {
			return true
		}
	}
	return false
}

// check asks whether the peer still has the key known here.
func (m *model) check() tea.Cmd {
	return func() tea.Msg {
		err := m.o.Chat.Check(m.ctx)
		if changed, ok := errors.AsType[*client.ErrIdentityChanged](err); ok {
			return alarmMsg(changed.Error())
		}
		if broken, ok := errors.AsType[*client.ErrServerLog](err); ok {
			return alarmMsg(broken.Error())
		}
		return nil
	}
}

// add adds to the scrollback.
func (m *model) add(it item) {
	m.items = append(m.items, it)
	m.dirty = true
	if over := len(m.items) - maxMessages; over > 0 {
		m.items = append(m.items[:0:0], m.items[over:]...)
		m.mark = max(m.mark-over, -1)
	}
}

// newcomer notes that the last item is a message nobody has seen yet.
func (m *model) newcomer(message client.Message) {
	if len(m.unseen) == 0 && (m.blurred || !m.follow || m.width == 0) {
		m.mark = len(m.items) - 1 // the line stays until something is sent
	}
	m.unseen = append(m.unseen, message)
}

// see notes that the newcomers are in sight, if they are.
func (m *model) see() tea.Cmd {
	if m.blurred || !m.follow || len(m.unseen) == 0 {
		return nil
	}
	seen := m.unseen
	m.unseen = nil
	return func() tea.Msg {
		if err := m.o.Chat.Displayed(m.ctx, seen); err != nil && m.ctx.Err() == nil {
			return noteMsg(fmt.Sprintf("not marked as read: %v", err))
		}
		return nil
	}
}

// unsent counts the messages that wait.
func (m *model) unsent() (n int) {
	for _, it := range m.items {
		if it.note == "" && it.message.Mine && it.message.Status == client.StatusQueued {
			n++
		}
	}
	return n
}

// continues reports whether an item is a further part of the one before it.
func (m *model) continues(i int) bool {
	if i == 0 || m.items[i].note != "" || m.items[i-1].note != "" {
		return false
	}
	before, it := m.items[i-1].message, m.items[i].message
	return before.Part == e2ee.PartMore && it.Part != e2ee.PartWhole && before.Mine == it.Mine
}
