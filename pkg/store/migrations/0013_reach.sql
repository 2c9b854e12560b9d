-- How a device can be reached: directly (endpoints), or woken (push tokens).
CREATE TABLE reach_endpoint (
    identity_key BLOB    PRIMARY KEY CHECK (length(identity_key) = 32),
    address      BLOB    NOT NULL,
    valid_until  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
