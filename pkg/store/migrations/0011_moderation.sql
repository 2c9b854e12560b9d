CREATE TABLE moderation_ban (
    identity_key BLOB    PRIMARY KEY CHECK (length(identity_key) = 32),
    reason       TEXT    NOT NULL,
    banned_at    INTEGER NOT NULL,
    valid_until  INTEGER NOT NULL -- 0 is permanent
) STRICT, WITHOUT ROWID;
