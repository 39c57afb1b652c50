"""PostgreSQL: the event log, the operational tables, and what processes meet in."""
