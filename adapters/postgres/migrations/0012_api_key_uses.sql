-- When and from where each API key was last used: collected by every API, written about once a minute.
CREATE TABLE api_key_uses (
    api_key_id text PRIMARY KEY,
    customer_id text NOT NULL,
    last_used_at timestamptz NOT NULL,
    source text
);
CREATE INDEX api_key_uses_of_customer ON api_key_uses (customer_id);
