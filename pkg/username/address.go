package username

import (
	"fmt"
	"strings"
)

const (
	// MaxDomain is the longest domain, in bytes (RFC 1035, section 2.3.4).
	MaxDomain = 253
	// maxLabel is the longest part of it between two dots.
	maxLabel = 63
)

// Address is somebody's name together with the server that they live on.
type Address struct {
	User string // folded
	// Domain is in lower case, without a final dot; empty for somebody who
	// lives on the server that is asked.
	Domain string
}

// String returns user@domain, or the user alone where the domain is empty.
func (a Address) String() string {
	if a.Domain == "" {
		return a.User
	}
	return a.User + "@" + a.Domain
}

// ParseAddress reads user@domain, or a user alone, into its one form. What
// stands before the '@' is a name as Fold takes it, what stands after it a
// domain name of letters, digits, '-' and '.'. An error wraps ErrInvalid.
func ParseAddress(s string) (Address, error) {
	user, domain, remote := strings.Cut(s, "@")
	folded, err := Fold(user)
	if err != nil {
		return Address{}, err
	}
	a := Address{User: folded}
	if remote {
		if a.Domain, err = foldDomain(domain); err != nil {
			return Address{}, err
		}
	}
	return a, nil
}

// foldDomain checks a domain name.
func foldDomain(domain string) (string, error) {
	if len(domain) > MaxDomain {
		return "", fmt.Errorf("%w: its domain has more than %d characters", ErrInvalid, MaxDomain)
	}
	domain = strings.ToLower(domain)
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > maxLabel || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return "", fmt.Errorf("%w: after the '@' stands no domain name, as in alice@home.example", ErrInvalid)
		}
	}
	return domain, nil
}
