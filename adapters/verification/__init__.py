"""Verification: whether the rows in PostgreSQL and BigQuery are what the log says, and mending those that are not."""
