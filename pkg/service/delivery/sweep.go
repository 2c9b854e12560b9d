package delivery

import (
	"context"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// A slice of the log: what is done with, and where the next slice begins.
	selectSlice = `SELECT m.id, m.valid_until <= ? OR q.id IS NULL OR m.seq <= q.acked_seq FROM delivery_message m
		LEFT JOIN delivery_queue q ON q.id = m.queue_id WHERE m.id > ? ORDER BY m.id LIMIT ?`
	deleteMessage = `DELETE FROM delivery_message WHERE id = ?`

	// Receipts expire in the order of their ids: looking at the oldest is
	// enough.
	sweepReceipts = `DELETE FROM delivery_receipt WHERE id IN (SELECT id FROM delivery_receipt ORDER BY id LIMIT ?) AND valid_until <= ?`
	trimReceipts  = `DELETE FROM delivery_receipt WHERE id IN (SELECT id FROM delivery_receipt
		WHERE id <= (SELECT max(id) FROM delivery_receipt) - ? ORDER BY id LIMIT ?)`

	eraseMessages = `DELETE FROM delivery_message WHERE queue_id IN (SELECT id FROM delivery_queue WHERE party_id = ?)`
	eraseReceipts = `DELETE FROM delivery_receipt WHERE sender_id = ? OR queue_id IN (SELECT id FROM delivery_queue WHERE party_id = ?)`
	eraseParty    = `DELETE FROM delivery_party WHERE id = ?`
)

// Sweep removes a bounded number of messages and receipts that are done with,
// and reports whether there may be more. One call looks at a slice of the log;
// a round over all of it takes as many as it needs, and no more than a few in
// one go.
func (s *Service) Sweep(ctx context.Context) (more bool, err error) {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	now := s.options.DB.ServiceTime()
	done, next, err := s.slice(ctx, s.sweptTo, now)
	if err != nil {
		return false, err
	}
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		more, err = s.sweepTx(tx, done, now)
		return err
	})
	if err != nil {
		return false, err
	}
	s.sweptTo = next
	if s.slices++; next == 0 || s.slices == sweepSlices {
		s.slices = 0
		return more, nil
	}
	return true, nil
}

// slice reads the next slice of the log: the messages that are done with, and
// where the next slice begins, 0 at the end. What is done with stays so: ids
// are not used again while newer ones are there.
func (s *Service) slice(ctx context.Context, after, now int64) (done []int64, next int64, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.Query(selectSlice, now, after, sweepSlice)
		if err != nil {
			return err
		}
		defer rows.Close()
		read := 0
		for rows.Next() && len(done) < sweepRows {
			var id int64
			var dead bool
			if err := rows.Scan(&id, &dead); err != nil {
				return err
			}
			if dead {
				done = append(done, id)
			}
			next = id
			read++
		}
		if read < sweepSlice && len(done) < sweepRows {
			next = 0
		}
		return rows.Err()
	})
	return done, next, err
}

// sweepTx removes messages, and receipts that have expired or are too many,
// and reports whether there may be more receipts.
func (s *Service) sweepTx(tx *store.Tx, done []int64, now int64) (more bool, err error) {
	if len(done) > 0 {
		// The log's end must be known before it is cut off: an id that was
		// given out is never given out again.
		if _, err := s.parties.lastID(tx); err != nil {
			return false, err
		}
		s.parties.forgetLoads()
	}
	for _, id := range done {
		if _, err := tx.Exec(deleteMessage, id); err != nil {
			return false, err
		}
	}
	receipts, err := tx.Exec(sweepReceipts, sweepRows, now)
	if err != nil {
		return false, err
	}
	trimmed, err := tx.Exec(trimReceipts, maxReceipts, sweepRows)
	return receipts.RowsAffected == sweepRows || trimmed.RowsAffected == sweepRows, err
}

// EraseTx removes an identity's queues, and what is known of its sending.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	party, err := s.parties.id(tx, identity, false)
	if err != nil || party == 0 {
		return err
	}
	if _, err := s.parties.lastID(tx); err != nil {
		return err
	}
	if _, err := tx.Exec(eraseMessages, party); err != nil {
		return err
	}
	if _, err := tx.Exec(eraseReceipts, party, party); err != nil {
		return err
	}
	s.parties.erased(tx, identity, party)
	_, err = tx.Exec(eraseParty, party) // queues and cursors go with it
	return err
}
