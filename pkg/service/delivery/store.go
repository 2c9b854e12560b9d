package delivery

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	selectParty = `SELECT id FROM delivery_party WHERE identity_key = ?`
	insertParty = `INSERT INTO delivery_party (identity_key) VALUES (?)`

	queueColumns  = `SELECT id, party_id, channel, last_seq, acked_seq, first_bucket FROM delivery_queue`
	selectQueue   = queueColumns + ` WHERE party_id = ? AND channel = ?`
	selectLive    = queueColumns + ` WHERE party_id = ? AND last_seq > acked_seq`
	insertQueue   = `INSERT INTO delivery_queue (party_id, channel, first_bucket, last_seq, acked_seq) SELECT ?, ?, ?, seq, seq FROM delivery_origin RETURNING id, last_seq, acked_seq`
	updateLastSeq = `UPDATE delivery_queue SET last_seq = ? WHERE id = ?`

	selectLastID  = `SELECT max(coalesce((SELECT max(id) FROM delivery_message), 0), coalesce((SELECT max(first_bucket) FROM delivery_queue), 0) << 8)`
	insertMessage = `INSERT INTO delivery_message (id, bucket, queue_id, seq, received_at, valid_until, payload) VALUES (?, ?, ?, ?, ?, ?, ?)`

	selectReceipt = `SELECT seq, payload_hash FROM delivery_receipt WHERE message_id = ? AND sender_id = ? AND queue_id = ? AND valid_until > ?`
	insertReceipt = `INSERT OR REPLACE INTO delivery_receipt (message_id, sender_id, queue_id, seq, payload_hash, valid_until) VALUES (?, ?, ?, ?, ?, ?)`
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
	// fromHome says that another server sends it as the home of a group, which
	// has made sure that it may: sender stands for that server, who is nobody's
	// contact and in no channel.
	fromHome bool
	must     bool // see PostTx
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
	id, party   int64
	channel     []byte
	lastSeq     uint64
	ackedSeq    uint64
	firstBucket int64

	after uint64 // where a page of it was read from
}

func (q *queue) columns() []any {
	return []any{&q.id, &q.party, &q.channel, &q.lastSeq, &q.ackedSeq, &q.firstBucket}
}

// queueTx finds a queue.
func (s *Service) queueTx(tx *store.Tx, to address) (q queue, err error) {
	if q.party, err = s.parties.id(tx, to.recipient, false); err != nil || q.party == 0 {
		return q, err
	}
	err = tx.QueryRow(selectQueue, q.party, to.channel()).Scan(q.columns()...)
	if errors.Is(err, store.ErrNoRows) {
		err = nil
	}
	return q, err
}

// liveQueuesTx returns the queues of a party that have messages.
func liveQueuesTx(tx *store.Tx, party int64) (queues []queue, err error) {
	rows, err := tx.Query(selectLive, party)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var q queue
		if err := rows.Scan(q.columns()...); err != nil {
			return nil, err
		}
		queues = append(queues, q)
	}
	return queues, rows.Err()
}

// mayReachTx refuses a message that may not go to its address, and reports
// whether the recipient has blocked the sender, and which other server the
// recipient lives on; home is empty for this one.
func (s *Service) mayReachTx(tx *store.Tx, m message) (blocked bool, home string, err error) {
	exists, err := s.options.Accounts.ExistsTx(tx, m.to.recipient)
	if err == nil && !exists && s.options.Remote != nil {
		home, exists, err = s.options.Remote.HomeTx(tx, m.to.recipient)
	}
	if err != nil {
		return false, "", err
	}
	if !exists {
		return false, "", rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here has this identity key")
	}
	if m.fromHome {
		return false, home, nil
	}
	if m.to.inChannel {
		if err := s.options.Channels.BothMembersTx(tx, m.to.id, m.sender, m.to.recipient); err != nil {
			return false, "", err
		}
	}
	if home != "" {
		return false, home, nil // that server knows whom its users block
	}
	blocked, err = s.options.Blocks.BlockedTx(tx, m.to.recipient, m.sender)
	return blocked, "", err
}

// enqueueTx stores a message. An *rpc.Error means that it is refused and that
// nothing was written; other errors are the storage's.
func (s *Service) enqueueTx(tx *store.Tx, m message) (outcome, error) {
	blocked, home, err := s.mayReachTx(tx, m)
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
	if m.hasID && sender == 0 && !m.fromHome {
		// A sender who has deleted their account while this call was on its way
		// must not leave a row behind.
		switch exists, err := s.existsTx(tx, m.sender); {
		case err != nil:
			return outcome{}, err
		case !exists:
			return outcome{}, rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted")
		}
	}
	// A full queue is full for a blocked sender too, who would notice else.
	times := int64(1)
	if m.fromHome {
		times = 2 // as PostTx
	}
	waiting, fits, err := s.roomTx(tx, q, len(m.payload), times)
	if err != nil {
		return outcome{}, err
	}
	if !fits {
		return outcome{}, rpc.Errorf(qpcpb.CodeQueueFull, "the recipient's queue is full until they fetch their messages")
	}
	if home != "" {
		// It may refuse, so it comes before the first write here.
		if err := s.relayTx(tx, home, m); err != nil {
			return outcome{}, err
		}
	}
	stored, err := s.nextTx(tx, &q, m)
	if err != nil {
		return outcome{}, err
	}
	if m.hasID {
		if sender == 0 {
			if sender, err = s.parties.id(tx, m.sender, true); err != nil {
				return outcome{}, err
			}
		}
		until := now + int64(s.options.Limits.Retention.Seconds())
		if _, err := tx.Exec(insertReceipt, m.id, sender, q.id, stored.seq, m.payloadHash, until); err != nil {
			return outcome{}, err
		}
	}
	if blocked || home != "" {
		return stored, nil
	}
	return stored, s.appendTx(tx, q, m, stored.seq, waiting)
}

// relayTx puts a message on its way to the server that its recipient lives on.
func (s *Service) relayTx(tx *store.Tx, home string, m message) error {
	return s.options.Remote.RelayTx(tx, home, Relay{
		Sender: m.sender, Recipient: m.to.recipient, Channel: m.to.channel(),
		Payload: m.payload, ID: m.id, ValidFor: time.Duration(m.validFor) * time.Second, Must: m.must,
	})
}

// existsTx reports whether an identity lives here, or is known to live on
// another server.
func (s *Service) existsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error) {
	exists, err := s.options.Accounts.ExistsTx(tx, identity)
	if err != nil || exists || s.options.Remote == nil {
		return exists, err
	}
	_, exists, err = s.options.Remote.HomeTx(tx, identity)
	return exists, err
}

// roomTx returns what waits for the party of a queue, and whether a payload
// more fits into so many times the limits.
func (s *Service) roomTx(tx *store.Tx, q queue, size int, times int64) (waiting load, fits bool, err error) {
	if q.party != 0 {
		if waiting, err = s.parties.load(tx, q.party); err != nil {
			return load{}, false, err
		}
	}
	return waiting, waiting.messages < times*s.options.Limits.QueueMessages &&
		waiting.bytes+int64(size) <= times*s.options.Limits.QueueBytes, nil
}

// nextTx takes the next sequence number of a queue, making the queue when
// there is none.
func (s *Service) nextTx(tx *store.Tx, q *queue, m message) (outcome, error) {
	var err error
	if *q, err = s.openQueueTx(tx, *q, m.to); err != nil {
		return outcome{}, err
	}
	seq := q.lastSeq + 1
	if seq > maxSeq {
		return outcome{}, fmt.Errorf("queue %d has used all its sequence numbers", q.id)
	}
	if _, err := tx.Exec(updateLastSeq, seq, q.id); err != nil {
		return outcome{}, err
	}
	return outcome{seq: seq, payloadHash: m.payloadHash}, nil
}

// appendTx puts a message at the end of the log.
func (s *Service) appendTx(tx *store.Tx, q queue, m message, seq uint64, waiting load) error {
	received := max(0, s.options.Now().Unix()) // a clock before 1970 has no place on the wire
	id, err := s.parties.nextID(tx)
	if err != nil {
		return err
	}
	until := s.options.DB.ServiceTime() + m.validFor
	if _, err := tx.Exec(insertMessage, id, bucketOf(id), q.id, seq, received, until, m.payload); err != nil {
		return err
	}
	s.parties.setLoad(tx, q.party, load{waiting.messages + 1, waiting.bytes + int64(len(m.payload))})
	tx.AfterCommit(func() {
		s.announce(m.to.recipient, &qpcpb.Envelope{Seq: seq, Data: m.payload, ChannelId: m.to.channel(), ReceivedAt: uint64(received)})
	})
	return nil
}

// Posting is a message that another domain queues within its own transaction.
type Posting struct {
	Sender, Recipient rpc.IdentityKey
	Channel           rpc.ChannelID
	InChannel         bool // false: into the inbox
	Payload           []byte
}

// PostTx queues a message that its recipient must not miss, as a commit of a
// group: no block and no rate holds it back, and it may fill the queue to twice
// its limits. What exceeds that is dropped: who has been away for so long
// misses messages anyway.
//
// To a recipient on another server it goes in the name of this one, as the home
// of the group, so that it arrives whoever has made it. An *rpc.Error says that
// there is no room on the way there or no way, and that nothing was written.
func (s *Service) PostTx(tx *store.Tx, p Posting) error {
	m := message{
		sender: p.Sender, to: address{recipient: p.Recipient, id: p.Channel, inChannel: p.InChannel},
		payload: p.Payload, payloadHash: sha256.Sum256(p.Payload),
		validFor: int64(s.options.Limits.Retention / time.Second), must: true,
	}
	if s.options.Remote != nil {
		home, elsewhere, err := s.options.Remote.HomeTx(tx, p.Recipient)
		if err != nil {
			return err
		}
		if elsewhere {
			return s.relayTx(tx, home, m)
		}
	}
	q, err := s.queueTx(tx, m.to)
	if err != nil {
		return err
	}
	waiting, fits, err := s.roomTx(tx, q, len(p.Payload), 2)
	if err != nil || !fits {
		return err
	}
	stored, err := s.nextTx(tx, &q, m)
	if err != nil {
		return err
	}
	return s.appendTx(tx, q, m, stored.seq, waiting)
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
		last, err := s.parties.lastID(tx)
		if err != nil {
			return q, err
		}
		err = tx.QueryRow(insertQueue, q.party, to.channel(), bucketOf(last)).Scan(&q.id, &q.lastSeq, &q.ackedSeq)
		if err != nil {
			return q, err
		}
	}
	return q, nil
}
