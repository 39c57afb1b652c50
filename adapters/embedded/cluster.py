"""A PostgreSQL data directory: made complete or not at all, and owned by the account that runs its server."""

import os
import subprocess
from pathlib import Path

from psycopg import sql

from adapters.embedded import EmbeddedError
from adapters.embedded.binaries import bootstrap_account, installation, private_account, reachable
from adapters.embedded.child import Account, remove

ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC"}
"""All that PostgreSQL's programs get of an environment: ours holds secrets."""

# The locale sorts and folds the same on every machine. The superuser has no password, so nobody logs in as it.
_LOCALE = ("--encoding=UTF8", "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
_ACCESS = ("--username=postgres", "--auth-local=reject", "--auth-host=scram-sha-256")
# One iteration: stretching protects guessable passwords, and ours are random.
_SINGLE = ("-c", "exit_on_error=true", "-c", "scram_iterations=1", "-c", "log_min_error_statement=panic")


def create(data: Path, *, role: str, password: str, log: Path, durable: bool) -> None:
    """Make the data directory, with a role that may make databases and roles, and a database of the same name.

    The files are made beside their final place and moved there complete, so that a crash leaves no half. Raises
    `EmbeddedError`, naming `log`, when PostgreSQL's programs fail.
    """
    fresh = data.with_suffix(".new")
    remove(fresh)
    fresh.mkdir(mode=0o700)
    account = bootstrap_account()
    if account:
        os.chown(fresh, account.uid, account.gid)
    sync = () if durable else ("--no-sync",)
    _run("initdb", (*_ACCESS, *_LOCALE, "--no-instructions", *sync), fresh, account, log)
    name, secret = sql.Identifier(role), sql.Literal(password)
    statements = (
        sql.SQL("CREATE ROLE {} LOGIN CREATEDB CREATEROLE PASSWORD {}\n").format(name, secret),
        sql.SQL("CREATE DATABASE {} OWNER {}\n").format(name, name),
    )
    script = "".join(statement.as_string() for statement in statements)
    _run("postgres", ("--single", *_SINGLE), fresh, account, log, database="postgres", script=script)
    if account:
        give(fresh, private_account())
    fresh.rename(data)


def place(data: Path, account: Account | None) -> str:
    """How PostgreSQL's programs name their data directory, which has to be their working directory.

    Another account than ours reaches it as such even when it may not pass through the directories above.
    """
    return str(data) if account is None else "/proc/self/cwd"


def owner(data: Path) -> Account | None:
    """Who runs the server: whoever owns the data, and nobody else while we are not root (None: we ourselves)."""
    found = data.stat()
    if os.geteuid() != 0:
        if found.st_uid != os.geteuid():
            raise EmbeddedError(f"{data} belongs to another user: start as that user, or set DATA_DIR.")
        return None
    if found.st_uid == 0:  # a copy that root made
        give(data, private_account())
        found = data.stat()
    return Account(found.st_uid, found.st_gid)


def give(data: Path, account: Account) -> None:
    """Make the account the owner of the directory and of everything in it."""
    for path in (data, *data.rglob("*")):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def _run(
    program: str,
    options: tuple[str, ...],
    data: Path,
    account: Account | None,
    log: Path,
    *,
    database: str | None = None,
    script: str = "",
) -> None:
    head, *rest = options
    command = [str(reachable(installation(), account) / "bin" / program), head, "-D", place(data, account), *rest]
    done = subprocess.run(  # noqa: S603 - the wheel's own programs
        [*command, database] if database else command,
        cwd=data,
        env=ENVIRONMENT,
        input=script.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
    if done.returncode != 0:
        log.write_bytes(done.stdout)
        raise EmbeddedError(f"PostgreSQL's files could not be made in {data}: see {log}.")
