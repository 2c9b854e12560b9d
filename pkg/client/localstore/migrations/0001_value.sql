-- Every value but the profile's public part is sealed before it gets here.
CREATE TABLE client_value (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
