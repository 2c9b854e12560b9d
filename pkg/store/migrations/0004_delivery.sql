-- Who sends and receives. What waits for somebody is counted when it is asked
-- for, not here: a count would be one more page written with every message.
CREATE TABLE delivery_party (
    id           INTEGER PRIMARY KEY,
    identity_key BLOB    NOT NULL UNIQUE CHECK (length(identity_key) = 32)
) STRICT;

-- One queue for each (recipient, channel). The inbox has the empty channel.
CREATE TABLE delivery_queue (
    id           INTEGER PRIMARY KEY,
    party_id     INTEGER NOT NULL REFERENCES delivery_party (id) ON DELETE CASCADE,
    channel      BLOB    NOT NULL CHECK (length(channel) IN (0, 16)),
    last_seq     INTEGER NOT NULL DEFAULT 0, -- rises for ever, also when the queue is empty
    acked_seq    INTEGER NOT NULL DEFAULT 0, -- up to here nobody wants it any more
    first_bucket INTEGER NOT NULL DEFAULT 0, -- what is above acked_seq lies in no bucket before
    UNIQUE (party_id, channel)
) STRICT;

-- A log in the order of arrival: new messages of all queues share its last
-- page, and an acknowledgement only moves acked_seq; the sweep removes what is
-- done with in the order of the log. That is what flash likes: a page is
-- written when it fills and when it is freed, not for every queue that has a
-- message on it.
CREATE TABLE delivery_message (
    id          INTEGER PRIMARY KEY,
    bucket      INTEGER NOT NULL, -- id / 256
    queue_id    INTEGER NOT NULL,
    seq         INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    valid_until INTEGER NOT NULL,
    payload     BLOB    NOT NULL -- last: what stands before it is read without its pages
) STRICT;
-- A queue's messages are found bucket by bucket. The bucket comes first so that
-- the entries of all queues' newest messages lie on one page.
CREATE UNIQUE INDEX delivery_message_place ON delivery_message (bucket, queue_id, seq);

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
