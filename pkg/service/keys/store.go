package keys

import (
	"errors"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// A package is there as long as its valid_until lies ahead of service time.
const (
	sqlDropExpiredOf = `DELETE FROM keys_package WHERE identity_key = ? AND valid_until <= ?`
	sqlHasOneTime    = `SELECT count(*) FROM keys_package
		WHERE identity_key = ? AND device_id = ? AND last_resort = 0 AND package = ?`
	sqlAddOneTime = `INSERT INTO keys_package (identity_key, device_id, package, last_resort, valid_until)
		VALUES (?, ?, ?, 0, ?)`
	// The new package is younger than its predecessor's row id says, which is
	// harmless: only one of a device is ever there.
	sqlPutLastResort = `INSERT INTO keys_package (identity_key, device_id, package, last_resort, valid_until)
		VALUES (?, ?, ?, 1, ?)
		ON CONFLICT (identity_key, device_id) WHERE last_resort = 1
		DO UPDATE SET package = excluded.package, valid_until = excluded.valid_until`
	sqlStock = `SELECT device_id, last_resort, min(id), count(*) FROM keys_package
		WHERE identity_key = ? AND valid_until > ?
		GROUP BY device_id, last_resort ORDER BY device_id, last_resort`
	sqlPackage      = `SELECT package FROM keys_package WHERE id = ?`
	sqlDropPackage  = `DELETE FROM keys_package WHERE id = ?`
	sqlDropPackages = `DELETE FROM keys_package WHERE identity_key = ?`
	sqlDropDevice   = `DELETE FROM keys_package WHERE identity_key = ? AND device_id = ?`
	sqlDropExpired  = `DELETE FROM keys_package WHERE id IN
		(SELECT id FROM keys_package WHERE valid_until <= ? ORDER BY valid_until LIMIT ?)`

	sqlPutHybrid = `INSERT INTO keys_hybrid (identity_key, public_key) VALUES (?, ?)
		ON CONFLICT (identity_key) DO UPDATE SET public_key = excluded.public_key`
	sqlHybrid     = `SELECT public_key FROM keys_hybrid WHERE identity_key = ?`
	sqlDropHybrid = `DELETE FROM keys_hybrid WHERE identity_key = ?`
)

// readStock returns what is stored for an identity and not expired at now, by
// device, one-time packages first.
func readStock(tx *store.Tx, identity rpc.IdentityKey, now int64) ([]shelf, error) {
	rows, err := tx.Query(sqlStock, identity, now)
	if err != nil {
		return nil, fmt.Errorf("count key packages: %w", err)
	}
	var out []shelf
	for rows.Next() {
		var sh shelf
		if err := rows.Scan(&sh.device, &sh.lastResort, &sh.oldest, &sh.count); err != nil {
			return nil, fmt.Errorf("count key packages: %w", err)
		}
		out = append(out, sh)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("count key packages: %w", err)
	}
	return out, nil
}

func deleteExpiredOf(tx *store.Tx, identity rpc.IdentityKey, now int64) error {
	if _, err := tx.Exec(sqlDropExpiredOf, identity, now); err != nil {
		return fmt.Errorf("remove expired key packages: %w", err)
	}
	return nil
}

func deleteExpired(tx *store.Tx, now int64, most int) (removed int, err error) {
	result, err := tx.Exec(sqlDropExpired, now, most)
	if err != nil {
		return 0, fmt.Errorf("remove expired key packages: %w", err)
	}
	return int(result.RowsAffected), nil
}

func hasOneTime(tx *store.Tx, identity rpc.IdentityKey, device, pkg []byte) (bool, error) {
	var n int
	if err := tx.QueryRow(sqlHasOneTime, identity, device, pkg).Scan(&n); err != nil {
		return false, fmt.Errorf("look for a key package: %w", err)
	}
	return n > 0, nil
}

func insertOneTime(tx *store.Tx, identity rpc.IdentityKey, device, pkg []byte, validUntil int64) error {
	if _, err := tx.Exec(sqlAddOneTime, identity, device, pkg, validUntil); err != nil {
		return fmt.Errorf("store a key package: %w", err)
	}
	return nil
}

func putLastResort(tx *store.Tx, identity rpc.IdentityKey, device, pkg []byte, validUntil int64) error {
	if _, err := tx.Exec(sqlPutLastResort, identity, device, pkg, validUntil); err != nil {
		return fmt.Errorf("store a last-resort key package: %w", err)
	}
	return nil
}

// takePackage reads a chosen package, and removes it unless it is the last
// resort.
func takePackage(tx *store.Tx, c choice) ([]byte, error) {
	var pkg []byte
	if err := tx.QueryRow(sqlPackage, c.oldest).Scan(&pkg); err != nil {
		return nil, fmt.Errorf("read a key package: %w", err)
	}
	if c.lastResort {
		return pkg, nil
	}
	if _, err := tx.Exec(sqlDropPackage, c.oldest); err != nil {
		return nil, fmt.Errorf("remove a key package: %w", err)
	}
	return pkg, nil
}

func putHybrid(tx *store.Tx, identity rpc.IdentityKey, public []byte) error {
	if _, err := tx.Exec(sqlPutHybrid, identity, public); err != nil {
		return fmt.Errorf("store a hybrid key: %w", err)
	}
	return nil
}

// readHybrid returns the hybrid key of an identity, or nil.
func readHybrid(tx *store.Tx, identity rpc.IdentityKey) ([]byte, error) {
	var public []byte
	err := tx.QueryRow(sqlHybrid, identity).Scan(&public)
	if errors.Is(err, store.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a hybrid key: %w", err)
	}
	return public, nil
}

func deleteDevice(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) error {
	if _, err := tx.Exec(sqlDropDevice, identity, device); err != nil {
		return fmt.Errorf("remove the key packages of a device: %w", err)
	}
	return nil
}

func deleteOwner(tx *store.Tx, identity rpc.IdentityKey) error {
	for _, query := range []string{sqlDropPackages, sqlDropHybrid} {
		if _, err := tx.Exec(query, identity); err != nil {
			return fmt.Errorf("remove the keys of an identity: %w", err)
		}
	}
	return nil
}
