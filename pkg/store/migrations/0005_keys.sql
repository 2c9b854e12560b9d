CREATE TABLE keys_package (
    id           INTEGER PRIMARY KEY, -- the oldest goes out first
    identity_key BLOB    NOT NULL CHECK (length(identity_key) = 32),
    device_id    BLOB    NOT NULL CHECK (length(device_id) IN (0, 16)),
    package      BLOB    NOT NULL,
    last_resort  INTEGER NOT NULL CHECK (last_resort IN (0, 1)),
    valid_until  INTEGER NOT NULL
) STRICT;
CREATE INDEX keys_package_owner ON keys_package (identity_key, device_id, last_resort, id);
CREATE UNIQUE INDEX keys_package_last_resort ON keys_package (identity_key, device_id) WHERE last_resort = 1;
CREATE INDEX keys_package_valid_until ON keys_package (valid_until);

CREATE TABLE keys_hybrid (
    identity_key BLOB PRIMARY KEY CHECK (length(identity_key) = 32),
    public_key   BLOB NOT NULL CHECK (length(public_key) = 1216)
) STRICT, WITHOUT ROWID;
