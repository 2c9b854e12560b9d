package keys

import (
	"fmt"

	"github.com/quicprochat/qpcd/pkg/store"
)

const sqlDropOneTime = `DELETE FROM keys_package WHERE last_resort = 0`

// RestoredTx makes a database that comes from a backup fit to go on with: it
// drops the one-time packages, of which some were handed out after the backup
// and opened with keys that are gone. The last-resort ones stay, and clients
// bring new ones.
func RestoredTx(tx *store.Tx) error {
	if _, err := tx.Exec(sqlDropOneTime); err != nil {
		return fmt.Errorf("drop one-time key packages: %w", err)
	}
	return nil
}
