SELECT
  COUNT(DISTINCT ProviderName) <= 1 AS passed,
  CONCAT(CAST(COUNT(DISTINCT ProviderName) AS STRING), ' providers in one table') AS observed
FROM {{ table("{provider}_silver_cost") }}
WHERE BillingPeriodStart IN UNNEST(@billing_periods)
