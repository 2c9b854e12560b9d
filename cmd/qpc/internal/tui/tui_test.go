package tui

import (
	"context"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// fakeChat notes what the screen does.
type fakeChat struct {
	sent      []string
	typing    []bool
	displayed []uint64
}

func (c *fakeChat) Send(_ context.Context, text string) ([]client.Message, error) {
	c.sent = append(c.sent, text)
	return []client.Message{{No: uint64(100 + len(c.sent)), Mine: true, Type: e2ee.TypeChat, Text: text, Status: client.StatusQueued}}, nil
}
func (c *fakeChat) Typing(_ context.Context, on bool) { c.typing = append(c.typing, on) }
func (c *fakeChat) Displayed(_ context.Context, messages []client.Message) error {
	for _, m := range messages {
		c.displayed = append(c.displayed, m.No)
	}
	return nil
}
func (c *fakeChat) Check(context.Context) error { return nil }

// screen drives a model as bubbletea does.
type screen struct {
	t    *testing.T
	m    *model
	chat *fakeChat
	now  time.Time
}

func bob() rpc.IdentityKey { return rpc.IdentityKey{2} }

func newScreen(t *testing.T, messages ...client.Message) *screen {
	s := &screen{t: t, chat: &fakeChat{}, now: time.Date(2026, 1, 2, 15, 4, 0, 0, time.UTC)}
	s.m = newModel(t.Context(), Options{
		Me: "alice", Peer: client.Contact{Name: "bob", Identity: bob()}, Messages: messages, Chat: s.chat, Now: func() time.Time { return s.now },
	})
	s.run(s.m.Init())
	s.do(tea.WindowSizeMsg{Width: 80, Height: 24})
	return s
}

func (s *screen) run(cmd tea.Cmd) {
	if cmd == nil {
		return
	}
	result := make(chan tea.Msg, 1)
	go func() { result <- cmd() }()
	select {
	case msg := <-result:
		switch msg := msg.(type) {
		case nil:
		case tea.BatchMsg:
			for _, c := range msg {
				s.run(c)
			}
		default:
			s.do(msg)
		}
	case <-time.After(50 * time.Millisecond): // a timer
	}
}

func (s *screen) do(msg tea.Msg) {
	_, cmd := s.m.Update(msg)
	s.run(cmd)
}

func (s *screen) types(text string) {
	for _, r := range text {
		s.do(tea.KeyPressMsg{Code: r, Text: string(r)})
	}
}

func (s *screen) shows(parts ...string) {
	s.t.Helper()
	view := ansi.Strip(s.m.View().Content)
	lines := strings.Split(view, "\n")
	if len(lines) != s.m.height {
		s.t.Errorf("%d lines on a screen of %d", len(lines), s.m.height)
	}
	for _, line := range lines {
		if w := ansi.StringWidthWc(line); w > s.m.width {
			s.t.Errorf("a line of %d cells on a screen of %d: %q", w, s.m.width, line)
		}
	}
	for _, part := range parts {
		if !strings.Contains(view, part) {
			s.t.Errorf("%q is not on the screen:\n%s", part, view)
		}
	}
}

func received(no uint64, text string) client.Message {
	return client.Message{No: no, Peer: bob(), Type: e2ee.TypeChat, Text: text, Status: client.StatusReceived}
}

func TestConversation(t *testing.T) {
	s := newScreen(t, received(1, "are you there?"))
	s.shows("bob  are you there?", "connecting")
	if len(s.chat.displayed) != 1 {
		t.Errorf("displayed %v", s.chat.displayed)
	}
	s.do(eventMsg{Kind: client.EventConnection, Connection: client.Connected})
	s.types("yes")
	s.do(tea.KeyPressMsg{Code: tea.KeyEnter})
	s.shows("alice  yes …", "1 unsent", "connected")
	sent := client.Message{No: 101, Mine: true, Type: e2ee.TypeChat, Text: "yes", Status: client.StatusSent}
	s.do(eventMsg{Kind: client.EventStatus, Peer: bob(), Message: sent})
	s.shows("alice  yes ✓")
	sent.Status = client.StatusRead
	s.do(eventMsg{Kind: client.EventStatus, Peer: bob(), Message: sent})
	s.shows("alice  yes ✓✓")
	if len(s.chat.sent) != 1 || len(s.chat.typing) != 1 || !s.chat.typing[0] {
		t.Errorf("sent %q, typing %v", s.chat.sent, s.chat.typing)
	}
	s.do(eventMsg{Kind: client.EventTyping, Peer: bob(), On: true})
	s.shows("bob is typing…")
	s.now = s.now.Add(2 * typingFor)
	if strings.Contains(s.m.View().Content, "typing…") {
		t.Error("typing does not end")
	}
}

func TestNotInSightIsNotRead(t *testing.T) {
	s := newScreen(t)
	s.do(tea.BlurMsg{})
	s.do(eventMsg{Kind: client.EventMessage, Peer: bob(), Message: received(5, "psst")})
	if len(s.chat.displayed) != 0 {
		t.Error("read without the focus")
	}
	s.shows("── new", "psst", "↓ 1 new")
	s.do(tea.FocusMsg{})
	if len(s.chat.displayed) != 1 {
		t.Error("not read with the focus")
	}
	s.do(eventMsg{Kind: client.EventMessage, Peer: bob(), Message: received(5, "psst")})
	if strings.Count(ansi.Strip(s.m.View().Content), "psst") != 1 {
		t.Error("shown twice")
	}
}

func TestWideAndHostileText(t *testing.T) {
	s := newScreen(t, received(1, strings.Repeat("日本語", 60)), received(2, "\x1b[31mred\x1b]0;title\a\rx"),
		received(3, strings.Repeat("👨‍👩‍👧‍👦", 40)), received(4, strings.Repeat("x", 100<<10)))
	for _, size := range [][2]int{{80, 24}, {20, 5}, {1, 1}, {200, 60}} {
		s.do(tea.WindowSizeMsg{Width: size[0], Height: size[1]})
		s.shows()
		if strings.ContainsAny(ansi.Strip(s.m.View().Content), "\x1b\a\r") {
			t.Error("control characters reach the terminal")
		}
	}
}
