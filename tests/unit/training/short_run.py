"""Training runs that are short enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def short(output: Path, **changes: Any) -> dict[str, Any]:
    """The sections ``training`` and ``logging`` of a run of 8 steps."""
    training = {
        "num_train_steps": 8,
        "per_device_batch_size": 4,
        "learning_rate": 0.01,
        "output_dir": str(output),
        "save_steps": 3,
        "eval_steps": 8,
        "logging_steps": 1,
        **changes,
    }
    return {"training": training, "logging": {"plot": False}}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
