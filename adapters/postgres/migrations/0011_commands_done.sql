-- Commands that their senders named, and that were carried out: each row comes with what the command stored.
CREATE TABLE commands_done (
    command_id text NOT NULL,
    command text NOT NULL,
    done_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (command_id, command)
);
CREATE INDEX commands_done_age ON commands_done (done_at);
