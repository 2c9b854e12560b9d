CREATE TABLE federation_identity (
    identity_key BLOB PRIMARY KEY CHECK (length(identity_key) = 32),
    domain       TEXT NOT NULL,
    username     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
