package client_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// deed is something that somebody does to a group.
type deed struct {
	what string
	who  int // who does it
	whom int // to whom, where that matters
}

func (d deed) String() string { return fmt.Sprintf("%d %s %d", d.who, d.what, d.whom) }

// deeds are all there are, the frequent ones more than once.
func deeds() []string {
	return []string{
		"tell", "tell", "tell", "rotate", "rotate", "invite", "invite", "remove", "leave",
		"restart", "away", "lose RotateKeys", "lose BatchEnqueue", "lose UpdateGroupMetadata", "rename", "restart the server", "rush", "rush",
	}
}

// TestGroupProperty drives a group of eight through random changes, several at
// the same instant, with restarts of clients and server, people who are away and
// answers that are lost after the server has done what was asked.
//
// At the end all who are members stand at one epoch with the same keys; whoever
// is not knows it; everybody who was a member when a message was sent, and still
// is, has it, once, and each sender's in the order in which they were sent.
// Across senders no order is promised.
func TestGroupProperty(t *testing.T) {
	// Every round takes seconds; -rapid.checks asks for more of them. Without it
	// the same deeds are done each time, at instants that still differ: a run
	// that finds something new belongs to who looks for it.
	asked := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { asked[f.Name] = true })
	for name, value := range map[string]string{"rapid.checks": "2", "rapid.shrinktime": "1s", "rapid.seed": "4"} {
		if asked[name] || name == "rapid.seed" && asked["rapid.checks"] {
			continue
		}
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	h := newHouse(t, "--send-burst", "100000", "--send-rate", "100000")
	var people []*person
	for _, name := range []string{"alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi"} {
		p := h.register(name)
		p.liar = newLiar(t)
		people = append(people, p.on())
	}
	keys := keysOf(people...)
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		m := &machine{t: t, rt: rt, house: h, people: people, keys: keys, name: fmt.Sprint("round ", round)}
		one := rapid.Custom(func(rt *rapid.T) deed {
			return deed{
				rapid.SampledFrom(deeds()).Draw(rt, "what"),
				rapid.IntRange(0, len(people)-1).Draw(rt, "who"),
				rapid.IntRange(0, len(people)-1).Draw(rt, "whom"),
			}
		})
		steps := rapid.SliceOfN(rapid.SliceOfN(one, 1, 5), 6, 14).Draw(rt, "steps")
		m.found(rapid.IntRange(0, len(people)-1).Draw(rt, "founder"), rapid.IntRange(1, len(people)-1).Draw(rt, "invited"))
		for _, step := range steps {
			m.step(step)
		}
		m.settle()
	})
}

// machine is one run.
type machine struct {
	t      *testing.T
	rt     *rapid.T
	house  *house
	people []*person
	keys   []rpc.IdentityKey
	name   string
	group  rpc.ChannelID

	mu   sync.Mutex
	said int
}

func (m *machine) within() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 2*patience)
}

func (m *machine) found(founder, invited int) {
	ctx, cancel := m.within()
	defer cancel()
	var with []rpc.IdentityKey
	for i := range invited {
		with = append(with, m.keyOf((founder+1+i)%len(m.people)))
	}
	for _, p := range m.people {
		m.turnOn(p)
	}
	g, err := m.people[founder].CreateGroup(ctx, m.name, with...)
	if err != nil {
		m.rt.Fatalf("making the group: %v", err)
	}
	m.group = g.ID
}

func (m *machine) turnOn(p *person) {
	if p.stop == nil {
		p.on()
	}
}

// step does several things at the same instant, at most one by each person. The
// server restarts beside them.
func (m *machine) step(step []deed) {
	var all sync.WaitGroup
	busy := map[int]bool{}
	server := false
	start := make(chan struct{})
	// In a rush everybody who has nothing else to do commits as well.
	if slices.ContainsFunc(step, func(d deed) bool { return d.what == "rush" }) {
		for i := range m.people {
			step = append(step, deed{what: "rotate", who: i})
		}
	}
	for _, d := range step {
		switch d.what {
		case "restart the server":
			server = true
			continue
		case "rush":
			continue
		}
		if busy[d.who] {
			continue
		}
		busy[d.who] = true
		m.turnOn(m.people[d.who])
		all.Go(func() {
			<-start
			if err := m.do(d); err != nil {
				m.rt.Errorf("%s: %v", d, err)
			}
		})
	}
	close(start)
	if server {
		m.house.close()
		m.house.start()
	}
	all.Wait()
}

// do returns an error only when something happened that must not.
func (m *machine) do(d deed) error {
	p, whom := m.people[d.who], m.keyOf(d.whom)
	ctx, cancel := m.within()
	defer cancel()
	allowed := []error{client.ErrNotInGroup}
	var err error
	what, lost, _ := strings.Cut(d.what, " ")
	switch what {
	case "tell":
		m.mu.Lock()
		m.said++
		text := fmt.Sprintf("%s %06d", p.name, m.said)
		m.mu.Unlock()
		_, err = p.SendTo(ctx, client.InGroup(m.group), &e2ee.Message{Type: e2ee.TypeChat, Text: text})
	case "rotate":
		err = p.Rotate(ctx, m.group)
	case "invite":
		allowed = append(allowed, client.ErrAlreadyInGroup)
		err = p.Invite(ctx, m.group, whom)
		if rpc.CodeOf(err) == qpcpb.CodeRateLimited {
			err = nil
		}
	case "remove":
		allowed = append(allowed, client.ErrNotOwner)
		if whom != p.Identity() {
			err = p.Remove(ctx, m.group, whom)
		}
	case "leave":
		err = p.Leave(ctx, m.group)
	case "rename":
		err = p.Rename(ctx, m.group, fmt.Sprintf("%s by %s", m.name, p.name))
	case "restart":
		p.off()
		p.on()
	case "away":
		p.off()
	case "lose":
		method := map[string]qpcpb.MethodID{
			"RotateKeys": qpcpb.MethodRotateKeys, "BatchEnqueue": qpcpb.MethodBatchEnqueue, "UpdateGroupMetadata": qpcpb.MethodUpdateGroupMetadata,
		}[lost]
		c := p.Client
		p.liar.about(method, func(_, _ []byte) ([]byte, qpcpb.Code) {
			p.liar.about(method, nil)
			client.DropLink(c)
			return nil, qpcpb.CodeStorageFailed
		})
	}
	if slices.ContainsFunc(allowed, func(a error) bool { return errors.Is(err, a) }) {
		return nil
	}
	return err
}

// keyOf is a person's key, whether they are there or away.
func (m *machine) keyOf(i int) rpc.IdentityKey { return m.keys[i] }

// settle lets everybody come back and all that waits go out, and looks at what
// became of it.
func (m *machine) settle() {
	for _, p := range m.people {
		for _, method := range []qpcpb.MethodID{qpcpb.MethodRotateKeys, qpcpb.MethodBatchEnqueue, qpcpb.MethodUpdateGroupMetadata} {
			p.liar.about(method, nil)
		}
		m.turnOn(p)
	}
	deadline := time.Now().Add(3 * patience)
	var problem string
	for ; ; time.Sleep(20 * time.Millisecond) {
		if problem = m.disagreement(); problem == "" {
			break
		}
		if time.Now().After(deadline) {
			m.rt.Fatalf("they do not agree: %s\n%s", problem, m.describe())
		}
	}
	// A last word of everybody, behind which nothing of theirs can come.
	live := m.live()
	last := map[string]bool{}
	for _, p := range live {
		text := p.name + " ends"
		last[text] = true
		if _, err := p.SendTo(context.Background(), client.InGroup(m.group), &e2ee.Message{Type: e2ee.TypeChat, Text: text}); err != nil {
			m.rt.Fatalf("the last word of %s: %v", p.name, err)
		}
	}
	for _, p := range live {
		for {
			heard, waiting := 0, 0
			for _, message := range m.history(p) {
				if last[message.Text] {
					heard++
				}
				if message.Status == client.StatusQueued {
					waiting++
				}
			}
			if heard == len(last) && waiting == 0 {
				break
			}
			if time.Now().After(deadline) {
				m.rt.Fatalf("%s hears %d of %d last words\n%s", p.name, heard, len(last), m.describe())
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	m.compare(live)
	for _, p := range m.people { // they are in few groups, however many rounds there are
		ctx, cancel := m.within()
		if err := p.Leave(ctx, m.group); err != nil && !errors.Is(err, client.ErrNotInGroup) {
			m.rt.Errorf("%s does not get out: %v", p.name, err)
		}
		cancel()
	}
}

// live returns who is in the group by their own account.
func (m *machine) live() (live []*person) {
	for _, p := range m.people {
		if g, err := p.Group(context.Background(), m.group); err == nil && (g.State == client.GroupActive || g.State == client.GroupLost) {
			live = append(live, p)
		}
	}
	return live
}

// disagreement says in what the members, and the server, do not agree yet.
func (m *machine) disagreement() string {
	live := m.live()
	var first client.Group
	for i, p := range live {
		g, err := p.Group(context.Background(), m.group)
		if err != nil {
			return err.Error()
		}
		if i == 0 {
			first = g
		}
		unsent, err := p.Unsent(context.Background())
		switch {
		case err != nil:
			return err.Error()
		case g.State != client.GroupActive:
			return p.name + " is " + string(g.State)
		case g.Epoch != first.Epoch || g.StateHash != first.StateHash:
			return fmt.Sprintf("%s stands at epoch %d (%x), %s at %d (%x)", p.name, g.Epoch, g.StateHash[:4], live[0].name, first.Epoch, first.StateHash[:4])
		case g.Name != first.Name:
			return fmt.Sprintf("%s calls it %q, %s %q", p.name, g.Name, live[0].name, first.Name)
		case len(g.Members) != len(live):
			return fmt.Sprintf("%s counts %d members, there are %d", p.name, len(g.Members), len(live))
		case unsent > 0:
			return fmt.Sprintf("%s has %d messages left to send", p.name, unsent)
		case client.Held(p.Client, m.group) > 0:
			return p.name + " holds messages back"
		}
		calls, err := client.Calls(p.Client)
		if err != nil {
			return err.Error()
		}
		ctx, cancel := m.within()
		response, err := qpcpb.NewGroupClient(calls).ListGroupMembers(ctx, &qpcpb.ListGroupMembersRequest{GroupId: m.group[:]})
		cancel()
		if err != nil {
			return err.Error()
		}
		if response.Epoch != g.Epoch || len(response.Members) != len(live) {
			return fmt.Sprintf("the server is at epoch %d with %d members, %s at %d with %d", response.Epoch, len(response.Members), p.name, g.Epoch, len(live))
		}
	}
	return ""
}

func (m *machine) describe() string {
	var b strings.Builder
	for _, p := range m.people {
		g, err := p.Group(context.Background(), m.group)
		fmt.Fprintf(&b, "%s: %v %s epoch %d (%x) %d members, %d held\n", p.name, err, g.State, g.Epoch, g.StateHash[:4], len(g.Members), client.Held(p.Client, m.group))
		for _, message := range m.history(p) {
			fmt.Fprintf(&b, "  %d epoch %d: %q %s %s", message.No, message.Epoch, message.Text, message.Status, message.Problem)
			if n := message.Notice; n != nil {
				fmt.Fprintf(&b, " %s %q by %.4x", n.Change, n.Name, message.Peer)
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func (m *machine) history(p *person) (all []client.Message) {
	err := p.HistoryOf(context.Background(), client.InGroup(m.group), 0, func(message client.Message) bool {
		all = append(all, message)
		return true
	})
	if err != nil {
		m.rt.Fatalf("the history of %s: %v", p.name, err)
	}
	return all
}

// compare holds the transcripts of all members against each other.
func (m *machine) compare(live []*person) {
	type transcript struct {
		since uint64 // the epoch at which this membership began
		texts map[string]uint64
	}
	all := make([]transcript, len(live))
	for i, p := range live {
		all[i].texts = make(map[string]uint64)
		latest := map[rpc.IdentityKey]string{}
		ever := map[string]bool{}
		for _, message := range m.history(p) {
			switch {
			case message.Notice != nil && message.Notice.Change == client.MemberJoined:
				all[i].since = message.Epoch
				clear(all[i].texts)
				continue
			case message.Notice != nil || message.Status == client.StatusFailed:
				continue
			case message.Problem != "":
				m.rt.Errorf("%s: %s", p.name, message.Problem)
				continue
			case message.Status == client.StatusQueued:
				m.rt.Errorf("%q of %s was never sent", message.Text, p.name)
			case ever[message.Text]:
				m.rt.Errorf("%s has %q twice", p.name, message.Text)
			case message.Text <= latest[message.Peer]:
				m.rt.Errorf("%s has %q after %q", p.name, message.Text, latest[message.Peer])
			}
			ever[message.Text] = true
			latest[message.Peer] = message.Text
			all[i].texts[message.Text] = message.Epoch
		}
	}
	count := 0
	for i, a := range all {
		for j, b := range all {
			for _, text := range slices.Sorted(maps.Keys(a.texts)) {
				if epoch := a.texts[text]; epoch < max(a.since, b.since) {
					continue
				}
				count++
				if _, has := b.texts[text]; !has {
					m.rt.Errorf("%s has %q of epoch %d, %s (a member since %d) has not", live[i].name, text, a.texts[text], live[j].name, b.since)
				}
			}
		}
	}
	m.t.Logf("%s: %d members at the end, %d pairs of reader and message, %d said", m.name, len(live), count, m.said)
}
