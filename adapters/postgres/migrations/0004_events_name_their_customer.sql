-- Which events are whose: a column and its index, written with the event, instead of a table beside the log.
ALTER TABLE stored_events ADD COLUMN customer_id text;
UPDATE stored_events e SET customer_id = c.customer_id FROM customer_events c WHERE c.position = e.notification_id;
CREATE INDEX stored_events_customer ON stored_events (customer_id, notification_id);
DROP TABLE customer_events;
