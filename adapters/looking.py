"""What a command needs that looks at the log: the database, and the keys where they are to be had."""

from collections.abc import Iterator
from contextlib import contextmanager

from adapters.database import readable, required
from adapters.event_views import Closed, reader
from adapters.kms.local import KeyFileRefused, LocalKeyFile
from adapters.kms.vault import EnvelopeVault
from adapters.postgres.data_keys import PostgresDataKeys
from adapters.process import Unable
from adapters.replayed import Past
from adapters.running import Place
from adapters.settings import Settings
from application.ports import KeyWrapper


@contextmanager
def looking(where: Place, *, name: str) -> Iterator[Past]:
    """The log at `where`, to be read and nothing else. Raises `Unable`.

    Without the keys all but the names and e-mails of persons is there. No key file is made.
    """
    with readable(where.dsn, name=name) as datastore:
        keys = _wrapping_keys(where.settings)
        if keys is None:
            yield Past(datastore, reader(Closed()))
            return
        data_keys = PostgresDataKeys(required(where.dsn))
        try:
            yield Past(datastore, reader(EnvelopeVault(keys, data_keys)))
        finally:
            data_keys.close()


def _wrapping_keys(settings: Settings) -> KeyWrapper | None:
    if settings.kms_keyring is not None:
        from adapters.bootstrap import key_wrapper  # noqa: PLC0415 - Google's libraries take a second to load

        return key_wrapper(settings)
    path = settings.data_dir / "keys" / "wrapping.key"
    try:
        return LocalKeyFile(path) if path.exists() else None
    except KeyFileRefused as error:
        raise Unable(str(error)) from error
    except OSError as error:
        raise Unable(f"{error.filename} cannot be read: {error.strerror}.") from error
