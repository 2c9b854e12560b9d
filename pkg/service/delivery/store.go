package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	selectParty = `SELECT id FROM delivery_party WHERE identity_key = ?`
	insertParty = `INSERT INTO delivery_party (identity_key) VALUES (?)`
	selectQueue = `SELECT id, last_seq FROM delivery_queue WHERE party_id = ? AND channel = ?`
	selectLoad  = `SELECT count(m.key), coalesce(sum(length(m.payload)), 0), coalesce(max(m.arrival), 0)
		FROM delivery_queue q CROSS JOIN delivery_message m ON m.key BETWEEN q.id << 40 AND (q.id << 40 | 1099511627775) WHERE q.party_id = ?`
	insertQueue   = `INSERT INTO delivery_queue (party_id, channel) VALUES (?, ?)`
	updateLastSeq = `UPDATE delivery_queue SET last_seq = ? WHERE id = ?`
	deleteParty   = `DELETE FROM delivery_party WHERE id = ?`
	selectQueues  = `SELECT id FROM delivery_queue WHERE party_id = ?`

	insertMessage = `INSERT INTO delivery_message (key, payload, arrival, received_at, valid_until) VALUES (?, ?, ?, ?, ?)`
	deleteRange   = `DELETE FROM delivery_message WHERE key BETWEEN ? AND ?`

	selectReceipt  = `SELECT seq, payload_hash FROM delivery_receipt WHERE message_id = ? AND sender_id = ? AND queue_id = ? AND valid_until > ?`
	insertReceipt  = `INSERT OR REPLACE INTO delivery_receipt (message_id, sender_id, queue_id, seq, payload_hash, valid_until) VALUES (?, ?, ?, ?, ?, ?)`
	deleteReceipts = `DELETE FROM delivery_receipt WHERE sender_id = ? OR queue_id IN (SELECT id FROM delivery_queue WHERE party_id = ?)`

	selectCursor  = `SELECT acked_seq FROM delivery_cursor WHERE queue_id = ? AND device_id = ?`
	upsertCursor  = `INSERT INTO delivery_cursor (queue_id, device_id, acked_seq) VALUES (?, ?, ?) ON CONFLICT (queue_id, device_id) DO UPDATE SET acked_seq = excluded.acked_seq`
	deleteCursors = `DELETE FROM delivery_cursor WHERE device_id = ? AND queue_id IN (SELECT id FROM delivery_queue WHERE party_id = ?)`

	// One page of one queue, and one of all queues of a party in order of
	// arrival. ?1 is the party, ?2 the channel, ?3 the device or an empty blob
	// for none, ?4 the seq to start above, ?5 the limit, ?6 now.
	// 1099511627775 is maxSeq. The sizes come first, so that memory can be
	// reserved before the payloads are read.
	fromQueue = ` FROM delivery_queue q
		LEFT JOIN delivery_cursor c ON c.queue_id = q.id AND c.device_id = ?3
		CROSS JOIN delivery_message m ON m.key > (q.id << 40 | max(?4, coalesce(c.acked_seq, 0))) AND m.key <= (q.id << 40 | 1099511627775)
		WHERE q.party_id = ?1 AND q.channel = ?2 AND m.valid_until > ?6 ORDER BY m.key LIMIT ?5`
	fromAllQueues = ` FROM delivery_queue q
		LEFT JOIN delivery_cursor c ON c.queue_id = q.id AND c.device_id = ?3
		CROSS JOIN delivery_message m ON m.key > (q.id << 40 | max(?4, coalesce(c.acked_seq, 0))) AND m.key <= (q.id << 40 | 1099511627775)
		WHERE q.party_id = ?1 AND ?2 IS NOT NULL AND m.valid_until > ?6 ORDER BY m.arrival LIMIT ?5`
	sizeColumns     = `SELECT length(m.payload)`
	messageColumns  = `SELECT m.key, m.payload, m.received_at, q.channel, m.arrival`
	sizesOfQueue    = sizeColumns + fromQueue
	sizesOfAll      = sizeColumns + fromAllQueues
	messagesOfQueue = messageColumns + fromQueue
	// The payloads are joined to the page, not sorted with the queue: sorting
	// would hold all of them in memory at once. readTx puts them in order.
	messagesOfAll = `SELECT p.key, m.payload, p.received_at, p.channel, p.arrival
		FROM (SELECT m.key, m.received_at, q.channel, m.arrival` + fromAllQueues + `) p
		CROSS JOIN delivery_message m ON m.key = p.key`

	selectSlice   = `SELECT key, valid_until FROM delivery_message WHERE key > ? ORDER BY key LIMIT ?`
	deleteExpired = `DELETE FROM delivery_message WHERE key = ? AND valid_until <= ?`
	// Receipts expire in the order of their ids: looking at the oldest is
	// enough.
	trimReceipts = `DELETE FROM delivery_receipt WHERE id IN (SELECT id FROM delivery_receipt
		WHERE id <= (SELECT max(id) FROM delivery_receipt) - ? ORDER BY id LIMIT ?)`
	sweepReceipts = `DELETE FROM delivery_receipt WHERE id IN (SELECT id FROM delivery_receipt ORDER BY id LIMIT ?) AND valid_until <= ?`
)

// message is one message on its way into a queue.
type message struct {
	sender      rpc.IdentityKey
	to          address
	payload     []byte
	payloadHash [32]byte
	id          rpc.MessageID
	hasID       bool
	validFor    int64 // seconds of service time
}

// outcome is what became of a message.
type outcome struct {
	seq         uint64
	duplicate   bool
	payloadHash [32]byte // of the first message, when this one is a duplicate
}

// queue is the row of a queue. Its id is 0 when there is none yet, and its
// party's too.
type queue struct {
	party, id int64
	lastSeq   uint64
}

// queueTx finds a queue.
func (s *Service) queueTx(tx *store.Tx, to address) (q queue, err error) {
	if q.party, err = s.parties.id(tx, to.recipient, false); err != nil || q.party == 0 {
		return q, err
	}
	err = tx.QueryRow(selectQueue, q.party, to.channel()).Scan(&q.id, &q.lastSeq)
	if errors.Is(err, store.ErrNoRows) {
		err = nil
	}
	return q, err
}

// mayReachTx refuses a message that may not go to its address, and reports
// whether the recipient has blocked the sender.
func (s *Service) mayReachTx(tx *store.Tx, sender rpc.IdentityKey, to address) (blocked bool, err error) {
	exists, err := s.options.Accounts.ExistsTx(tx, to.recipient)
	if err != nil {
		return false, err
	}
	if !exists {
		return false, rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here has this identity key")
	}
	if to.inChannel {
		if err := s.options.Channels.BothMembersTx(tx, to.id, sender, to.recipient); err != nil {
			return false, err
		}
	}
	return s.options.Blocks.BlockedTx(tx, to.recipient, sender)
}

// enqueueTx stores a message. An *rpc.Error means that it is refused and that
// nothing was written; other errors are the storage's.
func (s *Service) enqueueTx(tx *store.Tx, m message) (outcome, error) {
	blocked, err := s.mayReachTx(tx, m.sender, m.to)
	if err != nil {
		return outcome{}, err
	}
	q, err := s.queueTx(tx, m.to)
	if err != nil {
		return outcome{}, err
	}
	now := s.options.DB.ServiceTime()
	var sender int64
	if m.hasID {
		if sender, err = s.parties.id(tx, m.sender, false); err != nil {
			return outcome{}, err
		}
		if sender != 0 && q.id != 0 {
			first := outcome{duplicate: true}
			err := tx.QueryRow(selectReceipt, m.id, sender, q.id, now).Scan(&first.seq, &first.payloadHash)
			if !errors.Is(err, store.ErrNoRows) {
				return first, err
			}
		}
	}
	if m.hasID && sender == 0 {
		// A sender who has deleted their account while this call was on its way
		// must not leave a row behind.
		switch exists, err := s.options.Accounts.ExistsTx(tx, m.sender); {
		case err != nil:
			return outcome{}, err
		case !exists:
			return outcome{}, rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted")
		}
	}
	// A full queue is full for a blocked sender too, who would notice else.
	size := int64(len(m.payload))
	var waiting load
	if q.party != 0 {
		if waiting, err = s.parties.load(tx, q.party); err != nil {
			return outcome{}, err
		}
	}
	if waiting.messages >= s.options.Limits.QueueMessages || waiting.bytes+size > s.options.Limits.QueueBytes {
		return outcome{}, rpc.Errorf(qpcpb.CodeQueueFull, "the recipient's queue is full until they fetch their messages")
	}
	if q, err = s.openQueueTx(tx, q, m.to); err != nil {
		return outcome{}, err
	}
	seq := q.lastSeq + 1
	if seq > maxSeq {
		return outcome{}, fmt.Errorf("queue %d has used all its sequence numbers", q.id)
	}
	if _, err := tx.Exec(updateLastSeq, seq, q.id); err != nil {
		return outcome{}, err
	}
	if m.hasID {
		if sender == 0 {
			if sender, err = s.parties.id(tx, m.sender, true); err != nil {
				return outcome{}, err
			}
		}
		until := now + int64(s.options.Limits.Retention.Seconds())
		if _, err := tx.Exec(insertReceipt, m.id, sender, q.id, seq, m.payloadHash, until); err != nil {
			return outcome{}, err
		}
	}
	stored := outcome{seq: seq, payloadHash: m.payloadHash}
	if blocked {
		return stored, nil
	}
	received := max(0, s.options.Now().Unix()) // a clock before 1970 has no place on the wire
	if _, err := tx.Exec(insertMessage, messageKey(q.id, seq), m.payload, waiting.arrivals+1, received, now+m.validFor); err != nil {
		return outcome{}, err
	}
	s.parties.setLoad(q.party, load{waiting.messages + 1, waiting.bytes + size, waiting.arrivals + 1})
	tx.AfterCommit(func() {
		s.announce(m.to.recipient, &qpcpb.Envelope{Seq: seq, Data: m.payload, ChannelId: m.to.channel(), ReceivedAt: uint64(received)})
	})
	return stored, nil
}

// openQueueTx makes the rows that a queue lacks.
func (s *Service) openQueueTx(tx *store.Tx, q queue, to address) (queue, error) {
	if q.party == 0 {
		party, err := s.parties.id(tx, to.recipient, true)
		if err != nil {
			return q, err
		}
		q.party = party
	}
	if q.id == 0 {
		result, err := tx.Exec(insertQueue, q.party, to.channel())
		if err != nil {
			return q, err
		}
		q.id = result.LastInsertID
	}
	return q, nil
}

// page says which messages are asked for.
type page struct {
	identity    rpc.IdentityKey
	channel     []byte
	allChannels bool
	device      rpc.DeviceID
	hasDevice   bool
	afterSeq    uint64
	limit       int
}

func (p page) queries() (sizes, messages string) {
	if p.allChannels {
		return sizesOfAll, messagesOfAll
	}
	return sizesOfQueue, messagesOfQueue
}

func (p page) arguments(party int64, limit int, now int64) []any {
	device := []byte{}
	if p.hasDevice {
		device = p.device[:]
	}
	return []any{party, p.channel, device, min(p.afterSeq, maxSeq), limit, now}
}

// checkDeviceTx refuses a device that the identity does not have.
func (s *Service) checkDeviceTx(tx *store.Tx, p page) error {
	if !p.hasDevice {
		return nil
	}
	devices, err := s.options.Devices.ListTx(tx, p.identity)
	if err != nil {
		return err
	}
	for _, d := range devices {
		if d == p.device {
			return nil
		}
	}
	return rpc.Errorf(qpcpb.CodeDeviceNotFound, "this device is not registered")
}

// measureTx returns how many messages fit one answer, and how large it is.
func (s *Service) measureTx(tx *store.Tx, p page) (count, bytes int, err error) {
	if err := s.checkDeviceTx(tx, p); err != nil {
		return 0, 0, err
	}
	party, err := s.parties.id(tx, p.identity, false)
	if err != nil || party == 0 {
		return 0, 0, err
	}
	query, _ := p.queries()
	rows, err := tx.Query(query, p.arguments(party, p.limit, s.options.DB.ServiceTime())...)
	if err != nil {
		return 0, 0, err
	}
	defer rows.Close()
	var sizes []int
	for rows.Next() {
		var size int
		if err := rows.Scan(&size); err != nil {
			return 0, 0, err
		}
		sizes = append(sizes, size)
	}
	count, bytes = fits(sizes)
	return count, bytes, rows.Err()
}

// readTx returns up to count messages of a page, as many as fit into bytes.
// Both were measured before: what has been removed since makes room for other
// messages, which may be larger.
func (s *Service) readTx(tx *store.Tx, p page, count, bytes int) ([]*qpcpb.Envelope, []int64, error) {
	party, err := s.parties.id(tx, p.identity, false)
	if err != nil || party == 0 {
		return nil, nil, err
	}
	_, query := p.queries()
	rows, err := tx.Query(query, p.arguments(party, count, s.options.DB.ServiceTime())...)
	if err != nil {
		return nil, nil, err
	}
	defer rows.Close()
	type arrived struct {
		key, arrival int64
		envelope     *qpcpb.Envelope
	}
	read := make([]arrived, 0, count)
	for rows.Next() {
		m := arrived{envelope: &qpcpb.Envelope{}}
		if err := rows.Scan(&m.key, &m.envelope.Data, &m.envelope.ReceivedAt, &m.envelope.ChannelId, &m.arrival); err != nil {
			return nil, nil, err
		}
		m.envelope.Seq = seqOf(m.key)
		read = append(read, m)
	}
	if err := rows.Err(); err != nil {
		return nil, nil, err
	}
	if p.allChannels {
		slices.SortFunc(read, func(a, b arrived) int { return cmp.Compare(a.arrival, b.arrival) })
	}
	envelopes := make([]*qpcpb.Envelope, 0, len(read))
	keys := make([]int64, 0, len(read))
	for i, m := range read {
		if bytes -= len(m.envelope.Data) + envelopeOverhead; bytes < 0 && i > 0 {
			break
		}
		envelopes = append(envelopes, m.envelope)
		keys = append(keys, m.key)
	}
	return envelopes, keys, nil
}

// peek reads a page without changing anything.
func (s *Service) peek(ctx context.Context, p page) (envelopes []*qpcpb.Envelope, err error) {
	count, bytes, err := s.reserve(ctx, p)
	if err != nil || count == 0 {
		return nil, err
	}
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		envelopes, _, err = s.readTx(tx, p, count, bytes)
		return err
	})
	return envelopes, err
}

// fetch reads a page and acknowledges it.
func (s *Service) fetch(ctx context.Context, p page) (envelopes []*qpcpb.Envelope, err error) {
	count, bytes, err := s.reserve(ctx, p)
	if err != nil || count == 0 {
		return nil, err
	}
	err = s.write(ctx, func(tx *store.Tx) error {
		// A device that was revoked meanwhile must not get a cursor again.
		if err := s.checkDeviceTx(tx, p); err != nil {
			return err
		}
		var keys []int64
		envelopes, keys, err = s.readTx(tx, p, count, bytes)
		if err != nil {
			return err
		}
		last := make(map[int64]uint64) // by queue
		for _, key := range keys {
			last[key>>seqBits] = seqOf(key)
		}
		party, err := s.parties.id(tx, p.identity, false)
		if err != nil {
			return err
		}
		for queue, seq := range last {
			if err := s.ackQueueTx(tx, p, party, queue, seq); err != nil {
				return err
			}
		}
		return nil
	})
	return envelopes, err
}

// reserve finds out how many messages one answer holds, in how many bytes, and
// makes room for them.
func (s *Service) reserve(ctx context.Context, p page) (count, bytes int, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		count, bytes, err = s.measureTx(tx, p)
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	return count, bytes, rpc.ReserveMemory(ctx, bytes)
}

// ackTx acknowledges a queue up to a seq.
func (s *Service) ackTx(tx *store.Tx, p page, seq uint64) error {
	if err := s.checkDeviceTx(tx, p); err != nil {
		return err
	}
	to := address{recipient: p.identity, inChannel: len(p.channel) > 0}
	copy(to.id[:], p.channel)
	q, err := s.queueTx(tx, to)
	if err != nil || q.id == 0 {
		return err
	}
	return s.ackQueueTx(tx, p, q.party, q.id, min(seq, q.lastSeq))
}

// ackQueueTx moves the cursor of one device, or removes for all.
func (s *Service) ackQueueTx(tx *store.Tx, p page, party, queue int64, seq uint64) error {
	if !p.hasDevice {
		return s.removeTx(tx, party, queue, seq)
	}
	acked, err := cursorTx(tx, queue, p.device)
	if err != nil {
		return err
	}
	if seq > acked {
		if _, err := tx.Exec(upsertCursor, queue, p.device, seq); err != nil {
			return err
		}
	}
	return s.trimTx(tx, p.identity, party, queue)
}

func cursorTx(tx *store.Tx, queue int64, device rpc.DeviceID) (acked uint64, err error) {
	err = tx.QueryRow(selectCursor, queue, device).Scan(&acked)
	if errors.Is(err, store.ErrNoRows) {
		return 0, nil
	}
	return acked, err
}

// trimTx removes what every device has acknowledged. Without devices it
// removes nothing: then only calls without a device acknowledge.
func (s *Service) trimTx(tx *store.Tx, identity rpc.IdentityKey, party, queue int64) error {
	devices, err := s.options.Devices.ListTx(tx, identity)
	if err != nil || len(devices) == 0 {
		return err
	}
	all := uint64(maxSeq)
	for _, device := range devices {
		acked, err := cursorTx(tx, queue, device)
		if err != nil {
			return err
		}
		all = min(all, acked)
	}
	return s.removeTx(tx, party, queue, all)
}

// removeTx deletes the messages of a queue up to a seq.
func (s *Service) removeTx(tx *store.Tx, party, queue int64, seq uint64) error {
	result, err := tx.Exec(deleteRange, messageKey(queue, 0), messageKey(queue, seq))
	if err == nil && result.RowsAffected > 0 {
		s.parties.removed(party)
	}
	return err
}

// queuesTx returns the queues of a party.
func queuesTx(tx *store.Tx, party int64) (queues []int64, err error) {
	rows, err := tx.Query(selectQueues, party)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		queues = append(queues, id)
	}
	return queues, rows.Err()
}

// ForgetDeviceTx drops the cursors of a device that is no longer registered,
// and what only it had left to acknowledge.
func (s *Service) ForgetDeviceTx(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) error {
	party, err := s.parties.id(tx, identity, false)
	if err != nil || party == 0 {
		return err
	}
	if _, err := tx.Exec(deleteCursors, device, party); err != nil {
		return err
	}
	queues, err := queuesTx(tx, party)
	if err != nil {
		return err
	}
	for _, queue := range queues {
		if err := s.trimTx(tx, identity, party, queue); err != nil {
			return err
		}
	}
	return nil
}

// EraseTx removes an identity's queues, and what is known of its sending.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	party, err := s.parties.id(tx, identity, false)
	if err != nil || party == 0 {
		return err
	}
	queues, err := queuesTx(tx, party)
	if err != nil {
		return err
	}
	for _, queue := range queues {
		if _, err := tx.Exec(deleteRange, messageKey(queue, 0), messageKey(queue, maxSeq)); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(deleteReceipts, party, party); err != nil {
		return err
	}
	s.parties.erased(tx, identity, party)
	_, err = tx.Exec(deleteParty, party) // queues and cursors go with it
	return err
}

// slice reads the next slice of all messages: the keys of those that have
// expired, and where the next slice begins, 0 at the end.
func (s *Service) slice(ctx context.Context, after, now int64) (expired []int64, next int64, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		rows, err := tx.Query(selectSlice, after, sweepSlice)
		if err != nil {
			return err
		}
		defer rows.Close()
		read := 0
		for rows.Next() && len(expired) < sweepRows {
			var key, until int64
			if err := rows.Scan(&key, &until); err != nil {
				return err
			}
			if until <= now {
				expired = append(expired, key)
			}
			next = key
			read++
		}
		if read < sweepSlice && len(expired) < sweepRows {
			next = 0
		}
		return rows.Err()
	})
	return expired, next, err
}

// sweepTx removes expired messages and receipts, and reports whether there
// may be more receipts.
func (s *Service) sweepTx(tx *store.Tx, expired []int64, now int64) (more bool, err error) {
	for _, key := range expired {
		if _, err := tx.Exec(deleteExpired, key, now); err != nil {
			return false, err
		}
	}
	if len(expired) > 0 {
		s.parties.failed() // whose they were is not worth looking up
	}
	receipts, err := tx.Exec(sweepReceipts, sweepRows, now)
	if err != nil {
		return false, err
	}
	trimmed, err := tx.Exec(trimReceipts, maxReceipts, sweepRows)
	return receipts.RowsAffected == sweepRows || trimmed.RowsAffected == sweepRows, err
}
