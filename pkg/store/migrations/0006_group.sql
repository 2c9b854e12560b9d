-- One channel for each unordered pair: low_key sorts before high_key.
CREATE TABLE group_channel (
    channel_id BLOB PRIMARY KEY CHECK (length(channel_id) = 16),
    low_key    BLOB NOT NULL CHECK (length(low_key) = 32),
    high_key   BLOB NOT NULL CHECK (length(high_key) = 32),
    UNIQUE (low_key, high_key),
    CHECK (low_key < high_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX group_channel_high ON group_channel (high_key);
