package directory

import (
	"strings"

	"golang.org/x/text/unicode/norm"
	"golang.org/x/text/width"

	"github.com/quicprochat/qpcd/pkg/username"
)

// foldPart folds the beginning of a name. Unlike a whole name it may be empty,
// or what no name can be (half of a right-to-left name breaks the rule for
// those, RFC 5893): it then matches what it can, perhaps nothing. The steps are
// those of RFC 8265, section 3.3.2, without the checks.
func foldPart(part string) string {
	if folded, err := username.Fold(part); err == nil {
		return folded
	}
	return norm.NFC.String(strings.ToLower(width.Fold.String(part)))
}

// pageSize is how many users an answer holds at most.
func pageSize(limit uint32) int {
	if limit == 0 || limit > MaxUsers {
		return MaxUsers
	}
	return int(limit)
}
