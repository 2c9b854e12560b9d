package transparency

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/tlog"
)

const (
	sqlSize     = `SELECT coalesce(max(leaf_index) + 1, 0) FROM transparency_leaf`
	sqlLeaf     = `SELECT hash FROM transparency_leaf WHERE leaf_index = ?`
	sqlLeaves   = `SELECT leaf_index, hash FROM transparency_leaf WHERE leaf_index >= ? AND leaf_index < ? ORDER BY leaf_index`
	sqlAddLeaf  = `INSERT INTO transparency_leaf (leaf_index, hash) VALUES (?, ?)`
	sqlNode     = `SELECT hash FROM transparency_node WHERE position = ?`
	sqlNodes    = `SELECT count(*) FROM transparency_node`
	sqlAddNode  = `INSERT INTO transparency_node (position, hash) VALUES (?, ?)`
	sqlHead     = `SELECT size, checkpoint FROM transparency_head WHERE id = 1`
	sqlSetHead  = `REPLACE INTO transparency_head (id, size, checkpoint) VALUES (1, ?, ?)`
	sqlBinding  = `SELECT username, leaf_index FROM transparency_binding WHERE identity_key = ?`
	sqlBindings = `SELECT identity_key, username, leaf_index FROM transparency_binding
		WHERE identity_key > ? ORDER BY identity_key LIMIT ?`
	sqlCountBindings = `SELECT count(*) FROM transparency_binding`
	// A key that registers again after its account was deleted has no row left.
	sqlAddBinding    = `INSERT INTO transparency_binding (identity_key, username, leaf_index) VALUES (?, ?, ?)`
	sqlDropBinding   = `DELETE FROM transparency_binding WHERE identity_key = ?`
	sqlRevocation    = `SELECT reason, revoked_at, leaf_index FROM transparency_revocation WHERE key_hash = ?`
	sqlAddRevocation = `INSERT INTO transparency_revocation (key_hash, reason, revoked_at, leaf_index) VALUES (?, ?, ?, ?)`
)

// head is the newest signed checkpoint, as it is stored.
type head struct {
	size   uint64
	signed string
}

// readHead returns the stored head; ok is false before the first one.
func readHead(tx *store.Tx) (h head, ok bool, err error) {
	err = tx.QueryRow(sqlHead).Scan(&h.size, &h.signed)
	if errors.Is(err, store.ErrNoRows) {
		return head{}, false, nil
	}
	if err != nil {
		return head{}, false, fmt.Errorf("read the head of the log: %w", err)
	}
	return h, true, nil
}

func writeHead(tx *store.Tx, h head) error {
	if _, err := tx.Exec(sqlSetHead, h.size, h.signed); err != nil {
		return fmt.Errorf("store the head of the log: %w", err)
	}
	return nil
}

func countLeaves(tx *store.Tx) (size uint64, err error) {
	if err := tx.QueryRow(sqlSize).Scan(&size); err != nil {
		return 0, fmt.Errorf("count the leaves of the log: %w", err)
	}
	return size, nil
}

func countNodes(tx *store.Tx) (n uint64, err error) {
	if err := tx.QueryRow(sqlNodes).Scan(&n); err != nil {
		return 0, fmt.Errorf("count the nodes of the log: %w", err)
	}
	return n, nil
}

func insertLeaf(tx *store.Tx, index uint64, hash []byte) error {
	if _, err := tx.Exec(sqlAddLeaf, index, hash); err != nil {
		return fmt.Errorf("store a leaf of the log: %w", err)
	}
	return nil
}

func insertNode(tx *store.Tx, position uint64, hash []byte) error {
	if _, err := tx.Exec(sqlAddNode, position, hash); err != nil {
		return fmt.Errorf("store a node of the log: %w", err)
	}
	return nil
}

// readLeaves gives the leaves of a range to visit, in order.
func readLeaves(tx *store.Tx, start, end uint64, visit func(index uint64, hash []byte) error) error {
	rows, err := tx.Query(sqlLeaves, start, end)
	if err != nil {
		return fmt.Errorf("read leaves of the log: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var index uint64
		var hash []byte
		if err := rows.Scan(&index, &hash); err != nil {
			return fmt.Errorf("read leaves of the log: %w", err)
		}
		if err := visit(index, hash); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read leaves of the log: %w", err)
	}
	return nil
}

// readHash returns the hash that a query names by a number; found is false
// when there is no such row.
func readHash(tx *store.Tx, query string, number uint64) (hash tlog.Hash, found bool, err error) {
	err = tx.QueryRow(query, number).Scan(&hash)
	if errors.Is(err, store.ErrNoRows) {
		return hash, false, nil
	}
	if err != nil {
		return hash, false, fmt.Errorf("read a hash of the log: %w", err)
	}
	return hash, true, nil
}

// place is where a binding stands.
type place struct {
	username string
	index    uint64
}

func readBinding(tx *store.Tx, identity rpc.IdentityKey) (p place, ok bool, err error) {
	err = tx.QueryRow(sqlBinding, identity).Scan(&p.username, &p.index)
	if errors.Is(err, store.ErrNoRows) {
		return place{}, false, nil
	}
	if err != nil {
		return place{}, false, fmt.Errorf("look for a binding: %w", err)
	}
	return p, true, nil
}

// boundAt is a row of the bindings.
type boundAt struct {
	Binding
	index uint64
}

// readBindings returns up to limit bindings, by key, from the first one above
// after (nil for all).
func readBindings(tx *store.Tx, after []byte, limit int) ([]boundAt, error) {
	rows, err := tx.Query(sqlBindings, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list bindings: %w", err)
	}
	defer rows.Close()
	var all []boundAt
	for rows.Next() {
		var b boundAt
		if err := rows.Scan(&b.Identity, &b.Username, &b.index); err != nil {
			return nil, fmt.Errorf("list bindings: %w", err)
		}
		all = append(all, b)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list bindings: %w", err)
	}
	return all, nil
}

func countBindings(tx *store.Tx) (n int, err error) {
	if err := tx.QueryRow(sqlCountBindings).Scan(&n); err != nil {
		return 0, fmt.Errorf("count bindings: %w", err)
	}
	return n, nil
}

func insertBinding(tx *store.Tx, b Binding, index uint64) error {
	if _, err := tx.Exec(sqlAddBinding, b.Identity, b.Username, index); err != nil {
		return fmt.Errorf("store a binding: %w", err)
	}
	return nil
}

func deleteBinding(tx *store.Tx, identity rpc.IdentityKey) error {
	if _, err := tx.Exec(sqlDropBinding, identity); err != nil {
		return fmt.Errorf("remove a binding: %w", err)
	}
	return nil
}

// revocation is the end of a key.
type revocation struct {
	reason string
	at     int64 // wall time, Unix seconds
	index  uint64
}

func readRevocation(tx *store.Tx, identity rpc.IdentityKey) (r revocation, ok bool, err error) {
	err = tx.QueryRow(sqlRevocation, sha256.Sum256(identity[:])).Scan(&r.reason, &r.at, &r.index)
	if errors.Is(err, store.ErrNoRows) {
		return revocation{}, false, nil
	}
	if err != nil {
		return revocation{}, false, fmt.Errorf("look for a revocation: %w", err)
	}
	return r, true, nil
}

func insertRevocation(tx *store.Tx, identity rpc.IdentityKey, r revocation) error {
	if _, err := tx.Exec(sqlAddRevocation, sha256.Sum256(identity[:]), r.reason, r.at, r.index); err != nil {
		return fmt.Errorf("store a revocation: %w", err)
	}
	return nil
}
