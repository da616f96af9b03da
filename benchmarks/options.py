"""The options that the commands share, and what becomes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.prompts import Item
from benchmarks.workers import Models
from specstream.errors import UsageError

Target = Annotated[str, typer.Option("--target", help="A folder, a catalog name, or a hub id.")]
Draft = Annotated[str, typer.Option("--draft", help="A smaller model of the same tokenizer.")]
Dtype = Annotated[str, typer.Option("--dtype", help="bfloat16 or float32, for every system.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Counted rounds.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", min=1, help="Most new tokens of a prompt.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Most prompts.")]
Pythons = Annotated[
    list[str], typer.Option("--python", help="ENGINE=PATH, the interpreter that has a peer; may be repeated.")
]
Alive = Annotated[int, typer.Option("--alive", min=2, help="Most systems in memory at once, the reference included.")]
Output = Annotated[str, typer.Option("--json", help="Where to write every sample; empty for nowhere.")]
Raw = Annotated[bool, typer.Option("--raw", help="Give prompts as plain text, not through the chat template.")]
Gguf = Annotated[str, typer.Option("--gguf", help="The target as a GGUF file, for llama.cpp.")]

SLACK = 32
"""Positions of the context beyond prompt and output, for drafts."""


def model_folder(name: str) -> str:
    """A model argument as a folder that every system can read.

    Raises:
        ModelNotFoundError: nothing answers to it.
    """
    from specstream.models.hub.catalog import resolve

    folder = resolve(name)
    return str(Path(folder).absolute()) if Path(folder).exists() else folder


def load_tokenizer(folder: str) -> Any:
    """The tokenizer that prompts are encoded with, once for all systems."""
    from transformers.utils import logging

    from specstream.models.hub.load import tokenizer_in

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return tokenizer_in(folder)
    except (OSError, ValueError) as error:
        raise UsageError(f"target {folder!r} has no tokenizer: {' '.join(str(error).split())[:200]}") from error


def models(target: str, draft: str, *, dtype: str, items: Sequence[Item], limit: int, gguf: str = "") -> Models:
    """What the workers load, with the ends of a text as the target's checkpoint has them.

    Raises:
        UsageError: a dtype that is none, or a GGUF file that is not there.
    """
    if dtype not in ("bfloat16", "float16", "float32"):
        raise UsageError(f"dtype is {dtype!r}; give bfloat16, float16 or float32, the same for every system")
    if gguf and not Path(gguf).is_file():
        raise UsageError(f"gguf is {gguf!r} and there is no such file; give the path of one")
    eos, pad = ends(target)
    longest = max(len(prompt) for item in items for prompt in item.prompts)
    return Models(
        target=target,
        draft=draft or None,
        dtype=dtype,
        eos=tuple(eos),
        pad=pad,
        context=longest + limit + SLACK,
        batch=max(len(item.prompts) for item in items),
        gguf=str(Path(gguf).absolute()) if gguf else "",
    )


def ends(folder: str) -> tuple[list[int], int]:
    """The end-of-sequence ids of a checkpoint, and its padding id (its first end where it has none).

    Raises:
        UsageError: it names no end.
    """
    values: dict[str, Any] = {}
    if Path(folder).is_file():  # a GGUF file
        from specstream.models.hub.load import load_model

        values = load_model(folder)[0].generation_config.to_dict()
    for name in ("config.json", "generation_config.json"):  # the second one wins, as in transformers
        file = Path(folder) / name
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            values.update({key: found[key] for key in ("eos_token_id", "pad_token_id") if found.get(key) is not None})
    eos = values.get("eos_token_id")
    if eos is None:
        raise UsageError(f"target {folder!r} names no eos_token_id; give a folder with a generation_config.json")
    ids = [eos] if isinstance(eos, int) else list(eos)
    pad = values.get("pad_token_id")
    return ids, ids[0] if pad is None else int(pad)
