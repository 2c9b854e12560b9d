package federation

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// What a row of the outbox is.
const (
	kindMessage = 1
	kindState   = 2 // of a group whose home is here
	kindLeave   = 3 // a deleted user leaves a group whose home is there
)

// row is a row of the outbox, without its payload until that is wanted.
type row struct {
	id         int64
	kind       int
	token      rpc.MessageID
	sender     []byte // empty: this server as the home of a group
	recipient  []byte
	channel    []byte
	size       int
	validUntil int64
	payload    []byte
	senderName string
}

// place is what waits together: the queue that a message goes to.
type place struct{ recipient, channel string }

func (r *row) place() place { return place{string(r.recipient), string(r.channel)} }

// lane is what is sent one after the other: a conversation. Its messages go to
// several recipients, who share it.
func (r *row) lane() string {
	if len(r.channel) > 0 {
		return "c" + string(r.channel)
	}
	return "r" + string(r.recipient)
}

// wave is what is sent before the next look into the outbox.
type wave struct {
	rows  []*row
	bytes int
}

// take adds the next row in the order of the outbox, or reports that it belongs
// to a later wave. What is not a message is a wave of its own, so that nothing
// overtakes it and it overtakes nothing.
func (w *wave) take(r *row) bool {
	switch {
	case len(w.rows) == 0:
	case r.kind != kindMessage, w.rows[0].kind != kindMessage:
		return false
	case len(w.rows) == waveRows, w.bytes+r.size > waveBytes:
		return false
	}
	w.rows = append(w.rows, r)
	w.bytes += r.size
	return true
}

// lanes splits a wave into what may go side by side, in order within each.
func (w *wave) lanes() (out [][]*row) {
	index := make(map[string]int, len(w.rows))
	for _, r := range w.rows {
		i, ok := index[r.lane()]
		if !ok {
			i = len(out)
			index[r.lane()] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], r)
	}
	return out
}

// batches splits a lane into calls: consecutive messages of one sender in one
// channel go together. Those of an inbox go to one recipient.
func batches(lane []*row) (out [][]*row) {
	for i, r := range lane {
		if i > 0 && string(r.sender) == string(lane[i-1].sender) {
			out[len(out)-1] = append(out[len(out)-1], r)
			continue
		}
		out = append(out, []*row{r})
	}
	return out
}

// verdict is what an answer means for a row.
type verdict int

const (
	arrived verdict = iota + 1
	refused         // for good
	waiting         // this place waits, others go on
	failed          // the peer as a whole waits
)

// judge says what the answer to a call means for the row that it carried.
func judge(r *row, err error) verdict {
	if err == nil {
		return arrived
	}
	var answer *rpc.Error
	if !errors.As(err, &answer) {
		return failed
	}
	switch answer.Code {
	case qpcpb.CodeChannelNotFound, qpcpb.CodeChannelAccessDenied:
		// Members may learn of each other in any order, by way of a third
		// server; but the home itself has told of its group before.
		if r.kind != kindMessage || len(r.sender) == 0 {
			return refused
		}
		return waiting
	case qpcpb.CodeQueueFull, qpcpb.CodeQuotaExceeded:
		if r.kind != kindMessage {
			return refused
		}
		return waiting
	case qpcpb.CodeInternal:
		// One message that the peer stumbles over must not hold up the others.
		if r.kind == kindMessage {
			return waiting
		}
		return failed
	}
	switch answer.Status {
	case qpcpb.StatusBadRequest, qpcpb.StatusForbidden, qpcpb.StatusNotFound, qpcpb.StatusConflict, qpcpb.StatusPayloadTooLarge:
		return refused
	}
	return failed
}

// backoff doubles a pause from minWait to maxWait. Its zero value is ready.
type backoff struct{ next time.Duration }

// pause returns how long to wait now, a quarter more or less by chance: peers
// that lost each other do not come back in step.
func (b *backoff) pause() time.Duration {
	b.next = min(max(2*b.next, minWait), maxWait)
	return min(b.next*3/4+rand.N(b.next/2), maxWait)
}

func (b *backoff) reset() { b.next = 0 }

// afterFailure is how long to wait: as long as the peer has asked for, when it
// has.
func (b *backoff) afterFailure(err error) time.Duration {
	var answer *rpc.Error
	if errors.As(err, &answer) && answer.Code == qpcpb.CodeRateLimited && answer.RetryAfter > 0 {
		return min(answer.RetryAfter, maxWait)
	}
	return b.pause()
}

// passed are the codes of a peer's answer that a user is told as they are: they
// speak of what the user asked for. Anything else is between the servers.
var passed = map[qpcpb.Code]string{
	qpcpb.CodeUserNotFound:        "nobody by that name or identity lives there",
	qpcpb.CodeInvalidUsername:     "that is no name there",
	qpcpb.CodeInvalidField:        "the request is not as it should be",
	qpcpb.CodePayloadTooLarge:     "the request is too large",
	qpcpb.CodeRateLimited:         "too often; wait and try again",
	qpcpb.CodeChannelNotFound:     "no group of yours has this id",
	qpcpb.CodeChannelAccessDenied: "somebody is not in this group",
	qpcpb.CodeOwnerRequired:       "only the group's owner may do this",
	qpcpb.CodeGroupFull:           "the group is full",
	qpcpb.CodeQueueFull:           "a member's queue is full",
	qpcpb.CodeQuotaExceeded:       "a limit of that server is reached",
	qpcpb.CodeDomainUnknown:       "that server does not federate with a member's server; ask their owners to",
}

// answerOf turns the failure of a call to a peer into an answer to a user. What
// the peer says in words is not passed on: it is a stranger's.
func answerOf(domain string, err error) error {
	var answer *rpc.Error
	if errors.As(err, &answer) {
		if sentence, ok := passed[answer.Code]; ok {
			return rpc.Errorf(answer.Code, "%s: %s", domain, sentence).After(min(answer.RetryAfter, maxWait))
		}
	}
	if mismatch := (*MismatchError)(nil); errors.As(err, &mismatch) {
		return rpc.Errorf(qpcpb.CodeOriginMismatch, "%s does not say the truth; this server's owner is told", domain).Because(err)
	}
	return rpc.Errorf(qpcpb.CodePeerUnreachable, "%s cannot be reached now; try again later", domain).After(redialAfter).Because(err)
}

// MismatchError says that a peer's word contradicts what is known of it.
type MismatchError struct {
	Domain string
	Detail string
}

func (e *MismatchError) Error() string { return fmt.Sprintf("%s: %s", e.Domain, e.Detail) }

func mismatch(domain, format string, args ...any) error {
	return &MismatchError{Domain: domain, Detail: fmt.Sprintf(format, args...)}
}

// unknownDomain refuses what is meant for a server that is no peer.
func unknownDomain(domain string) error {
	return rpc.Errorf(qpcpb.CodeDomainUnknown, "this server does not federate with %s; its owner can add it as a peer", domain)
}
