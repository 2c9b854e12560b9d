-- The transparency log. A leaf is never changed or removed.
CREATE TABLE transparency_leaf (
    leaf_index INTEGER PRIMARY KEY,
    hash       BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;
