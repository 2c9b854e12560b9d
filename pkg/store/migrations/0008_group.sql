-- Groups. A group lives on one server, its home, which keeps the commit lock;
-- the others that have members in it keep a copy of its state.
CREATE TABLE group_group (
    id       INTEGER PRIMARY KEY,
    group_id BLOB    NOT NULL UNIQUE CHECK (length(group_id) = 16),
    home     TEXT    NOT NULL, -- domain, '' for this server
    version  INTEGER NOT NULL, -- rises with every change
    epoch    INTEGER NOT NULL,
    metadata BLOB    NOT NULL
) STRICT;

CREATE TABLE group_member (
    group_rowid  INTEGER NOT NULL REFERENCES group_group (id) ON DELETE CASCADE,
    identity_key BLOB    NOT NULL CHECK (length(identity_key) = 32),
    place        INTEGER NOT NULL, -- order of joining: the lowest is the longest-standing
    joined_at    INTEGER NOT NULL,
    owner        INTEGER NOT NULL CHECK (owner IN (0, 1)),
    address      TEXT    NOT NULL, -- user@domain, '' for one who lives here
    PRIMARY KEY (group_rowid, identity_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX group_member_identity ON group_member (identity_key);

-- The last commits, so that a repeated RotateKeys whose answer was lost is
-- answered like the first.
CREATE TABLE group_commit (
    group_rowid INTEGER NOT NULL REFERENCES group_group (id) ON DELETE CASCADE,
    epoch       INTEGER NOT NULL, -- that the commit ended
    sender_key  BLOB    NOT NULL CHECK (length(sender_key) = 32),
    digest      BLOB    NOT NULL CHECK (length(digest) = 32),
    PRIMARY KEY (group_rowid, epoch)
) STRICT, WITHOUT ROWID;
