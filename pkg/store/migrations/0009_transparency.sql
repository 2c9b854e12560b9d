-- The transparency log. Leaves and nodes are only ever added.
CREATE TABLE transparency_leaf (
    leaf_index INTEGER PRIMARY KEY,
    hash       BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- The inner nodes of complete subtrees, in the order in which they were
-- completed.
CREATE TABLE transparency_node (
    position INTEGER PRIMARY KEY,
    hash     BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- The newest checkpoint as it was signed. One row.
CREATE TABLE transparency_head (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    size       INTEGER NOT NULL,
    checkpoint TEXT    NOT NULL
) STRICT;

-- Where the leaf of an account stands; it goes with the account.
CREATE TABLE transparency_binding (
    identity_key BLOB    PRIMARY KEY CHECK (length(identity_key) = 32),
    username     TEXT    NOT NULL,
    leaf_index   INTEGER NOT NULL UNIQUE
) STRICT, WITHOUT ROWID;

-- Keys that have ended, by their SHA-256, so that the memory of a key outlives
-- the account without naming it.
CREATE TABLE transparency_revocation (
    key_hash   BLOB    PRIMARY KEY CHECK (length(key_hash) = 32),
    reason     TEXT    NOT NULL,
    revoked_at INTEGER NOT NULL,
    leaf_index INTEGER NOT NULL UNIQUE
) STRICT, WITHOUT ROWID;
