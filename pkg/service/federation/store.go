package federation

import (
	"errors"
	"fmt"
	"sync"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	sqlPeers    = `SELECT domain, address, pin FROM federation_peer ORDER BY domain`
	sqlPutPeer  = `REPLACE INTO federation_peer (domain, address, pin) VALUES (?, ?, ?)`
	sqlDropPeer = `DELETE FROM federation_peer WHERE domain = ?`

	sqlTrust          = `SELECT given_pin, pin, server_key, checkpoint, contact_at FROM federation_trust WHERE domain = ?`
	sqlPutTrust       = `REPLACE INTO federation_trust (domain, given_pin, pin, server_key, checkpoint, contact_at) VALUES (?, ?, ?, ?, ?, ?)`
	sqlTrusted        = `SELECT domain FROM federation_trust`
	sqlWaitingDomains = `SELECT domain, count(*) FROM federation_outbox GROUP BY domain`
	sqlDropTrust      = `DELETE FROM federation_trust WHERE domain = ?`

	sqlIdentity       = `SELECT domain, username, standing FROM federation_identity WHERE identity_key = ?`
	sqlPutIdentity    = `REPLACE INTO federation_identity (identity_key, domain, username, standing) VALUES (?, ?, ?, ?)`
	sqlCountOfDomain  = `SELECT count(*) FROM federation_identity WHERE domain = ?`
	sqlReleaseName    = `UPDATE federation_identity SET username = '' WHERE domain = ? AND username = ? AND identity_key <> ?`
	sqlDropIdentity   = `DELETE FROM federation_identity WHERE identity_key = ?`
	sqlDropIdentities = `DELETE FROM federation_identity WHERE domain = ?`

	sqlInsert = `INSERT INTO federation_outbox (domain, kind, token, sender_key, recipient_key, channel, size, valid_until, payload)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`
	sqlNext = `SELECT id, kind, token, sender_key, recipient_key, channel, size, valid_until FROM federation_outbox
		WHERE domain = ? AND id > ? AND valid_until > ? ORDER BY id LIMIT ?`
	sqlPayload      = `SELECT payload FROM federation_outbox WHERE id = ? AND token = ?`
	sqlDelete       = `DELETE FROM federation_outbox WHERE id = ? AND token = ?`
	sqlLoad         = `SELECT count(*), coalesce(sum(size), 0) FROM federation_outbox WHERE domain = ?`
	sqlLoadOfSender = `SELECT count(*), coalesce(sum(size), 0) FROM federation_outbox WHERE sender_key = ? AND domain = ?`
	sqlLastOfGroup  = `SELECT id, kind FROM federation_outbox WHERE domain = ? AND channel = ? ORDER BY id DESC LIMIT 1`
	sqlReplace      = `UPDATE federation_outbox SET token = ?, size = ?, payload = ? WHERE id = ?`
	sqlExpired      = `DELETE FROM federation_outbox WHERE id IN (SELECT id FROM federation_outbox WHERE valid_until <= ? LIMIT ?)`
	sqlDropOutbox   = `DELETE FROM federation_outbox WHERE domain = ?`
	sqlDropSender   = `DELETE FROM federation_outbox WHERE sender_key = ? AND kind = 1`
	sqlStatesWith   = `SELECT id, payload FROM federation_outbox WHERE kind = 2 AND instr(payload, ?) > 0`
)

// for ever, as a valid_until: what a group's copies need is never too old.
const always = 1<<63 - 1

// A standing says how it is known that an identity lives on a domain.
type standing int

const (
	claimed standing = iota // by the home of a group, of a third server's user
	vouched                 // by the domain itself
	proven                  // by its transparency log, together with the name
)

// binding is where an identity lives.
type binding struct {
	domain, username string
	standing         standing
}

func readBinding(tx *store.Tx, identity rpc.IdentityKey) (b binding, ok bool, err error) {
	err = tx.QueryRow(sqlIdentity, identity).Scan(&b.domain, &b.username, &b.standing)
	if errors.Is(err, store.ErrNoRows) {
		return b, false, nil
	}
	if err != nil {
		return b, false, fmt.Errorf("look where somebody lives: %w", err)
	}
	return b, true, nil
}

func writeBinding(tx *store.Tx, identity rpc.IdentityKey, b binding) error {
	if _, err := tx.Exec(sqlPutIdentity, identity, b.domain, b.username, b.standing); err != nil {
		return fmt.Errorf("remember where somebody lives: %w", err)
	}
	if b.standing != proven {
		return nil
	}
	if _, err := tx.Exec(sqlReleaseName, b.domain, b.username, identity); err != nil {
		return fmt.Errorf("take a name from its last bearer: %w", err)
	}
	return nil
}

func countBindings(tx *store.Tx, domain string) (n int, err error) {
	if err = tx.QueryRow(sqlCountOfDomain, domain).Scan(&n); err != nil {
		err = fmt.Errorf("count the identities of %s: %w", domain, err)
	}
	return n, err
}

// trust is what has been learnt of a peer.
type trust struct {
	given      transport.Pin // by the owner
	pin        transport.Pin // now, after hand-overs
	serverKey  []byte        // empty before the first contact
	checkpoint string        // empty before the first proof
	contactAt  int64         // Unix seconds, 0 is never
}

func readTrust(tx *store.Tx, domain string) (t trust, ok bool, err error) {
	err = tx.QueryRow(sqlTrust, domain).Scan(&t.given, &t.pin, &t.serverKey, &t.checkpoint, &t.contactAt)
	if errors.Is(err, store.ErrNoRows) {
		return t, false, nil
	}
	if err != nil {
		return t, false, fmt.Errorf("read what is known of %s: %w", domain, err)
	}
	return t, true, nil
}

func writeTrust(tx *store.Tx, domain string, t trust) error {
	if _, err := tx.Exec(sqlPutTrust, domain, t.given, t.pin, t.serverKey, t.checkpoint, t.contactAt); err != nil {
		return fmt.Errorf("remember what is known of %s: %w", domain, err)
	}
	return nil
}

// load is what waits for one peer.
type load struct{ messages, bytes int64 }

func (l load) fits(size int, times int64, messages, bytes int64) bool {
	return l.messages < times*messages && l.bytes+int64(size) <= times*bytes
}

// loads remembers, for the writer, what waits for each peer, and of each sender
// for each: counting the rows for every message would read them all. What is
// remembered follows the transaction that runs; when one fails, all is forgotten
// and counted anew.
type loads struct {
	mu    sync.Mutex
	known map[loadOf]load
}

// loadOf is whose load: what waits for a domain, of one sender or with an empty
// one of all.
type loadOf struct{ domain, sender string }

// maxLoads bounds what is remembered, at about 150 bytes each. Forgetting one
// costs the next message of that sender a count.
const maxLoads = 2048

// of returns what waits.
func (l *loads) of(tx *store.Tx, of loadOf) (load, error) {
	l.mu.Lock()
	known, ok := l.known[of]
	l.mu.Unlock()
	if ok {
		return known, nil
	}
	counted, err := readLoad(tx, of)
	if err != nil {
		return load{}, err
	}
	l.set(tx, of, counted)
	return counted, nil
}

func (l *loads) set(tx *store.Tx, of loadOf, to load) {
	tx.AfterRollback(l.forget)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.known) >= maxLoads {
		for any := range l.known {
			delete(l.known, any)
			break
		}
	}
	l.known[of] = to
}

// change notes that a transaction has put a row into the outbox (by 1) or taken
// it out (by -1). What is not remembered is counted when it is asked for.
func (l *loads) change(tx *store.Tx, domain string, r *row, by int64) {
	for _, of := range []loadOf{{domain, ""}, {domain, string(r.sender)}} {
		l.mu.Lock()
		known, ok := l.known[of]
		l.mu.Unlock()
		if ok {
			l.set(tx, of, load{known.messages + by, known.bytes + by*int64(r.size)})
		}
		if len(r.sender) == 0 {
			return
		}
	}
}

// forget forgets all: rows have gone, or a transaction has failed.
func (l *loads) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.known)
}

func readLoad(tx *store.Tx, of loadOf) (out load, err error) {
	if of.sender == "" {
		err = tx.QueryRow(sqlLoad, of.domain).Scan(&out.messages, &out.bytes)
	} else {
		err = tx.QueryRow(sqlLoadOfSender, []byte(of.sender), of.domain).Scan(&out.messages, &out.bytes)
	}
	if err != nil {
		err = fmt.Errorf("count what waits for %s: %w", of.domain, err)
	}
	return out, err
}

func insertRow(tx *store.Tx, domain string, r *row) error {
	_, err := tx.Exec(sqlInsert, domain, r.kind, r.token, r.sender, r.recipient, r.channel, r.size, r.validUntil, r.payload)
	if err != nil {
		return fmt.Errorf("put into the outbox for %s: %w", domain, err)
	}
	return nil
}

// readRows returns the next rows of a peer above an id, without payloads.
func readRows(tx *store.Tx, domain string, after, now int64, limit int) (out []*row, err error) {
	rows, err := tx.Query(sqlNext, domain, after, now, limit)
	if err != nil {
		return nil, fmt.Errorf("read the outbox for %s: %w", domain, err)
	}
	for rows.Next() {
		r := &row{}
		if err := rows.Scan(&r.id, &r.kind, &r.token, &r.sender, &r.recipient, &r.channel, &r.size, &r.validUntil); err != nil {
			return nil, fmt.Errorf("read the outbox for %s: %w", domain, err)
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the outbox for %s: %w", domain, err)
	}
	return out, nil
}

func dropExpired(tx *store.Tx, now int64, most int) (int, error) {
	result, err := tx.Exec(sqlExpired, now, most)
	if err != nil {
		return 0, fmt.Errorf("remove what has expired in the outbox: %w", err)
	}
	return int(result.RowsAffected), nil
}
