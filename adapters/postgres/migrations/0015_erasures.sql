-- Customers that were erased, and what of it has been done: the event is stored with the row, all else comes after it.
CREATE TABLE erasures (
    customer_id text PRIMARY KEY,
    erased_at timestamptz NOT NULL,
    quiet_at timestamptz NOT NULL,
    done jsonb NOT NULL DEFAULT '{}',
    problem text,
    tried_at timestamptz,
    completed_at timestamptz
);
CREATE INDEX erasures_unfinished ON erasures (erased_at) WHERE completed_at IS NULL;
