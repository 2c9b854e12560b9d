package group

import (
	"errors"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	sqlFind  = `SELECT channel_id FROM group_channel WHERE low_key = ? AND high_key = ?`
	sqlCount = `SELECT (SELECT count(*) FROM group_channel WHERE low_key = ?)
		+ (SELECT count(*) FROM group_channel WHERE high_key = ?)`
	sqlAdd      = `INSERT INTO group_channel (channel_id, low_key, high_key) VALUES (?, ?, ?)`
	sqlMembers  = `SELECT low_key, high_key FROM group_channel WHERE channel_id = ?`
	sqlContacts = `SELECT high_key FROM group_channel WHERE low_key = ?
		UNION ALL SELECT low_key FROM group_channel WHERE high_key = ? LIMIT ?`
	sqlDropLow  = `DELETE FROM group_channel WHERE low_key = ?`
	sqlDropHigh = `DELETE FROM group_channel WHERE high_key = ?`
)

// findChannel returns the channel of a sorted pair.
func findChannel(tx *store.Tx, low, high rpc.IdentityKey) (id rpc.ChannelID, ok bool, err error) {
	err = tx.QueryRow(sqlFind, low, high).Scan(&id)
	if errors.Is(err, store.ErrNoRows) {
		return id, false, nil
	}
	if err != nil {
		return id, false, fmt.Errorf("look for a channel: %w", err)
	}
	return id, true, nil
}

func countChannels(tx *store.Tx, identity rpc.IdentityKey) (n int, err error) {
	if err := tx.QueryRow(sqlCount, identity, identity).Scan(&n); err != nil {
		return 0, fmt.Errorf("count channels: %w", err)
	}
	return n, nil
}

func insertChannel(tx *store.Tx, id rpc.ChannelID, low, high rpc.IdentityKey) error {
	if _, err := tx.Exec(sqlAdd, id, low, high); err != nil {
		return fmt.Errorf("store a channel: %w", err)
	}
	return nil
}

func readMembers(tx *store.Tx, id rpc.ChannelID) ([]rpc.IdentityKey, error) {
	var low, high rpc.IdentityKey
	err := tx.QueryRow(sqlMembers, id).Scan(&low, &high)
	if errors.Is(err, store.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the members of a channel: %w", err)
	}
	return []rpc.IdentityKey{low, high}, nil
}

func readContacts(tx *store.Tx, identity rpc.IdentityKey, most int) ([]rpc.IdentityKey, error) {
	rows, err := tx.Query(sqlContacts, identity, identity, most)
	if err != nil {
		return nil, fmt.Errorf("list contacts: %w", err)
	}
	var out []rpc.IdentityKey
	for rows.Next() {
		var contact rpc.IdentityKey
		if err := rows.Scan(&contact); err != nil {
			return nil, fmt.Errorf("list contacts: %w", err)
		}
		out = append(out, contact)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list contacts: %w", err)
	}
	return out, nil
}

func deleteOf(tx *store.Tx, identity rpc.IdentityKey) error {
	for _, query := range []string{sqlDropLow, sqlDropHigh} {
		if _, err := tx.Exec(query, identity); err != nil {
			return fmt.Errorf("remove the channels of an identity: %w", err)
		}
	}
	return nil
}
