"""What trained heads have in common: a frozen base, and a folder with weights, settings, and which base it is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specstream.errors import (
    HeadMismatchError,
    ModelNotFoundError,
    NumericalError,
    UnsupportedModelError,
    UsageError,
    must_be,
    one_line,
)
from specstream.files.atomic import folder_of, is_meant_as_path, path_of, why_unread
from specstream.files.folders import held
from specstream.models.architecture.families import describe, require_model
from specstream.models.architecture.fingerprint import fingerprint
from specstream.models.hub.catalog import HUB_ID, catalog, on_disk, resolve

WEIGHTS, SETTINGS = "heads.safetensors", "config.json"

KINDS = ("streams", "medusa", "block", "eagle3", "dflash")
"""Heads that there are drafters for, by the names of those."""


class TrainedHead(nn.Module):
    """A trainable part beside a frozen model, its base: ``parameters()`` are the part's alone.

    Args:
        model: the base, a transformers causal language model.

    Raises:
        UnsupportedModelError: a base that cannot be a target.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        require_model(model)
        self._family = family = describe(model)
        if family.chains_only:
            raise UnsupportedModelError(
                f"{family.name} cannot have heads: its layers keep a state that passes of a head would change; give it "
                "a draft model, or draft by lookup"
            )
        self._base = (model,)  # in a tuple nn.Module does not take it for a part of its own

    def forward(self, *given: Any, **named: Any) -> Any:
        """Refuse to be called: drafting needs more than one input.

        Raises:
            UsageError: always.
        """
        kind = type(self).__name__
        raise UsageError(f"{kind} is called; give SpeculativeEngine heads=FOLDER, the folder of its save(FOLDER)")

    @property
    def model(self) -> Any:
        """The base."""
        return self._base[0]

    @property
    def extra_parameters(self) -> int:
        """How many parameters this part has; the base has ``model.num_parameters()``."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def nbytes(self) -> int:
        """Bytes of their weights; ``inventory.draft_bytes`` counts the copies that drafting makes too."""
        return sum(parameter.nbytes for parameter in self.parameters())


def describe_base(model: Any) -> dict[str, str]:
    """The base as a head's settings name it: a folder by its last name, whose path says nothing elsewhere."""
    require_model(model)
    name = str(model.config.name_or_path or model.config.model_type)
    return {"name": Path(name).name if Path(name).exists() else name, "fingerprint": fingerprint(model)}


def save_head(
    folder: str | Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], *, weights: str = WEIGHTS
) -> None:
    """Write weights and settings; the folder is made if it is not there, and each file is whole or as it was.

    Raises:
        UsageError: settings that are no JSON; a folder that cannot be, or holds something else than heads of this kind.
    """
    try:
        text = json.dumps(dict(settings), indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise UsageError(f"what is kept beside the weights is no JSON: {one_line(error)}; give plain values") from None
    folder = folder_of("folder", folder)
    if any((folder / name).exists() for name in (weights, SETTINGS)) and _held(folder) != _kind(settings):
        raise UsageError(f"folder is {str(folder)!r}, which holds something else that would be lost; give a new folder")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / f".{weights}")
    (folder / f".{SETTINGS}").write_text(text, encoding="utf-8")
    # safetensors makes its file readable by the owner alone, which a shared folder cannot use.
    shutil.copymode(folder / f".{SETTINGS}", folder / f".{weights}")
    for name in (weights, SETTINGS):
        os.replace(folder / f".{name}", folder / name)


def _kind(settings: Mapping[str, Any]) -> Any:
    """Of heads: Medusa's say it as vLLM reads it, EAGLE-3's and DFlash's as speculators or their authors write it."""
    named = settings.get("speculators_model_type") or settings.get("kind")
    classes = " ".join(map(str, settings.get("architectures") or ())).lower()
    published = next((kind for kind in ("eagle3", "dflash") if kind in classes), None)
    return named or published or settings.get("model_type")


def _held(folder: Path) -> Any:
    """The kind of what a folder holds, None if that is unknown."""
    try:
        return _kind(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError):
        return None


def drafted_tokens(name: str, tokens: Any, size: int, device: torch.device) -> Tensor | None:
    """The part of a vocabulary that heads draft, ``[n]`` int64; None for all of it.

    Raises:
        UsageError: no token ids, none, one twice, or one beyond the vocabulary's ``size``.
    """
    if tokens is None:
        return None
    try:
        ids = torch.as_tensor(tokens, device=device)
    except (TypeError, ValueError, RuntimeError):
        ids = torch.empty(0)
    whole = not ids.is_floating_point() and not ids.is_complex() and ids.dtype != torch.bool
    must_be(whole and ids.ndim == 1 and len(ids) > 0, name, tokens, "token ids: [n] int64, at least one")
    if (strange := ids[(ids < 0) | (ids >= size)]).numel():
        raise UsageError(f"{name} has the token {int(strange[0])}; the vocabulary is 0 to {size - 1}")
    if len(ids.unique()) < len(ids):  # type: ignore[no-untyped-call]
        raise UsageError(f"{name} has a token twice; give each once")
    return ids.long()


def located(folder: str | Path, what: str = "heads") -> Path:
    """The folder of heads, or of ``what`` else; for a hub id, such as ``org/name``, its copy, fetched if need be.

    Raises:
        ModelNotFoundError: the hub has no such heads.
        DownloadError: they could not be fetched.
    """
    path = path_of("folder", folder, f"a folder of {what}")
    text = str(folder)
    on_hub = "/" in text and HUB_ID.fullmatch(text) and not path.exists() and not is_meant_as_path(text)
    return Path(resolve(text)) if on_hub else path


def read_settings(folder: str | Path, what: str = "heads") -> dict[str, Any]:
    """The settings of a head, or of ``what`` else training wrote.

    Raises:
        ModelNotFoundError: there is none in the folder.
    """
    path = located(folder, what)
    try:
        settings: dict[str, Any] = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        is_file = Path(folder).is_file()
        likely = Path(folder).parent if is_file else Path(folder) / "best"
        given = repr(str(likely)) if (likely / SETTINGS).is_file() else "a folder that training wrote"
        why = "it is a file" if is_file else f"{SETTINGS}: {why_unread(error)}"
        if not is_file and not (path / SETTINGS).exists() and (other := held(path)):
            why = f"it holds {other}"
        raise ModelNotFoundError(f"no {what} in {str(folder)!r} ({why}); give {given}") from error
    return settings


def kind_of(folder: str | Path) -> str:
    """The drafter that the heads in a folder are for: Medusa's say it as vLLM reads it.

    Raises:
        ModelNotFoundError: there are no heads in the folder.
    """
    settings = read_settings(folder)
    kind = _kind(settings)
    if kind not in KINDS:
        held = "does not say whose heads it holds" if kind is None else f"holds {kind!r}"
        raise ModelNotFoundError(f"{str(folder)!r} {held}; give a folder of {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    return str(kind)


def check_base_name(folder: str | Path, model: str) -> None:
    """Refuse before a model is loaded heads of another one: by the catalog's names, or by the hidden size.

    Others are known by the weights of their base, when it is loaded.

    Raises:
        ModelNotFoundError: there are no heads in the folder.
        HeadMismatchError: the catalog has both models, and they are two, or their hidden sizes differ.
    """
    kind_of(folder)
    settings = read_settings(folder)
    base = settings.get("base") or settings.get("specstream", {}).get("base", {})  # Medusa's are laid out as vLLM's
    named = base.get("name") != model and {base.get("name"), model} <= set(catalog())
    place = None if named else on_disk(model)
    own, theirs = (None, None) if place is None else (_model_width(place), _width(located(folder), settings))
    if named or (own is not None and theirs is not None and own != theirs):
        sizes = ("", "") if named else (f" (hidden size {theirs})", f" ({own})")
        raise HeadMismatchError(
            f"the heads in {str(folder)!r} belong to {base.get('name', 'another')}{sizes[0]} and the model is "
            f"{model}{sizes[1]}; give that model, or heads that were trained for this one"
        )


def _width(folder: Path, settings: Mapping[str, Any]) -> int | None:
    """The hidden size of the base of heads; None where the folder does not say it."""
    inner = settings.get("transformer_layer_config") or {}  # of others' heads
    for width in (settings.get("target_hidden_size"), settings.get("hidden_size"), inner.get("hidden_size")):
        if width is not None:
            return int(width)
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            return int(file.get_slice("embeddings").get_shape()[-1])
    except (OSError, SafetensorError):
        return None


def _model_width(folder: Path) -> int | None:
    """The hidden size of a model that is on disk, without loading it; None where it calls it otherwise."""
    try:
        config = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        width = config.get("hidden_size", config.get("text_config", {}).get("hidden_size"))
    except (OSError, ValueError, AttributeError):
        return None
    return width if isinstance(width, int) else None


def check_base(kind: str, folder: str | Path, base: Mapping[str, str], model: Any) -> None:
    """Refuse heads of another base than this model.

    Raises:
        HeadMismatchError: they are; the message names both.
    """
    own = describe_base(model)
    if base["fingerprint"] != own["fingerprint"]:
        raise HeadMismatchError(
            f"the {kind} in {str(folder)!r} belong to {base['name']} ({base['fingerprint']}) and the model is "
            f"{own['name']} ({own['fingerprint']}); give that model, or heads that were trained for this one"
        )


def load_head(folder: str | Path, kind: str, model: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights, on the CPU, and the settings of a head of this kind and base.

    Raises:
        ModelNotFoundError: there is no head in the folder, or one of another kind.
        HeadMismatchError: it was trained for another base; the message names both.
        NumericalError: its weights hold NaN or infinity.
    """
    if (found := kind_of(folder)) != kind:
        raise ModelNotFoundError(f"{str(folder)!r} holds {found!r}; give a folder with {kind!r}")
    settings = read_settings(folder)
    check_base(kind, folder, settings["base"], model)
    try:
        tensors = load_file(located(folder) / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelNotFoundError(
            f"the weights in {str(folder)!r} cannot be read: {why_unread(error)}; copy them again, or train again"
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point()):
        raise NumericalError(f"the weights in {str(folder)!r} hold NaN or infinity; train them again")
    return tensors, settings
