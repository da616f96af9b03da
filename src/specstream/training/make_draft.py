"""A small draft from the target itself: some of its layers and, where asked, the more frequent part of its vocabulary.

Which layers is measured: on texts, how near the distribution after them, through the target's own norm and head, comes
to the target's. Until it is distilled such a draft is rarely right; the figures tell a good start from a bad one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.errors import UsageError
from specstream.models.taps import decoder_layers
from specstream.models.vocabulary import write_part
from specstream.training.cards import model_card
from specstream.training.checkpoints import replace_folder
from specstream.training.data import Example, Examples
from specstream.training.frozen import answer_counts

MOST_POSITIONS = 512
"""Positions that layer choices are compared at: enough to tell them apart, little enough for many choices."""

NAMED = ("first", "spaced", "ends", "last-only")
"""Layer choices that are compared unless one is asked for; ``search`` improves the best of them."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How a choice of layers does before it is distilled.

    Attributes:
        name: of the choice.
        layers: of the target, in order.
        divergence: KL(target || draft) in nats, over the tokens that the draft says; the least is taken.
        acceptance: sum over tokens of min(p, q), the rate at which sampled drafts are accepted.
        agreement: how often both find the same token likeliest, as greedy drafts need.
    """

    name: str
    layers: tuple[int, ...]
    divergence: float
    acceptance: float
    agreement: float


def named_choices(total: int, count: int) -> dict[str, tuple[int, ...]]:
    """The usual choices of ``count`` of ``total`` layers.

    The ``first`` ones are an early exit. Of evenly ``spaced`` ones the first and the last layer are two. Half of them
    may stand at both ``ends``, or all but one at the start and the ``last-only`` behind.

    Raises:
        UsageError: more layers than there are, or none.
    """
    if not 1 <= count < total:
        raise UsageError(f"layers is {count} and the target has {total}; give 1 to {total - 1}")
    spaced = [round(at * (total - 1) / max(1, count - 1)) for at in range(count)]
    head = -(-count // 2)
    return {
        "first": tuple(range(count)),
        "spaced": tuple(spaced),
        "ends": (*range(head), *range(total - (count - head), total)),
        "last-only": (*range(count - 1), total - 1),
    }


class Judge:
    """Compares choices of layers of one target.

    Args:
        model: the target.
        examples: texts; their tokens from ``start`` on are looked at.
        part: the tokens that the draft will say, ``[size]`` int64; None for all.
    """

    def __init__(self, model: Any, examples: Examples, part: Tensor | None) -> None:
        self._model, self._part = model, part
        self._chosen: list[Example] = []
        room = MOST_POSITIONS
        for at in range(len(examples)):
            example = examples[at]
            taken = min(room, len(example.tokens) - example.start)
            if taken > 0:
                self._chosen.append(Example(tokens=example.tokens[: example.start + taken], start=example.start))
                room -= taken
        self._wanted = [self._logits(example).softmax(-1) for example in self._chosen]

    def judge(self, name: str, layers: tuple[int, ...]) -> Judged:
        """How near a draft of these layers comes to the target."""
        sums, count = torch.zeros(3, dtype=torch.float64), 0
        with only_layers(self._model, layers):
            for example, p in zip(self._chosen, self._wanted, strict=True):
                logits = self._logits(example)
                own = p if self._part is None else p[:, self._part]
                q = (logits if self._part is None else logits[:, self._part]).log_softmax(-1)
                share = own.sum(-1, keepdim=True)
                divergence = (own / share * (own.clamp_min(1e-30).log() - share.log() - q)).sum(-1)
                favourites = q.argmax(-1) if self._part is None else self._part[q.argmax(-1)]
                hits = favourites == p.argmax(-1)
                figures = (divergence, torch.minimum(own, q.exp()).sum(-1), hits)
                sums += torch.stack([figure.double().sum().cpu() for figure in figures])
                count += len(p)
        divergence_, acceptance, agreement = (sums / max(1, count)).tolist()
        return Judged(name=name, layers=layers, divergence=divergence_, acceptance=acceptance, agreement=agreement)

    def search(self, start: Judged, total: int) -> Judged:
        """Move one layer after the other to where the divergence is least, its neighbours staying where they are."""
        best = start
        for at in range(len(start.layers)):
            low = best.layers[at - 1] + 1 if at else 0
            high = best.layers[at + 1] if at + 1 < len(best.layers) else total
            for layer in range(low, high):
                if layer != best.layers[at]:
                    found = self.judge("search", (*best.layers[:at], layer, *best.layers[at + 1 :]))
                    best = min(best, found, key=lambda each: each.divergence)
        return best

    @torch.inference_mode()
    def _logits(self, example: Example) -> Tensor:
        tokens = torch.tensor([example.tokens], device=self._model.device)
        logits: Tensor = self._model(input_ids=tokens, use_cache=False).logits[0, example.start - 1 : -1]
        return logits.float()


def choose_layers(model: Any, examples: Examples, part: Tensor | None, count: int, choice: str) -> list[Judged]:
    """Choices of layers as they were compared, the one to take first.

    Args:
        model: the target.
        examples: texts to compare them on.
        part: the tokens that the draft will say; None for all.
        count: layers to take.
        choice: ``auto`` takes the best of the usual ones, ``search`` improves it layer by layer; or the name of one, or
            layers by their numbers, such as ``0,1,28,29``. Those are compared with the usual ones and taken anyway.

    Raises:
        UsageError: an unknown choice, or layers that there are not.
    """
    total = len(decoder_layers(model))
    choices = named_choices(total, count)
    if choice not in ("auto", "search", *choices):
        choices = {"given": _given(choice, total, count), **choices}
    judge = Judge(model, examples, part)
    compared = sorted((judge.judge(*each) for each in choices.items()), key=lambda each: each.divergence)
    if choice == "search":
        found = judge.search(compared[0], total)
        return compared if found is compared[0] else [found, *compared]
    taken = "given" if "given" in choices else choice
    return sorted(compared, key=lambda each: each.name != taken)  # stable: the best first where none is taken by name


def _given(choice: str, total: int, count: int) -> tuple[int, ...]:
    try:
        layers = tuple(int(word) for word in choice.split(","))
    except ValueError:
        layers = ()
    if len(layers) != count or any(not 0 <= layer < total for layer in layers) or sorted(set(layers)) != list(layers):
        raise UsageError(
            f"layer choice is {choice!r}; give auto, search, {', '.join(NAMED)}, "
            f"or {count} rising numbers below {total}"
        )
    return layers


@contextmanager
def only_layers(model: Any, layers: Sequence[int]) -> Iterator[None]:
    """Inside, the model has these of its layers only, and a configuration that says so."""
    stack = decoder_layers(model)
    parent, name = _owner(model, stack[0])
    whole, config = parent._modules[name], model.config.get_text_config(decoder=True)
    before = deepcopy(config.to_dict())
    try:
        parent._modules[name] = nn.ModuleList([stack[layer] for layer in layers])
        config.num_hidden_layers = len(layers)
        if getattr(config, "layer_types", None):
            config.layer_types = [before["layer_types"][layer] for layer in layers]
        yield
    finally:
        parent._modules[name] = whole
        config.num_hidden_layers = len(stack)
        if getattr(config, "layer_types", None):
            config.layer_types = before["layer_types"]


def _owner(model: Any, layer: nn.Module) -> tuple[nn.Module, str]:
    """The module that has the stack of this layer, and under which name."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) and child[0] is layer:
                return module, name
    raise AssertionError("decoder_layers finds layers in a stack")


def frequent_part(model: Any, tokenizer: Any, examples: Examples, size: int) -> Tensor:
    """The tokens for a draft to say: those that end a text or are special, and the most frequent ones of the examples.

    Args:
        model: the target.
        tokenizer: its tokenizer.
        examples: whose tokens are counted; of equally frequent ones the lower ids are taken, which BPE made first.
        size: how many.

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
    ends = getattr(model.generation_config, "eos_token_id", None) or []
    counts[[*tokenizer.all_special_ids, *([ends] if isinstance(ends, int) else ends)]] = torch.iinfo(torch.int64).max
    return counts.argsort(descending=True, stable=True)[:size].sort().values


def coverage(examples: Examples, part: Tensor) -> float:
    """The share of the tokens to be predicted that are in a part of the vocabulary."""
    counts = answer_counts(examples, 1 + max(int(part[-1]), *(max(examples[at].tokens) for at in range(len(examples)))))
    return float(counts[part].sum()) / max(1, int(counts.sum()))


def write_draft(
    folder: Path, model: Any, tokenizer: Any, layers: Sequence[int], part: Tensor | None, made: dict[str, Any]
) -> None:
    """Write the draft as a plain Hugging Face folder, with what it was made of.

    Args:
        folder: put there whole; one that is there is replaced.
        model: the target; as it was afterwards.
        tokenizer: its tokenizer.
        layers: of it.
        part: the tokens that the draft says; None for all.
        made: what ``draft.json`` and the card say; ``parameters`` are added.
    """

    def fill(partial: Path) -> None:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if part is not None:
            write_part(partial, part)
        (partial / "draft.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        (partial / "README.md").write_text(_card(made), encoding="utf-8")

    with only_layers(model, layers):
        made["parameters"] = int(model.num_parameters())
        replace_folder(folder, fill)


def record(target: str, compared: Sequence[Judged], texts: str, vocabulary: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a made draft says about its making."""
    return {
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
        f"Compared on {made['compared_on']}.",
    ]
    if vocabulary is not None:
        lines += [
            "",
            f"It says {vocabulary['size']} tokens, named in `draft_vocabulary.json`: {vocabulary['ranked_by']}.",
        ]
    return model_card(base=str(made["target"]), title="A draft made of its target", lines=lines)
