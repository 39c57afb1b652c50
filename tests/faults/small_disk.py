"""A disk that is soon full: a file system of its own, and a file that takes the rest of it."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import pytest

MEGABYTE = 1 << 20
SIZE = 160 * MEGABYTE
_SHARED = Path("/dev/shm")  # noqa: S108 - where containers have a small one
_SMALL = 512 * MEGABYTE


class SmallDisk:
    """A directory on it, which can be filled and emptied again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._balloon = directory / "balloon"

    def fill(self, *, leaving: int = 0) -> None:
        """Take all room but so many bytes."""
        free = os.statvfs(self.directory)
        size = free.f_bavail * free.f_frsize - leaving
        with self._balloon.open("ab") as file:
            os.posix_fallocate(file.fileno(), file.tell(), size)

    def empty(self) -> None:
        """Give all of it back."""
        self._balloon.unlink(missing_ok=True)


@contextmanager
def small_disk(directory: Path) -> Iterator[SmallDisk]:
    """A small disk mounted there, or one that the machine has; the test is skipped where there is neither."""
    mounted = _mount(directory)
    if not mounted and shutil.disk_usage(_SHARED).total > _SMALL:
        pytest.skip("needs the right to mount a file system, or a small /dev/shm as containers have it")
    place = directory if mounted else Path(mkdtemp(dir=_SHARED))
    place.chmod(0o755)
    try:
        yield SmallDisk(place)
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
        else:
            shutil.rmtree(place)


def _mount(directory: Path) -> bool:
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(directory)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
