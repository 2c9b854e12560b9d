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

	sqlGroup        = `SELECT id, home, version, epoch, metadata FROM group_group WHERE group_id = ?`
	sqlGroupMembers = `SELECT identity_key, place, joined_at, owner, address FROM group_member WHERE group_rowid = ? ORDER BY place`
	sqlAreMembers   = `SELECT
		EXISTS (SELECT 1 FROM group_member WHERE group_rowid = g.id AND identity_key = ?),
		EXISTS (SELECT 1 FROM group_member WHERE group_rowid = g.id AND identity_key = ?)
		FROM group_group AS g WHERE group_id = ?`
	sqlGroupsOf     = `SELECT g.group_id FROM group_member AS m JOIN group_group AS g ON g.id = m.group_rowid WHERE m.identity_key = ?`
	sqlCountGroups  = `SELECT count(*) FROM group_member WHERE identity_key = ?`
	sqlAddGroup     = `INSERT INTO group_group (group_id, home, version, epoch, metadata) VALUES (?, ?, ?, ?, ?)`
	sqlChangeGroup  = `UPDATE group_group SET version = ?, epoch = ? WHERE id = ?`
	sqlMetadata     = `UPDATE group_group SET metadata = ? WHERE id = ?`
	sqlDropGroup    = `DELETE FROM group_group WHERE group_id = ?`
	sqlAddMember    = `INSERT INTO group_member (group_rowid, identity_key, place, joined_at, owner, address) VALUES (?, ?, ?, ?, ?, ?)`
	sqlChangeMember = `UPDATE group_member SET place = ?, joined_at = ?, owner = ?, address = ? WHERE group_rowid = ? AND identity_key = ?`
	sqlDropMember   = `DELETE FROM group_member WHERE group_rowid = ? AND identity_key = ?`

	sqlCommit        = `SELECT 1 FROM group_commit WHERE group_rowid = ? AND epoch = ? AND sender_key = ? AND digest = ?`
	sqlAddCommit     = `INSERT INTO group_commit (group_rowid, epoch, sender_key, digest) VALUES (?, ?, ?, ?)`
	sqlTrimCommits   = `DELETE FROM group_commit WHERE group_rowid = ? AND epoch <= ?`
	sqlForgetCommits = `DELETE FROM group_commit WHERE sender_key = ?`
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

// openDerived stores a channel whose id anybody who knows both keys can work
// out. A group with that id can only have been made to stand in the way, so it
// goes: nobody can make keys for the id of a group that is there.
func openDerived(tx *store.Tx, id rpc.ChannelID, low, high rpc.IdentityKey) error {
	if _, err := tx.Exec(sqlDropGroup, id); err != nil {
		return fmt.Errorf("remove a group in the way of a channel: %w", err)
	}
	return insertChannel(tx, id, low, high)
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

// readRoster returns a group, or nil when there is none.
func readRoster(tx *store.Tx, id rpc.ChannelID) (*roster, error) {
	r := &roster{id: id}
	err := tx.QueryRow(sqlGroup, id).Scan(&r.rowid, &r.home, &r.version, &r.epoch, &r.metadata)
	if errors.Is(err, store.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read a group: %w", err)
	}
	rows, err := tx.Query(sqlGroupMembers, r.rowid)
	if err != nil {
		return nil, fmt.Errorf("read the members of a group: %w", err)
	}
	for rows.Next() {
		var m member
		if err := rows.Scan(&m.identity, &m.place, &m.joinedAt, &m.owner, &m.address); err != nil {
			return nil, fmt.Errorf("read the members of a group: %w", err)
		}
		r.members = append(r.members, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read the members of a group: %w", err)
	}
	return r, nil
}

// areMembers reports for two identities whether they are in a group.
func areMembers(tx *store.Tx, id rpc.ChannelID, a, b rpc.IdentityKey) (hasA, hasB bool, err error) {
	err = tx.QueryRow(sqlAreMembers, a, b, id).Scan(&hasA, &hasB)
	if errors.Is(err, store.ErrNoRows) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("look for members of a group: %w", err)
	}
	return hasA, hasB, nil
}

func countGroups(tx *store.Tx, identity rpc.IdentityKey) (n int, err error) {
	if err := tx.QueryRow(sqlCountGroups, identity).Scan(&n); err != nil {
		return 0, fmt.Errorf("count groups: %w", err)
	}
	return n, nil
}

// readGroupsOf returns the groups of an identity, at most MaxGroups.
func readGroupsOf(tx *store.Tx, identity rpc.IdentityKey) (ids []rpc.ChannelID, err error) {
	rows, err := tx.Query(sqlGroupsOf, identity)
	if err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	for rows.Next() {
		var id rpc.ChannelID
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("list groups: %w", err)
		}
		ids = append(ids, id)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list groups: %w", err)
	}
	return ids, nil
}

// saveRoster makes the rows of a group what after says, touching only those
// that differ: on flash a page counts. A group without members goes.
func saveRoster(tx *store.Tx, before, after *roster) error {
	if len(after.members) == 0 {
		if _, err := tx.Exec(sqlDropGroup, after.id); err != nil {
			return fmt.Errorf("remove a group: %w", err)
		}
		return nil
	}
	if err := saveGroup(tx, before, after); err != nil {
		return fmt.Errorf("store a group: %w", err)
	}
	stored := make(map[rpc.IdentityKey]member, len(before.members))
	for _, m := range before.members {
		stored[m.identity] = m
	}
	for _, m := range after.members {
		var err error
		switch old, ok := stored[m.identity]; {
		case !ok:
			_, err = tx.Exec(sqlAddMember, after.rowid, m.identity, m.place, m.joinedAt, m.owner, m.address)
		case old != m:
			_, err = tx.Exec(sqlChangeMember, m.place, m.joinedAt, m.owner, m.address, after.rowid, m.identity)
		}
		if err != nil {
			return fmt.Errorf("store a member of a group: %w", err)
		}
		delete(stored, m.identity)
	}
	for gone := range stored {
		if _, err := tx.Exec(sqlDropMember, after.rowid, gone); err != nil {
			return fmt.Errorf("remove a member of a group: %w", err)
		}
	}
	return nil
}

// saveGroup stores the row of a group, and gives after its id.
func saveGroup(tx *store.Tx, before, after *roster) error {
	if after.rowid == 0 {
		result, err := tx.Exec(sqlAddGroup, after.id, after.home, after.version, after.epoch, after.metadata)
		after.rowid = result.LastInsertID
		return err
	}
	if string(before.metadata) != string(after.metadata) {
		if _, err := tx.Exec(sqlMetadata, after.metadata, after.rowid); err != nil {
			return err
		}
	}
	_, err := tx.Exec(sqlChangeGroup, after.version, after.epoch, after.rowid)
	return err
}

// isRepeated reports whether this very commit has been accepted already.
func isRepeated(tx *store.Tx, r *roster, sender rpc.IdentityKey, t rotation) (bool, error) {
	if t.epoch >= r.epoch {
		return false, nil // and may not fit a column
	}
	var one int
	err := tx.QueryRow(sqlCommit, r.rowid, t.epoch, sender, t.digest).Scan(&one)
	if errors.Is(err, store.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a commit: %w", err)
	}
	return true, nil
}

// rememberCommit notes the commit that ended an epoch, and forgets those that
// nobody repeats any more.
func rememberCommit(tx *store.Tx, r *roster, sender rpc.IdentityKey, t rotation) error {
	if _, err := tx.Exec(sqlAddCommit, r.rowid, t.epoch, sender, t.digest); err != nil {
		return fmt.Errorf("remember a commit: %w", err)
	}
	if t.epoch < maxRepeats {
		return nil
	}
	if _, err := tx.Exec(sqlTrimCommits, r.rowid, t.epoch-maxRepeats); err != nil {
		return fmt.Errorf("forget old commits: %w", err)
	}
	return nil
}

func forgetCommitsOf(tx *store.Tx, identity rpc.IdentityKey) error {
	if _, err := tx.Exec(sqlForgetCommits, identity); err != nil {
		return fmt.Errorf("forget the commits of an identity: %w", err)
	}
	return nil
}
