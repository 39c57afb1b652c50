-- Which processes of the service live. Each renews its own row, by the database's clock; nothing follows from it.
CREATE TABLE processes (
    instance_id uuid PRIMARY KEY,
    roles text[] NOT NULL,
    worker_id text NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    concurrency integer,
    holding integer,
    finished bigint,
    finished_last_minute integer
) WITH (fillfactor = 50);
