package directory

import (
	"fmt"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	sqlBlocked     = `SELECT count(*) FROM directory_block WHERE blocker_key = ? AND blocked_key = ?`
	sqlCount       = `SELECT count(*) FROM directory_block WHERE blocker_key = ?`
	sqlBlock       = `INSERT INTO directory_block (blocker_key, blocked_key) VALUES (?, ?)`
	sqlUnblock     = `DELETE FROM directory_block WHERE blocker_key = ? AND blocked_key = ?`
	sqlDropBlocker = `DELETE FROM directory_block WHERE blocker_key = ?`
	sqlDropBlocked = `DELETE FROM directory_block WHERE blocked_key = ?`
)

func readBlock(tx *store.Tx, blocker, blocked rpc.IdentityKey) (bool, error) {
	var n int
	if err := tx.QueryRow(sqlBlocked, blocker, blocked).Scan(&n); err != nil {
		return false, fmt.Errorf("look for a block: %w", err)
	}
	return n > 0, nil
}

func countBlocks(tx *store.Tx, blocker rpc.IdentityKey) (n int, err error) {
	if err := tx.QueryRow(sqlCount, blocker).Scan(&n); err != nil {
		return 0, fmt.Errorf("count blocks: %w", err)
	}
	return n, nil
}

func insertBlock(tx *store.Tx, blocker, blocked rpc.IdentityKey) error {
	if _, err := tx.Exec(sqlBlock, blocker, blocked); err != nil {
		return fmt.Errorf("store a block: %w", err)
	}
	return nil
}

func deleteBlock(tx *store.Tx, blocker, blocked rpc.IdentityKey) error {
	if _, err := tx.Exec(sqlUnblock, blocker, blocked); err != nil {
		return fmt.Errorf("remove a block: %w", err)
	}
	return nil
}

func deleteOf(tx *store.Tx, identity rpc.IdentityKey) error {
	for _, query := range []string{sqlDropBlocker, sqlDropBlocked} {
		if _, err := tx.Exec(query, identity); err != nil {
			return fmt.Errorf("remove the blocks of an identity: %w", err)
		}
	}
	return nil
}
