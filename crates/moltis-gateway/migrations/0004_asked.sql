-- When a run was asked for, by a clock that nobody turns: the boot of the gateway's machine, and what
-- its clock showed. A start that a dead gateway has left behind goes out again while it is young
-- (ADR 76). NULL where the boot is not known.
ALTER TABLE runs ADD COLUMN asked_boot_id BLOB;
ALTER TABLE runs ADD COLUMN asked_boottime_ms INTEGER;
