"""The Hugging Face hub as a source of models: its local cache first, and never a long wait where it is out of reach."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specstream.errors import DownloadError
from specstream.models.hub.disk import is_disk_full

# What from_pretrained needs beside the weights; repositories also hold ONNX exports and other copies of them.
_WANTED = ["*.json", "*.jinja", "*.txt", "*.model"]
_UNWANTED = ["*/*"]

PROBE_SECONDS = 5.0


class HubUnavailable(Exception):
    """The hub did not deliver a model; the text says why, as the second half of a sentence."""


def cached_snapshot(hub_id: str) -> Path | None:
    """The model's folder in the hub's local cache, if every file that is needed is there."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except (OSError, ValueError):
        return None
    # A snapshot folder exists as soon as one file of it was ever read, a config alone for instance.
    return folder if (folder / "config.json").is_file() and _has_weights(folder) else None


def require(hub_id: str) -> None:
    """Ask the hub whether it has a model, and fetch nothing.

    Raises:
        HubUnavailable: It has not, or is out of reach.
    """
    from huggingface_hub import HfApi

    with _reached(hub_id):
        HfApi().model_info(hub_id, timeout=PROBE_SECONDS)


def fetch_snapshot(hub_id: str, *, progress: bool) -> Path:
    """Download the model into the hub's local cache.

    Raises:
        HubUnavailable: The hub is out of reach, or does not have the model in a form that can be loaded.
        DownloadError: The disk is full.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _reached(hub_id):
        # Asked first because it takes a timeout: a download would retry an unreachable hub for minutes.
        info = HfApi().model_info(hub_id, timeout=PROBE_SECONDS)
        weights = _weight_pattern({file.rfilename for file in info.siblings or ()})
        with _progress_bars(progress and sys.stderr.isatty()):
            folder = snapshot_download(hub_id, allow_patterns=[*_WANTED, weights], ignore_patterns=_UNWANTED)
    if not _has_weights(Path(folder)):
        raise HubUnavailable("the hub has no weights of it that transformers loads")
    return Path(folder)


@contextmanager
def _reached(hub_id: str) -> Iterator[None]:
    """Inside, what the hub and its transport raise becomes ``HubUnavailable``."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        raise HubUnavailable("the hub is switched off by HF_HUB_OFFLINE")
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubUnavailable("the hub grants access to it only after a login: run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise HubUnavailable("the hub has no public model of that name") from error
    except Exception as error:  # the hub's transport raises types of its own, and every one means the same here
        if is_disk_full(error):
            cache = constants.HF_HUB_CACHE
            raise DownloadError(
                f"no space left in {cache} for {hub_id}: free some, or point HF_HOME elsewhere"
            ) from error
        if isinstance(error, FileExistsError | NotADirectoryError | PermissionError):
            why = f"{constants.HF_HUB_CACHE} cannot be used ({error.strerror}): point HF_HOME elsewhere"
            raise HubUnavailable(why) from error
        raise HubUnavailable(f"the hub cannot be reached ({type(error).__name__})") from error


def _weight_pattern(files: set[str]) -> str:
    # Older models have only the pickled form; where both stand, one of them is enough.
    safe = any(file.startswith("model") and file.endswith(".safetensors") for file in files)
    return "model*.safetensors" if safe else "pytorch_model*.bin"


def _has_weights(folder: Path) -> bool:
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return True
        if index.is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return all((folder / shard).is_file() for shard in shards)
    return False


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
