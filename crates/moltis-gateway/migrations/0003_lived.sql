-- Age is counted in seconds that the gateway's machine has demonstrably lived, never by the time of
-- day (ADR 72). `boottime_s` is what the clock of that boot showed when `seconds` was last counted.
CREATE TABLE lived (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    seconds    INTEGER NOT NULL,
    boot_id    BLOB,
    boottime_s INTEGER NOT NULL
) STRICT;

INSERT INTO lived (one, seconds, boot_id, boottime_s) VALUES (1, 0, NULL, 0);

-- What stood there before is as old as this column.
ALTER TABLE runs ADD COLUMN ended_lived_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE fleets ADD COLUMN created_lived_s INTEGER NOT NULL DEFAULT 0;
ALTER TABLE telemetry_hours ADD COLUMN lived_s INTEGER NOT NULL DEFAULT 0;

DROP INDEX fleets_by_age;
CREATE INDEX fleets_by_age ON fleets (created_lived_s);

-- Runs that have files and no row, and since when that is known.
CREATE TABLE orphans (
    id      BLOB PRIMARY KEY NOT NULL CHECK (length(id) = 16),
    since_s INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
