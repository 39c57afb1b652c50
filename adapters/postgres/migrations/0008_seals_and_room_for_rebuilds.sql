-- What the log looked like: for each stretch of it the digests of its events, and the hash over everything up to there.
CREATE TABLE log_seals (
    last_position bigint PRIMARY KEY,
    first_position bigint NOT NULL,
    events integer NOT NULL,
    digests bytea NOT NULL,
    hash bytea NOT NULL,
    sealed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- Where tables are built beside the live ones.
CREATE SCHEMA IF NOT EXISTS rebuild;
