"""Servers that the laptop brings along: PostgreSQL and a local BigQuery, each a child process."""


class EmbeddedError(Exception):
    """An embedded server cannot run. The text is one sentence for the person at the terminal, free of secrets."""
