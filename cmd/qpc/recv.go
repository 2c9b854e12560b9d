package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// maxShownAtOnce bounds how many messages are written before they are marked.
const maxShownAtOnce = 64

type recvCmd struct {
	From   string        `placeholder:"NAME" help:"Only messages of one person. Others stay for the next recv."`
	Wait   time.Duration `default:"-1s" placeholder:"DURATION" help:"How long to wait for a first message; 0s does not wait. For ever unless given."`
	Follow bool          `help:"Go on printing what arrives."`
	JSON   bool          `name:"json" help:"Print JSON, one object for each message."`
}

// Help is the long help of the command.
func (recvCmd) Help() string {
	return "On a terminal each message is preceded by its sender's name. Elsewhere only texts are printed: a text sent with `qpc send NAME -` byte for byte, any other message with a newline. recv never ends in the middle of a text. What was printed is not printed again."
}

// receiver is one run of recv.
type receiver struct {
	*recvCmd
	app      *app
	session  *session
	ledger   *ledger
	from     *rpc.IdentityKey // nil: everybody
	printed  bool
	caughtUp bool
	names    names
	groups   map[rpc.ChannelID]string
	lastPeer rpc.IdentityKey // on a terminal: whose text the cursor stands behind
	lastIn   client.Conversation
	midLine  bool
}

func (cmd *recvCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, cmd.From)
	if err != nil {
		return err
	}
	defer s.close()
	l, err := openLedger(ctx, s.Client, a.out)
	if err != nil {
		return err
	}
	r := &receiver{recvCmd: cmd, app: a, session: s, ledger: l, names: names{s.Identity(): s.profile.Name}, groups: make(map[rpc.ChannelID]string)}
	if cmd.From != "" {
		peer, err := s.known(ctx, cmd.From)
		if err != nil { // they may write for the first time
			if peer, err = s.LookUp(ctx, cmd.From); err != nil {
				return err
			}
		}
		r.from = &peer.Identity
	}
	if err := r.printStored(ctx); err != nil {
		return err
	}
	return r.follow(ctx, s.start(ctx))
}

// follow prints what arrives until there is nothing to wait for.
func (r *receiver) follow(ctx context.Context, events <-chan client.Event) error {
	var expired <-chan time.Time
	if r.Wait > 0 {
		expired = time.After(r.Wait)
	}
	watch := watcher{app: r.app}
	var batch []client.Message
	var problem error // why the server is not reached
	for {
		var e client.Event
		var open bool
		select {
		case e, open = <-events:
		case <-expired:
			if r.printed || r.ledger.anyOpen(r.from) {
				expired = nil
				continue // it has come in time
			}
			if !r.caughtUp && problem != nil {
				return problem
			}
			return nil
		case <-ctx.Done():
			return nil
		}
		for more := true; more && open; {
			switch e.Kind {
			case client.EventMessage, client.EventGroup:
				if e.PeerName != "" {
					r.names[e.Peer] = e.PeerName
				}
				if e.Group != (rpc.ChannelID{}) {
					r.groups[e.Group] = e.GroupName
				}
				if r.wants(e.Message) {
					batch = append(batch, e.Message)
				}
			case client.EventCaughtUp:
				r.caughtUp = true
			case client.EventConnection:
				if e.Connection == client.Disconnected {
					problem = e.Err
				}
			}
			watch.see(e)
			if len(batch) >= maxShownAtOnce {
				break
			}
			select {
			case e, open = <-events:
			default:
				more = false
			}
		}
		if err := r.print(ctx, batch); err != nil {
			return err
		}
		batch = batch[:0]
		switch {
		case !open:
			return r.session.err()
		case r.Follow || r.ledger.anyOpen(r.from):
		case r.caughtUp && (r.printed || r.Wait == 0):
			return nil
		case !r.caughtUp && problem != nil && r.printed:
			r.app.note("there may be more at the server")
			return nil
		case !r.caughtUp && problem != nil && r.Wait == 0:
			return problem
		}
	}
}

func (r *receiver) wants(m client.Message) bool {
	return (r.from == nil || m.Conversation() == client.WithPeer(*r.from)) && r.ledger.isNew(m)
}

// printStored prints what is on this machine and was not shown yet.
func (r *receiver) printStored(ctx context.Context) error {
	contacts, err := r.session.Contacts(ctx)
	if err != nil {
		return err
	}
	groups, err := r.session.Groups(ctx)
	if err != nil {
		return err
	}
	var conversations []client.Conversation
	for _, c := range contacts {
		r.names[c.Identity] = c.Name
		if r.from == nil || c.Identity == *r.from {
			conversations = append(conversations, client.WithPeer(c.Identity))
		}
	}
	for _, g := range groups {
		r.groups[g.ID] = g.Name
		if r.from == nil {
			conversations = append(conversations, client.InGroup(g.ID))
		}
	}
	for {
		var waiting []client.Message
		for _, of := range conversations {
			some := 0
			err := r.session.HistoryOf(ctx, of, r.ledger.shown.Peers[of.Key()].UpTo, func(m client.Message) bool {
				if !m.Mine {
					waiting, some = append(waiting, m), some+1
				}
				return some < maxShownAtOnce
			})
			if err != nil {
				return err
			}
		}
		if len(waiting) == 0 {
			return nil
		}
		// What each contact has most of waits for the next round, so that the
		// order of arrival holds.
		slices.SortFunc(waiting, func(a, b client.Message) int { return cmp.Compare(a.No, b.No) })
		if err := r.print(ctx, waiting[:min(len(waiting), maxShownAtOnce)]); err != nil {
			return err
		}
	}
}

// print prints messages and marks them shown.
func (r *receiver) print(ctx context.Context, messages []client.Message) error {
	if len(messages) == 0 {
		return nil
	}
	// Who waits for a message waits on when somebody was only added to a group.
	r.printed = r.printed || slices.ContainsFunc(messages, func(m client.Message) bool { return m.Notice == nil })
	render := r.bare
	switch {
	case r.JSON:
		render = r.object
	case isTerminal(r.app.out):
		render = r.named
	}
	return r.ledger.write(ctx, messages, render)
}

// object renders a message as JSON.
func (r *receiver) object(m client.Message, _ bool) ([]byte, error) {
	b := new(bytes.Buffer)
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	err := e.Encode(newMessageJSON(m, r.names[m.Peer]))
	return b.Bytes(), err
}

// bare renders texts alone: pieces as they are, others with a newline.
func (r *receiver) bare(m client.Message, _ bool) ([]byte, error) {
	switch {
	case m.Notice != nil:
		r.app.note("in %s: %s", forTerminal(groupName(r.groups[m.Group], m.Group)), forTerminal(r.names.notice(m)))
		return nil, nil
	case !isText(m):
		r.app.note("from %s: %s", r.sender(m), forTerminal(inWords(m)))
		return nil, nil
	case m.Part == e2ee.PartWhole:
		return []byte(m.Text + "\n"), nil
	}
	return []byte(m.Text), nil
}

// sender is who sent a message, and in which group.
func (r *receiver) sender(m client.Message) string {
	if m.Group == (rpc.ChannelID{}) {
		return displayName(r.names[m.Peer], m.Peer)
	}
	return forTerminal(groupName(r.groups[m.Group], m.Group)) + ", " + r.names.of(m.Peer)
}

// named renders a message for a terminal, with its sender's name.
func (r *receiver) named(m client.Message, open bool) ([]byte, error) {
	var b strings.Builder
	if m.Notice != nil {
		if r.midLine {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s: (%s)\n", forTerminal(groupName(r.groups[m.Group], m.Group)), forTerminal(r.names.notice(m)))
		r.midLine = false
		return []byte(b.String()), nil
	}
	if open = open && r.lastPeer == m.Peer && r.lastIn == m.Conversation() && m.Part != e2ee.PartWhole; !open {
		if r.midLine {
			b.WriteByte('\n')
		}
		b.WriteString(r.sender(m) + ": ")
	}
	text := forTerminal(inWords(m))
	b.WriteString(text)
	if m.Part == e2ee.PartWhole || m.Part == e2ee.PartLast && !strings.HasSuffix(text, "\n") {
		b.WriteByte('\n')
	}
	r.lastPeer, r.lastIn, r.midLine = m.Peer, m.Conversation(), m.Part == e2ee.PartMore
	return []byte(b.String()), nil
}
