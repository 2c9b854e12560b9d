-- A file that is whole lies at blobs/<first two digits>/<hash>, and has a row
-- here as long as somebody claims it.
CREATE TABLE blob_blob (
    hash      BLOB    PRIMARY KEY CHECK (length(hash) = 32),
    size      INTEGER NOT NULL CHECK (size > 0),
    mime_type TEXT    NOT NULL,
    checks    BLOB    NOT NULL -- CRC-32C of each 64 KiB, 4 bytes each
) STRICT, WITHOUT ROWID;

-- Who stored it. Several may claim one file; the last claim to go takes it.
CREATE TABLE blob_claim (
    owner_key   BLOB    NOT NULL CHECK (length(owner_key) = 32),
    hash        BLOB    NOT NULL REFERENCES blob_blob (hash),
    size        INTEGER NOT NULL, -- the file's, for the sum of an owner
    valid_until INTEGER NOT NULL,
    PRIMARY KEY (owner_key, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX blob_claim_hash ON blob_claim (hash);
CREATE INDEX blob_claim_valid_until ON blob_claim (valid_until);

-- An upload that is not whole; what has come lies at blobs/parts/<part>.
CREATE TABLE blob_upload (
    owner_key   BLOB    NOT NULL CHECK (length(owner_key) = 32),
    hash        BLOB    NOT NULL CHECK (length(hash) = 32),
    part        BLOB    NOT NULL UNIQUE CHECK (length(part) = 16),
    size        INTEGER NOT NULL CHECK (size > 0),
    stored      INTEGER NOT NULL CHECK (stored BETWEEN 0 AND size),
    mime_type   TEXT    NOT NULL,
    valid_until INTEGER NOT NULL,
    PRIMARY KEY (owner_key, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX blob_upload_hash ON blob_upload (hash);
CREATE INDEX blob_upload_valid_until ON blob_upload (valid_until);

-- What everything adds up to, so that no upload has to count: whole files and
-- their bytes, and the room that they and the unfinished ones are promised, in
-- blocks of 4 KiB as a disk gives it.
CREATE TABLE blob_total (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    blobs    INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    promised INTEGER NOT NULL
) STRICT;
INSERT INTO blob_total (id, blobs, bytes, promised) VALUES (1, 0, 0, 0);

CREATE TRIGGER blob_blob_added AFTER INSERT ON blob_blob BEGIN
    UPDATE blob_total SET blobs = blobs + 1, bytes = bytes + NEW.size, promised = promised + (NEW.size + 4095) / 4096 * 4096;
END;
CREATE TRIGGER blob_blob_removed AFTER DELETE ON blob_blob BEGIN
    UPDATE blob_total SET blobs = blobs - 1, bytes = bytes - OLD.size, promised = promised - (OLD.size + 4095) / 4096 * 4096;
END;
CREATE TRIGGER blob_upload_added AFTER INSERT ON blob_upload BEGIN
    UPDATE blob_total SET promised = promised + (NEW.size + 4095) / 4096 * 4096;
END;
CREATE TRIGGER blob_upload_removed AFTER DELETE ON blob_upload BEGIN
    UPDATE blob_total SET promised = promised - (OLD.size + 4095) / 4096 * 4096;
END;
