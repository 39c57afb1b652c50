-- Which runs of a pipeline are active is asked of the queue: updates of a run's state then touch no index.
DROP INDEX IF EXISTS runs_active;
