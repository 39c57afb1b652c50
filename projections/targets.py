"""Where projected tables lie, as an operator names it."""

from enum import StrEnum


class Target(StrEnum):
    """Tables of PostgreSQL, of BigQuery, or of both."""

    POSTGRES = "postgres"
    BIGQUERY = "bigquery"
    BOTH = "both"
