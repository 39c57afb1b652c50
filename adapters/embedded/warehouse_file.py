"""Readies the local BigQuery's files before its server opens them: `warehouse_file.py EXTENSION DATABASE`.

A script of its own, because DuckDB has no place in our process. It runs with the server's HOME. Exit status 3: the
database file cannot be read. What happened is on standard output.
"""

import sys
from pathlib import Path

import duckdb

DAMAGED = 3


def install(extension: Path) -> None:
    """Copy the extension to where DuckDB looks for it, so that the server's own INSTALL finds it without a network."""
    with duckdb.connect() as connection:
        connection.install_extension(str(extension))


def tidy(database: Path) -> None:
    """Forget finished jobs: the server keeps every one with its parameters, in its file and from there in memory."""
    with duckdb.connect(str(database)) as connection:
        known = connection.execute(
            "SELECT 1 FROM duckdb_tables() WHERE schema_name = '_bqemulator_catalog' AND table_name = 'jobs'"
        ).fetchall()
        if known:
            connection.execute("DELETE FROM _bqemulator_catalog.jobs")
            connection.execute("CHECKPOINT")


def main(extension: Path, database: Path) -> int:
    """Install the extension, then open and tidy the database where there is one."""
    install(extension)
    if database.exists():
        try:
            tidy(database)
        except duckdb.Error as error:
            sys.stdout.write(f"{error}\n")
            return DAMAGED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
