-- Workers that have nothing to do, and how many runs each would take at once. Who asks for a run hands it to one of
-- them in the same transaction. A row counts while its process holds the advisory lock of its name.
CREATE TABLE idle_workers (
    offer_id uuid PRIMARY KEY,
    worker_id text NOT NULL,
    free integer NOT NULL,
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 50);

-- The offer by which a run came to its worker; a run that was claimed has none.
ALTER TABLE run_leases ADD COLUMN handed_to uuid;
