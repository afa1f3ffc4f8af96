-- A request for many nodes that came under a key: which nodes it was for, so that a repeated request
-- stays the same one whoever has joined since. `id` is made as that of a run with the same key, so
-- that one key never stands for both.
CREATE TABLE fleets (
    id         BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    digest     BLOB NOT NULL CHECK (length(digest) = 32),
    principal  TEXT NOT NULL,
    key        TEXT NOT NULL,
    members    TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX fleets_by_age ON fleets (created_at);
