-- What customers are to be told: a row for each occasion, without names and secrets, which are looked up when it is sent.
CREATE TABLE notifications (
    notification_id uuid PRIMARY KEY,
    dedupe_key text NOT NULL UNIQUE,
    customer_id text NOT NULL,
    kind text NOT NULL,
    about jsonb NOT NULL DEFAULT '{}',
    occurred_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX notifications_newest ON notifications (created_at, notification_id);
CREATE INDEX notifications_of_customer ON notifications (customer_id, created_at, notification_id);

-- And what became of it at each receiver: `mail`, or the id of an endpoint. Who claims one moves `due_at` on.
CREATE TABLE notification_deliveries (
    notification_id uuid NOT NULL REFERENCES notifications ON DELETE CASCADE,
    receiver text NOT NULL,
    customer_id text NOT NULL,
    state text NOT NULL DEFAULT 'PENDING',
    attempts integer NOT NULL DEFAULT 0,
    due_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    claim uuid,
    last_error text,
    ended_at timestamptz,
    PRIMARY KEY (notification_id, receiver)
);
CREATE INDEX notification_deliveries_due ON notification_deliveries (due_at) WHERE state = 'PENDING';
-- The receivers for whom something waits are found by leaping over all that waits for each of them.
CREATE INDEX notification_deliveries_waiting ON notification_deliveries (receiver, due_at) WHERE state = 'PENDING';
CREATE INDEX notification_deliveries_ended_otherwise ON notification_deliveries (state, notification_id)
    WHERE state IN ('DEAD', 'DROPPED');

-- Welcome mails had a projection of their own. It goes on where that one stood; one of the version before, which may
-- still run for a while, finds nothing to do.
INSERT INTO checkpoints (projection, position) SELECT 'notifications', position FROM checkpoints
    WHERE projection = 'welcome';
UPDATE checkpoints SET position = 9223372036854775807 WHERE projection = 'welcome';
