"""Which drafter, draft, heads and options go together: checked before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from specstream.config import EngineConfig
from specstream.engine.memory import check_memory_file
from specstream.errors import UsageError
from specstream.files.atomic import refuse_folder_name
from specstream.heads.folder import KINDS, TrainedHead, kind_of
from specstream.models.runtime.capabilities import Quantization

SELF = "self:"
"""``self:int8`` and ``self:int4`` are the target itself as its own draft, its weights read from fewer bits."""


def drafts_for_itself(draft: Any, model: Any) -> bool:
    """Whether the draft is made of the target's own weights."""
    return draft is model or (isinstance(draft, str) and draft.startswith(SELF))


def self_quantization(draft: str) -> Quantization:
    """The quantisation of ``self:int8`` and ``self:int4``.

    Raises:
        UsageError: another one.
    """
    name = draft.removeprefix(SELF)
    if name not in ("int8", "int4"):
        raise UsageError(f"draft_model is {draft!r}; the target drafts for itself as {SELF}int8 or {SELF}int4")
    return cast(Quantization, name)


def check_choice(config: EngineConfig, draft: Any) -> None:
    """Refuse a drafter and a draft, or heads, that do not go together.

    Raises:
        UsageError: so it is.
        ModelNotFoundError: there are no heads in the folder.
    """
    name, heads = config.drafter, config.heads
    if isinstance(draft, TrainedHead):
        raise UsageError(f"draft_model is a {type(draft).__name__}; call its save(FOLDER), and give heads=FOLDER")
    _check_router(config)
    _check_memory(config.memory)
    _check_unused(config, draft)
    if name in ("medusa", "block", "eagle3", "dflash") and heads is None:
        raise UsageError(f"drafter is {name!r} and there are no heads; give heads=, a folder of heads for this model")
    if name not in (*KINDS, "mixed", "auto") and heads is not None:
        raise UsageError(
            f"drafter is {name!r} and there are heads; give drafter={', '.join(map(repr, KINDS))}, or no heads"
        )
    if heads is not None:
        if draft is not None:
            raise UsageError(f"heads is {heads!r} and there is a draft_model; give one of them")
        if (kind := kind_of(heads)) != name and name in KINDS:
            raise UsageError(f"drafter is {name!r} and {heads!r} holds {kind!r}; give drafter={kind!r}")
    if config.pruning is not None:
        _check_pruning(name, heads, config.pruning)
    if draft is None and (name == "draft_model" or (name == "mixed" and heads is None)):
        raise UsageError(f"drafter is {name!r} and there is no draft_model; give a smaller model of this tokenizer")
    if draft is not None and name not in ("auto", "draft_model", "mixed", "router"):
        raise UsageError(
            f"drafter is {name!r} and there is a draft_model; give drafter='draft_model' or no draft_model"
        )


def _check_pruning(name: str, heads: str | None, pruning: float) -> None:
    if name not in ("streams", "auto"):
        raise UsageError(f"pruning is {pruning} and drafter is {name!r}; give drafter='streams' or no pruning")
    if name == "auto" and heads is None:
        raise UsageError(
            f"pruning is {pruning} and there are no heads; give heads=, a folder of streams for this model"
        )
    if heads is not None and (kind := kind_of(heads)) != "streams":
        raise UsageError(f"pruning is {pruning} and {heads!r} holds {kind!r}; give streams, or no pruning")


_WORDS = ("", "true", "false", "yes", "no", "on", "off", "none")
"""What somebody writes who means a switch: as the name of a file it would keep answers unasked."""


def _check_memory(file: bool | str) -> None:
    """Refuse a file that no answers could be written into, while nothing has been generated yet."""
    if isinstance(file, bool):
        return
    if file.strip().lower() in _WORDS:
        raise UsageError(f"memory is {file!r}, a word and no file; give the name of one (in Python also True or False)")
    if "\0" in file:
        raise UsageError(f"memory is {file!r}, which no file can be called; give another name")
    refuse_folder_name(file, "memory")
    check_memory_file(Path(file))  # whose tokens they are, its tokenizer says
    above = next(each for each in Path(file).parents if os.path.exists(each))
    if not above.is_dir():
        raise UsageError(f"memory is {file!r}, where {str(above)!r} is no folder; give another file")
    if not os.path.exists(file) and not os.access(above, os.W_OK):
        raise UsageError(f"memory is {file!r}, which cannot be written; give a file elsewhere")


def _check_router(config: EngineConfig) -> None:
    if config.router_state is not None:
        refuse_folder_name(config.router_state, "router_state")
    if config.drafter == "router" and config.router is None:
        raise UsageError(
            "drafter is 'router' and there is none; give router=, the folder that specstream router train wrote"
        )
    for setting, value in (("router", config.router), ("router_state", config.router_state)):
        if config.drafter != "router" and value is not None:
            raise UsageError(
                f"{setting} is given and drafter is {config.drafter!r}; give drafter='router', or leave {setting} out"
            )


def unused(config: EngineConfig, draft: Any) -> list[str]:
    """The options that the drafter makes no use of.

    Args:
        config: with the drafter.
        draft: the draft model, if there is one.
    """
    name = config.drafter
    branching = name in ("lookup", "recycling", "draft_model", "mixed", "router") or (
        name == "auto" and config.heads is None
    )
    used = {
        "branches": branching,
        "memory": branching and name != "draft_model" and (draft is None or name != "auto"),
        "lookahead_window": name in ("lookahead", "router"),
        "lookahead_ngram": name in ("lookahead", "router"),
        "lookahead_guesses": name in ("lookahead", "router"),
        "draft_quantization": draft is not None or name == "router",
    }
    return [option for option, is_used in used.items() if not is_used]


def defaults_of(options: Iterable[str]) -> dict[str, Any]:
    """The defaults of some of the engine's options."""
    return {option: EngineConfig.model_fields[option].default for option in options}


def _check_unused(config: EngineConfig, draft: Any) -> None:
    for option, default in defaults_of(unused(config, draft)).items():
        value = getattr(config, option)
        if value not in (default, False):  # what is off is no mistake
            beside = " with heads" if config.heads else " with a draft" if draft is not None else ""
            kind = f"drafter is {config.drafter!r}{beside}"
            why = "there is no draft_model" if option == "draft_quantization" else f"{kind}, which makes no use of it"
            raise UsageError(f"{option} is {value!r} and {why}; leave it out")
    quantization = config.draft_quantization
    if isinstance(draft, str) and draft.startswith(SELF) and quantization not in ("auto", self_quantization(draft)):
        raise UsageError(f"draft_model is {draft!r} and draft_quantization is {quantization!r}; give one of them")
