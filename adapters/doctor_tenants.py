"""What the doctor looks at of customers' reads: that the database itself leaves them no rows but their own."""

from typing import Final

from psycopg import Connection
from psycopg.rows import DictRow

from adapters.finding import Finding, Result
from adapters.postgres import privileges

_CHECK: Final = "customers' own rows"


def examine_tenants(connection: Connection[DictRow]) -> Finding:
    """Look whether what is read on a customer's behalf is bound to its rows, in every table that can be read so."""
    if unbound := privileges.unbound(connection):
        why = f"{', '.join(unbound)}: a customer's request could be shown rows of others."
        remedy = f"Drop the policy {privileges.OWN_ROWS} where it was altered. Then run: convergence migrate."
        return Finding(_CHECK, Result.FAIL, why, remedy)
    if not privileges.may_bind(connection):
        why = "Only each statement's own condition keeps customers' reads apart: row-level security is not used."
        remedy = "Run `convergence migrate` with a login that may make roles: see docs/operating.md."
        return Finding(_CHECK, Result.WARN, why, remedy)
    return Finding(_CHECK, Result.OK, "row-level security binds each customer's reads")
