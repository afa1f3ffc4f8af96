-- Times are milliseconds since 1970 (UTC); ids, keys and digests are blobs; lists and maps are JSON.
-- This file is never edited again: what changes comes as the next number.

PRAGMA application_id = 0x4d4f4c54; -- `MOLT`

CREATE TABLE settings (
    name  TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE nodes (
    device_id    BLOB PRIMARY KEY NOT NULL CHECK (length(device_id) = 16),
    node_key     BLOB NOT NULL UNIQUE CHECK (length(node_key) = 32),
    node_id      TEXT NOT NULL,
    name         TEXT NOT NULL,
    labels       TEXT NOT NULL,
    platform     TEXT NOT NULL,
    claims       TEXT NOT NULL,
    paired_at    INTEGER NOT NULL,
    paired_by    TEXT NOT NULL,
    last_seen_at INTEGER,
    last_address TEXT,
    revoked_at   INTEGER
) STRICT;

-- A revoked node's id is free at once.
CREATE UNIQUE INDEX nodes_by_node_id ON nodes (node_id) WHERE revoked_at IS NULL;

CREATE TABLE pairing_requests (
    id            BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    node_key      BLOB NOT NULL CHECK (length(node_key) = 32),
    device_id     BLOB NOT NULL CHECK (length(device_id) = 16),
    instance_id   BLOB NOT NULL CHECK (length(instance_id) = 16),
    introduction  TEXT NOT NULL,
    address       TEXT NOT NULL,
    code          TEXT NOT NULL,
    revision      INTEGER NOT NULL,
    first_seen_at INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL,
    answer        TEXT CHECK (answer IN ('approved', 'rejected', 'expired')),
    answered_at   INTEGER,
    answered_by   TEXT
) STRICT;

CREATE UNIQUE INDEX pairing_requests_by_key ON pairing_requests (node_key) WHERE answer IS NULL;
CREATE UNIQUE INDEX pairing_requests_by_device ON pairing_requests (device_id) WHERE answer IS NULL;

-- One row for a known device, however often a stranger knocks.
CREATE TABLE key_mismatches (
    device_id      BLOB PRIMARY KEY NOT NULL REFERENCES nodes (device_id) ON DELETE CASCADE,
    shown_key      BLOB NOT NULL,
    shown_device   BLOB NOT NULL,
    address        TEXT NOT NULL,
    first_seen_at  INTEGER NOT NULL,
    last_seen_at   INTEGER NOT NULL,
    times          INTEGER NOT NULL
) STRICT;

-- `place` is `local`, `node:<device id>` or `ssh:<label>`; `shown` is what lists show for it.
-- The id of a run with a key is made from principal and key, so UNIQUE (id) decides between two
-- requests with one key.
CREATE TABLE runs (
    seq                 INTEGER PRIMARY KEY,
    id                  BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    digest              BLOB NOT NULL CHECK (length(digest) = 32),
    place               TEXT NOT NULL,
    shown               TEXT NOT NULL,
    requested_by        TEXT NOT NULL,
    principal           TEXT,
    key                 TEXT,
    spec                TEXT,
    state               TEXT NOT NULL CHECK (state IN ('waiting_approval', 'starting', 'running', 'ended')),
    incarnation         INTEGER NOT NULL,
    boot_id             BLOB,
    journal_id          BLOB,
    created_at          INTEGER NOT NULL,
    started_at          INTEGER,
    pid                 INTEGER,
    cancel_requested_at INTEGER,
    cancel_grace_ms     INTEGER,
    tty_cols            INTEGER,
    tty_rows            INTEGER,
    unclaimed           INTEGER NOT NULL DEFAULT 0,
    ended_at            INTEGER,
    outcome             TEXT,
    reason              TEXT,
    exit_code           INTEGER,
    signal              INTEGER,
    detail              TEXT,
    duration_ms         INTEGER,
    survivors           INTEGER,
    stdout_bytes        INTEGER NOT NULL DEFAULT 0,
    stderr_bytes        INTEGER NOT NULL DEFAULT 0,
    output_freed_at     INTEGER,
    CHECK ((state = 'ended') = (outcome IS NOT NULL))
) STRICT;

CREATE INDEX runs_open ON runs (place) WHERE state <> 'ended';
CREATE INDEX runs_ended ON runs (place, seq) WHERE state = 'ended';

-- The first 64 KiB of a short stream: a short run makes no file.
CREATE TABLE run_heads (
    seq    INTEGER PRIMARY KEY REFERENCES runs (seq) ON DELETE CASCADE,
    stdout BLOB NOT NULL,
    stderr BLOB NOT NULL
) STRICT;

CREATE TABLE tokens (
    id           BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    name         TEXT NOT NULL,
    hash         BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    scopes       TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    created_by   TEXT NOT NULL,
    expires_at   INTEGER,
    last_used_at INTEGER,
    revoked_at   INTEGER
) STRICT;

CREATE UNIQUE INDEX tokens_by_name ON tokens (name) WHERE revoked_at IS NULL;

-- hash = SHA-256(label, hash of the row before, all other columns). Rows are only ever appended.
CREATE TABLE audit (
    seq     INTEGER PRIMARY KEY,
    at      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    source  TEXT,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL,
    hash    BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- Eight bytes a sample, up to 120 samples an hour.
CREATE TABLE telemetry_hours (
    device_id BLOB NOT NULL REFERENCES nodes (device_id) ON DELETE CASCADE,
    hour      INTEGER NOT NULL,
    samples   BLOB NOT NULL,
    PRIMARY KEY (device_id, hour)
) STRICT, WITHOUT ROWID;
