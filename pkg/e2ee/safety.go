package e2ee

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"strings"
)

const (
	safetyRounds    = 5200 // PROTOCOL 9: makes searching for look-alikes dear
	safetyChunks    = 6    // per key, five digits each
	safetyChunkSize = 5    // bytes of the hash per chunk
)

// SafetyNumber is the 60 digits that two users compare to see that nobody sits
// between them (PROTOCOL 9). It is the same from both sides: the half of the
// lower key comes first.
func SafetyNumber(a, b IdentityKey) string {
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	return safetyHalf(a) + safetyHalf(b)
}

// GroupSafetyNumber renders a safety number in groups of five digits, four
// groups a line, for people to read aloud. Other strings come back unchanged.
func GroupSafetyNumber(number string) string {
	const digits, perLine = 5, 4
	if len(number) != 2*safetyChunks*digits {
		return number
	}
	var out strings.Builder
	for i := 0; i < len(number); i += digits {
		switch group := i / digits; {
		case group == 0:
		case group%perLine == 0:
			out.WriteByte('\n')
		default:
			out.WriteByte(' ')
		}
		out.WriteString(number[i : i+digits])
	}
	return out.String()
}

// safetyHalf gives the 30 digits of one key. The value before the first round is
// empty, so the first round is over the key alone.
func safetyHalf(key IdentityKey) string {
	mac := hmac.New(sha256.New, []byte(labelSafetyNumber))
	var value []byte
	for range safetyRounds {
		mac.Reset()
		mac.Write(value)
		mac.Write(key[:])
		value = mac.Sum(value[:0])
	}
	var out strings.Builder
	for i := range safetyChunks {
		var n uint64
		for _, b := range value[i*safetyChunkSize : (i+1)*safetyChunkSize] {
			n = n<<8 | uint64(b)
		}
		fmt.Fprintf(&out, "%05d", n%100_000)
	}
	return out.String()
}
