-- Other servers that the owner has added while the server ran; those of the
-- configuration file are not here.
CREATE TABLE federation_peer (
    domain  TEXT PRIMARY KEY,
    address TEXT NOT NULL,
    pin     BLOB NOT NULL CHECK (length(pin) = 32)
) STRICT, WITHOUT ROWID;

-- What has been learnt of a peer under a pin that the owner has given: the pin
-- that it has handed over to since, the key of its log, and the last head.
CREATE TABLE federation_trust (
    domain     TEXT PRIMARY KEY,
    given_pin  BLOB NOT NULL CHECK (length(given_pin) = 32),
    pin        BLOB NOT NULL CHECK (length(pin) = 32),
    server_key BLOB NOT NULL CHECK (length(server_key) IN (0, 32)),
    checkpoint TEXT NOT NULL, -- a signed note, '' before the first
    contact_at INTEGER NOT NULL -- Unix seconds, 0 is never
) STRICT, WITHOUT ROWID;

-- Who lives where. standing: 0 claimed by the home of a group, 1 vouched for by
-- the domain, 2 the name is proven in its log. A standing only rises.
CREATE TABLE federation_identity (
    identity_key BLOB PRIMARY KEY CHECK (length(identity_key) = 32),
    domain       TEXT NOT NULL,
    username     TEXT NOT NULL, -- '' when it is not known
    standing     INTEGER NOT NULL CHECK (standing IN (0, 1, 2))
) STRICT, WITHOUT ROWID;
CREATE INDEX federation_identity_name ON federation_identity (domain, username);

-- What is on its way to a peer, in the order of ids. token names the row to the
-- peer, as message id, and to whoever deletes it: ids are used again.
CREATE TABLE federation_outbox (
    id            INTEGER PRIMARY KEY,
    domain        TEXT    NOT NULL,
    kind          INTEGER NOT NULL CHECK (kind IN (1, 2, 3)), -- message, state of a group, leaving of a group
    token         BLOB    NOT NULL CHECK (length(token) = 16),
    sender_key    BLOB    NOT NULL CHECK (length(sender_key) IN (0, 32)), -- none: this server as a group's home
    recipient_key BLOB    NOT NULL CHECK (length(recipient_key) IN (0, 32)), -- of messages
    channel       BLOB    NOT NULL CHECK (length(channel) IN (0, 16)),
    size          INTEGER NOT NULL, -- of the payload
    valid_until   INTEGER NOT NULL, -- service time
    payload       BLOB    NOT NULL -- last: what stands before it is read without its pages
) STRICT;
CREATE INDEX federation_outbox_domain ON federation_outbox (domain, id, size);
CREATE INDEX federation_outbox_sender ON federation_outbox (sender_key, domain, size);
