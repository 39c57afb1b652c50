"""Every table once: its columns, its key, how BigQuery partitions and clusters it, how PostgreSQL indexes it.

Rows of the central tables are not deleted: what goes away gets `deleted_at`. Only the rows of a customer who was erased
are, all but the profile, and a replay forgets them at the same place of the log. Column names are the customer guide's.
"""

from projections.rows import Column, Scope, Table, Type

_TS, _INT, _BOOL, _BYTES, _DATE, _JSON = Type.TIMESTAMP, Type.INT64, Type.BOOL, Type.BYTES, Type.DATE, Type.JSON


def _columns(*columns: str | tuple[str, Type]) -> tuple[Column, ...]:
    return tuple(Column(c) if isinstance(c, str) else Column(*c) for c in columns)


CUSTOMER_PROFILES = Table(
    name="customer_profiles",
    description="One row per customer: identity, plan and status (ACTIVE, SUSPENDED, ERASED).",
    columns=_columns(
        "customer_id",
        "tenant_id",
        "tenant_dataset_id",
        "company_name",
        "admin_email",
        "status",
        "subscription_plan",
        "stripe_customer_id",
        ("dataset_created", _BOOL),
        ("schedules_paused", _BOOL),
        ("created_at", _TS),
        ("updated_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("customer_id",),
    cluster_by=("customer_id",),
    indexes=(("created_at", "customer_id"), ("stripe_customer_id",)),
)

CUSTOMER_API_KEYS = Table(
    name="customer_api_keys",
    description="One row per API key: its SHA-256 and its ciphertext, never the key.",
    columns=_columns(
        "api_key_id",
        "customer_id",
        "api_key_hash",
        ("encrypted_api_key", _BYTES),
        "last4",
        "name",
        ("scopes", _JSON),
        ("is_active", _BOOL),
        ("created_at", _TS),
        ("expires_at", _TS),
        ("revoked_at", _TS),
        "revoked_reason",
        ("deleted_at", _TS),
    ),
    key=("api_key_id",),
    cluster_by=("customer_id",),
    indexes=(("api_key_hash",), ("customer_id", "created_at")),
)

CUSTOMER_CLOUD_CREDENTIALS = Table(
    name="customer_cloud_credentials",
    description="One row per cloud credential, sealed under its customer's data key.",
    columns=_columns(
        "credential_id",
        "customer_id",
        "provider",
        "credential_type",
        "credential_name",
        ("encrypted_credentials", _BYTES),
        "project_id",
        ("is_active", _BOOL),
        ("created_at", _TS),
        ("updated_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("credential_id",),
    cluster_by=("customer_id", "provider"),
    indexes=(("customer_id", "created_at"),),
)

CUSTOMER_SUBSCRIPTIONS = Table(
    name="customer_subscriptions",
    description="One row per customer: the plan and the limits in force, overrides included.",
    columns=_columns(
        "subscription_id",
        "customer_id",
        "plan_name",
        "status",
        ("max_team_members", _INT),
        ("max_providers", _INT),
        ("max_pipelines_per_day", _INT),
        ("max_pipelines_per_month", _INT),
        ("max_concurrent_pipelines", _INT),
        "stripe_subscription_id",
        ("created_at", _TS),
        ("updated_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("customer_id",),
    cluster_by=("customer_id",),
)

CUSTOMER_USAGE = Table(
    name="customer_usage",
    description="One row per customer and UTC day on which something was counted.",
    columns=_columns(
        "customer_id",
        ("usage_date", _DATE),
        ("pipelines_run_today", _INT),
        ("pipelines_succeeded_today", _INT),
        ("pipelines_failed_today", _INT),
        ("pipelines_run_month", _INT),
        ("concurrent_pipelines_running", _INT),
        ("daily_limit", _INT),
        ("monthly_limit", _INT),
        ("concurrent_limit", _INT),
        ("last_updated", _TS),
    ),
    key=("customer_id", "usage_date"),
    partition_by="usage_date",
    cluster_by=("customer_id",),
    indexes=(("usage_date",),),
)

CUSTOMER_PROVIDER_CONFIGS = Table(
    name="customer_provider_configs",
    description="Where a customer's source data lies, and whom to tell when a run of it fails.",
    columns=_columns(
        "config_id",
        "customer_id",
        "provider",
        "domain",
        "source_project_id",
        "source_dataset",
        ("notification_emails", _JSON),
        ("is_active", _BOOL),
        ("created_at", _TS),
        ("updated_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("config_id",),
    cluster_by=("customer_id",),
    indexes=(("customer_id", "created_at"),),
)

CUSTOMER_TEAM_MEMBERS = Table(
    name="customer_team_members",
    description="The people of a customer, within the plan's limit.",
    columns=_columns(
        "member_id",
        "customer_id",
        "email",
        "name",
        "role",
        ("is_active", _BOOL),
        ("created_at", _TS),
        ("updated_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("member_id",),
    cluster_by=("customer_id",),
    indexes=(("customer_id", "created_at"),),
)

CUSTOMER_WEBHOOK_ENDPOINTS = Table(
    name="customer_webhook_endpoints",
    description="Where a customer's notifications are posted, with the secret that signs them, sealed.",
    columns=_columns(
        "endpoint_id",
        "customer_id",
        "url",
        ("encrypted_secret", _BYTES),
        ("kinds", _JSON),
        ("is_active", _BOOL),
        ("created_at", _TS),
        ("updated_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("endpoint_id",),
    cluster_by=("customer_id",),
    indexes=(("customer_id", "created_at"),),
)

CUSTOMER_BIGQUERY_READERS = Table(
    name="customer_bigquery_readers",
    description="Who else may read a customer's data in BigQuery.",
    columns=_columns(
        "grant_id",
        "customer_id",
        "principal",
        ("is_active", _BOOL),
        ("created_at", _TS),
        ("updated_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("grant_id",),
    cluster_by=("customer_id",),
    indexes=(("customer_id", "created_at"),),
)

CUSTOMER_PIPELINE_CONFIGS = Table(
    name="customer_pipeline_configs",
    description="Scheduled pipelines: template, cron, zone, and when each runs next.",
    columns=_columns(
        "config_id",
        "customer_id",
        "provider",
        "domain",
        "pipeline_template",
        "schedule_cron",
        "timezone",
        ("is_active", _BOOL),
        ("parameters", _JSON),
        ("date_offset_days", _INT),
        "catch_up",
        "overlap",
        ("jitter_seconds", _INT),
        ("next_run_time", _TS),
        ("last_run_time", _TS),
        "last_run_state",
        ("created_at", _TS),
        ("updated_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("config_id",),
    cluster_by=("customer_id",),
    indexes=(("customer_id", "created_at"),),
)

SCHEDULED_PIPELINE_RUNS = Table(
    name="scheduled_pipeline_runs",
    description="One row per run, scheduled or manual, with its state.",
    columns=_columns(
        "run_id",
        "config_id",
        "customer_id",
        "provider",
        "domain",
        "pipeline_template",
        "trigger_type",
        "trigger_by",
        "backfill_id",
        "state",
        ("run_date", _DATE),
        ("scheduled_time", _TS),
        ("actual_start_time", _TS),
        ("actual_end_time", _TS),
        ("attempt", _INT),
        "worker_id",
        ("rows_processed", _INT),
        "error_message",
        ("parameters", _JSON),
        ("created_at", _TS),
        ("updated_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("run_id",),
    partition_by="scheduled_time",
    cluster_by=("customer_id", "state"),
    indexes=(("customer_id", "created_at", "run_id"), ("created_at", "run_id"), ("config_id", "scheduled_time")),
)

PIPELINE_EXECUTION_QUEUE = Table(
    name="pipeline_execution_queue",
    description="What workers pick from: runs that are waiting or running. Finished runs carry deleted_at.",
    columns=_columns(
        "run_id",
        "customer_id",
        "config_id",
        ("priority", _INT),
        ("scheduled_time", _TS),
        "state",
        ("not_before", _TS),
        "claimed_by",
        ("lease_expires_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("run_id",),
    cluster_by=("customer_id",),
)

BILLING_ACCOUNTS = Table(
    name="billing_accounts",
    description="One row per customer of Stripe's: whose it is, what is paid for, and when access ends.",
    columns=_columns(
        "stripe_customer_id",
        "customer_id",
        ("live", _BOOL),
        "stripe_subscription_id",
        "status",
        "plan",
        ("cancel_at", _TS),
        ("acts_at", _TS),
        "cause",
        ("is_suspended", _BOOL),
        ("created_at", _TS),
        ("updated_at", _TS),
        ("deleted_at", _TS),
    ),
    key=("stripe_customer_id",),
    cluster_by=("customer_id",),
    indexes=(("customer_id",), ("acts_at",), ("created_at", "stripe_customer_id")),
)

BILLING_PROBLEMS = Table(
    name="billing_problems",
    description="One row per thing about Stripe's events that an operator has to look at, until it is solved.",
    columns=_columns(
        "account",
        "problem",
        "subject",
        ("created_at", _TS),
        ("solved_at", _TS),
    ),
    key=("account", "problem", "subject"),
    indexes=(("created_at",),),
)

PROJECTION_SKIPS = Table(
    name="projection_skips",
    description="One row per event that an operator had a projection pass over, and why.",
    columns=_columns(
        "projection",
        ("skipped_position", _INT),
        "topic",
        "reason",
        "skipped_by",
        ("skipped_at", _TS),
    ),
    key=("projection", "skipped_position"),
)

X_META_PIPELINE_RUNS = Table(
    name="x_meta_pipeline_runs",
    description="Execution log: one row per run.",
    columns=_columns(
        "pipeline_logging_id",
        "pipeline_id",
        "customer_id",
        "status",
        "trigger_type",
        "trigger_by",
        ("run_date", _DATE),
        ("start_time", _TS),
        ("end_time", _TS),
        ("duration_ms", _INT),
        ("rows_processed", _INT),
        "error_message",
        ("parameters", _JSON),
        ("deleted_at", _TS),
    ),
    key=("pipeline_logging_id",),
    scope=Scope.CUSTOMER,
    partition_by="run_date",
    cluster_by=("pipeline_id", "status"),
)

X_META_STEP_LOGS = Table(
    name="x_meta_step_logs",
    description="One row per step and attempt of a run.",
    columns=_columns(
        "step_logging_id",
        "pipeline_logging_id",
        "step_name",
        "step_type",
        ("step_index", _INT),
        "status",
        ("attempt", _INT),
        ("start_time", _TS),
        ("end_time", _TS),
        ("duration_ms", _INT),
        ("rows_processed", _INT),
        "error_message",
        ("metadata", _JSON),
        ("deleted_at", _TS),
    ),
    key=("step_logging_id",),
    scope=Scope.CUSTOMER,
    partition_by="start_time",
    cluster_by=("pipeline_logging_id",),
)

X_META_DQ_RESULTS = Table(
    name="x_meta_dq_results",
    description="One row per data-quality step: what was expected, what passed, what failed.",
    columns=_columns(
        "dq_result_id",
        "pipeline_logging_id",
        "target_table",
        "dq_config_id",
        ("executed_at", _TS),
        ("expectations_passed", _INT),
        ("expectations_failed", _INT),
        ("failed_expectations", _JSON),
        "overall_status",
        ("ingestion_date", _DATE),
        ("deleted_at", _TS),
    ),
    key=("dq_result_id",),
    scope=Scope.CUSTOMER,
    partition_by="ingestion_date",
    cluster_by=("pipeline_logging_id",),
)

LOG_HEADS = Table(
    name="log_heads",
    description="One row per signed head of the event log: what it was at that moment. No row follows from an event.",
    columns=_columns(
        "hash",
        ("events", _INT),
        ("sealed_at", _TS),
        "key_id",
        "public_key",
        "signature",
    ),
    key=("hash",),
    partition_by="sealed_at",
)

ERASURE_LEDGER = Table(
    name="erasure_ledger",
    description="One row per customer that was erased, for databases that come back from a backup. No row follows from"
    " an event.",
    columns=_columns("customer_id", ("erased_at", _TS)),
    key=("customer_id",),
)

CENTRAL = (
    CUSTOMER_PROFILES,
    CUSTOMER_API_KEYS,
    CUSTOMER_CLOUD_CREDENTIALS,
    CUSTOMER_SUBSCRIPTIONS,
    CUSTOMER_USAGE,
    CUSTOMER_PROVIDER_CONFIGS,
    CUSTOMER_TEAM_MEMBERS,
    CUSTOMER_WEBHOOK_ENDPOINTS,
    CUSTOMER_BIGQUERY_READERS,
    CUSTOMER_PIPELINE_CONFIGS,
    SCHEDULED_PIPELINE_RUNS,
    PIPELINE_EXECUTION_QUEUE,
    BILLING_ACCOUNTS,
    BILLING_PROBLEMS,
    PROJECTION_SKIPS,
)
CUSTOMER = (X_META_PIPELINE_RUNS, X_META_STEP_LOGS, X_META_DQ_RESULTS)
EVERY = CENTRAL + CUSTOMER
OWN = tuple(table for table in CENTRAL if "customer_id" in table.names and table is not BILLING_ACCOUNTS)
"""The central tables in which a customer's rows follow from that customer's own events alone."""
