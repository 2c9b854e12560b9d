package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// json writes one JSON value on a line of its own.
func (a *app) json(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// table writes rows with their columns aligned.
func (a *app) table(rows [][]string) error {
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(w, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return w.Flush()
}

// keyWords shows an identity key as the words of a server's fingerprint.
func keyWords(key rpc.IdentityKey) []string { return transport.Pin(key).Words() }

func joinWords(words []string) string { return strings.Join(words, " ") }

// messageJSON is a message as recv, history and send print it.
type messageJSON struct {
	No       uint64     `json:"no"`
	Peer     string     `json:"peer"`
	PeerKey  string     `json:"peer_key"`
	GroupID  string     `json:"group_id,omitempty"`
	Notice   string     `json:"notice,omitempty"` // what changed in the group
	Who      []string   `json:"who,omitempty"`    // identity keys of those whom the notice is about
	Mine     bool       `json:"mine"`
	ID       string     `json:"id"`
	Type     string     `json:"type"`
	Text     string     `json:"text"`
	Part     string     `json:"part,omitempty"` // "more" or "last" for a piece of a text
	Emoji    string     `json:"emoji,omitempty"`
	File     string     `json:"file,omitempty"`
	Size     uint64     `json:"size,omitempty"`
	SentAt   *time.Time `json:"sent_at,omitempty"`
	StoredAt *time.Time `json:"stored_at,omitempty"`
	Status   string     `json:"status"`
	Problem  string     `json:"problem,omitempty"`
}

func newMessageJSON(m client.Message, peer string) messageJSON {
	j := messageJSON{
		No: m.No, Peer: peer, PeerKey: m.Peer.String(), Mine: m.Mine, ID: fmt.Sprintf("%x", m.ID[:]), Type: m.Type.String(),
		Text: m.Text, Emoji: m.Emoji, File: m.Name, Size: m.Size, Status: string(m.Status), Problem: m.Problem,
		SentAt: when(m.SentAt), StoredAt: when(m.Stored),
	}
	if m.Group != (rpc.ChannelID{}) {
		j.GroupID = m.Group.String()
	}
	if m.Notice != nil {
		j.Type, j.Notice, j.Text = "notice", string(m.Notice.Change), m.Notice.Name
		for _, who := range m.Notice.Who {
			j.Who = append(j.Who, who.String())
		}
	}
	switch m.Part {
	case e2ee.PartMore:
		j.Part = "more"
	case e2ee.PartLast:
		j.Part = "last"
	}
	return j
}

func when(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// isText reports whether a message has a text of its own.
func isText(m client.Message) bool {
	return m.Problem == "" && (m.Type == e2ee.TypeChat || m.Type == e2ee.TypeReply || m.Type == e2ee.TypeEdit)
}

// inWords returns what a message says, for people.
func inWords(m client.Message) string {
	switch {
	case m.Problem != "":
		return "(" + m.Problem + ")"
	case m.Type == e2ee.TypeReaction:
		return "(reacts with " + m.Emoji + ")"
	case m.Type == e2ee.TypeEdit:
		return m.Text + " (edited)"
	case m.Type == e2ee.TypeDelete:
		return "(takes a message back)"
	case m.Type == e2ee.TypeFileRef:
		return fileInWords(m)
	}
	return m.Text
}

// forTerminal takes out what a terminal would obey: whoever writes to us does
// not command our screen.
func forTerminal(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || !unicode.IsControl(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

// displayName is how a peer is called who may have no known name.
func displayName(name string, key rpc.IdentityKey) string {
	if name != "" {
		return name
	}
	return "unknown-" + key.String()[:8]
}
