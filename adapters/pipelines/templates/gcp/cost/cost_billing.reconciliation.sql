-- What was added up while the lines were read, without SQL, against what lies in the table: equal to the last digit.
SELECT
  CAST(@source_cost AS BIGNUMERIC(38, 20)) = cost AND CAST(@source_credits AS BIGNUMERIC(38, 20)) = credits
    AND cost + credits = billed AS passed,
  CASE
    WHEN CAST(@source_cost AS BIGNUMERIC(38, 20)) != cost THEN 'costs differ from the source'
    WHEN CAST(@source_credits AS BIGNUMERIC(38, 20)) != credits THEN 'credits differ from the source'
    WHEN cost + credits != billed THEN 'billed costs are not costs and credits'
    ELSE 'costs and credits equal those of the source'
  END AS observed
FROM (
  SELECT
    COALESCE(SUM(ContractedCost), CAST('0' AS BIGNUMERIC(38, 20))) AS cost,
    COALESCE(SUM(x_Credits), CAST('0' AS BIGNUMERIC(38, 20))) AS credits,
    COALESCE(SUM(BilledCost), CAST('0' AS BIGNUMERIC(38, 20))) AS billed
  FROM {{ table("{provider}_silver_cost") }}
  WHERE usage_date IN UNNEST(@usage_days)
)
