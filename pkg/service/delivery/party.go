package delivery

import (
	"errors"
	"sync"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// maxParties bounds what is remembered of parties, at about 150 bytes each.
// Forgetting one costs the next message to it a look into the database.
const maxParties = 4096

// parties remembers, for the writer, which row an identity has and what waits
// for it. Counting in rows instead would cost each message a written page of
// flash. What is remembered follows the transaction that runs: a removal
// forgets the count, and when a transaction fails, every count is forgotten,
// because it may contain what was undone.
type parties struct {
	mu    sync.Mutex
	ids   map[rpc.IdentityKey]int64
	loads map[int64]load // by id of the party
	last  int64          // the newest id of the log, 0 when it must be looked up
}

// load is what waits for one recipient.
type load struct{ messages, bytes int64 }

// A bucket is 256 messages of the log that arrived one after the other.
const bucketBits = 8

func bucketOf(id int64) int64 { return id >> bucketBits }

func newParties() *parties {
	return &parties{ids: make(map[rpc.IdentityKey]int64), loads: make(map[int64]load)}
}

// id returns the id of an identity, making the row when create is set; 0 means
// that there is none. An id is remembered once its row is committed.
func (p *parties) id(tx *store.Tx, identity rpc.IdentityKey, create bool) (id int64, err error) {
	p.mu.Lock()
	id, known := p.ids[identity]
	p.mu.Unlock()
	if known {
		return id, nil
	}
	err = tx.QueryRow(selectParty, identity).Scan(&id)
	if errors.Is(err, store.ErrNoRows) {
		if !create {
			return 0, nil
		}
		var result store.Result
		result, err = tx.Exec(insertParty, identity)
		id = result.LastInsertID
	}
	if err != nil {
		return 0, err
	}
	tx.AfterCommit(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		makeRoom(p.ids)
		p.ids[identity] = id
	})
	return id, nil
}

// load returns what waits for a party.
func (p *parties) load(tx *store.Tx, id int64) (total load, err error) {
	p.mu.Lock()
	l, known := p.loads[id]
	p.mu.Unlock()
	if known {
		return l, nil
	}
	queues, err := liveQueuesTx(tx, id)
	if err != nil {
		return load{}, err
	}
	for _, q := range queues {
		var l load
		if err := tx.QueryRow(selectWeight, q.id, q.firstBucket, q.ackedSeq).Scan(&l.messages, &l.bytes); err != nil {
			return load{}, err
		}
		total.messages += l.messages
		total.bytes += l.bytes
	}
	return total, nil
}

// lastID returns the newest id that the log has ever given out.
func (p *parties) lastID(tx *store.Tx) (id int64, err error) {
	p.mu.Lock()
	id = p.last
	p.mu.Unlock()
	if id != 0 {
		return id, nil
	}
	if err := tx.QueryRow(selectLastID).Scan(&id); err != nil {
		return 0, err
	}
	p.setLast(id)
	return id, nil
}

func (p *parties) setLast(id int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = id
}

// nextID gives out the next id of the log.
func (p *parties) nextID(tx *store.Tx) (int64, error) {
	id, err := p.lastID(tx)
	if err != nil {
		return 0, err
	}
	p.setLast(id + 1)
	return id + 1, nil
}

// setLoad notes what waits for a party after the message just stored.
func (p *parties) setLoad(tx *store.Tx, id int64, l load) {
	tx.AfterRollback(p.forgetLoads)
	p.mu.Lock()
	defer p.mu.Unlock()
	makeRoom(p.loads)
	p.loads[id] = l
}

// released forgets the count of a party that has fewer messages now.
func (p *parties) released(id int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.loads, id)
}

// forgetLoads forgets all counts: a transaction has failed, or some parties
// have fewer messages now and whose they were is not worth looking up. The ids
// that a failed transaction gave out are left out of the log, which does not
// mind.
func (p *parties) forgetLoads() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.loads)
}

// erased forgets a party whose row this transaction removes: at once for the
// rest of the transaction, and again at its end for those who looked before.
func (p *parties) erased(tx *store.Tx, identity rpc.IdentityKey, id int64) {
	forget := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.ids, identity)
		delete(p.loads, id)
	}
	forget()
	tx.AfterCommit(forget)
}

// makeRoom forgets an arbitrary entry of a full map.
func makeRoom[K comparable, V any](m map[K]V) {
	if len(m) < maxParties {
		return
	}
	for key := range m {
		delete(m, key)
		return
	}
}
