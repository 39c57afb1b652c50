-- No INTERVAL and no SAFE here: either costs the emulator the digits of every BIGNUMERIC(p, s) in the statement.
WITH line AS (
  SELECT
    *,
    CAST(cost AS BIGNUMERIC(38, 20)) AS exact_cost,
    COALESCE(
      (SELECT SUM(CAST(amount AS BIGNUMERIC(38, 20))) FROM UNNEST(SPLIT(credit_amounts, ' ')) AS amount WHERE amount != ''),
      CAST('0' AS BIGNUMERIC(38, 20))
    ) AS exact_credits,
    COALESCE(
      DATE(CAST(SUBSTR(invoice_month, 1, 4) AS INT64), CAST(SUBSTR(invoice_month, 5, 2) AS INT64), 1),
      DATE_TRUNC(DATE(usage_start_time), MONTH)
    ) AS billing_month
  FROM {{ stage }}
)
SELECT
  exact_cost + exact_credits AS BilledCost,
  exact_cost + exact_credits AS EffectiveCost,
  COALESCE(CAST(cost_at_list AS BIGNUMERIC(38, 20)), exact_cost) AS ListCost,
  exact_cost AS ContractedCost,
  CAST(NULL AS BIGNUMERIC(38, 20)) AS ListUnitPrice,
  CAST(effective_price AS BIGNUMERIC(38, 20)) AS ContractedUnitPrice,
  exact_credits AS x_Credits,
  CAST(usage_amount AS BIGNUMERIC(38, 15)) AS ConsumedQuantity,
  CAST(pricing_amount AS BIGNUMERIC(38, 15)) AS PricingQuantity,
  TIMESTAMP(billing_month) AS BillingPeriodStart,
  TIMESTAMP(LAST_DAY(billing_month, MONTH) + 1) AS BillingPeriodEnd,
  usage_start_time AS ChargePeriodStart,
  usage_end_time AS ChargePeriodEnd,
  export_time,
  DATE(usage_start_time) AS usage_date,
  PARSE_JSON(tags) AS Tags,
  zone AS AvailabilityZone,
  billing_account_id AS BillingAccountId,
  CAST(NULL AS STRING) AS BillingAccountName,
  currency AS BillingCurrency,
  CASE cost_type WHEN 'tax' THEN 'Tax' WHEN 'adjustment' THEN 'Adjustment' WHEN 'rounding_error' THEN 'Adjustment'
    ELSE 'Usage' END AS ChargeCategory,
  CASE WHEN cost_type = 'adjustment' THEN 'Correction' END AS ChargeClass,
  sku_description AS ChargeDescription,
  CASE WHEN cost_type IN ('tax', 'adjustment', 'rounding_error') THEN 'One-Time' ELSE 'Usage-Based' END AS ChargeFrequency,
  CAST(NULL AS STRING) AS CommitmentDiscountCategory,
  CAST(NULL AS STRING) AS CommitmentDiscountId,
  CAST(NULL AS STRING) AS CommitmentDiscountName,
  CAST(NULL AS STRING) AS CommitmentDiscountStatus,
  CAST(NULL AS STRING) AS CommitmentDiscountType,
  usage_unit AS ConsumedUnit,
  'Google Cloud' AS InvoiceIssuerName,
  CASE WHEN cost_type IN ('tax', 'adjustment', 'rounding_error') THEN CAST(NULL AS STRING) ELSE 'Standard' END
    AS PricingCategory,
  pricing_unit AS PricingUnit,
  'Google Cloud' AS ProviderName,
  COALESCE(seller_name, 'Google') AS PublisherName,
  region AS RegionId,
  location AS RegionName,
  COALESCE(resource_global_name, resource_name) AS ResourceId,
  resource_name AS ResourceName,
  CAST(NULL AS STRING) AS ResourceType,
  CASE
    WHEN service_description IN ('Compute Engine', 'Kubernetes Engine', 'Cloud Run', 'Cloud Run Functions', 'App Engine',
      'Cloud Functions', 'VMware Engine') THEN 'Compute'
    WHEN service_description IN ('Cloud Storage', 'Cloud Filestore', 'Backup and DR Service') THEN 'Storage'
    WHEN service_description IN ('Cloud SQL', 'Cloud Spanner', 'Cloud Bigtable', 'Cloud Firestore', 'AlloyDB',
      'Cloud Memorystore for Redis') THEN 'Databases'
    WHEN service_description IN ('BigQuery', 'BigQuery Storage API', 'BigQuery Reservation API', 'Cloud Dataflow',
      'Cloud Dataproc', 'Looker') THEN 'Analytics'
    WHEN service_description IN ('Vertex AI', 'Gemini API', 'Cloud Vision API', 'Cloud Natural Language API')
      THEN 'AI and Machine Learning'
    WHEN service_description IN ('Networking', 'Cloud DNS', 'Cloud CDN') THEN 'Networking'
    WHEN service_description IN ('Cloud Pub/Sub', 'Cloud Tasks', 'Cloud Scheduler', 'Workflows') THEN 'Integration'
    WHEN service_description IN ('Cloud Logging', 'Cloud Monitoring') THEN 'Management and Governance'
    WHEN service_description IN ('Cloud Key Management Service (KMS)', 'Secret Manager', 'Security Command Center')
      THEN 'Security'
    ELSE 'Other'
  END AS ServiceCategory,
  service_description AS ServiceName,
  sku_id AS SkuId,
  CAST(NULL AS STRING) AS SkuPriceId,
  project_id AS SubAccountId,
  project_name AS SubAccountName,
  invoice_month AS x_InvoiceMonth,
  @run_id AS run_id
FROM line
