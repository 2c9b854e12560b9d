CREATE TABLE recovery_bundle (
    token_hash   BLOB PRIMARY KEY CHECK (length(token_hash) = 32),
    identity_key BLOB NOT NULL CHECK (length(identity_key) = 32),
    bundle       BLOB NOT NULL
) STRICT, WITHOUT ROWID;
