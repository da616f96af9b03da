"""An engine's settings in a YAML file: ``model``, ``draft_model`` and whatever ``SpeculativeEngine`` takes by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specstream.config import EngineConfig, GenerationConfig, engine_config
from specstream.errors import UsageError, listed, shown
from specstream.files.yaml_file import misplaced, owner_of, read_document

MODELS = ("model", "draft_model")
"""Keys that name models."""

KNOWN = {*MODELS, *EngineConfig.model_fields, *GenerationConfig.model_fields} - {"generation", "logits_processor"}
"""Keys of such a file."""


def read_settings(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in a file, ``model`` and ``draft_model`` among them.

    Args:
        path: the file.
        overrides: ``key=value``, the value in YAML; they replace what the file says.

    Raises:
        UsageError: a file that cannot be read, an unknown key, a value outside its range; with the line.
    """
    document = read_document(path, overrides, "drafter=lookup")
    for key, value in document.values.items():
        where = document.where((str(key),))
        if key not in KNOWN:
            if complaint := misplaced([str(key)], {"": KNOWN}, value):
                raise UsageError(where + complaint)
            owner = owner_of(document.values, KNOWN)
            raise UsageError(f"{where}unknown setting {key!r}; known are {listed(str(key), KNOWN)}{owner}")
        if isinstance(value, str) and not value.strip() and key != "stop":
            raise UsageError(f"{where}{key} is {value!r}; give a value that is not empty, or leave it out")
        if key in MODELS:
            if value is not None and not isinstance(value, str):
                owner = owner_of(document.values, KNOWN)
                raise UsageError(f"{where}{key} is {shown(value)}; give the name of a model{owner}")
            continue
        try:
            engine_config({key: value})  # type: ignore[misc]
        except UsageError as error:
            raise UsageError(f"{where}{error}") from None
    return dict(document.values)
