"""The one gate through which a name reaches SQL: strict, so that a name can never be more than a name."""

import re

_PROJECT = re.compile(r"(?:[a-z0-9][a-z0-9.-]{0,62}:)?[a-z][a-z0-9-]{0,61}[a-z0-9]")
_DATASET = re.compile(r"[A-Za-z0-9_]{1,1024}")
_TABLE = re.compile(r"[A-Za-z0-9_-]{1,1024}")
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,299}")


def project(name: str) -> str:
    """A Google Cloud project id. Raises `ValueError` with a sentence that does not repeat the value."""
    return _checked(name, _PROJECT, "A project id has lower-case letters, digits and hyphens only.")


def dataset(name: str) -> str:
    """A BigQuery dataset id. Raises `ValueError` as `project` does."""
    return _checked(name, _DATASET, "A dataset id has letters, digits and underscores only.")


def table(name: str) -> str:
    """A BigQuery table id, without partition decorator. Raises `ValueError` as `project` does."""
    return _checked(name, _TABLE, "A table name has letters, digits, underscores and hyphens only.")


def table_pattern(name: str) -> str:
    """A table id, or a prefix of table ids followed by one `*`. Raises `ValueError` as `project` does."""
    table(name.removesuffix("*"))
    return name


def column(name: str) -> str:
    """A column name. Raises `ValueError` as `project` does."""
    return _checked(name, _COLUMN, "A column name has letters, digits and underscores only.")


def quoted_table(project_id: str, dataset_id: str, table_id: str) -> str:
    """The full name of a table as standard SQL takes it, each part checked."""
    return f"`{project(project_id)}.{dataset(dataset_id)}.{table(table_id)}`"


def quoted_column(name: str) -> str:
    """A column as standard SQL takes it, checked."""
    return f"`{column(name)}`"


def _checked(name: str, shape: re.Pattern[str], sentence: str) -> str:
    if not isinstance(name, str) or shape.fullmatch(name) is None:
        raise ValueError(sentence)
    return name
