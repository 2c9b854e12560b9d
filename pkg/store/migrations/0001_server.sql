-- What the server itself must keep: its keys. Losing them locks everybody out,
-- so they live and are backed up with the accounts.
CREATE TABLE server_secret (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
