-- The partial index `pipelines_due` is the one that is read; this one was only written, with every slot.
DROP INDEX IF EXISTS customer_pipeline_configs_next_run_time;
