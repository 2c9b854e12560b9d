package tui

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
)

// The lines below the scrollback, and the smallest screen that is drawn.
const (
	footer    = 2
	minWidth  = 20
	minHeight = footer + 1
)

// styles are the colours: the first eight of the palette, which themes keep
// readable. bubbletea leaves them out where NO_COLOR is set.
type styles struct {
	me, peer, faint, alarm, bar lipgloss.Style
}

func newStyles() styles {
	plain := lipgloss.NewStyle()
	return styles{
		me:    plain.Foreground(lipgloss.Cyan).Bold(true),
		peer:  plain.Foreground(lipgloss.Green).Bold(true),
		faint: plain.Faint(true),
		alarm: plain.Foreground(lipgloss.Red).Bold(true),
		bar:   plain.Reverse(true),
	}
}

// resize takes the size of the terminal.
func (m *model) resize(width, height int) {
	m.height = max(height, minHeight)
	if width = max(width, minWidth); width != m.width {
		m.width = width
		for i := range m.items {
			m.items[i].lines = nil
		}
	}
	m.scroll.SetWidth(m.width)
	m.scroll.SetHeight(m.height - footer)
	m.input.SetWidth(m.width - ansi.StringWidthWc(m.input.Prompt) - 1)
	m.dirty = true
}

// View draws the screen.
func (m *model) View() tea.View {
	var v tea.View
	v.AltScreen, v.ReportFocus = true, true
	v.WindowTitle = "qpc " + m.o.Peer.Name
	if m.width == 0 {
		return v // its size is not known yet
	}
	m.layOut()
	v.SetContent(m.scroll.View() + "\n" + m.statusLine() + "\n" + m.input.View())
	if cursor := m.input.Cursor(); cursor != nil {
		cursor.Y += m.height - 1
		v.Cursor = cursor
	}
	return v
}

// layOut brings the scrollback up to date.
func (m *model) layOut() {
	if !m.dirty || m.width == 0 {
		return
	}
	m.dirty = false
	var lines []string
	day := ""
	for i := range m.items {
		it := &m.items[i]
		if it.lines == nil {
			it.lines = m.lines(i)
		}
		if d := at(it.message).Format("Mon 2 January 2006"); it.note == "" && d != day {
			day = d
			lines = append(lines, m.rule(d))
		}
		if i == m.mark {
			lines = append(lines, m.rule("new"))
		}
		lines = append(lines, it.lines...)
	}
	// What there is of a short conversation stands above the input.
	if room := m.height - footer - len(lines); room > 0 {
		lines = append(make([]string, room), lines...)
	}
	m.scroll.SetContentLines(lines)
	if m.follow {
		m.scroll.GotoBottom()
	}
}

// at is when a message was written, by its sender if they say so.
func at(message client.Message) time.Time {
	if message.SentAt.IsZero() {
		return message.Stored.Local()
	}
	return message.SentAt.Local()
}

// rule draws a line with a word in it.
func (m *model) rule(word string) string {
	left := "── " + word + " "
	return m.text.faint.Render(left + strings.Repeat("─", max(0, m.width-ansi.StringWidthWc(left))))
}

// lines lays out one item.
func (m *model) lines(i int) []string {
	it := m.items[i]
	if it.note != "" {
		style := m.text.faint
		if it.alarm {
			style = m.text.alarm
		}
		return each(wrap("· "+clean(it.note), m.width), style)
	}
	who, style := m.o.Peer.Name, m.text.peer
	if it.message.Mine {
		who, style = m.o.Me, m.text.me
	}
	clock := at(it.message).Format("15:04") + " "
	indent := ansi.StringWidthWc(clock + who + "  ")
	prefix := m.text.faint.Render(clock) + style.Render(who) + "  "
	var out []string
	if indent > m.width/2 { // a long name on a narrow screen has a line of its own
		out, indent = []string{ansi.TruncateWc(prefix, m.width, "…")}, 2
		prefix = ""
	}
	body, mark := clean(strings.TrimSuffix(words(it.message), "\n")), m.tick(it.message)
	if mark != "" {
		body += " " + mark
	}
	if m.continues(i) {
		out, prefix = nil, ""
	}
	for n, line := range wrap(body, m.width-indent) {
		if n == 0 && prefix != "" {
			out = append(out, prefix+line)
			continue
		}
		out = append(out, strings.Repeat(" ", indent)+line)
	}
	return out
}

// tick shows what has become of a message of ours.
func (m *model) tick(message client.Message) string {
	if !message.Mine {
		return ""
	}
	switch message.Status {
	case client.StatusQueued:
		return "…"
	case client.StatusSent:
		return "✓"
	case client.StatusRead:
		return "✓✓"
	case client.StatusFailed:
		return "✗ " + message.Problem
	}
	return ""
}

// words says what a message is.
func words(message client.Message) string {
	switch {
	case message.Problem != "" && !message.Mine:
		return "(" + message.Problem + ")"
	case message.Type == e2ee.TypeReaction:
		return "(reacts with " + message.Emoji + ")"
	case message.Type == e2ee.TypeEdit:
		return message.Text + " (edited)"
	case message.Type == e2ee.TypeDelete:
		return "(takes a message back)"
	case message.Type == e2ee.TypeFileRef:
		return "(sends the file " + message.Name + ")"
	}
	return message.Text
}

// clean takes out what a terminal would obey, and what has no certain width.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return r
		case r == '\t':
			return ' '
		case unicode.IsControl(r), r == '\u2028', r == '\u2029', r == '\ufeff':
			return '\uFFFD'
		}
		return r
	}, s)
}

// wrap breaks a text into lines of at most width cells. It counts cells as
// terminals do that draw each part of a joined emoji: on one that joins them a
// line is a little short, which is better than cut off.
func wrap(s string, width int) []string {
	return strings.Split(ansi.WrapWc(s, max(width, 1), ""), "\n")
}

func each(lines []string, style lipgloss.Style) []string {
	for i, line := range lines {
		lines[i] = style.Render(line)
	}
	return lines
}

// statusLine says how things are.
func (m *model) statusLine() string {
	state := map[client.ConnectionState]string{
		client.Connected: "● connected", client.Connecting: "○ connecting", client.Disconnected: "○ offline",
	}[m.connection]
	parts := []string{state, m.o.Me + " → " + m.o.Peer.Name}
	if m.o.Peer.Verified {
		parts[1] += " (verified)"
	}
	switch {
	case m.typingTill.After(m.now()):
		parts = append(parts, m.o.Peer.Name+" is typing…")
	case m.peerOnline:
		parts = append(parts, m.o.Peer.Name+" is online")
	}
	if n := len(m.unseen); n > 0 {
		parts = append(parts, fmt.Sprintf("↓ %d new", n))
	}
	if n := m.unsent(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d unsent", n))
		if m.waiting != "" {
			parts = append(parts, m.waiting)
		}
	}
	if m.connection == client.Disconnected && m.why != "" {
		parts = append(parts, m.why)
	}
	line := " " + clean(strings.ReplaceAll(strings.Join(parts, " │ "), "\n", " "))
	line = ansi.TruncateWc(line, m.width, "…")
	return m.text.bar.Render(line + strings.Repeat(" ", max(0, m.width-ansi.StringWidthWc(line))))
}
