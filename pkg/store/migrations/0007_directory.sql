CREATE TABLE directory_block (
    blocker_key BLOB NOT NULL CHECK (length(blocker_key) = 32),
    blocked_key BLOB NOT NULL CHECK (length(blocked_key) = 32),
    PRIMARY KEY (blocker_key, blocked_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX directory_block_blocked ON directory_block (blocked_key);
