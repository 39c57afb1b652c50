-- Several data keys for each customer and purpose: one that seals, and those before it, which open. `name` is what
-- ciphertexts say of the key (NULL for keys that were made before names were kept), `version` the wrapping key's.
-- What a key `seals_personal` for lies in the log, and the key has to stay as long as the customer does: so do those
-- from before personal data had keys of its own.
ALTER TABLE data_keys
    ADD COLUMN name bytea,
    ADD COLUMN version text,
    ADD COLUMN retired_at timestamptz,
    ADD COLUMN seals_personal boolean NOT NULL DEFAULT false;
UPDATE data_keys SET seals_personal = true WHERE purpose = 'credentials';
ALTER TABLE data_keys DROP CONSTRAINT data_keys_pkey;
ALTER TABLE data_keys ADD PRIMARY KEY (customer_id, purpose, created_at);
CREATE UNIQUE INDEX data_keys_current ON data_keys (customer_id, purpose) WHERE retired_at IS NULL;
CREATE UNIQUE INDEX data_keys_name ON data_keys (customer_id, name);

-- Every opening of a customer's secret, written before the secret is handed out. Rows are never changed.
CREATE TABLE decryptions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    customer_id text NOT NULL,
    record_id text NOT NULL,
    purpose text NOT NULL,
    actor text NOT NULL,
    reason text,
    run_id text,
    attempt integer,
    request_id text
);
CREATE INDEX decryptions_of_customer ON decryptions (customer_id, id);
