-- `pipelines_due_of` finds what is due customer by customer, so that each is locked, loaded and told of once.
DROP INDEX IF EXISTS pipelines_due;
