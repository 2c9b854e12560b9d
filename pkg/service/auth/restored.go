package auth

import (
	"fmt"

	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	forgetSessions = `DELETE FROM auth_session`
	forgetInvites  = `DELETE FROM auth_invite`
)

// RestoredTx makes a database that comes from a backup fit to go on with: what
// was ended or used up after the backup must not be good again. It ends all
// sessions, since one of them may be that of a phone lost meanwhile, and drops
// all codes for a registration, since they may have been used. Passwords are
// those of the backup.
func RestoredTx(tx *store.Tx) error {
	for _, statement := range []string{forgetSessions, forgetInvites} {
		if _, err := tx.Exec(statement); err != nil {
			return fmt.Errorf("end what the backup remembers: %w", err)
		}
	}
	return nil
}
