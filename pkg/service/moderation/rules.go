package moderation

import (
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// checkReason accepts an empty reason, or one line of text.
func checkReason(reason string) error {
	if n := utf8.RuneCountInString(reason); n > MaxReason {
		return rpc.Errorf(qpcpb.CodeInvalidField, "reason has %d characters where %d are allowed", n, MaxReason)
	}
	for _, r := range reason {
		// RuneError also stands for bytes that are no UTF-8.
		if r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp) {
			return rpc.Errorf(qpcpb.CodeInvalidField, "reason has a control character or line break; leave it out")
		}
	}
	return nil
}

// banEnd returns when a ban of so many seconds ends, in service time; 0 is
// never. It cannot overflow, since the duration is cut to MaxBan first.
func banEnd(now int64, seconds uint64) int64 {
	if seconds == 0 {
		return 0
	}
	return now + int64(min(seconds, uint64(MaxBan/time.Second)))
}

// bannedError is the answer to a login by somebody who is banned.
func bannedError(ban Ban) error {
	until := "for good"
	if !ban.ExpiresAt.IsZero() {
		until = "until " + ban.ExpiresAt.UTC().Format("2006-01-02 15:04 MST")
	}
	return rpc.Errorf(qpcpb.CodeUserBanned, "%s %s%s", banned, until, because(ban.Reason))
}

const banned = "you are banned from this server"

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return fmt.Sprintf(": %s", reason)
}

// pageSize is how many reports an answer may hold.
func pageSize(limit uint32) int {
	if limit == 0 || limit > MaxPage {
		return MaxPage
	}
	return int(limit)
}

// wireTime is a time as it crosses the wire; a clock before 1970 gives 0.
func wireTime(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(max(0, t.Unix()))
}
