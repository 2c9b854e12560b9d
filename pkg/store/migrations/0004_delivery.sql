-- Who sends and receives. What waits for somebody is counted when it is asked
-- for, not here: a count would be one more page written with every message.
CREATE TABLE delivery_party (
    id           INTEGER PRIMARY KEY,
    identity_key BLOB    NOT NULL UNIQUE CHECK (length(identity_key) = 32)
) STRICT;

-- One queue for each (recipient, channel). The inbox has the empty channel.
CREATE TABLE delivery_queue (
    id       INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 8388607),
    party_id INTEGER NOT NULL REFERENCES delivery_party (id) ON DELETE CASCADE,
    channel  BLOB    NOT NULL CHECK (length(channel) IN (0, 16)),
    last_seq INTEGER NOT NULL DEFAULT 0, -- rises for ever, also when the queue is empty
    UNIQUE (party_id, channel)
) STRICT;

-- key = queue id << 40 | seq: messages of a queue lie together and in order,
-- so that a fetch reads, and an acknowledgement frees, neighbouring pages, and
-- storing one touches no second B-tree. For the same reason there is no index
-- by time: the sweep walks the table.
CREATE TABLE delivery_message (
    key         INTEGER PRIMARY KEY,
    arrival     INTEGER NOT NULL, -- its place among all messages of its recipient
    received_at INTEGER NOT NULL,
    valid_until INTEGER NOT NULL,
    payload     BLOB    NOT NULL -- last: what stands before it is read without its pages
) STRICT;

-- What a repeated Enqueue is answered with. Rows are added in the order in
-- which they expire, so that sweeping needs no index of its own; a deleted
-- account's rows are found by reading them all, which is rare.
CREATE TABLE delivery_receipt (
    id           INTEGER PRIMARY KEY,
    message_id   BLOB    NOT NULL CHECK (length(message_id) = 16),
    sender_id    INTEGER NOT NULL,
    queue_id     INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    payload_hash BLOB    NOT NULL CHECK (length(payload_hash) = 32),
    valid_until  INTEGER NOT NULL,
    UNIQUE (message_id, sender_id, queue_id)
) STRICT;

-- How far each device has acknowledged each queue.
CREATE TABLE delivery_cursor (
    queue_id  INTEGER NOT NULL REFERENCES delivery_queue (id) ON DELETE CASCADE,
    device_id BLOB    NOT NULL CHECK (length(device_id) = 16),
    acked_seq INTEGER NOT NULL,
    PRIMARY KEY (queue_id, device_id)
) STRICT, WITHOUT ROWID;
