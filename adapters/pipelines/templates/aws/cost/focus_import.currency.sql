SELECT
  COUNTIF(NOT REGEXP_CONTAINS(BillingCurrency, r'^[A-Z]{3}$')) = 0 AS passed,
  CONCAT(CAST(COUNT(DISTINCT BillingCurrency) AS STRING), ' currencies, ',
    CAST(COUNTIF(NOT REGEXP_CONTAINS(BillingCurrency, r'^[A-Z]{3}$')) AS STRING), ' rows without an ISO 4217 code') AS observed
FROM {{ table("{provider}_silver_cost") }}
WHERE BillingPeriodStart IN UNNEST(@billing_periods)
