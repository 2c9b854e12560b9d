-- Every time named *_at is Unix seconds, for people to read. Every time named
-- *_until is service time (store.DB.ServiceTime), which no clock jump moves.
CREATE TABLE auth_account (
    id            INTEGER PRIMARY KEY,
    identity_key  BLOB    NOT NULL UNIQUE CHECK (length(identity_key) = 32),
    username      TEXT    NOT NULL UNIQUE CHECK (length(username) BETWEEN 1 AND 32),
    opaque_record BLOB    NOT NULL CHECK (length(opaque_record) = 192),
    registered_at INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE auth_session (
    token_hash  BLOB    PRIMARY KEY CHECK (length(token_hash) = 32),
    account_id  INTEGER NOT NULL REFERENCES auth_account (id) ON DELETE CASCADE,
    device_id   BLOB    CHECK (length(device_id) = 16),
    valid_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX auth_session_account ON auth_session (account_id);
CREATE INDEX auth_session_valid_until ON auth_session (valid_until);

-- A deleted name stays taken for a while, so that nobody steps into it.
CREATE TABLE auth_retired_name (
    username    TEXT    PRIMARY KEY,
    taken_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One-time codes for registration by invitation.
CREATE TABLE auth_invite (
    code_hash   BLOB    PRIMARY KEY CHECK (length(code_hash) = 32),
    created_at  INTEGER NOT NULL,
    valid_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
