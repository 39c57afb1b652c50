-- The billing periods to import anew. An export has no time of its own, and providers change an open billing period's
-- rows until some days after its end, so that a period is only ever right as a whole.
SELECT TIMESTAMP(DATE_TRUNC(@run_date, MONTH)) AS billing_period
{% for source in sources %}
UNION DISTINCT
SELECT {{ source.timestamp("BillingPeriodStart") }} AS billing_period
FROM {{ source.name }} AS t
WHERE (
    DATE({{ source.timestamp("BillingPeriodStart") }}) <= @run_date
    AND {{ source.timestamp("BillingPeriodEnd") }} > TIMESTAMP(DATE_SUB(@run_date, INTERVAL @lookback_days DAY))
  )
  OR DATE({{ source.timestamp("ChargePeriodStart") }})
    BETWEEN DATE_TRUNC(DATE_SUB(@run_date, INTERVAL @lookback_days DAY), MONTH) AND LAST_DAY(@run_date, MONTH)
{% endfor %}
