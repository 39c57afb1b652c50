-- Rebuilds of projected tables: who asked for each and why, how far it is, and what it found and mended.
CREATE TABLE rebuilds (
    rebuild_id uuid PRIMARY KEY,
    tables text[] NOT NULL,
    target text NOT NULL,
    state text NOT NULL DEFAULT 'REQUESTED',
    asked_by text NOT NULL,
    reason text,
    asked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz,
    version text,
    position bigint NOT NULL DEFAULT 0,
    log_end bigint NOT NULL DEFAULT 0,
    warehouse_swapped boolean NOT NULL DEFAULT false,
    loaded jsonb NOT NULL DEFAULT '{}',
    differences jsonb NOT NULL DEFAULT '{}',
    error text
);
CREATE UNIQUE INDEX rebuilds_one_at_a_time ON rebuilds ((true)) WHERE ended_at IS NULL;
CREATE INDEX rebuilds_newest ON rebuilds (asked_at);
