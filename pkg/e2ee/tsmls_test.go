package e2ee_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/internal/interop/outside"
	"github.com/quicprochat/qpcd/pkg/e2ee"
)

// tsPeer is a member that runs on ts-mls in a node process.
type tsPeer struct {
	t        *testing.T
	in       io.Writer
	out      *bufio.Reader
	identity e2ee.IdentityKey
}

type tsAnswer struct {
	KeyPackage, Identity, Commit, Welcome, Message, Text, GroupID string
	Epoch                                                         uint64
}

func newTSPeer(t *testing.T) *tsPeer {
	t.Helper()
	node := outside.Program(t, "node", "nodejs")
	modules := outside.Modules(t, filepath.Join("testdata", "tsmls"))
	// node looks for modules beside the script, so the two meet in a folder.
	folder := t.TempDir()
	must(t, os.Symlink(modules, filepath.Join(folder, "node_modules")))
	script, err := os.ReadFile(filepath.Join("testdata", "tsmls", "peer.mjs"))
	must(t, err)
	path := filepath.Join(folder, "peer.mjs")
	must(t, os.WriteFile(path, script, 0o600))

	cmd := exec.CommandContext(t.Context(), node, path)
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = t.Output()
	must(t, cmd.Start())
	t.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	return &tsPeer{t: t, in: in, out: bufio.NewReader(out)}
}

type args map[string]any

// try sends one command; the string is the peer's error.
func (p *tsPeer) try(op string, a args) (tsAnswer, string) {
	p.t.Helper()
	command := args{"op": op}
	for k, v := range a {
		if b, ok := v.([]byte); ok {
			v = hex.EncodeToString(b)
		}
		command[k] = v
	}
	line, err := json.Marshal(command)
	must(p.t, err)
	_, err = p.in.Write(append(line, '\n'))
	must(p.t, err)
	line, err = p.out.ReadBytes('\n')
	must(p.t, err)
	var answer struct {
		OK    tsAnswer
		Error string
	}
	must(p.t, json.Unmarshal(line, &answer))
	return answer.OK, answer.Error
}

func (p *tsPeer) do(op string, a args) tsAnswer {
	p.t.Helper()
	answer, failure := p.try(op, a)
	if failure != "" {
		p.t.Fatalf("ts-mls, %s: %s", op, failure)
	}
	return answer
}

func (p *tsPeer) bytes(text string) []byte {
	p.t.Helper()
	b, err := hex.DecodeString(text)
	must(p.t, err)
	return b
}

// keyPackage is the peer's key package in our form: bare.
func (p *tsPeer) keyPackage() []byte {
	p.t.Helper()
	answer := p.do("keyPackage", nil)
	var err error
	p.identity, err = e2ee.ParseIdentityKey(p.bytes(answer.Identity))
	must(p.t, err)
	message := p.bytes(answer.KeyPackage)
	if !bytes.HasPrefix(message, keyPackageHeader()) {
		p.t.Fatalf("key package begins %x", message[:4])
	}
	return message[4:]
}

// keyPackageHeader: version mls10, wire format mls_key_package.
func keyPackageHeader() []byte { return []byte{0, 1, 0, 5} }

func (p *tsPeer) sends(text string) []byte {
	p.t.Helper()
	return p.bytes(p.do("encrypt", args{"text": []byte(text)}).Message)
}

func (p *tsPeer) reads(message []byte, want string) {
	p.t.Helper()
	if got := string(p.bytes(p.do("process", args{"message": message}).Text)); got != want {
		p.t.Fatalf("ts-mls read %d bytes, want %d", len(got), len(want))
	}
}

func (p *person) readsFrom(message []byte, want string, from e2ee.IdentityKey) {
	p.t.Helper()
	event := p.processes(message)
	if event.Kind != e2ee.EventMessage || string(event.Message) != want || event.Sender.Identity != from {
		p.t.Fatalf("%s read %+v, want %q", p.name, event, want)
	}
}

func TestInteropWithTSMLS(t *testing.T) {
	texts := []string{"", "hello", "größer 🙂", strings.Repeat("x", 300), strings.Repeat("y", 40_000)}

	// talk runs both ways, empty commits in both forms included.
	talk := func(t *testing.T, us *person, peer *tsPeer) {
		for round := range 3 {
			for _, text := range texts {
				us.readsFrom(peer.sends(text), text, peer.identity)
				peer.reads(us.sends(text), text)
			}
			commit := us.refreshes()
			if got := peer.do("process", args{"message": commit}).Epoch; got != us.epoch() {
				t.Fatalf("ts-mls is at epoch %d, we at %d", got, us.epoch())
			}
			// The peer's handshake and application ratchets are independent, and its
			// handshake messages are padded.
			us.readsFrom(peer.sends("before the commit"), "before the commit", peer.identity)
			late := peer.sends("late")
			theirs := peer.do("refresh", args{"public": round == 1})
			if event := us.processes(peer.bytes(theirs.Commit)); event.Kind != e2ee.EventCommit {
				t.Fatalf("%+v", event)
			}
			us.readsFrom(late, "late", peer.identity)
		}
	}

	t.Run("we invite", func(t *testing.T) {
		peer, us := newTSPeer(t), newPerson(t, "alice")
		us.starts("sixteen bytes id")
		public := peer.keyPackage()
		info, err := e2ee.InspectKeyPackage(public)
		must(t, err)
		if info.Credential.Identity != peer.identity {
			t.Fatal("key package names another identity")
		}
		_, welcome := us.adds(public)
		if joined := peer.do("join", args{"welcome": welcome}); joined.GroupID != hex.EncodeToString([]byte("sixteen bytes id")) || joined.Epoch != 1 {
			t.Fatalf("%+v", joined)
		}
		talk(t, us, peer)
	})

	for _, public := range []bool{false, true} {
		name := map[bool]string{false: "they invite", true: "they invite, public handshakes"}[public]
		t.Run(name, func(t *testing.T) {
			peer, us, carol := newTSPeer(t), newPerson(t, "alice"), newPerson(t, "carol")
			peer.keyPackage()
			peer.do("create", args{"groupID": []byte("sixteen bytes id")})
			add := func(p *person, lastResort bool) tsAnswer {
				return peer.do("add", args{"keyPackage": append(keyPackageHeader(), p.keyPackage(lastResort)...), "public": public})
			}
			us.joins(peer.bytes(add(us, false).Welcome))
			talk(t, us, peer)

			added := add(carol, true)
			if event := us.processes(peer.bytes(added.Commit)); len(event.Added) != 1 || event.Added[0] != carol.device.Credential() {
				t.Fatalf("%+v", event)
			}
			if joined := carol.joins(peer.bytes(added.Welcome)); joined.Inviter.Identity != peer.identity {
				t.Fatalf("%+v", joined)
			}
			message := carol.sends("three of us")
			us.readsFrom(message, "three of us", carol.device.Credential().Identity)
			peer.reads(message, "three of us")

			// We refresh with three, then they ask to leave and we commit it.
			commit := us.refreshes()
			carol.processes(commit)
			peer.do("process", args{"message": commit})
			message = peer.sends("after the refresh")
			us.readsFrom(message, "after the refresh", peer.identity)
			carol.readsFrom(message, "after the refresh", peer.identity)
			var own []byte
			carol.with(func(g *e2ee.Group) {
				var err error
				own, err = g.ProposeSelfRemove()
				must(t, err)
			})
			us.processes(own)
			peer.do("process", args{"message": own})
			commit = us.refreshes()
			peer.do("process", args{"message": commit})
			if event := carol.processes(commit); event.Kind != e2ee.EventRemoved {
				t.Fatalf("%+v", event)
			}
			peer.reads(us.sends("carol left"), "carol left")

			// ts-mls pads a short private handshake message, which mls-go cannot read.
			padded := peer.do("proposeRemove", args{"leaf": 0, "public": false})
			if _, err := us.load().Process(peer.bytes(padded.Message)); !errors.Is(err, e2ee.ErrMalformed) {
				t.Fatalf("a padded proposal: %v", err)
			}
			leaving := peer.do("proposeRemove", args{"leaf": 0, "public": true})
			if event := us.processes(peer.bytes(leaving.Message)); event.Kind != e2ee.EventProposal || event.Removed[0].Identity != peer.identity {
				t.Fatalf("%+v", event)
			}
			us.refreshes()
			if n := len(us.load().Members()); n != 1 {
				t.Fatalf("%d members are left", n)
			}
		})
	}
}
