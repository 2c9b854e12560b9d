-- How a device can be reached: directly (endpoints), or woken (push tokens).
CREATE TABLE reach_endpoint (
    identity_key BLOB    PRIMARY KEY CHECK (length(identity_key) = 32),
    address      BLOB    NOT NULL,
    valid_until  INTEGER NOT NULL -- service time
) STRICT, WITHOUT ROWID;
CREATE INDEX reach_endpoint_by_expiry ON reach_endpoint (valid_until);

CREATE TABLE reach_push_token (
    identity_key BLOB NOT NULL CHECK (length(identity_key) = 32),
    device_id    BLOB NOT NULL CHECK (length(device_id) = 16),
    url          TEXT NOT NULL,
    PRIMARY KEY (identity_key, device_id)
) STRICT, WITHOUT ROWID;
