SELECT
  COUNT(*) = 3 AS passed,
  CONCAT(CAST(COUNT(*) AS STRING), ' of 3 tables of the execution log') AS observed
FROM {{ tables_view }}
WHERE table_name IN ('x_meta_pipeline_runs', 'x_meta_step_logs', 'x_meta_dq_results')
