package blob

import (
	"errors"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// A claim holds, and an upload waits, as long as its valid_until lies ahead of
// service time.
const (
	sqlBlob = `SELECT size, mime_type, checks,
		EXISTS (SELECT 1 FROM blob_claim c WHERE c.hash = b.hash AND c.valid_until > ?) FROM blob_blob b WHERE hash = ?`
	sqlBlobSize   = `SELECT size FROM blob_blob WHERE hash = ?`
	sqlAddBlob    = `INSERT INTO blob_blob (hash, size, mime_type, checks) VALUES (?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING`
	sqlBlobsAfter = `SELECT hash, size FROM blob_blob WHERE hash > ? ORDER BY hash LIMIT ?`
	sqlDropBlob   = `DELETE FROM blob_blob WHERE hash = ? AND NOT EXISTS (SELECT 1 FROM blob_claim WHERE hash = ?)`

	sqlHasClaim = `SELECT count(*) FROM blob_claim WHERE owner_key = ? AND hash = ?`
	sqlPutClaim = `INSERT INTO blob_claim (owner_key, hash, size, valid_until) VALUES (?, ?, ?, ?)
		ON CONFLICT (owner_key, hash) DO UPDATE SET valid_until = excluded.valid_until`
	sqlDropClaims        = `DELETE FROM blob_claim WHERE hash = ?`
	sqlDropClaimsOf      = `DELETE FROM blob_claim WHERE owner_key = ? RETURNING hash`
	sqlDropExpiredClaims = `DELETE FROM blob_claim WHERE (owner_key, hash) IN
		(SELECT owner_key, hash FROM blob_claim WHERE valid_until <= ? ORDER BY valid_until LIMIT ?) RETURNING hash`

	sqlUpload    = `SELECT part, size, stored, mime_type FROM blob_upload WHERE owner_key = ? AND hash = ?`
	sqlAddUpload = `INSERT INTO blob_upload (owner_key, hash, part, size, stored, mime_type, valid_until) VALUES (?, ?, ?, ?, 0, ?, ?)`
	// The part is in the condition because the row may be another by now.
	sqlAdvance     = `UPDATE blob_upload SET stored = ?, valid_until = ? WHERE owner_key = ? AND hash = ? AND part = ?`
	sqlDropUpload  = `DELETE FROM blob_upload WHERE owner_key = ? AND hash = ? AND part = ?`
	sqlDropUploads = `DELETE FROM blob_upload WHERE owner_key = ? RETURNING part`
	sqlDropExpired = `DELETE FROM blob_upload WHERE (owner_key, hash) IN
		(SELECT owner_key, hash FROM blob_upload WHERE valid_until <= ? ORDER BY valid_until LIMIT ?) RETURNING part`
	sqlPartsOf      = `SELECT part FROM blob_upload WHERE hash = ?`
	sqlHasPart      = `SELECT count(*) FROM blob_upload WHERE part = ?`
	sqlUploadsAfter = `SELECT owner_key, hash, part, size, stored FROM blob_upload
		WHERE (owner_key, hash) > (?, ?) ORDER BY owner_key, hash LIMIT ?`

	sqlHoldings = `SELECT
		(SELECT count(*) FROM blob_claim WHERE owner_key = ?), (SELECT coalesce(sum(size), 0) FROM blob_claim WHERE owner_key = ?),
		(SELECT count(*) FROM blob_upload WHERE owner_key = ?), (SELECT coalesce(sum(size), 0) FROM blob_upload WHERE owner_key = ?)`
	sqlTotal = `SELECT blobs, bytes, promised FROM blob_total`
)

// record is a whole blob as its row tells it.
type record struct {
	size    int64
	mime    string
	checks  []byte
	claimed bool // by somebody whose time is not over
}

// upload is an unfinished one as its row tells it.
type upload struct {
	owner  rpc.IdentityKey
	hash   Hash
	part   part
	size   int64
	stored int64
	mime   string
}

// readBlob returns nil when there is no such blob.
func readBlob(tx *store.Tx, hash Hash, now int64) (*record, error) {
	var r record
	err := tx.QueryRow(sqlBlob, now, hash).Scan(&r.size, &r.mime, &r.checks, &r.claimed)
	if errors.Is(err, store.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for a blob: %w", err)
	}
	return &r, nil
}

// readBlobSize returns 0 when there is no such blob.
func readBlobSize(tx *store.Tx, hash Hash) (size int64, err error) {
	err = tx.QueryRow(sqlBlobSize, hash).Scan(&size)
	if err != nil && !errors.Is(err, store.ErrNoRows) {
		return 0, fmt.Errorf("look for a blob: %w", err)
	}
	return size, nil
}

func insertBlob(tx *store.Tx, hash Hash, r record) error {
	if _, err := tx.Exec(sqlAddBlob, hash, r.size, r.mime, r.checks); err != nil {
		return fmt.Errorf("store a blob: %w", err)
	}
	return nil
}

func hasClaim(tx *store.Tx, owner rpc.IdentityKey, hash Hash) (bool, error) {
	var n int
	if err := tx.QueryRow(sqlHasClaim, owner, hash).Scan(&n); err != nil {
		return false, fmt.Errorf("look for a claim: %w", err)
	}
	return n > 0, nil
}

func putClaim(tx *store.Tx, owner rpc.IdentityKey, hash Hash, size, validUntil int64) error {
	if _, err := tx.Exec(sqlPutClaim, owner, hash, size, validUntil); err != nil {
		return fmt.Errorf("claim a blob: %w", err)
	}
	return nil
}

// deleteBlob removes a blob and all claims of it.
func deleteBlob(tx *store.Tx, hash Hash) error {
	if _, err := tx.Exec(sqlDropClaims, hash); err != nil {
		return fmt.Errorf("remove the claims of a blob: %w", err)
	}
	_, err := deleteUnclaimed(tx, hash)
	return err
}

func deleteUnclaimed(tx *store.Tx, hash Hash) (removed bool, err error) {
	result, err := tx.Exec(sqlDropBlob, hash, hash)
	if err != nil {
		return false, fmt.Errorf("remove a blob: %w", err)
	}
	return result.RowsAffected > 0, nil
}

func deleteClaimsOf(tx *store.Tx, owner rpc.IdentityKey) ([]Hash, error) {
	return column[Hash](tx, "remove claims", sqlDropClaimsOf, owner)
}

func deleteExpiredClaims(tx *store.Tx, now int64, most int) ([]Hash, error) {
	return column[Hash](tx, "remove expired claims", sqlDropExpiredClaims, now, most)
}

// readUpload returns nil when there is no such upload.
func readUpload(tx *store.Tx, owner rpc.IdentityKey, hash Hash) (*upload, error) {
	u := upload{owner: owner, hash: hash}
	err := tx.QueryRow(sqlUpload, owner, hash).Scan(&u.part, &u.size, &u.stored, &u.mime)
	if errors.Is(err, store.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for an upload: %w", err)
	}
	return &u, nil
}

func insertUpload(tx *store.Tx, u *upload, validUntil int64) error {
	if _, err := tx.Exec(sqlAddUpload, u.owner, u.hash, u.part, u.size, u.mime, validUntil); err != nil {
		return fmt.Errorf("begin an upload: %w", err)
	}
	return nil
}

// advance reports false when the upload is no longer there.
func advance(tx *store.Tx, u *upload, stored, validUntil int64) (bool, error) {
	result, err := tx.Exec(sqlAdvance, stored, validUntil, u.owner, u.hash, u.part)
	if err != nil {
		return false, fmt.Errorf("note a chunk: %w", err)
	}
	return result.RowsAffected > 0, nil
}

// deleteUpload reports false when the upload is no longer there.
func deleteUpload(tx *store.Tx, u *upload) (bool, error) {
	result, err := tx.Exec(sqlDropUpload, u.owner, u.hash, u.part)
	if err != nil {
		return false, fmt.Errorf("remove an upload: %w", err)
	}
	return result.RowsAffected > 0, nil
}

func deleteUploadsOf(tx *store.Tx, owner rpc.IdentityKey) ([]part, error) {
	return column[part](tx, "remove uploads", sqlDropUploads, owner)
}

func deleteExpiredUploads(tx *store.Tx, now int64, most int) ([]part, error) {
	return column[part](tx, "remove expired uploads", sqlDropExpired, now, most)
}

// partsOf returns the files of all uploads of a hash.
func partsOf(tx *store.Tx, hash Hash) ([]part, error) {
	return column[part](tx, "look for uploads", sqlPartsOf, hash)
}

func hasPart(tx *store.Tx, p part) (bool, error) {
	var n int
	if err := tx.QueryRow(sqlHasPart, p).Scan(&n); err != nil {
		return false, fmt.Errorf("look for an upload: %w", err)
	}
	return n > 0, nil
}

func readHoldings(tx *store.Tx, owner rpc.IdentityKey) (h holdings, err error) {
	var uploads int64
	err = tx.QueryRow(sqlHoldings, owner, owner, owner, owner).Scan(&h.blobs, &h.bytes, &h.uploads, &uploads)
	if err != nil {
		return h, fmt.Errorf("add up the blobs of an identity: %w", err)
	}
	h.bytes += uploads
	return h, nil
}

func readTotal(tx *store.Tx) (t total, err error) {
	if err := tx.QueryRow(sqlTotal).Scan(&t.blobs, &t.bytes, &t.promised); err != nil {
		return t, fmt.Errorf("read the sums of all blobs: %w", err)
	}
	return t, nil
}

// sized is a blob as a comparison needs it.
type sized struct {
	hash Hash
	size int64
}

func blobsAfter(tx *store.Tx, after Hash, most int) (found []sized, err error) {
	rows, err := tx.Query(sqlBlobsAfter, after, most)
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	for rows.Next() {
		var b sized
		if err := rows.Scan(&b.hash, &b.size); err != nil {
			return nil, fmt.Errorf("list blobs: %w", err)
		}
		found = append(found, b)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	return found, nil
}

func uploadsAfter(tx *store.Tx, owner rpc.IdentityKey, hash Hash, most int) (found []upload, err error) {
	rows, err := tx.Query(sqlUploadsAfter, owner, hash, most)
	if err != nil {
		return nil, fmt.Errorf("list uploads: %w", err)
	}
	for rows.Next() {
		var u upload
		if err := rows.Scan(&u.owner, &u.hash, &u.part, &u.size, &u.stored); err != nil {
			return nil, fmt.Errorf("list uploads: %w", err)
		}
		found = append(found, u)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list uploads: %w", err)
	}
	return found, nil
}

// column reads the one column of a statement, to its end.
func column[T any](tx *store.Tx, doing, query string, args ...any) (values []T, err error) {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		values = append(values, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	return values, nil
}
