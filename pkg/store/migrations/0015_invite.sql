-- What the owner's list of invites shows, and names whose password is to be
-- reset.
CREATE TABLE auth_invite_note (
    code_hash BLOB PRIMARY KEY CHECK (length(code_hash) = 32) REFERENCES auth_invite (code_hash) ON DELETE CASCADE,
    note      TEXT NOT NULL
) STRICT, WITHOUT ROWID;
