package moderation

import (
	"errors"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// A report or a ban is there as long as its valid_until lies ahead of service
// time; a permanent ban has 0.
const (
	sqlCountReports = `SELECT (SELECT count(*) FROM moderation_report WHERE reporter_key = ?), (SELECT count(*) FROM moderation_report)`
	sqlAddReport    = `INSERT INTO moderation_report (reporter_key, conversation_id, report, reported_at, valid_until) VALUES (?, ?, ?, ?, ?)`
	sqlReports      = `SELECT id, reporter_key, conversation_id, report, reported_at FROM moderation_report
		WHERE valid_until > ? ORDER BY id LIMIT ? OFFSET ?`
	sqlDropReportsOf = `DELETE FROM moderation_report WHERE reporter_key = ?`
	sqlSweepReports  = `DELETE FROM moderation_report WHERE id IN
		(SELECT id FROM moderation_report WHERE valid_until <= ? ORDER BY valid_until LIMIT ?)`

	sqlBan    = `SELECT identity_key, reason, banned_at, valid_until FROM moderation_ban WHERE identity_key = ? AND (valid_until = 0 OR valid_until > ?)`
	sqlBans   = `SELECT identity_key, reason, banned_at, valid_until FROM moderation_ban WHERE valid_until = 0 OR valid_until > ? ORDER BY banned_at, identity_key`
	sqlCount  = `SELECT count(*) FROM moderation_ban`
	sqlPutBan = `INSERT INTO moderation_ban (identity_key, reason, banned_at, valid_until) VALUES (?, ?, ?, ?)
		ON CONFLICT (identity_key) DO UPDATE SET reason = excluded.reason, banned_at = excluded.banned_at, valid_until = excluded.valid_until`
	sqlEndBan    = `DELETE FROM moderation_ban WHERE identity_key = ? AND (valid_until = 0 OR valid_until > ?)`
	sqlDropBanOf = `DELETE FROM moderation_ban WHERE identity_key = ?`
	// At most MaxBans rows: reading them all costs nothing.
	sqlSweepBans = `DELETE FROM moderation_ban WHERE identity_key IN
		(SELECT identity_key FROM moderation_ban WHERE valid_until <> 0 AND valid_until <= ? LIMIT ?)`
)

// report is a stored report.
type report struct {
	id           uint64
	reporter     rpc.IdentityKey
	conversation []byte // 16 bytes, or none
	content      []byte
	at           int64 // wall time
}

// row is a stored ban.
type row struct {
	identity rpc.IdentityKey
	reason   string
	at       int64 // wall time
	until    int64 // service time, 0 for a permanent one
}

func countReports(tx *store.Tx, reporter rpc.IdentityKey) (own, all int, err error) {
	if err := tx.QueryRow(sqlCountReports, reporter).Scan(&own, &all); err != nil {
		return 0, 0, fmt.Errorf("count reports: %w", err)
	}
	return own, all, nil
}

func insertReport(tx *store.Tx, r report, until int64) error {
	if _, err := tx.Exec(sqlAddReport, r.reporter, r.conversation, r.content, r.at, until); err != nil {
		return fmt.Errorf("store a report: %w", err)
	}
	return nil
}

func readReports(tx *store.Tx, now int64, limit int, offset uint32) (out []report, err error) {
	rows, err := tx.Query(sqlReports, now, limit, offset)
	if err != nil {
		return nil, fmt.Errorf("list reports: %w", err)
	}
	for rows.Next() {
		var r report
		if err := rows.Scan(&r.id, &r.reporter, &r.conversation, &r.content, &r.at); err != nil {
			return nil, fmt.Errorf("list reports: %w", err)
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list reports: %w", err)
	}
	return out, nil
}

func readBan(tx *store.Tx, identity rpc.IdentityKey, now int64) (r row, ok bool, err error) {
	err = tx.QueryRow(sqlBan, identity, now).Scan(&r.identity, &r.reason, &r.at, &r.until)
	if errors.Is(err, store.ErrNoRows) {
		return row{}, false, nil
	}
	if err != nil {
		return row{}, false, fmt.Errorf("look for a ban: %w", err)
	}
	return r, true, nil
}

func readBans(tx *store.Tx, now int64) (out []row, err error) {
	rows, err := tx.Query(sqlBans, now)
	if err != nil {
		return nil, fmt.Errorf("list bans: %w", err)
	}
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.identity, &r.reason, &r.at, &r.until); err != nil {
			return nil, fmt.Errorf("list bans: %w", err)
		}
		out = append(out, r)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list bans: %w", err)
	}
	return out, nil
}

func countBans(tx *store.Tx) (n int, err error) {
	if err := tx.QueryRow(sqlCount).Scan(&n); err != nil {
		return 0, fmt.Errorf("count bans: %w", err)
	}
	return n, nil
}

func putBan(tx *store.Tx, r row) error {
	if _, err := tx.Exec(sqlPutBan, r.identity, r.reason, r.at, r.until); err != nil {
		return fmt.Errorf("store a ban: %w", err)
	}
	return nil
}

// deleteBan ends a ban, and reports whether it was in force.
func deleteBan(tx *store.Tx, identity rpc.IdentityKey, now int64) (bool, error) {
	result, err := tx.Exec(sqlEndBan, identity, now)
	if err != nil {
		return false, fmt.Errorf("end a ban: %w", err)
	}
	return result.RowsAffected > 0, nil
}

func deleteOf(tx *store.Tx, identity rpc.IdentityKey) error {
	for _, query := range []string{sqlDropReportsOf, sqlDropBanOf} {
		if _, err := tx.Exec(query, identity); err != nil {
			return fmt.Errorf("remove the reports and the ban of an identity: %w", err)
		}
	}
	return nil
}

func deleteExpired(tx *store.Tx, now int64) (more bool, err error) {
	for _, query := range []string{sqlSweepReports, sqlSweepBans} {
		result, err := tx.Exec(query, now, sweepRows)
		if err != nil {
			return false, fmt.Errorf("remove expired reports and bans: %w", err)
		}
		more = more || result.RowsAffected == sweepRows
	}
	return more, nil
}
