package opaque

import (
	"bytes"
	"fmt"
	"io"
)

// PasswordKeyLength is the length of a [PasswordKey].
const PasswordKeyLength = hashLength

// PasswordKey is what a password becomes with one server's OPRF under one
// credential identifier: the randomized password of RFC 9807, section 4.1.2. It
// logs in there as the password does, as long as that is the account's, and
// nowhere else; without the server's OPRF key it tells nothing of the password,
// not even to who guesses.
//
// The RFC has no use for it outside of a run. Here it lies in sealed recovery
// bundles, so that whoever opens one can log in without the password, and does
// not learn what their user may have chosen elsewhere too.
type PasswordKey []byte

// NewLoginWithKey begins a login by a password key, which is copied. To the
// server it looks like any other: KE1 blinds a value that the answer is not
// used for.
func NewLoginWithKey(rand io.Reader, key PasswordKey) (*Login, []byte, error) {
	if len(key) != PasswordKeyLength {
		return nil, nil, fmt.Errorf("opaque: password key of %d bytes, want %d", len(key), PasswordKeyLength)
	}
	l, ke1, err := newLogin(protocolConfig(), rand, nil)
	if err != nil {
		return nil, nil, err
	}
	l.known = bytes.Clone(key)
	return l, ke1, nil
}
