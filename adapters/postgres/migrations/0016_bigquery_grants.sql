-- Whose readers BigQuery knows of: up to which position of the log, and what kept it from knowing more.
CREATE TABLE bigquery_grants (
    customer_id text PRIMARY KEY,
    position bigint NOT NULL,
    applied_at timestamptz,
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    problem text
);
CREATE INDEX bigquery_grants_due ON bigquery_grants (due_at);
