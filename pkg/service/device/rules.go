package device

import (
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// checkName says whether text can be the name of a device: 1 to 64 characters
// on one line. Clients print it, so control characters would be theirs to
// suffer.
func checkName(name string) error {
	if !utf8.ValidString(name) {
		return rpc.Errorf(qpcpb.CodeInvalidField, "device_name is not valid UTF-8")
	}
	if n := utf8.RuneCountInString(name); n == 0 || n > MaxName {
		return rpc.Errorf(qpcpb.CodeInvalidField, "device_name has %d characters where 1 to %d are allowed", n, MaxName)
	}
	for _, r := range name {
		if unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp) {
			return rpc.Errorf(qpcpb.CodeInvalidField, "device_name has a control character or line break; leave it out")
		}
	}
	return nil
}

// isStale reports whether a last_seen is worth updating at now, both in Unix
// seconds. One that lies ahead was noted by a clock that has been put right
// since.
func isStale(seen, now int64) bool {
	return seen > now || now-seen >= int64(seenEvery/time.Second)
}

// wireTime is a wall time as it crosses the wire, where there is nothing
// before 1970.
func wireTime(seconds int64) uint64 { return uint64(max(0, seconds)) }
