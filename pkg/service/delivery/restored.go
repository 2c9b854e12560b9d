package delivery

import (
	"fmt"

	"github.com/quicprochat/qpcd/pkg/store"
)

// restoreStep is what a restore raises every sequence number by: more messages
// than a queue sees between a backup and its restore. 2^31 restores fit.
const restoreStep int64 = 1 << 32

const (
	raiseQueues = `UPDATE delivery_queue SET last_seq = last_seq + ?`
	raiseOrigin = `UPDATE delivery_origin SET seq = seq + ?`
)

// RestoredTx makes a database that comes from a backup fit to go on with. The
// backup does not know which sequence numbers were handed out after it, in its
// queues and in those that came later; clients have acknowledged some of them,
// and would take a new message under such a number for one they have had. So
// all queues, and those to come, go on far above. Readers tolerate gaps.
func RestoredTx(tx *store.Tx) error {
	for _, statement := range []string{raiseQueues, raiseOrigin} {
		if _, err := tx.Exec(statement, restoreStep); err != nil {
			return fmt.Errorf("raise the sequence numbers: %w", err)
		}
	}
	return nil
}
