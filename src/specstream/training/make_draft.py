"""A small draft from the target itself: some of its layers and, where asked, the more frequent part of its vocabulary.

The layers are those that ``layer_choice.py`` finds, and the map that it fits for them is multiplied into the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.engine.build import eos_token_ids
from specstream.errors import UsageError
from specstream.files.atomic import write_json
from specstream.models.architecture.compat import text_config
from specstream.models.hub.vocabulary import write_part
from specstream.training.cards import CARD, MADE, model_card
from specstream.training.checkpoints import replace_folder
from specstream.training.data import Examples
from specstream.training.layer_choice import Judged, only_layers
from specstream.training.live_evaluation import answer_counts, frequent_tokens


def frequent_part(model: Any, tokenizer: Any, examples: Examples, size: int) -> Tensor:
    """The tokens for a draft to say: those that end a text or are special, and the most frequent ones of the examples.

    Returns:
        ``[size]`` int64, rising.

    Raises:
        UsageError: more than there are.
    """
    rows = int(model.get_output_embeddings().weight.shape[0])
    known = min(rows, len(tokenizer))
    if not len(tokenizer.all_special_ids) < size <= known:
        raise UsageError(
            f"vocab is {size}; give {len(tokenizer.all_special_ids) + 1} to {known}, or leave it out for all"
        )
    counts = answer_counts(examples, rows)
    counts[known:] = -1
    counts[[*tokenizer.all_special_ids, *eos_token_ids(model, tokenizer)]] = torch.iinfo(torch.int64).max
    return frequent_tokens(counts, size)


def coverage(examples: Examples, part: Tensor) -> float:
    """The share of the tokens to be predicted that are in a part of the vocabulary."""
    counts = answer_counts(examples, 1 + max(int(part[-1]), *(max(each.tokens) for each in examples)))
    return float(counts[part].sum()) / max(1, int(counts.sum()))


def write_draft(
    folder: Path, model: Any, tokenizer: Any, change: Tensor | None, part: Tensor | None, made: dict[str, Any]
) -> None:
    """Write the draft as a plain Hugging Face folder, in place of one that is there; the model is as it was afterwards.

    Args:
        folder: put there whole.
        model: the target.
        tokenizer: its tokenizer.
        change: ``[hidden, hidden]`` that the head is multiplied with, None to leave it.
        part: the tokens that the draft says; None for all.
        made: its ``layers``, and what else ``draft.json`` and the card say; ``parameters`` are added.
    """

    def fill(partial: Path) -> None:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if part is not None:
            write_part(partial, part)
        write_json(partial / MADE, made)
        (partial / CARD).write_text(_card(made), encoding="utf-8")

    with only_layers(model, made["layers"]), _changed_head(model, change):
        made["parameters"] = int(model.num_parameters())
        replace_folder(folder, fill)


@contextmanager
def _changed_head(model: Any, change: Tensor | None) -> Iterator[None]:
    """Inside, the model's head reads its input through the change, and is no longer the embedding."""
    if change is None:
        yield
        return
    whole, configs = model.get_output_embeddings(), {id(each): each for each in (model.config, text_config(model))}
    tied = {key: config.tie_word_embeddings for key, config in configs.items()}
    head = deepcopy(whole)
    head.weight = nn.Parameter(
        (whole.weight.detach().float() @ change.to(whole.weight.device).T).to(whole.weight.dtype)
    )
    try:
        model.set_output_embeddings(head)
        for config in configs.values():
            config.tie_word_embeddings = False
        yield
    finally:
        model.set_output_embeddings(whole)
        for key, config in configs.items():
            config.tie_word_embeddings = tied[key]


def record(
    target: str, compared: Sequence[Judged], texts: str, fitted: bool, vocabulary: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What a made draft says about its making."""
    return {
        "head_fitted": fitted,
        "target": target,
        "layers": list(compared[0].layers),
        "choice": compared[0].name,
        "compared_on": texts,
        "compared": [asdict(each) for each in compared],
        "vocabulary": vocabulary,
    }


def _card(made: Mapping[str, Any]) -> str:
    vocabulary = made["vocabulary"]
    lines = [
        f"Layers {', '.join(map(str, made['layers']))} of {made['target']} (`{made['choice']}`), not yet distilled: "
        "to draft for that model, nothing else.",
        "",
        "| choice | layers | KL | acceptance | agreement |",
        "|---|---|---|---|---|",
        *(
            f"| {each['name']} | {', '.join(map(str, each['layers']))} | {each['divergence']:.2f} | "
            f"{each['acceptance']:.3f} | {each['agreement']:.3f} |"
            for each in made["compared"]
        ),
        "",
        f"Compared on {made['compared_on']}, {'with a' if made['head_fitted'] else 'without a'} fitted head.",
    ]
    if vocabulary is not None:
        lines += [
            "",
            f"It says {vocabulary['size']} tokens, named in `draft_vocabulary.json`: {vocabulary['ranked_by']}.",
        ]
    return model_card(base=str(made["target"]), title="A draft made of its target", lines=lines)
