CREATE TABLE device_device (
    identity_key  BLOB    NOT NULL CHECK (length(identity_key) = 32),
    device_id     BLOB    NOT NULL CHECK (length(device_id) = 16),
    name          TEXT    NOT NULL,
    registered_at INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL,
    PRIMARY KEY (identity_key, device_id)
) STRICT, WITHOUT ROWID;
