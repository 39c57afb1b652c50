-- What was added up while the rows were read, without SQL, against what lies in the table: equal to the last digit.
SELECT
  CAST(@source_billed AS BIGNUMERIC(38, 20)) = billed AND CAST(@source_effective AS BIGNUMERIC(38, 20)) = effective AS passed,
  CASE
    WHEN CAST(@source_billed AS BIGNUMERIC(38, 20)) != billed THEN 'billed costs differ from the source'
    WHEN CAST(@source_effective AS BIGNUMERIC(38, 20)) != effective THEN 'effective costs differ from the source'
    ELSE 'costs equal those of the source'
  END AS observed
FROM (
  SELECT
    COALESCE(SUM(BilledCost), CAST('0' AS BIGNUMERIC(38, 20))) AS billed,
    COALESCE(SUM(EffectiveCost), CAST('0' AS BIGNUMERIC(38, 20))) AS effective
  FROM {{ table("{provider}_silver_cost") }}
  WHERE BillingPeriodStart IN UNNEST(@billing_periods)
)
