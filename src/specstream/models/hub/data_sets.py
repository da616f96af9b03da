"""Data sets of the hub, through the package ``datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specstream.models.hub.snapshots import PROBE_SECONDS


def load_dataset(datasets: Any, name: str, *args: Any, **settings: Any) -> Any:
    """``datasets.load_dataset``; where the hub is out of reach, from the cache at once, or its error at once.

    Its own retries take 25 seconds, one after the other.

    Args:
        datasets: the package.
        name: of the data set, or its folder.
        *args: its own.
        **settings: likewise.
    """
    config: Any = getattr(datasets, "config", None)
    before = getattr(config, "HF_HUB_OFFLINE", True)
    if before or Path(name).exists() or _hub_answers(name):
        return datasets.load_dataset(name, *args, **settings)
    config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(name, *args, **settings)
    finally:
        config.HF_HUB_OFFLINE = before


def _hub_answers(name: str) -> bool:
    """Whether it does, be it that there is no such data set."""
    from huggingface_hub import HfApi, errors

    try:
        HfApi().dataset_info(name, timeout=PROBE_SECONDS)
    except (errors.HfHubHTTPError, ValueError):
        return True
    except Exception:  # the hub's transport raises types of its own
        return False
    return True
