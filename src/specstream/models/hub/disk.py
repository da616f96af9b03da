"""Writing a model's folder so that it appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from specstream.errors import DownloadError


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception says that the disk, or the user's share of it, is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # safetensors reports the operating system's error inside the text of its own.
    return "No space left on device" in str(error) or "StorageFull" in str(error)


def require_space(root: Path, name: str, needed: int) -> None:
    """Refuse before the download what could not be finished after it."""
    free = shutil.disk_usage(root).free
    if free < needed:
        raise full_disk(root, name, needed)


def full_disk(root: Path, name: str, needed: int) -> DownloadError:
    """The error for a disk that cannot hold a model while it is being made."""
    return DownloadError(
        f"{root} has no room for {name}: making it takes {needed / 1e9:.1f} GB; "
        "free some, or point SPECSTREAM_MODELS at another disk"
    )


@contextmanager
def only_puller(root: Path, name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of one model; `on_wait` is called before waiting for another process that has it.

    The lock dies with its holder, so a killed pull blocks nobody.

    Raises:
        OSError: the folder takes no files.
    """
    from filelock import FileLock, Timeout

    place = root / f".{name}.lock"
    os.close(os.open(place, os.O_RDWR | os.O_CREAT, 0o666))  # filelock takes some folders' refusals for a held lock
    lock = FileLock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def staging(root: Path, name: str) -> Iterator[Path]:
    """A scratch folder on the same disk as `root`, gone afterwards whatever happens.

    What a killed process left is removed first: whoever calls this holds the lock, so nobody is using it.
    """
    prefix = f".{name}.partial-"
    for stale in root.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(made: Path, folder: Path) -> None:
    """Move a finished folder into place in one step; where a finished one already stands, that one is kept."""
    try:
        os.rename(made, folder)
    except OSError as error:
        if is_disk_full(error):
            raise
        if not (folder / "config.json").is_file():
            raise DownloadError(f"{folder} is in the way and holds no model: remove it and pull again") from error
