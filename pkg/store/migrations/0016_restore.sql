-- Where the sequence numbers of a new queue begin, less one. Restoring a backup
-- raises it, since clients have seen numbers that the backup knows nothing of.
CREATE TABLE delivery_origin (
    id  INTEGER PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL
) STRICT;
INSERT INTO delivery_origin (id, seq) VALUES (1, 0);
