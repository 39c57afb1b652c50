-- What has been taken from each allowance, of which tokens come back evenly; a row that is full again says nothing.
-- All processes share it. It is not logged: after a crash of the server every allowance is whole.
-- No index on full_at, so that taking tokens changes a row in its page.
CREATE UNLOGGED TABLE allowances (
    bucket bytea PRIMARY KEY,
    full_at timestamptz NOT NULL,
    spacing_s double precision NOT NULL,
    burst integer NOT NULL,
    wanted integer NOT NULL,
    granted integer NOT NULL
) WITH (fillfactor = 50);
