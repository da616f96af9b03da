"""What a command of this package wrote into a folder, for errors about one that holds something else than is wanted."""

from __future__ import annotations

from pathlib import Path

_HOLDS = (
    ("run.json", "a run of specstream benchmark"),
    ("profile.json", "what specstream profile measured"),
    ("make_head.json", "a run of specstream make-head"),
    ("log.jsonl", "a run of specstream train, whose figures are in log.csv"),
    ("router.safetensors", "a router"),
    ("adapter_config.json", "a LoRA adapter"),
    ("answers.jsonl", "answers of specstream evaluate, whose figures are in results.json"),
    ("*/answers.jsonl", "answers of specstream evaluate, whose figures are in results.json of each task"),
    ("report.html", "a report"),
    ("config.json", "a model, or heads of one"),
)
"""A file, or a pattern, by which each is known; the first that is there counts."""


def held(folder: str | Path) -> str | None:
    """What a folder holds; None where nothing of ours is in it."""
    return next((what for mark, what in _HOLDS if next(Path(folder).glob(mark), None) is not None), None)
