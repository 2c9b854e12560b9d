package delivery

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// The messages of a queue, oldest first, bucket by bucket. ?1 is the
	// queue, ?2 its first bucket, ?3 the seq to start above.
	fromQueue = ` FROM bucket CROSS JOIN delivery_message m INDEXED BY delivery_message_place
		ON m.bucket = bucket.n AND m.queue_id = ?1 AND m.seq > ?3`
	withBuckets = `WITH RECURSIVE bucket (n) AS (
		SELECT ?2 UNION ALL SELECT n + 1 FROM bucket WHERE n < (SELECT max(bucket) FROM delivery_message)) `
	selectPlaces = withBuckets + `SELECT m.id, m.seq, length(m.payload)` + fromQueue + ` WHERE m.valid_until > ?4 LIMIT ?5`
	selectWeight = withBuckets + `SELECT count(*), coalesce(sum(length(m.payload)), 0)` + fromQueue
	selectBucket = withBuckets + `SELECT m.bucket` + fromQueue + ` LIMIT 1`

	selectMessage = `SELECT received_at, payload FROM delivery_message WHERE id = ? AND queue_id = ? AND seq = ?`
	updateAcked   = `UPDATE delivery_queue SET acked_seq = ?, first_bucket = ? WHERE id = ?`
	selectCursor  = `SELECT acked_seq FROM delivery_cursor WHERE queue_id = ? AND device_id = ?`
	upsertCursor  = `INSERT INTO delivery_cursor (queue_id, device_id, acked_seq) VALUES (?, ?, ?) ON CONFLICT (queue_id, device_id) DO UPDATE SET acked_seq = excluded.acked_seq`
	deleteCursors = `DELETE FROM delivery_cursor WHERE device_id = ? AND queue_id IN (SELECT id FROM delivery_queue WHERE party_id = ?)`
)

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

// place is where one message of a page lies.
type place struct {
	queue *queue
	id    int64 // the order of arrival, over all queues
	seq   uint64
	size  int // of the payload
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
	if !slices.Contains(devices, p.device) {
		return rpc.Errorf(qpcpb.CodeDeviceNotFound, "this device is not registered")
	}
	return nil
}

// placesTx returns the messages of a page, in order, as many as fit one
// answer, and how large that is.
func (s *Service) placesTx(tx *store.Tx, p page) (places []place, bytes int, err error) {
	if err := s.checkDeviceTx(tx, p); err != nil {
		return nil, 0, err
	}
	queues, err := s.pageQueuesTx(tx, p)
	if err != nil {
		return nil, 0, err
	}
	now := s.options.DB.ServiceTime()
	for i := range queues {
		q := &queues[i]
		if q.after, err = afterTx(tx, p, q); err != nil {
			return nil, 0, err
		}
		if q.after >= q.lastSeq {
			continue
		}
		if places, err = appendPlacesTx(tx, places, q, now, p.limit); err != nil {
			return nil, 0, err
		}
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.id, b.id) })
	count, bytes := fits(places[:min(len(places), p.limit)])
	return places[:count], bytes, nil
}

// pageQueuesTx returns the queues that a page is read from.
func (s *Service) pageQueuesTx(tx *store.Tx, p page) ([]queue, error) {
	if p.allChannels {
		party, err := s.parties.id(tx, p.identity, false)
		if err != nil || party == 0 {
			return nil, err
		}
		return liveQueuesTx(tx, party)
	}
	q, err := s.queueTx(tx, p.address())
	if err != nil || q.id == 0 {
		return nil, err
	}
	return []queue{q}, nil
}

// address returns the queue of a page of one queue.
func (p page) address() address {
	to := address{recipient: p.identity, inChannel: len(p.channel) > 0}
	copy(to.id[:], p.channel)
	return to
}

// afterTx returns the seq above which the caller of a page has messages.
func afterTx(tx *store.Tx, p page, q *queue) (uint64, error) {
	after := max(q.ackedSeq, p.afterSeq)
	if !p.hasDevice {
		return after, nil
	}
	acked, err := cursorTx(tx, q.id, p.device)
	return max(after, acked), err
}

// appendPlacesTx appends up to limit messages of a queue.
func appendPlacesTx(tx *store.Tx, places []place, q *queue, now int64, limit int) ([]place, error) {
	rows, err := tx.Query(selectPlaces, q.id, q.firstBucket, q.after, now, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		at := place{queue: q}
		if err := rows.Scan(&at.id, &at.seq, &at.size); err != nil {
			return nil, err
		}
		places = append(places, at)
	}
	return places, rows.Err()
}

// readTx returns the messages at the places, up to the first that would bring
// them above bytes. One that is gone meanwhile is left out.
func readTx(tx *store.Tx, places []place, bytes int) (envelopes []*qpcpb.Envelope, read []place, err error) {
	envelopes = make([]*qpcpb.Envelope, 0, len(places))
	for _, at := range places {
		if bytes -= at.size + envelopeOverhead; bytes < 0 && len(read) > 0 {
			break
		}
		envelope := &qpcpb.Envelope{Seq: at.seq, ChannelId: at.queue.channel}
		err := tx.QueryRow(selectMessage, at.id, at.queue.id, at.seq).Scan(&envelope.ReceivedAt, &envelope.Data)
		if errors.Is(err, store.ErrNoRows) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		envelopes = append(envelopes, envelope)
		read = append(read, at)
	}
	return envelopes, read, nil
}

// peek reads a page without changing anything.
func (s *Service) peek(ctx context.Context, p page) (envelopes []*qpcpb.Envelope, err error) {
	envelopes, _, err = s.read(ctx, p)
	return envelopes, err
}

// read reads a page, having made room for it.
func (s *Service) read(ctx context.Context, p page) (envelopes []*qpcpb.Envelope, read []place, err error) {
	places, bytes, err := s.reserve(ctx, p)
	if err != nil || len(places) == 0 {
		return nil, nil, err
	}
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		envelopes, read, err = readTx(tx, places, bytes)
		return err
	})
	return envelopes, read, err
}

// errOvertaken reports a page of which another call has taken messages.
var errOvertaken = errors.New("another call has read these messages")

// maxFetchTries bounds how often a Fetch begins again because another Fetch of
// the same queue was quicker. Each time that one has made progress.
const maxFetchTries = 8

// fetch reads a page and acknowledges it. The reading is done beside the
// writer; the acknowledgement finds out whether somebody else was quicker. On a
// disk that takes no writes the messages are returned all the same, and stay:
// whoever fetches again gets them again.
func (s *Service) fetch(ctx context.Context, p page) ([]*qpcpb.Envelope, error) {
	for range maxFetchTries {
		envelopes, read, err := s.read(ctx, p)
		if err != nil || len(read) == 0 {
			return nil, err
		}
		last := make(map[*queue]uint64)
		for _, at := range read {
			last[at.queue] = at.seq
		}
		err = s.options.DB.Write(store.Freeing(ctx), func(tx *store.Tx) error {
			if err := s.checkDeviceTx(tx, p); err != nil {
				return err
			}
			for q, seq := range last {
				if err := s.takeTx(tx, p, q, seq); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil || store.IsUnwritable(err) {
			return envelopes, nil
		}
		if !errors.Is(err, errOvertaken) {
			return nil, err
		}
	}
	return nil, rpc.Errorf(qpcpb.CodeBusy, "too many calls fetch these messages at once; try again").After(time.Second)
}

// takeTx acknowledges what was read of a queue up to a seq, if nobody has taken
// any of it since.
func (s *Service) takeTx(tx *store.Tx, p page, read *queue, seq uint64) error {
	var q queue
	err := tx.QueryRow(selectQueue, read.party, read.channel).Scan(q.columns()...)
	if errors.Is(err, store.ErrNoRows) {
		return errOvertaken
	}
	if err != nil {
		return err
	}
	after, err := afterTx(tx, p, &q)
	if err != nil {
		return err
	}
	if q.id != read.id || after != read.after {
		return errOvertaken
	}
	return s.ackQueueTx(tx, p, &q, seq)
}

// reserve finds out which messages one answer holds, in how many bytes, and
// makes room for them.
func (s *Service) reserve(ctx context.Context, p page) (places []place, bytes int, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		places, bytes, err = s.placesTx(tx, p)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return places, bytes, rpc.ReserveMemory(ctx, bytes)
}

// ackTx acknowledges a queue up to a seq.
func (s *Service) ackTx(tx *store.Tx, p page, seq uint64) error {
	if err := s.checkDeviceTx(tx, p); err != nil {
		return err
	}
	q, err := s.queueTx(tx, p.address())
	if err != nil || q.id == 0 {
		return err
	}
	return s.ackQueueTx(tx, p, &q, min(seq, q.lastSeq))
}

// ackQueueTx moves the cursor of one device, or acknowledges for all.
func (s *Service) ackQueueTx(tx *store.Tx, p page, q *queue, seq uint64) error {
	if !p.hasDevice {
		return s.releaseTx(tx, q, seq)
	}
	acked, err := cursorTx(tx, q.id, p.device)
	if err != nil {
		return err
	}
	if seq > acked {
		if _, err := tx.Exec(upsertCursor, q.id, p.device, seq); err != nil {
			return err
		}
	}
	return s.trimTx(tx, p.identity, q)
}

func cursorTx(tx *store.Tx, queue int64, device rpc.DeviceID) (acked uint64, err error) {
	err = tx.QueryRow(selectCursor, queue, device).Scan(&acked)
	if errors.Is(err, store.ErrNoRows) {
		return 0, nil
	}
	return acked, err
}

// trimTx releases what every device has acknowledged. Without devices it
// releases nothing: then only calls without a device acknowledge.
func (s *Service) trimTx(tx *store.Tx, identity rpc.IdentityKey, q *queue) error {
	devices, err := s.options.Devices.ListTx(tx, identity)
	if err != nil || len(devices) == 0 {
		return err
	}
	all := q.lastSeq
	for _, device := range devices {
		acked, err := cursorTx(tx, q.id, device)
		if err != nil {
			return err
		}
		all = min(all, acked)
	}
	return s.releaseTx(tx, q, all)
}

// releaseTx gives up the messages of a queue up to a seq: from now on nobody
// sees them, and the sweep removes them.
func (s *Service) releaseTx(tx *store.Tx, q *queue, seq uint64) error {
	if seq <= q.ackedSeq {
		return nil
	}
	first, err := s.firstBucketTx(tx, q, seq)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(updateAcked, seq, first, q.id); err != nil {
		return err
	}
	s.parties.released(q.party)
	return nil
}

// firstBucketTx returns the bucket in which the messages above a seq begin: the
// newest one when there are none.
func (s *Service) firstBucketTx(tx *store.Tx, q *queue, seq uint64) (bucket int64, err error) {
	if seq < q.lastSeq {
		err = tx.QueryRow(selectBucket, q.id, q.firstBucket, seq).Scan(&bucket)
		if !errors.Is(err, store.ErrNoRows) {
			return bucket, err
		}
	}
	last, err := s.parties.lastID(tx)
	return bucketOf(last), err
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
	queues, err := liveQueuesTx(tx, party)
	if err != nil {
		return err
	}
	for i := range queues {
		if err := s.trimTx(tx, identity, &queues[i]); err != nil {
			return err
		}
	}
	return nil
}
