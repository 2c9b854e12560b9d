package recovery

import (
	"errors"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// A replaced bundle keeps its id, and so its place before those of others
	// under the same hash.
	sqlReplace = `UPDATE recovery_bundle SET bundle = ? WHERE lookup_hash = ? AND identity_key = ?`
	sqlCount   = `SELECT count(*) FROM recovery_bundle WHERE identity_key = ?`
	sqlAdd     = `INSERT INTO recovery_bundle (lookup_hash, identity_key, bundle) VALUES (?, ?, ?)`
	sqlFind    = `SELECT bundle FROM recovery_bundle WHERE lookup_hash = ? ORDER BY id LIMIT 1`
	sqlDrop    = `DELETE FROM recovery_bundle WHERE lookup_hash = ? AND identity_key = ?`
	sqlDropOf  = `DELETE FROM recovery_bundle WHERE identity_key = ?`
)

func replaceBundle(tx *store.Tx, identity rpc.IdentityKey, hash lookupHash, bundle []byte) (bool, error) {
	result, err := tx.Exec(sqlReplace, bundle, hash, identity)
	if err != nil {
		return false, fmt.Errorf("replace a recovery bundle: %w", err)
	}
	return result.RowsAffected > 0, nil
}

func countBundles(tx *store.Tx, identity rpc.IdentityKey) (n int, err error) {
	if err := tx.QueryRow(sqlCount, identity).Scan(&n); err != nil {
		return 0, fmt.Errorf("count recovery bundles: %w", err)
	}
	return n, nil
}

func insertBundle(tx *store.Tx, identity rpc.IdentityKey, hash lookupHash, bundle []byte) error {
	if _, err := tx.Exec(sqlAdd, hash, identity, bundle); err != nil {
		return fmt.Errorf("store a recovery bundle: %w", err)
	}
	return nil
}

func readBundle(tx *store.Tx, hash lookupHash) (bundle []byte, ok bool, err error) {
	err = tx.QueryRow(sqlFind, hash).Scan(&bundle)
	if errors.Is(err, store.ErrNoRows) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("look for a recovery bundle: %w", err)
	}
	return bundle, true, nil
}

func deleteBundle(tx *store.Tx, identity rpc.IdentityKey, hash lookupHash) (bool, error) {
	result, err := tx.Exec(sqlDrop, hash, identity)
	if err != nil {
		return false, fmt.Errorf("remove a recovery bundle: %w", err)
	}
	return result.RowsAffected > 0, nil
}

func deleteOf(tx *store.Tx, identity rpc.IdentityKey) error {
	if _, err := tx.Exec(sqlDropOf, identity); err != nil {
		return fmt.Errorf("remove the recovery bundles of an identity: %w", err)
	}
	return nil
}
