"""Model cards: what a trained thing is, what it was made from, what it reaches, and under which licence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from specstream.models.hub.catalog import cached_folder, catalog

CARD, MADE = "README.md", "draft.json"
"""The card; and beside that of a draft that was made of its target, what it was made of."""


def model_card(*, base: str, title: str, lines: Iterable[str]) -> str:
    """A card in the hub's form.

    Args:
        base: the base model, as it was named.
        title: the first line.
        lines: what follows.
    """
    licence = licence_of(base)
    named = Path(base).name if Path(base).exists() else base
    head = ["---", f"base_model: {named}", "library_name: specstream"]
    head += [f"license: {licence.lower()}"] if licence else []
    said = licence or "not stated with it; ask those who published it"
    return "\n".join([*head, "---", "", f"# {title}", "", *lines, "", f"Licence of the base, {named}: {said}.", ""])


def licence_of(model: str) -> str | None:
    """The licence of a catalog model, or what the card in a folder says; None where nobody says."""
    for entry in catalog().values():
        folder = cached_folder(entry.name)
        if model in (entry.name, entry.hub_id) or (folder is not None and Path(model).resolve() == folder.resolve()):
            return entry.licence
    try:
        text = (Path(model) / CARD).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = re.match(r"---\n(?:.*\n)*?license: *(\S+)\n(?:.*\n)*?---\n", text)
    return found[1] if found else None


def training_card(record: Mapping[str, Any], more: Iterable[str] = ()) -> str:
    """The card of a checkpoint, from the record that is written beside it, and more lines about it."""
    config, progress = record.get("config", {}), record.get("progress", {})
    model, data = config.get("model", {}), config.get("data", {})
    base = str(model.get("draft_model") or model.get("target_model") or "unknown")
    files = [*data.get("files", ()), *([data["dataset_name"]] if data.get("dataset_name") else [])]
    figures = progress.get("figures", {})
    lines = [
        f"Recipe `{config.get('recipe')}`, for {_last(str(model.get('target_model')))}.",
        "",
        f"Data ({data.get('domain')}): {', '.join(map(_last, files))}.",
        f"SHA-256 of its tokens: {record.get('data_sha256')}.",
        f"Seen: {progress.get('tokens', 0)} tokens in {progress.get('step', 0)} steps.",
        "",
        "| figure on held-out examples | |",
        "|---|---|",
        *(f"| {name} | {value:.4g} |" for name, value in figures.items()),
        "",
        *more,
        "Every setting and the versions it ran with are in `training_record.json`.",
    ]
    return model_card(base=base, title=f"{config.get('recipe')} trained with SpecStream", lines=lines)


def _last(path: str) -> str:
    """A path by its last name: the rest says nothing elsewhere."""
    return Path(path).name
