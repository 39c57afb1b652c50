-- Costs leave the source as the decimals that BigQuery prints for its FLOAT64, so that nothing is ever added up in binary.
{% for source in sources %}
{% if not loop.first %}
UNION ALL
{% endif %}
SELECT
  {{ source.text("billing_account_id") }} AS billing_account_id,
  {{ source.text("service.id") }} AS service_id,
  {{ source.text("service.description") }} AS service_description,
  {{ source.text("sku.id") }} AS sku_id,
  {{ source.text("sku.description") }} AS sku_description,
  {{ source.timestamp("usage_start_time") }} AS usage_start_time,
  {{ source.timestamp("usage_end_time") }} AS usage_end_time,
  {{ source.text("project.id") }} AS project_id,
  {{ source.text("project.name") }} AS project_name,
  {{ source.text("location.location") }} AS location,
  {{ source.text("location.region") }} AS region,
  {{ source.text("location.zone") }} AS zone,
  {{ source.text("resource.name") }} AS resource_name,
  {{ source.text("resource.global_name") }} AS resource_global_name,
  {{ source.timestamp("export_time") }} AS export_time,
  {{ source.text("cost") }} AS cost,
  {{ source.text("cost_at_list") }} AS cost_at_list,
  {{ source.text("price.effective_price") }} AS effective_price,
  {{ source.text("currency") }} AS currency,
  {{ source.text("usage.amount") }} AS usage_amount,
  {{ source.text("usage.unit") }} AS usage_unit,
  {{ source.text("usage.amount_in_pricing_units") }} AS pricing_amount,
  {{ source.text("usage.pricing_unit") }} AS pricing_unit,
  {{ source.text("invoice.month") }} AS invoice_month,
  {{ source.text("cost_type") }} AS cost_type,
  {{ source.text("seller_name") }} AS seller_name,
{% if source.is_repeated("labels") %}
  CONCAT('{', ARRAY_TO_STRING(ARRAY(
    SELECT CONCAT(TO_JSON_STRING(l.key), ':', TO_JSON_STRING(l.value)) FROM UNNEST(t.labels) AS l), ','), '}') AS tags,
{% else %}
  '{}' AS tags,
{% endif %}
{% if source.is_repeated("credits") %}
  ARRAY_TO_STRING(ARRAY(SELECT CAST(c.amount AS STRING) FROM UNNEST(t.credits) AS c), ' ') AS credit_amounts
{% else %}
  '' AS credit_amounts
{% endif %}
FROM {{ source.name }} AS t
WHERE DATE(t.usage_start_time) IN UNNEST(@usage_days)
{% if source.ingestion_partitioned %}
  AND _PARTITIONTIME >= TIMESTAMP(DATE_SUB(@usage_days_first, INTERVAL 1 DAY))
{% endif %}
{% endfor %}
