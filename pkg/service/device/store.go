package device

import (
	"errors"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	sqlRename = `UPDATE device_device SET name = ?, last_seen_at = ? WHERE identity_key = ? AND device_id = ?`
	sqlCount  = `SELECT count(*) FROM device_device WHERE identity_key = ?`
	sqlAdd    = `INSERT INTO device_device (identity_key, device_id, name, registered_at, last_seen_at) VALUES (?, ?, ?, ?, ?)`
	sqlList   = `SELECT device_id, name, registered_at, last_seen_at FROM device_device
		WHERE identity_key = ? ORDER BY registered_at, device_id`
	sqlSeen      = `SELECT last_seen_at FROM device_device WHERE identity_key = ? AND device_id = ?`
	sqlSetSeen   = `UPDATE device_device SET last_seen_at = ? WHERE identity_key = ? AND device_id = ?`
	sqlDrop      = `DELETE FROM device_device WHERE identity_key = ? AND device_id = ?`
	sqlDropOwner = `DELETE FROM device_device WHERE identity_key = ?`
)

// row is one device as it is stored; times are Unix seconds.
type row struct {
	id           rpc.DeviceID
	name         string
	registeredAt int64
	lastSeenAt   int64
}

// renameDevice reports whether there was such a device.
func renameDevice(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID, name string, now int64) (bool, error) {
	result, err := tx.Exec(sqlRename, name, now, identity, device)
	if err != nil {
		return false, fmt.Errorf("rename a device: %w", err)
	}
	return result.RowsAffected > 0, nil
}

func countDevices(tx *store.Tx, identity rpc.IdentityKey) (n int, err error) {
	if err := tx.QueryRow(sqlCount, identity).Scan(&n); err != nil {
		return 0, fmt.Errorf("count devices: %w", err)
	}
	return n, nil
}

func insertDevice(tx *store.Tx, identity rpc.IdentityKey, d row) error {
	if _, err := tx.Exec(sqlAdd, identity, d.id, d.name, d.registeredAt, d.lastSeenAt); err != nil {
		return fmt.Errorf("store a device: %w", err)
	}
	return nil
}

func readDevices(tx *store.Tx, identity rpc.IdentityKey) ([]row, error) {
	rows, err := tx.Query(sqlList, identity)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var out []row
	for rows.Next() {
		var d row
		if err := rows.Scan(&d.id, &d.name, &d.registeredAt, &d.lastSeenAt); err != nil {
			return nil, fmt.Errorf("list devices: %w", err)
		}
		out = append(out, d)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	return out, nil
}

// readSeen returns when a device was last seen; ok is false when there is no
// such device.
func readSeen(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) (seen int64, ok bool, err error) {
	err = tx.QueryRow(sqlSeen, identity, device).Scan(&seen)
	if errors.Is(err, store.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for a device: %w", err)
	}
	return seen, true, nil
}

func updateSeen(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID, now int64) error {
	if _, err := tx.Exec(sqlSetSeen, now, identity, device); err != nil {
		return fmt.Errorf("note that a device was seen: %w", err)
	}
	return nil
}

// deleteDevice reports whether there was such a device.
func deleteDevice(tx *store.Tx, identity rpc.IdentityKey, device rpc.DeviceID) (bool, error) {
	result, err := tx.Exec(sqlDrop, identity, device)
	if err != nil {
		return false, fmt.Errorf("remove a device: %w", err)
	}
	return result.RowsAffected > 0, nil
}

func deleteOwner(tx *store.Tx, identity rpc.IdentityKey) error {
	if _, err := tx.Exec(sqlDropOwner, identity); err != nil {
		return fmt.Errorf("remove the devices of an identity: %w", err)
	}
	return nil
}
