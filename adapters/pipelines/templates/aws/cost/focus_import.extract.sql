-- Numbers leave the source as the decimals that BigQuery prints, whatever their type is there.
{% for source in sources %}
{% if not loop.first %}
UNION ALL
{% endif %}
SELECT
  {{ source.text("BilledCost") }} AS BilledCost,
  {{ source.text("EffectiveCost") }} AS EffectiveCost,
  {{ source.text("ListCost") }} AS ListCost,
  {{ source.text("ContractedCost") }} AS ContractedCost,
  {{ source.text("ListUnitPrice") }} AS ListUnitPrice,
  {{ source.text("ContractedUnitPrice") }} AS ContractedUnitPrice,
  {{ source.text("ConsumedQuantity") }} AS ConsumedQuantity,
  {{ source.text("PricingQuantity") }} AS PricingQuantity,
  {{ source.text("AvailabilityZone") }} AS AvailabilityZone,
  {{ source.text("BillingAccountId") }} AS BillingAccountId,
  {{ source.text("BillingAccountName") }} AS BillingAccountName,
  {{ source.text("BillingCurrency") }} AS BillingCurrency,
  {{ source.text("ChargeCategory") }} AS ChargeCategory,
  {{ source.text("ChargeClass") }} AS ChargeClass,
  {{ source.text("ChargeDescription") }} AS ChargeDescription,
  {{ source.text("ChargeFrequency") }} AS ChargeFrequency,
  {{ source.text("CommitmentDiscountCategory") }} AS CommitmentDiscountCategory,
  {{ source.text("CommitmentDiscountId") }} AS CommitmentDiscountId,
  {{ source.text("CommitmentDiscountName") }} AS CommitmentDiscountName,
  {{ source.text("CommitmentDiscountStatus") }} AS CommitmentDiscountStatus,
  {{ source.text("CommitmentDiscountType") }} AS CommitmentDiscountType,
  {{ source.text("ConsumedUnit") }} AS ConsumedUnit,
  {{ source.text("InvoiceIssuerName") }} AS InvoiceIssuerName,
  {{ source.text("PricingCategory") }} AS PricingCategory,
  {{ source.text("PricingUnit") }} AS PricingUnit,
  {{ source.text("ProviderName") }} AS ProviderName,
  {{ source.text("PublisherName") }} AS PublisherName,
  {{ source.text("RegionId") }} AS RegionId,
  {{ source.text("RegionName") }} AS RegionName,
  {{ source.text("ResourceId") }} AS ResourceId,
  {{ source.text("ResourceName") }} AS ResourceName,
  {{ source.text("ResourceType") }} AS ResourceType,
  {{ source.text("ServiceCategory") }} AS ServiceCategory,
  {{ source.text("ServiceName") }} AS ServiceName,
  {{ source.text("SkuId") }} AS SkuId,
  {{ source.text("SkuPriceId") }} AS SkuPriceId,
  {{ source.text("SubAccountId") }} AS SubAccountId,
  {{ source.text("SubAccountName") }} AS SubAccountName,
  {{ source.timestamp("BillingPeriodStart") }} AS BillingPeriodStart,
  {{ source.timestamp("BillingPeriodEnd") }} AS BillingPeriodEnd,
  {{ source.timestamp("ChargePeriodStart") }} AS ChargePeriodStart,
  {{ source.timestamp("ChargePeriodEnd") }} AS ChargePeriodEnd,
{% if source.is_repeated("Tags") %}
  CONCAT('{', ARRAY_TO_STRING(ARRAY(
    SELECT CONCAT(TO_JSON_STRING(l.key), ':', TO_JSON_STRING(l.value)) FROM UNNEST(t.Tags) AS l), ','), '}') AS Tags
{% else %}
  -- Tags that are no JSON are left out rather than stop the import of costs.
  NULLIF(TO_JSON_STRING(SAFE.PARSE_JSON({{ source.text("Tags") }})), 'null') AS Tags
{% endif %}
FROM {{ source.name }} AS t
WHERE {{ source.timestamp("BillingPeriodStart") }} IN UNNEST(@billing_periods)
  AND (@provider_name = '' OR {{ source.text("ProviderName") }} = @provider_name)
{% endfor %}
