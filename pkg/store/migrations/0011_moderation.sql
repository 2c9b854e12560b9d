-- Reports, opaque to the server, by their age.
CREATE TABLE moderation_report (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    reporter_key    BLOB    NOT NULL CHECK (length(reporter_key) = 32),
    conversation_id BLOB    NOT NULL CHECK (length(conversation_id) IN (0, 16)),
    report          BLOB    NOT NULL,
    reported_at     INTEGER NOT NULL, -- wall time
    valid_until     INTEGER NOT NULL  -- service time
) STRICT;
CREATE INDEX moderation_report_by_reporter ON moderation_report (reporter_key);
CREATE INDEX moderation_report_by_expiry ON moderation_report (valid_until);

CREATE TABLE moderation_ban (
    identity_key BLOB    PRIMARY KEY CHECK (length(identity_key) = 32),
    reason       TEXT    NOT NULL,
    banned_at    INTEGER NOT NULL, -- wall time
    valid_until  INTEGER NOT NULL  -- service time; 0 is permanent
) STRICT, WITHOUT ROWID;
