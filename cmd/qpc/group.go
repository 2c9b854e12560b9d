package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

type groupCmd struct {
	Create  groupCreateCmd  `cmd:"" help:"Make a group."`
	Invite  groupInviteCmd  `cmd:"" help:"Add people to a group."`
	Remove  groupRemoveCmd  `cmd:"" help:"Remove people from a group of yours."`
	Leave   groupLeaveCmd   `cmd:"" help:"Leave a group."`
	Rename  groupRenameCmd  `cmd:"" help:"Give a group another name."`
	Members groupMembersCmd `cmd:"" help:"List the members of a group."`
	List    groupListCmd    `cmd:"" help:"List your groups."`
	Rotate  groupRotateCmd  `cmd:"" help:"Renew your keys in a group now. It happens by itself every week."`
	Send    groupSendCmd    `cmd:"" help:"Send a message to a group."`
	History groupHistoryCmd `cmd:"" help:"Print the conversation of a group."`
}

// groupWait is how long a command that changes a group waits.
type groupWait struct {
	Timeout time.Duration `placeholder:"DURATION" help:"How long to wait for the server; for ever unless given."`
}

// within opens the account, finds people by their names, connects, and runs f
// until it returns, the user ends it, or the account cannot be used. see may be
// nil.
func (w groupWait) within(ctx context.Context, a *app, names []string, f func(ctx context.Context, s *session, people []client.Contact) error, see func(client.Event)) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	people := make([]client.Contact, len(names))
	for i, name := range names {
		if people[i], err = s.LookUp(ctx, name); err != nil {
			return err
		}
	}
	bounded, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if w.Timeout > 0 {
		var stop context.CancelFunc
		bounded, stop = context.WithTimeoutCause(bounded, w.Timeout, errors.New("the server was not reached in time"))
		defer stop()
	}
	events := s.start(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		watch := watcher{app: a}
		for e := range events {
			watch.see(e)
			if e.Kind == client.EventGroupWaiting && e.Err != nil {
				a.note("a change of a group waits: %v", e.Err)
			}
			if see != nil {
				see(e)
			}
		}
		if err := s.err(); err != nil {
			cancel(err)
		}
	}()
	defer func() { s.cancel(); <-done }()
	return f(bounded, s, people)
}

func identitiesOf(people []client.Contact) []rpc.IdentityKey {
	keys := make([]rpc.IdentityKey, len(people))
	for i, p := range people {
		keys[i] = p.Identity
	}
	return keys
}

func namesOf(people []client.Contact) string {
	names := make([]string, len(people))
	for i, p := range people {
		names[i] = p.Name
	}
	return strings.Join(names, ", ")
}

type groupJSON struct {
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	State   string   `json:"state"`
	Epoch   uint64   `json:"epoch"`
	Members []string `json:"members,omitempty"` // identity keys
}

func newGroupJSON(g client.Group) groupJSON {
	j := groupJSON{ID: g.ID.String(), Name: g.Name, State: string(g.State), Epoch: g.Epoch}
	for _, m := range g.Members {
		j.Members = append(j.Members, m.String())
	}
	return j
}

// groupName is how a group is called whose name may not be known yet.
func groupName(name string, id rpc.ChannelID) string {
	if name != "" {
		return name
	}
	return "group-" + id.String()[:8]
}

type groupCreateCmd struct {
	Name  string   `arg:"" help:"What to call the group."`
	Names []string `arg:"" optional:"" help:"Whom to add at once."`
	JSON  bool     `name:"json" help:"Print JSON when done."`
	groupWait
}

func (cmd *groupCreateCmd) Run(ctx context.Context, a *app) error {
	if err := e2ee.CheckGroupName(cmd.Name); err != nil {
		return usageError{err}
	}
	return cmd.within(ctx, a, cmd.Names, func(ctx context.Context, s *session, people []client.Contact) error {
		g, err := s.CreateGroup(ctx, cmd.Name, identitiesOf(people)...)
		switch {
		case err != nil:
			return err
		case cmd.JSON:
			return a.json(newGroupJSON(g))
		case len(people) == 0:
			fmt.Fprintf(a.out, "The group %s is there.\nTo add people: qpc group invite %s NAME\n", g.Name, quote(g.Name))
		default:
			fmt.Fprintf(a.out, "The group %s is there, with %s.\n", g.Name, namesOf(people))
		}
		return nil
	}, nil)
}

type groupInviteCmd struct {
	Group string   `arg:"" help:"The group, by its name or the beginning of its id."`
	Names []string `arg:"" help:"Whom to add."`
	Again bool     `help:"Take members in again whose device has lost its place in the group."`
	groupWait
}

func (cmd *groupInviteCmd) Run(ctx context.Context, a *app) error {
	return cmd.within(ctx, a, cmd.Names, func(ctx context.Context, s *session, people []client.Contact) error {
		g, err := s.FindGroup(ctx, cmd.Group)
		if err != nil {
			return groupHint(err)
		}
		invite := s.Invite
		if cmd.Again {
			invite = s.InviteAgain
		}
		if err := invite(ctx, g.ID, identitiesOf(people)...); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "In %s: %s.\n", groupName(g.Name, g.ID), namesOf(people))
		return nil
	}, nil)
}

// groupHint adds to an error of FindGroup where to look.
func groupHint(err error) error { return withHint(err, "qpc group list lists your groups") }

type groupRemoveCmd struct {
	Group string   `arg:"" help:"The group, by its name or the beginning of its id."`
	Names []string `arg:"" help:"Whom to remove."`
	groupWait
}

func (cmd *groupRemoveCmd) Run(ctx context.Context, a *app) error {
	return cmd.within(ctx, a, cmd.Names, func(ctx context.Context, s *session, people []client.Contact) error {
		g, err := s.FindGroup(ctx, cmd.Group)
		if err != nil {
			return groupHint(err)
		}
		if err := s.Remove(ctx, g.ID, identitiesOf(people)...); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "Not in %s any more: %s.\n", groupName(g.Name, g.ID), namesOf(people))
		return nil
	}, nil)
}

type groupLeaveCmd struct {
	Group string `arg:"" help:"The group, by its name or the beginning of its id."`
	groupWait
}

func (cmd *groupLeaveCmd) Run(ctx context.Context, a *app) error {
	return cmd.within(ctx, a, nil, func(ctx context.Context, s *session, _ []client.Contact) error {
		g, err := s.FindGroup(ctx, cmd.Group)
		if err != nil {
			return groupHint(err)
		}
		if err := s.Leave(ctx, g.ID); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "You have left %s. What was said there stays on this machine.\n", groupName(g.Name, g.ID))
		return nil
	}, nil)
}

type groupRenameCmd struct {
	Group string `arg:"" help:"The group, by its name or the beginning of its id."`
	Name  string `arg:"" help:"The new name."`
	groupWait
}

func (cmd *groupRenameCmd) Run(ctx context.Context, a *app) error {
	if err := e2ee.CheckGroupName(cmd.Name); err != nil {
		return usageError{err}
	}
	return cmd.within(ctx, a, nil, func(ctx context.Context, s *session, _ []client.Contact) error {
		g, err := s.FindGroup(ctx, cmd.Group)
		if err != nil {
			return groupHint(err)
		}
		if err := s.Rename(ctx, g.ID, cmd.Name); err != nil {
			return err
		}
		if err := s.unsent(ctx); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s is called %s now.\n", groupName(g.Name, g.ID), cmd.Name)
		return nil
	}, nil)
}

// unsent waits until nothing waits to be sent.
func (s *session) unsent(ctx context.Context) error {
	const look = 20 * time.Millisecond
	for {
		n, err := s.Unsent(ctx)
		if err != nil || n == 0 {
			return err
		}
		select {
		case <-time.After(look):
		case <-ctx.Done():
			return withHint(fmt.Errorf("%w; %d messages wait on this machine", context.Cause(ctx), n),
				"they go out while any qpc chat, send or recv of this account runs")
		}
	}
}

type groupMembersCmd struct {
	Group string `arg:"" help:"The group, by its name or the beginning of its id."`
	JSON  bool   `name:"json" help:"Print JSON."`
	groupWait
}

type memberJSON struct {
	Name        string     `json:"name"`
	IdentityKey string     `json:"identity_key"`
	Owner       bool       `json:"owner"`
	JoinedAt    *time.Time `json:"joined_at,omitempty"`
	This        bool       `json:"you"`
}

func (cmd *groupMembersCmd) Run(ctx context.Context, a *app) error {
	ready := newGate()
	return cmd.within(ctx, a, nil, func(ctx context.Context, s *session, _ []client.Contact) error {
		g, err := s.FindGroup(ctx, cmd.Group)
		if err != nil {
			return groupHint(err)
		}
		if err := ready.wait(ctx); err != nil {
			return err
		}
		members, err := s.Members(ctx, g.ID)
		if err != nil {
			return err
		}
		if cmd.JSON {
			all := make([]memberJSON, len(members))
			for i, m := range members {
				all[i] = memberJSON{Name: m.Name, IdentityKey: m.Identity.String(), Owner: m.Owner, JoinedAt: when(m.JoinedAt), This: m.Identity == s.Identity()}
			}
			return a.json(all)
		}
		rows := [][]string{{"NAME", "JOINED", ""}}
		for _, m := range members {
			var notes []string
			if m.Owner {
				notes = append(notes, "owner")
			}
			if m.Identity == s.Identity() {
				notes = append(notes, "you")
			}
			rows = append(rows, []string{displayName(m.Name, m.Identity), ago(m.JoinedAt), strings.Join(notes, ", ")})
		}
		return a.table(rows)
	}, ready.see)
}

// gate opens when everything that waited has come.
type gate struct {
	once sync.Once
	open chan struct{}
}

func newGate() *gate { return &gate{open: make(chan struct{})} }

func (g *gate) see(e client.Event) {
	if e.Kind == client.EventCaughtUp {
		g.once.Do(func() { close(g.open) })
	}
}

func (g *gate) wait(ctx context.Context) error {
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

type groupListCmd struct {
	All  bool `help:"Also those that you have left or were removed from."`
	JSON bool `name:"json" help:"Print JSON."`
}

func (cmd *groupListCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	groups, err := s.Groups(ctx)
	if err != nil {
		return err
	}
	if !cmd.All {
		groups = slices.DeleteFunc(groups, func(g client.Group) bool { return g.State == client.GroupLeft || g.State == client.GroupRemoved })
	}
	if cmd.JSON {
		all := make([]groupJSON, len(groups))
		for i, g := range groups {
			all[i] = newGroupJSON(g)
		}
		return a.json(all)
	}
	rows := [][]string{{"NAME", "ID", "MEMBERS", ""}}
	for _, g := range groups {
		note := map[client.GroupState]string{
			client.GroupLost:    "out of step: ask a member to run qpc group invite --again",
			client.GroupRemoved: "you were removed", client.GroupLeft: "you have left",
		}[g.State]
		rows = append(rows, []string{groupName(g.Name, g.ID), g.ID.String()[:8], fmt.Sprint(len(g.Members)), note})
	}
	return a.table(rows)
}

type groupRotateCmd struct {
	Group string `arg:"" help:"The group, by its name or the beginning of its id."`
	groupWait
}

func (cmd *groupRotateCmd) Run(ctx context.Context, a *app) error {
	return cmd.within(ctx, a, nil, func(ctx context.Context, s *session, _ []client.Contact) error {
		g, err := s.FindGroup(ctx, cmd.Group)
		if err != nil {
			return groupHint(err)
		}
		if err := s.Rotate(ctx, g.ID); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "Your keys in %s are renewed.\n", groupName(g.Name, g.ID))
		return nil
	}, nil)
}

type groupSendCmd struct {
	Group string   `arg:"" help:"The group, by its name or the beginning of its id."`
	Text  []string `arg:"" help:"The message."`
	groupWait
}

// Help is the long help of the command.
func (groupSendCmd) Help() string {
	return "The exit code is 0 only when the server has stored the message for the members. A message that begins with a hyphen stands behind --."
}

func (cmd *groupSendCmd) Run(ctx context.Context, a *app) error {
	text := strings.Join(cmd.Text, " ")
	switch {
	case !utf8.ValidString(text):
		return usageError{errors.New("the message is not UTF-8 text")}
	case len(text) > client.MaxChunk:
		return usageError{fmt.Errorf("a message to a group has at most %d bytes", client.MaxChunk)}
	}
	// Statuses come while SendTo has not returned yet.
	statuses := make(chan client.Message, 1)
	var mu sync.Mutex
	latest := make(map[uint64]client.Message)
	see := func(e client.Event) {
		if e.Kind != client.EventStatus {
			return
		}
		mu.Lock()
		latest[e.Message.No] = e.Message
		mu.Unlock()
		select {
		case statuses <- e.Message:
		default:
		}
	}
	return cmd.within(ctx, a, nil, func(ctx context.Context, s *session, _ []client.Contact) error {
		g, err := s.FindGroup(ctx, cmd.Group)
		if err != nil {
			return groupHint(err)
		}
		m, err := s.SendTo(ctx, client.InGroup(g.ID), &e2ee.Message{Type: e2ee.TypeChat, Text: text})
		if err != nil {
			return err
		}
		for {
			mu.Lock()
			now, known := latest[m.No]
			mu.Unlock()
			switch {
			case known && now.Status == client.StatusFailed:
				return fmt.Errorf("not sent: %s", now.Problem)
			case known && now.Status != client.StatusQueued:
				return nil
			}
			select {
			case <-statuses:
			case <-ctx.Done():
				return withHint(fmt.Errorf("%w; the message waits on this machine", context.Cause(ctx)),
					"it goes out while any qpc chat, send or recv of this account runs")
			}
		}
	}, see)
}

type groupHistoryCmd struct {
	Group string `arg:"" help:"The group, by its name or the beginning of its id."`
	JSON  bool   `name:"json" help:"Print JSON, one object for each message."`
}

func (cmd *groupHistoryCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	g, err := s.FindGroup(ctx, cmd.Group)
	if err != nil {
		return groupHint(err)
	}
	names, err := s.names(ctx)
	if err != nil {
		return err
	}
	var failed error
	err = s.HistoryOf(ctx, client.InGroup(g.ID), 0, func(m client.Message) bool {
		if cmd.JSON {
			failed = a.json(newMessageJSON(m, names.of(m.Peer)))
			return failed == nil
		}
		if m.Notice != nil {
			_, failed = fmt.Fprintf(a.out, "%s (%s)\n", m.Stored.Local().Format("2006-01-02 15:04"), a.plain(names.notice(m)))
		} else {
			failed = a.historyLine(m, names.of(s.Identity()), names.of(m.Peer))
		}
		return failed == nil
	})
	return errors.Join(err, failed)
}

// plain is a text for the output: without what a terminal would obey.
func (a *app) plain(s string) string {
	if isTerminal(a.out) {
		return forTerminal(s)
	}
	return s
}

// names is what people are called.
type names map[rpc.IdentityKey]string

// names returns the names that this machine knows.
func (s *session) names(ctx context.Context) (names, error) {
	all := names{s.Identity(): s.profile.Name}
	contacts, err := s.Contacts(ctx)
	for _, c := range contacts {
		all[c.Identity] = c.Name
	}
	return all, err
}

func (n names) of(who rpc.IdentityKey) string {
	if who == (rpc.IdentityKey{}) {
		return "somebody"
	}
	return displayName(n[who], who)
}

// notice says in words what changed in a group.
func (n names) notice(m client.Message) string {
	var who []string
	for _, id := range m.Notice.Who {
		who = append(who, n.of(id))
	}
	list, by := strings.Join(who, ", "), " by "+n.of(m.Peer)
	if m.Peer == (rpc.IdentityKey{}) {
		by = ""
	}
	switch m.Notice.Change {
	case client.MemberJoined:
		return list + " was taken into the group" + by
	case client.MemberAdded:
		return list + " was added" + by
	case client.MemberRemoved:
		return list + " was removed" + by
	case client.MemberLeft:
		return list + " has left"
	case client.GroupRenamed:
		return "the group is called " + m.Notice.Name + " now," + by
	case client.PlaceLost:
		return "this device has missed a change of the group and can read nothing new in it; it asks the other members to take it in again"
	}
	return "something changed in the group"
}
