"""Heads that come with the package, each in a folder of its own beside this file, and which of them a model can take.

To replace some, put the folder that training wrote in their place; to add others, put it beside them: there is no list.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specstream.heads.folder import SETTINGS, kind_of, read_settings
from specstream.models.architecture.fingerprint import fingerprint

ROOT = Path(__file__).parent


def shipped_folders(kind: str) -> list[Path]:
    """The folders of all heads of this kind."""
    folders = [settings.parent for settings in sorted(ROOT.glob(f"*/{SETTINGS}"))]
    return [folder for folder in folders if kind_of(folder) == kind]


def left_out(model: Any, kind: str) -> str | None:
    """Why a model takes none of the heads of this kind, where there are some for one of its size; None elsewhere."""
    size = int(model.num_parameters())
    alike = [folder for folder in shipped_folders(kind) if read_settings(folder)["base_parameters"] == size]
    if not alike or shipped_for(model, kind) is not None:
        return None
    own = read_settings(alike[0])["base"]["fingerprint"]
    return (
        f"{alike[0].name}, which comes with the package, is of other weights ({own}) than this model's "
        f"({fingerprint(model)}), so it does not draft; train some (docs/training.md), or give heads="
    )


def shipped_for(model: Any, kind: str) -> str | None:
    """The heads of this kind that were trained for this very model, None if there are none.

    A model of another size is told by its number of parameters; only one of the same size is looked at more closely.
    """
    size = int(model.num_parameters())
    for folder in shipped_folders(kind):
        settings = read_settings(folder)
        if settings["base_parameters"] == size and settings["base"]["fingerprint"] == fingerprint(model):
            return str(folder)
    return None
