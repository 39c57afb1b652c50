-- The usage days to compute anew. A line belongs to the day of its usage, but may be exported days later: every day is
-- looked at again whose lines were exported on the run date or shortly before it, so that a line which became visible
-- after its own day's run, or while a run was missed, is found by the next one.
SELECT @run_date AS usage_day
{% for source in sources %}
UNION DISTINCT
SELECT DATE(t.usage_start_time) AS usage_day
FROM {{ source.name }} AS t
WHERE DATE(t.export_time) BETWEEN DATE_SUB(@run_date, INTERVAL @late_export_days DAY) AND @run_date
{% if source.ingestion_partitioned %}
  -- A line is never ingested on a day before its export; this is what keeps the scan small.
  AND _PARTITIONTIME >= TIMESTAMP(DATE_SUB(@run_date, INTERVAL @late_export_days + 1 DAY))
{% endif %}
{% endfor %}
