-- Bundles by the hash of their token hash. Two identities may use one hash: each
-- has its own row, and the one stored first is the one that is found.
CREATE TABLE recovery_bundle (
    id           INTEGER PRIMARY KEY,
    lookup_hash  BLOB NOT NULL CHECK (length(lookup_hash) = 32),
    identity_key BLOB NOT NULL CHECK (length(identity_key) = 32),
    bundle       BLOB NOT NULL,
    UNIQUE (lookup_hash, identity_key)
) STRICT;
CREATE INDEX recovery_bundle_by_identity ON recovery_bundle (identity_key);
