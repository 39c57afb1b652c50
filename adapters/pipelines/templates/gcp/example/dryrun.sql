SELECT @run_date AS run_date, COUNT(*) AS runs_of_the_day
FROM {{ table("x_meta_pipeline_runs") }}
WHERE run_date = @run_date
