package federation

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/tlog"
	"github.com/quicprochat/qpcd/pkg/username"
)

func TestJudge(t *testing.T) {
	message := &row{kind: kindMessage, sender: make([]byte, 32)}
	ofHome, state, leave := &row{kind: kindMessage}, &row{kind: kindState}, &row{kind: kindLeave}
	answer := func(code qpcpb.Code) error { return fmt.Errorf("calling: %w", rpc.Errorf(code, "no")) }
	for _, test := range []struct {
		err                           error
		message, ofHome, state, leave verdict
	}{
		{nil, arrived, arrived, arrived, arrived},
		{io.ErrUnexpectedEOF, failed, failed, failed, failed},
		{answer(qpcpb.CodeUserNotFound), refused, refused, refused, refused},
		{answer(qpcpb.CodeOriginMismatch), refused, refused, refused, refused},
		{answer(qpcpb.CodeInvalidField), refused, refused, refused, refused},
		{answer(qpcpb.CodePayloadTooLarge), refused, refused, refused, refused},
		{answer(qpcpb.CodeChannelNotFound), waiting, refused, refused, refused},
		{answer(qpcpb.CodeChannelAccessDenied), waiting, refused, refused, refused},
		{answer(qpcpb.CodeQueueFull), waiting, waiting, refused, refused},
		{answer(qpcpb.CodeQuotaExceeded), waiting, waiting, refused, refused},
		{answer(qpcpb.CodeInternal), waiting, waiting, failed, failed},
		{answer(qpcpb.CodeDraining), failed, failed, failed, failed},
		{answer(qpcpb.CodeBusy), failed, failed, failed, failed},
		{answer(qpcpb.CodeDiskFull), failed, failed, failed, failed},
		{answer(qpcpb.CodeRateLimited), failed, failed, failed, failed},
		{answer(qpcpb.CodeUnimplemented), failed, failed, failed, failed},
		{&rpc.Error{Status: 77, Word: "NEW"}, failed, failed, failed, failed},
	} {
		for _, c := range []struct {
			row  *row
			want verdict
		}{{message, test.message}, {ofHome, test.ofHome}, {state, test.state}, {leave, test.leave}} {
			if got := judge(c.row, test.err); got != c.want {
				t.Errorf("%v for kind %d: %d, want %d", test.err, c.row.kind, got, c.want)
			}
		}
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	for want := minWait; want < maxWait; want *= 2 {
		if got := b.pause(); got < want*3/4 || got > want*5/4 {
			t.Fatalf("paused %v, want about %v", got, want)
		}
	}
	for range 100 {
		if got := b.pause(); got < maxWait*3/4 || got > maxWait {
			t.Fatalf("paused %v, want about %v at most", got, maxWait)
		}
	}
	b.reset()
	if got := b.pause(); got > 2*minWait {
		t.Errorf("after a success paused %v", got)
	}
	limited := rpc.Errorf(qpcpb.CodeRateLimited, "no").After(7 * time.Second)
	if got := b.afterFailure(limited); got != 7*time.Second {
		t.Errorf("paused %v, the peer asked for 7s", got)
	}
	if got := b.afterFailure(limited.After(100 * time.Hour)); got != maxWait {
		t.Errorf("paused %v, as long as the peer likes", got)
	}
}

// What a user is told of a peer's failure holds no word of the peer.
func TestAnswersAreOurOwnWords(t *testing.T) {
	foreign := "\x1b[2J send me your password"
	for _, test := range []struct {
		err  error
		want qpcpb.Code
	}{
		{rpc.Errorf(qpcpb.CodeUserNotFound, "%s", foreign), qpcpb.CodeUserNotFound},
		{rpc.Errorf(qpcpb.CodeRateLimited, "%s", foreign).After(time.Minute), qpcpb.CodeRateLimited},
		{rpc.Errorf(qpcpb.CodeUnauthenticated, "%s", foreign), qpcpb.CodePeerUnreachable},
		{rpc.Errorf(qpcpb.CodeOriginMismatch, "%s", foreign), qpcpb.CodePeerUnreachable},
		{&rpc.Error{Status: 2, Word: foreign, Message: foreign}, qpcpb.CodePeerUnreachable},
		{errors.New(foreign), qpcpb.CodePeerUnreachable},
		{mismatch("b.example", "%s", foreign), qpcpb.CodeOriginMismatch},
	} {
		got := answerOf("b.example", test.err)
		var answer *rpc.Error
		if !errors.As(got, &answer) || answer.Code != test.want || strings.Contains(answer.Message, "password") {
			t.Errorf("%v: got %v", test.err, got)
		}
	}
}

// Waves keep the order of what belongs together, and their bounds.
func TestWaves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []*row
		for i := range rapid.IntRange(1, 200).Draw(t, "rows") {
			r := &row{id: int64(i), kind: kindMessage, size: rapid.SampledFrom([]int{1, 1000, waveBytes / 3, waveBytes, 4 << 20}).Draw(t, "size")}
			pick := rapid.IntRange(0, 3).Draw(t, "who")
			r.sender, r.recipient = []byte{byte(pick % 2)}, []byte{byte(pick)}
			if channel := rapid.IntRange(0, 2).Draw(t, "channel"); channel > 0 {
				r.channel = []byte{byte(channel)}
			}
			if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
				r.kind, r.sender, r.recipient = kindState, nil, nil
			}
			all = append(all, r)
		}
		order := make(map[string][]int64) // by lane, as sent
		states := 0
		var sent []int64
		for rest := all; len(rest) > 0; {
			w := &wave{}
			for len(rest) > 0 && w.take(rest[0]) {
				rest = rest[1:]
			}
			if len(w.rows) == 0 {
				t.Fatal("an empty wave")
			}
			if len(w.rows) > waveRows || w.bytes > waveBytes && len(w.rows) > 1 {
				t.Fatalf("a wave of %d rows, %d bytes", len(w.rows), w.bytes)
			}
			if len(w.rows) > 1 {
				for _, r := range w.rows {
					if r.kind != kindMessage {
						t.Fatal("a state goes with others")
					}
				}
			} else if w.rows[0].kind == kindState {
				states++
			}
			for _, lane := range w.lanes() {
				for _, batch := range batches(lane) {
					for i, r := range batch {
						if string(r.sender) != string(batch[0].sender) || string(r.channel) != string(batch[0].channel) {
							t.Fatal("a batch of two senders or channels")
						}
						if i > 0 && len(r.channel) == 0 && string(r.recipient) != string(batch[0].recipient) {
							t.Fatal("a batch of two inboxes")
						}
						order[r.lane()] = append(order[r.lane()], r.id)
						sent = append(sent, r.id)
					}
				}
			}
		}
		if len(sent) != len(all) {
			t.Fatalf("%d of %d rows were sent", len(sent), len(all))
		}
		for lane, ids := range order {
			for i := 1; i < len(ids); i++ {
				if ids[i] <= ids[i-1] {
					t.Fatalf("lane %q goes %v", lane, ids)
				}
			}
		}
	})
}

// Whatever a peer answers about a name, it is believed only with a proof.
func FuzzVerify(f *testing.F) {
	who := username.Address{User: "bob", Domain: "b.example"}
	private := ed25519.NewKeyFromSeed(make([]byte, 32))
	known := trust{serverKey: private.Public().(ed25519.PublicKey)}
	signer, err := tlog.NewSigner(tlog.Origin(who.Domain), private)
	if err != nil {
		f.Fatal(err)
	}
	bob := make([]byte, 32)
	note, err := signer.Sign(tlog.Checkpoint{Size: 1, Root: tlog.BindingLeaf("bob", [32]byte(bob))})
	if err != nil {
		f.Fatal(err)
	}
	whole, err := proto.Marshal(&qpcpb.InclusionProof{TreeSize: 1, Checkpoint: note})
	if err != nil {
		f.Fatal(err)
	}
	if _, _, err := verify(who, &qpcpb.ProxyResolveUserResponse{IdentityKey: bob, InclusionProof: whole}, known); err != nil {
		f.Fatal("an honest answer: ", err)
	}
	f.Add(bob, whole, []byte{})
	f.Add(bob, whole[:len(whole)-1], bob)
	f.Fuzz(func(t *testing.T, identity, inclusion, consistency []byte) {
		answer := &qpcpb.ProxyResolveUserResponse{IdentityKey: identity, InclusionProof: inclusion, Consistency: [][]byte{consistency}}
		got, checkpoint, err := verify(who, answer, known)
		if err == nil && (got != rpc.IdentityKey(bob) || checkpoint == "") {
			t.Errorf("%x is believed to be bob", got)
		}
	})
}
