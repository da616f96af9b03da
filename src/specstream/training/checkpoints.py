"""Checkpoints: written under another name and then renamed, so that one is whole or not there."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from specstream.errors import TrainingError, UsageError
from specstream.files.atomic import check_ending, refuse_address, write_json
from specstream.models.hub.catalog import entry_of
from specstream.training.cards import CARD, training_card

_STEP = re.compile(r"step-(\d{8})")
_STATE = "training_state.pt"
_RECORD = "training_record.json"


class Checkpoints:
    """The folder of a run: ``checkpoints/step-N``, of which so many are kept, and ``best``."""

    def __init__(self, root: Path, keep: int) -> None:
        self.root, self._keep = root, keep
        self._folder = root / "checkpoints"

    @property
    def best(self) -> Path:
        """The folder of the best checkpoint by held-out figures."""
        return self.root / "best"

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
        return sorted(int(match[1]) for name in names if (match := _STEP.fullmatch(name)))

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self._folder / f"step-{step:08d}"

    def save(self, step: int, state: dict[str, Any], record: dict[str, Any], product: Callable[[Path], None]) -> None:
        """Write a checkpoint and remove those too many.

        The run goes on from ``state``, ``record`` is for people, and ``product`` writes what users load into a folder.
        """

        def fill(folder: Path) -> None:
            _write_product(folder, record, product)
            torch.save(state, folder / _STATE)

        replace_folder(self.folder(step), fill)
        for old in self.steps()[: -self._keep]:
            shutil.rmtree(self.folder(old), ignore_errors=True)

    def save_best(self, record: dict[str, Any], product: Callable[[Path], None]) -> None:
        """Put the present state into ``best``."""
        replace_folder(self.best, lambda folder: _write_product(folder, record, product))

    def load(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """State and record of a step's checkpoint.

        Raises:
            TrainingError: it cannot be read.
        """
        folder = self.folder(step)
        try:
            state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        except Exception as error:  # torch raises whatever its readers raise
            raise TrainingError(
                f"checkpoint {folder} cannot be read: {error}; remove it and run again from the one before"
            ) from error
        return state, record


def _write_product(folder: Path, record: dict[str, Any], product: Callable[[Path], None]) -> None:
    """What users load, the record of its making, and its card."""
    product(folder)
    write_json(folder / _RECORD, record)
    (folder / CARD).write_text(training_card(record), encoding="utf-8")


def check_replaceable(folder: Path, mark: str, setting: str) -> None:
    """Refuse a folder for ``replace_folder`` that no such run wrote: one without its ``mark``, a file that each leaves.

    Raises:
        UsageError: a file, a folder that holds something else, or a place that cannot be written to.
    """
    refuse_address(folder, setting)
    given, folder = str(folder), folder.absolute()
    if entry_of(given) is not None:  # of which a folder here takes the place
        raise UsageError(f"{setting} is {given!r}, which is the name of a model of the catalog; give another")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        in_place = isinstance(error, FileExistsError | NotADirectoryError)
        why = ", where a file is in place of a folder" if in_place else f": {error.strerror}"
        raise UsageError(f"{setting} is {given!r}{why}; give a folder elsewhere") from None
    if not os.access(folder.parent, os.W_OK):
        raise UsageError(f"{setting} is {given!r}, which cannot be written; give a folder elsewhere")
    if folder.exists() and not (folder / mark).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{setting} is {given!r}, which is something else that would be lost; give a new folder")
    check_ending(given, setting, "", "a folder")


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under another name, then put it in the place of the one that may be there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        fill(partial)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.rename(folder, old)
        os.rename(partial, folder)
    finally:
        if not folder.exists() and old.exists():
            os.rename(old, folder)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
