-- Runs that wait for an instant lie apart from those that are ready: queue_waiting takes this index's place.
DROP INDEX IF EXISTS queue_by_customer;
