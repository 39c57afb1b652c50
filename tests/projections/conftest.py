"""The core on a database, as the tests of the use cases have it."""

from tests.application.conftest import acme, database_url, migrated_template, shared_database, world

__all__ = ["acme", "database_url", "migrated_template", "shared_database", "world"]
