-- What keeps a projection from going on, as who leads it says: since when, when it was met last, and at which event if
-- it is an event. And how many events a second it handled lately.
ALTER TABLE checkpoints
    ADD COLUMN problem text,
    ADD COLUMN problem_kind text,
    ADD COLUMN problem_position bigint,
    ADD COLUMN problem_since timestamptz,
    ADD COLUMN problem_met_at timestamptz,
    ADD COLUMN events_per_second double precision;
