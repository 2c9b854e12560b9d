CREATE TABLE blob_blob (
    id         INTEGER PRIMARY KEY,
    hash       BLOB    NOT NULL UNIQUE CHECK (length(hash) = 32),
    owner_key  BLOB    NOT NULL CHECK (length(owner_key) = 32),
    size       INTEGER NOT NULL,
    valid_until INTEGER NOT NULL
) STRICT;
