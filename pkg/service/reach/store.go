package reach

import (
	"errors"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// An endpoint is there as long as its valid_until lies ahead of service time.
const (
	sqlPutEndpoint = `INSERT INTO reach_endpoint (identity_key, address, valid_until) VALUES (?, ?, ?)
		ON CONFLICT (identity_key) DO UPDATE SET address = excluded.address, valid_until = excluded.valid_until`
	sqlEndpoint     = `SELECT address, valid_until FROM reach_endpoint WHERE identity_key = ? AND valid_until > ?`
	sqlDropEndpoint = `DELETE FROM reach_endpoint WHERE identity_key = ?`
	sqlSweep        = `DELETE FROM reach_endpoint WHERE identity_key IN
		(SELECT identity_key FROM reach_endpoint WHERE valid_until <= ? ORDER BY valid_until LIMIT ?)`

	sqlPutToken = `INSERT INTO reach_push_token (identity_key, device_id, url) VALUES (?, ?, ?)
		ON CONFLICT (identity_key, device_id) DO UPDATE SET url = excluded.url`
	sqlTokens    = `SELECT device_id, url FROM reach_push_token WHERE identity_key = ?`
	sqlDropToken = `DELETE FROM reach_push_token WHERE identity_key = ? AND device_id = ?`
	// Only the token that was found gone: the device may have a new one.
	sqlDropGone   = `DELETE FROM reach_push_token WHERE identity_key = ? AND device_id = ? AND url = ?`
	sqlDropTokens = `DELETE FROM reach_push_token WHERE identity_key = ?`
)

func putEndpoint(tx *store.Tx, identity rpc.IdentityKey, address []byte, until int64) error {
	if _, err := tx.Exec(sqlPutEndpoint, identity, address, until); err != nil {
		return fmt.Errorf("store an endpoint: %w", err)
	}
	return nil
}

func readEndpoint(tx *store.Tx, identity rpc.IdentityKey, now int64) (address []byte, until int64, ok bool, err error) {
	err = tx.QueryRow(sqlEndpoint, identity, now).Scan(&address, &until)
	if errors.Is(err, store.ErrNoRows) {
		return nil, 0, false, nil
	}
	if err != nil {
		return nil, 0, false, fmt.Errorf("look for an endpoint: %w", err)
	}
	return address, until, true, nil
}

func deleteEndpoint(tx *store.Tx, identity rpc.IdentityKey) error {
	if _, err := tx.Exec(sqlDropEndpoint, identity); err != nil {
		return fmt.Errorf("remove an endpoint: %w", err)
	}
	return nil
}

func putToken(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID, url string) error {
	if _, err := tx.Exec(sqlPutToken, identity, device, url); err != nil {
		return fmt.Errorf("store a push token: %w", err)
	}
	return nil
}

// token is where a device can be woken.
type token struct {
	device rpc.DeviceID
	url    string
}

func readTokens(tx *store.Tx, identity rpc.IdentityKey) (out []token, err error) {
	rows, err := tx.Query(sqlTokens, identity)
	if err != nil {
		return nil, fmt.Errorf("list push tokens: %w", err)
	}
	for rows.Next() {
		var t token
		if err := rows.Scan(&t.device, &t.url); err != nil {
			return nil, fmt.Errorf("list push tokens: %w", err)
		}
		out = append(out, t)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list push tokens: %w", err)
	}
	return out, nil
}

func deleteToken(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) error {
	if _, err := tx.Exec(sqlDropToken, identity, device); err != nil {
		return fmt.Errorf("remove a push token: %w", err)
	}
	return nil
}

func deleteGone(tx *store.Tx, identity rpc.IdentityKey, t token) error {
	if _, err := tx.Exec(sqlDropGone, identity, t.device, t.url); err != nil {
		return fmt.Errorf("remove a push token that is gone: %w", err)
	}
	return nil
}

func deleteOf(tx *store.Tx, identity rpc.IdentityKey) error {
	for _, query := range []string{sqlDropEndpoint, sqlDropTokens} {
		if _, err := tx.Exec(query, identity); err != nil {
			return fmt.Errorf("remove how an identity is reached: %w", err)
		}
	}
	return nil
}

func deleteExpired(tx *store.Tx, now int64) (more bool, err error) {
	result, err := tx.Exec(sqlSweep, now, sweepRows)
	if err != nil {
		return false, fmt.Errorf("remove expired endpoints: %w", err)
	}
	return result.RowsAffected == sweepRows, nil
}
