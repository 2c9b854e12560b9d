package e2ee_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"testing"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

// person is a member as a client is one: everything it knows of a group is the
// blob, which is loaded before and stored after every step.
type person struct {
	t       *testing.T
	name    string
	device  *e2ee.Device
	private map[e2ee.KeyPackageRef][]byte
	blob    []byte
}

func newIdentity(t testing.TB, name string) *e2ee.Identity {
	t.Helper()
	seed := sha256.Sum256([]byte(name))
	id, err := e2ee.NewIdentity(seed[:])
	must(t, err)
	return id
}

func newPerson(t *testing.T, name string) *person {
	return &person{t: t, name: name, device: newIdentity(t, name).FirstDevice(), private: map[e2ee.KeyPackageRef][]byte{}}
}

// newLinked is a second device of the identity called name.
func newLinked(t *testing.T, name string, n byte) *person {
	t.Helper()
	seed := sha256.Sum256([]byte{n})
	key := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	credential, err := newIdentity(t, name).IssueDevice([16]byte{n}, key)
	must(t, err)
	device, err := e2ee.NewLinkedDevice(seed[:], credential)
	must(t, err)
	return &person{t: t, name: name, device: device, private: map[e2ee.KeyPackageRef][]byte{}}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p *person) keyPackage(lastResort bool) []byte {
	p.t.Helper()
	public, private, ref, err := e2ee.NewKeyPackage(p.device, e2ee.Unlimited, lastResort)
	must(p.t, err)
	p.private[ref] = private
	return public
}

func (p *person) load() *e2ee.Group {
	p.t.Helper()
	g, err := e2ee.LoadGroup(p.device, p.blob)
	must(p.t, err)
	return g
}

// with runs one operation between a load and a store.
func (p *person) with(do func(g *e2ee.Group)) {
	p.t.Helper()
	g := p.load()
	do(g)
	p.blob = g.Marshal()
}

func (p *person) starts(id string) {
	p.t.Helper()
	g, err := e2ee.NewGroup(p.device, []byte(id))
	must(p.t, err)
	p.blob = g.Marshal()
}

func (p *person) joins(welcome []byte) *e2ee.Joined {
	p.t.Helper()
	joined, err := e2ee.JoinGroup(p.device, welcome, func(ref e2ee.KeyPackageRef) []byte { return p.private[ref] })
	must(p.t, err)
	if !joined.LastResort {
		delete(p.private, joined.KeyPackage)
	}
	p.blob = joined.Group.Marshal()
	return joined
}

func (p *person) sends(text string) (out []byte) {
	p.t.Helper()
	p.with(func(g *e2ee.Group) {
		var err error
		out, err = g.Encrypt([]byte(text))
		must(p.t, err)
	})
	return out
}

func (p *person) processes(message []byte) (event *e2ee.Event) {
	p.t.Helper()
	p.with(func(g *e2ee.Group) {
		var err error
		event, err = g.Process(message)
		if err != nil {
			p.t.Fatalf("%s: %v", p.name, err)
		}
	})
	return event
}

func (p *person) reads(message []byte, want string, from *person) {
	p.t.Helper()
	event := p.processes(message)
	if event.Kind != e2ee.EventMessage || string(event.Message) != want || event.Sender != from.device.Credential() {
		p.t.Fatalf("%s read kind %d, %q from %s, want %q from %s", p.name, event.Kind, event.Message, event.Sender.Identity, want, from.name)
	}
}

// adds commits and merges: the server accepted at once.
func (p *person) adds(keyPackages ...[]byte) (commit, welcome []byte) {
	p.t.Helper()
	p.with(func(g *e2ee.Group) {
		var err error
		commit, welcome, err = g.Add(keyPackages)
		must(p.t, err)
	})
	p.merges()
	return commit, welcome
}

func (p *person) refreshes() (commit []byte) {
	p.t.Helper()
	p.with(func(g *e2ee.Group) {
		var err error
		commit, err = g.Refresh()
		must(p.t, err)
	})
	p.merges()
	return commit
}

func (p *person) merges() (event *e2ee.Event) {
	p.t.Helper()
	p.with(func(g *e2ee.Group) {
		var err error
		event, err = g.MergeCommit()
		must(p.t, err)
	})
	return event
}

func (p *person) epoch() uint64 { return p.load().Epoch() }

// pair is two members of one group.
func pair(t *testing.T) (alice, bob *person) {
	alice, bob = newPerson(t, "alice"), newPerson(t, "bob")
	alice.starts("a direct chat...")
	_, welcome := alice.adds(bob.keyPackage(false))
	bob.joins(welcome)
	return alice, bob
}
