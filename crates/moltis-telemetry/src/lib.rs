//! Moltis: telemetry.
