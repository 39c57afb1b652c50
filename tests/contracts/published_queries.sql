-- The SQL that customers were given: it has to run as it stands once {customer_id} and the project are filled in.

SELECT pipeline_id, status, start_time
   FROM `gac-prod-471220.demo_test.x_meta_pipeline_runs`
   ORDER BY start_time DESC LIMIT 1;

SELECT customer_id, company_name, subscription_plan, status
   FROM `gac-prod-471220.customers_metadata.customer_profiles`
   WHERE customer_id = 'test_customer';

SELECT credential_id, provider, credential_name
   FROM `gac-prod-471220.customers_metadata.customer_cloud_credentials`
   WHERE customer_id = (
     SELECT customer_id FROM `gac-prod-471220.customers_metadata.customer_profiles`
     WHERE tenant_dataset_id = 'test_customer'
   );

SELECT config_id, pipeline_template, schedule_cron, next_run_time
   FROM `gac-prod-471220.customers_metadata.customer_pipeline_configs`
   WHERE customer_id = (
     SELECT customer_id FROM `gac-prod-471220.customers_metadata.customer_profiles`
     WHERE tenant_dataset_id = 'test_customer'
   );

SELECT run_id, state, scheduled_time
   FROM `gac-prod-471220.customers_metadata.scheduled_pipeline_runs`
   WHERE DATE(scheduled_time) = CURRENT_DATE()
   ORDER BY created_at DESC
   LIMIT 10;

SELECT run_id, state, updated_at
   FROM `gac-prod-471220.customers_metadata.scheduled_pipeline_runs`
   ORDER BY updated_at DESC
   LIMIT 1;

UPDATE `gac-prod-471220.customers_metadata.customer_subscriptions`
   SET max_pipelines_per_day = 1
   WHERE customer_id = (
     SELECT customer_id FROM `gac-prod-471220.customers_metadata.customer_profiles`
     WHERE tenant_dataset_id = 'test_customer'
   );

SELECT
  usage_date,
  pipelines_run_today,
  pipelines_run_month,
  concurrent_pipelines_running,
  daily_limit,
  monthly_limit,
  concurrent_limit
FROM `gac-prod-471220.customers_metadata.customer_usage`
WHERE customer_id = (
  SELECT customer_id FROM `gac-prod-471220.customers_metadata.customer_profiles`
  WHERE tenant_dataset_id = 'acme_corp'
)
ORDER BY usage_date DESC
LIMIT 1;

SELECT status, created_at
FROM `gac-prod-471220.customers_metadata.customer_profiles`
WHERE tenant_dataset_id = '{customer_id}';

UPDATE `gac-prod-471220.customers_metadata.customer_profiles`
SET status = 'ACTIVE', updated_at = CURRENT_TIMESTAMP()
WHERE tenant_dataset_id = '{customer_id}';

UPDATE `gac-prod-471220.customers_metadata.customer_usage`
SET pipelines_run_month = 0
WHERE customer_id = '{customer_id}'
  AND usage_date = CURRENT_DATE();

SELECT COUNT(*) as actual_running
FROM `gac-prod-471220.{customer_id}.x_meta_pipeline_runs`
WHERE status IN ('PENDING', 'RUNNING');

UPDATE `gac-prod-471220.customers_metadata.customer_usage`
SET concurrent_pipelines_running = (
  SELECT COUNT(*)
  FROM `gac-prod-471220.{customer_id}.x_meta_pipeline_runs`
  WHERE status IN ('PENDING', 'RUNNING')
)
WHERE customer_id = '{customer_id}'
  AND usage_date = CURRENT_DATE();

SELECT config_id, is_active, next_run_time
FROM `gac-prod-471220.customers_metadata.customer_pipeline_configs`
WHERE customer_id = '{customer_id}';

SELECT MAX(created_at) as last_trigger
FROM `gac-prod-471220.customers_metadata.scheduled_pipeline_runs`;

SELECT run_id, state, error_message
FROM `gac-prod-471220.customers_metadata.scheduled_pipeline_runs`
WHERE state = 'FAILED'
ORDER BY created_at DESC
LIMIT 10;

SELECT api_key_id, is_active, expires_at
FROM `gac-prod-471220.customers_metadata.customer_api_keys`
WHERE customer_id = '{customer_id}';

SELECT
  c.customer_id,
  c.pipeline_template,
  c.next_run_time,
  TIMESTAMP_DIFF(CURRENT_TIMESTAMP(), c.next_run_time, MINUTE) as minutes_late
FROM `gac-prod-471220.customers_metadata.customer_pipeline_configs` c
JOIN `gac-prod-471220.customers_metadata.customer_profiles` p
  ON c.customer_id = p.customer_id
WHERE c.is_active = TRUE
  AND p.status = 'ACTIVE'
  AND c.next_run_time <= CURRENT_TIMESTAMP()
ORDER BY c.next_run_time;

SELECT
  r.customer_id,
  r.config_id,
  r.state,
  r.scheduled_time,
  r.actual_start_time,
  TIMESTAMP_DIFF(CURRENT_TIMESTAMP(), r.actual_start_time, MINUTE) as running_minutes
FROM `gac-prod-471220.customers_metadata.scheduled_pipeline_runs` r
WHERE r.state = 'RUNNING'
ORDER BY r.actual_start_time;

SELECT
  customer_id,
  COUNT(*) as total_runs,
  SUM(CASE WHEN state = 'COMPLETED' THEN 1 ELSE 0 END) as successful,
  SUM(CASE WHEN state = 'FAILED' THEN 1 ELSE 0 END) as failed,
  ROUND(100.0 * SUM(CASE WHEN state = 'COMPLETED' THEN 1 ELSE 0 END) / COUNT(*), 2) as success_rate
FROM `gac-prod-471220.customers_metadata.scheduled_pipeline_runs`
WHERE scheduled_time >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL 7 DAY)
GROUP BY customer_id
ORDER BY total_runs DESC;

SELECT * FROM `gac-prod-471220.customers_metadata.customer_pipeline_configs`
WHERE is_active = TRUE
  AND next_run_time <= CURRENT_TIMESTAMP();
