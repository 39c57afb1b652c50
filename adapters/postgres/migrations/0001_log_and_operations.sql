-- The event log, as the eventsourcing library lays it out, and what the service keeps beside it.
CREATE TABLE stored_events (
    originator_id uuid NOT NULL,
    originator_version bigint NOT NULL,
    topic text NOT NULL,
    state bytea NOT NULL,
    notification_id bigserial,
    PRIMARY KEY (originator_id, originator_version)
) WITH (
    autovacuum_enabled = true,
    autovacuum_vacuum_threshold = 100000000,
    autovacuum_vacuum_scale_factor = 0.5,
    autovacuum_analyze_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.01
);
CREATE UNIQUE INDEX stored_events_notification_id_idx ON stored_events (notification_id);

-- Which events are whose: an index of the log, written with it.
CREATE TABLE customer_events (
    customer_id text NOT NULL,
    position bigint NOT NULL,
    PRIMARY KEY (customer_id, position)
);

-- The newest state of long streams. Thrown away freely: the log has it all.
CREATE TABLE snapshots (
    stream_id uuid PRIMARY KEY,
    version bigint NOT NULL,
    shape integer NOT NULL,
    state bytea NOT NULL
) WITH (fillfactor = 50);

-- Customers' data keys, wrapped. Beside the log, so that destroying one erases what it sealed.
CREATE TABLE data_keys (
    customer_id text NOT NULL,
    purpose text NOT NULL,
    wrapped bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (customer_id, purpose)
);

-- Which worker holds which run, and until when. Renewed without events.
CREATE TABLE run_leases (
    run_id text PRIMARY KEY,
    customer_id text NOT NULL,
    worker_id text NOT NULL,
    attempt integer NOT NULL,
    expires_at timestamptz NOT NULL,
    stop_asked boolean NOT NULL DEFAULT false
);
CREATE INDEX run_leases_expiry ON run_leases (expires_at);
CREATE INDEX run_leases_worker ON run_leases (worker_id);

-- How far each projection has read the log.
CREATE TABLE checkpoints (
    projection text PRIMARY KEY,
    position bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Answers given to requests that named themselves.
CREATE TABLE idempotent_requests (
    caller text NOT NULL,
    key text NOT NULL,
    fingerprint text NOT NULL,
    status integer,
    headers jsonb,
    body bytea,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotent_requests_age ON idempotent_requests (created_at);

-- One-time links to a first API key. The token itself is only in the mail.
CREATE TABLE key_reveals (
    token_hash text PRIMARY KEY,
    customer_id text NOT NULL,
    api_key_id text NOT NULL,
    expires_at timestamptz NOT NULL,
    used_at timestamptz
);
