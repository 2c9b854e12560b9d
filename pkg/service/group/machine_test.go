package group_test

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

// model is a group as it should be, in the simplest form.
type model struct {
	epoch    uint64
	metadata string
	members  []string // empty: no group
	owner    string
	accepted []acceptedCommit
}

type acceptedCommit struct {
	by      string
	request *qpcpb.RotateKeysRequest
}

func (m *model) has(name string) bool { return slices.Contains(m.members, name) }

func (m *model) join(name string) {
	if !m.has(name) {
		m.members = append(m.members, name)
	}
	if len(m.members) == 1 {
		m.owner = name
	}
}

func (m *model) leave(name string) {
	m.members = slices.DeleteFunc(slices.Clone(m.members), func(other string) bool { return other == name })
	if len(m.members) == 0 {
		*m = model{}
	} else if m.owner == name {
		m.owner = m.members[0]
	}
}

// line is what a member lists, as person.sees writes it.
func (m *model) line(domain string) string {
	line := fmt.Sprintf("%d %s:", m.epoch, m.metadata)
	for _, name := range m.members {
		line += " " + name
		if home := homeOf(name); home != domain {
			line += "(" + name + "@" + home + ")"
		}
		if name == m.owner {
			line += "*"
		}
	}
	return line
}

func homeOf(name string) string {
	if name == "remo" || name == "rita" {
		return far
	}
	return here
}

// TestGroupAgainstModel runs random histories of one group over two servers
// against the model: who is in it, who owns it, its epoch, who is posted what,
// and that the copy says the same once it has heard everything. Answers get
// lost, servers restart, accounts go, states come late and twice.
func TestGroupAgainstModel(t *testing.T) {
	asked := false
	flag.Visit(func(f *flag.Flag) { asked = asked || f.Name == "rapid.checks" })
	if !asked { // rapid's default of 100 takes too long for every day
		if err := flag.Set("rapid.checks", "15"); err != nil {
			t.Fatal(err)
		}
	}
	near, other := two(t)
	all := []string{"alice", "bob", "carol", "dave", "remo", "rita"}
	callers := make(map[string]person)
	for _, name := range all {
		house := near
		if homeOf(name) == far {
			house = other
		} else {
			other.remote.addresses[servicetest.Key(name)] = name + "@" + here
		}
		callers[name] = house.inMemory(t, name)
	}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		g := fmt.Sprint("group ", run)
		m := &model{}
		gone := make(map[string]bool) // accounts that are deleted
		heard := len(near.remote.told(far))
		commits := 0
		for _, name := range all {
			callers[name].h.Accounts.Add(name)
		}
		near.mail.take()
		anybody := rapid.SampledFrom(all)
		several := rapid.SliceOfNDistinct(anybody, 0, 3, rapid.ID[string])
		code := func(t *rapid.T, what string, err error, want qpcpb.Code) {
			if rpc.CodeOf(err) != want || want == qpcpb.CodeUnspecified && err != nil {
				t.Fatalf("%s: got %v, want %v", what, err, want)
			}
		}
		posted := func(t *rapid.T, want []string) {
			got := slices.DeleteFunc(near.mail.take(), func(line string) bool { return line[:6] == "state " })
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("posted %q, want %q", got, want)
			}
		}
		// reaches reports whether a caller finds the group: at home a member
		// does, elsewhere one whose server has heard of it too.
		reaches := func(name string) bool {
			if homeOf(name) == here {
				return m.has(name)
			}
			_, err := callers[name].list(g)
			return err == nil && m.has(name)
		}
		somebodyIsGone := func(names []string) bool {
			return slices.ContainsFunc(names, func(name string) bool { return gone[name] && !m.has(name) })
		}

		rt.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				posted(t, nil) // whatever was posted has been looked at
				settled := heard == len(near.remote.told(far))
				for _, name := range all {
					if homeOf(name) == far && !settled {
						continue
					}
					got, err := callers[name].list(g)
					if !m.has(name) {
						code(t, name+" lists", err, qpcpb.CodeChannelNotFound)
						continue
					}
					line := fmt.Sprintf("%d %s:", got.GetEpoch(), got.GetMetadata())
					for _, x := range got.GetMembers() {
						who := callers[name].h.known(x)
						line += " " + who
					}
					if want := m.line(homeOf(name)); line != want {
						t.Fatalf("%s sees %q, want %q", name, line, want)
					}
				}
			},
			"update": func(t *rapid.T) {
				by := anybody.Draw(t, "by")
				add, metadata := several.Draw(t, "add"), rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "metadata")
				want := qpcpb.CodeUnspecified
				makes := len(m.members) == 0
				switch {
				case makes && homeOf(by) == far:
					return // a group of far's own
				case homeOf(by) == far && !reaches(by):
					return // the same
				case makes && gone[by]:
					want = qpcpb.CodeUnauthenticated
				case !makes && !m.has(by):
					want = qpcpb.CodeChannelNotFound
				case somebodyIsGone(add):
					want = qpcpb.CodeUserNotFound
				}
				got, err := callers[by].update(g, metadata, add...)
				if code(t, "update", err, want); err != nil {
					return
				}
				if makes {
					m.join(by)
				}
				for _, name := range add {
					m.join(name)
				}
				if metadata != "" || len(add) == 0 {
					m.metadata = metadata
				}
				if got.Epoch != m.epoch {
					t.Fatalf("epoch %d, want %d", got.Epoch, m.epoch)
				}
			},
			"remove": func(t *rapid.T) {
				by, who := anybody.Draw(t, "by"), anybody.Draw(t, "who")
				want := qpcpb.CodeUnspecified
				switch {
				case !reaches(by):
					want = qpcpb.CodeChannelNotFound
				case by != who && by != m.owner:
					want = qpcpb.CodeOwnerRequired
				}
				err := callers[by].remove(g, who)
				if code(t, "remove", err, want); err == nil {
					m.leave(who)
				}
			},
			"rotate": func(t *rapid.T) {
				near.Wall.Advance(time.Minute)
				other.Wall.Advance(time.Minute)
				by := anybody.Draw(t, "by")
				commits++
				r := adding(rotation(g, m.epoch, fmt.Sprint("commit ", commits)), several.Draw(t, "add")...)
				if rapid.IntRange(0, 4).Draw(t, "stale") == 0 {
					r.Epoch += rapid.SampledFrom([]uint64{1, 2, ^uint64(0)}).Draw(t, "by how much")
				}
				var add, leave []string
				for _, key := range r.AddMembers {
					add = append(add, nameIn(all, key))
				}
				for _, name := range several.Draw(t, "remove") {
					if !slices.Contains(add, name) {
						leave = append(leave, name)
					}
				}
				removing(r, leave...)
				var want []string
				exact := true
				switch mode := rapid.SampledFrom([]string{"commit", "payloads", "payloads and own", "one lacks", "one too many"}).Draw(t, "mode"); mode {
				case "commit":
					for _, name := range m.members {
						if name != by || homeOf(by) == far { // whose devices are not known
							want = append(want, commitTo(name, string(r.Commit)))
						}
					}
				default:
					to := slices.DeleteFunc(slices.Clone(m.members), func(name string) bool { return name == by })
					switch {
					case mode == "payloads and own" && m.has(by):
						to = append(to, by)
					case mode == "one lacks" && len(to) > 0:
						to, exact = to[1:], false
					case mode == "one too many" && len(m.members) < len(all):
						outside := slices.DeleteFunc(slices.Clone(all), m.has)
						to, exact = append(to, outside[0]), false
					}
					for i, name := range to {
						payload := fmt.Sprint(commits, " for ", i)
						r.RecipientKeys = append(r.RecipientKeys, servicetest.Bytes(name))
						r.Payloads = append(r.Payloads, []byte(payload))
						want = append(want, commitTo(name, payload))
					}
					r.Commit = nil
				}
				for _, name := range add {
					want = append(want, welcomeTo(name))
				}
				expected := qpcpb.CodeUnspecified
				stale := r.Epoch != m.epoch
				switch {
				case !reaches(by):
					expected = qpcpb.CodeChannelNotFound
				case stale:
				case !exact:
					expected = qpcpb.CodeInvalidField
				case by != m.owner && slices.ContainsFunc(leave, func(name string) bool { return name != by && m.has(name) }):
					expected = qpcpb.CodeOwnerRequired
				case somebodyIsGone(add):
					expected = qpcpb.CodeUserNotFound
				}
				got, err := callers[by].rotate(r)
				if code(t, "rotate", err, expected); err != nil {
					return
				}
				if stale {
					if got.Accepted || got.Epoch != m.epoch {
						t.Fatalf("a commit for epoch %d got %v in epoch %d", r.Epoch, got, m.epoch)
					}
					return
				}
				if !got.Accepted || got.Epoch != m.epoch+1 {
					t.Fatalf("a commit for epoch %d got %v", m.epoch, got)
				}
				posted(t, want)
				m.accepted = append(m.accepted, acceptedCommit{by, proto.CloneOf(r)})
				m.epoch++
				// All go before any comes, and the group stays for who comes.
				next := *m
				for _, name := range leave {
					next.members = slices.DeleteFunc(slices.Clone(next.members), func(other string) bool { return other == name })
				}
				for _, name := range add {
					if !next.has(name) {
						next.members = append(slices.Clone(next.members), name)
					}
				}
				switch {
				case len(next.members) == 0:
					next = model{}
				case !next.has(next.owner):
					next.owner = next.members[0]
				}
				*m = next
			},
			"repeat": func(t *rapid.T) {
				if len(m.accepted) == 0 {
					return
				}
				a := rapid.SampledFrom(m.accepted).Draw(t, "which")
				near.Wall.Advance(time.Minute)
				other.Wall.Advance(time.Minute)
				if homeOf(a.by) == far && !reaches(a.by) {
					return // far does not pass it on
				}
				got, err := callers[a.by].rotate(a.request)
				if err != nil || !got.Accepted || got.Epoch != a.request.Epoch+1 {
					t.Fatalf("the repetition of a commit of epoch %d got %v, %v", a.request.Epoch, got, err)
				}
			},
			"erase": func(t *rapid.T) {
				name := rapid.SampledFrom(all[:4]).Draw(t, "who")
				near.Accounts.Remove(name)
				gone[name] = true
				near.Write(func(tx *store.Tx) error { return near.group.EraseTx(tx, servicetest.Key(name)) })
				if m.leave(name); m.members != nil {
					m.accepted = slices.DeleteFunc(m.accepted, func(a acceptedCommit) bool { return a.by == name })
				}
			},
			"register": func(t *rapid.T) {
				name := rapid.SampledFrom(all[:4]).Draw(t, "who")
				near.Accounts.Add(name)
				delete(gone, name)
			},
			"hear": func(t *rapid.T) {
				states := near.remote.told(far)
				if heard < len(states) {
					heard++
				}
				if heard == 0 {
					return
				}
				if err := other.apply(here, states[heard-1]); err != nil {
					t.Fatal(err)
				}
				other.mail.take()
			},
			"restart": func(t *rapid.T) {
				if rapid.IntRange(0, 3).Draw(t, "which") == 0 {
					near.restart()
				} else if rapid.IntRange(0, 3).Draw(t, "which") == 0 {
					other.restart()
				}
			},
		})
		// Leave nothing for the next run.
		for _, name := range slices.Clone(m.members) {
			err := near.DB.Write(t.Context(), func(tx *store.Tx) error { return near.group.EraseTx(tx, servicetest.Key(name)) })
			if err != nil {
				rt.Fatal(err)
			}
		}
	})
}

func nameIn(all []string, key []byte) string {
	i := slices.IndexFunc(all, func(name string) bool { return string(servicetest.Bytes(name)) == string(key) })
	return all[i]
}
