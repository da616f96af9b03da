"""Which of a target's layers make a good small draft: measured, with the head fitted to what they leave.

The target's norm and head expect the state that all layers leave. A linear map from what the few leave to that, by
least squares on some texts, belongs to each choice of layers; how much would be accepted with it, on other text, tells
which to take. Without it every choice is rarely right, and those that look nearest do not turn out well:
docs/experiments/0021-drafts-of-own-layers.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from specstream.errors import UsageError
from specstream.models.architecture.compat import text_config
from specstream.models.architecture.hidden_states import decoder_layers
from specstream.training.data import Example, Examples

JUDGED_POSITIONS, FITTED_POSITIONS = 512, 8192
"""Positions that layer choices are compared at, and, of other texts, that the map is fitted to."""

RIDGE = 1e-2
"""Of the fit, against the mean square of the states."""

NAMED = ("first", "spaced", "ends", "last-only")
"""Layer choices that are compared unless one is asked for; ``search`` improves the best of them."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How a choice of layers does before it is distilled.

    Attributes:
        name: of the choice.
        layers: of the target, in order.
        divergence: KL(target || draft) in nats, over the tokens that the draft says.
        acceptance: sum over tokens of min(p, q), the rate at which sampled drafts are accepted; the highest is taken.
        agreement: how often both find the same token likeliest, as greedy drafts need.
    """

    name: str
    layers: tuple[int, ...]
    divergence: float
    acceptance: float
    agreement: float


def choices_of(choice: str, total: int, count: int) -> dict[str, tuple[int, ...]]:
    """The usual choices of ``count`` of ``total`` layers, before them the one that is ``given`` by its numbers.

    The ``first`` ones are an early exit. Of evenly ``spaced`` ones the first and the last layer are two. Half of them
    may stand at both ``ends``, or all but one at the start and the ``last-only`` behind. See ``choose_layers``.

    Raises:
        UsageError: an unknown choice, or layers that there are not.
    """
    if total < 2:
        raise UsageError(f"layers is {count} and the target has {total}, of which no fewer can be taken; give another")
    if not 1 <= count < total:
        raise UsageError(f"layers is {count} and the target has {total}; give 1 to {total - 1}")
    spaced = [round(at * (total - 1) / max(1, count - 1)) for at in range(count)]
    head = -(-count // 2)
    choices = {
        "first": tuple(range(count)),
        "spaced": tuple(spaced),
        "ends": (*range(head), *range(total - (count - head), total)),
        "last-only": (*range(count - 1), total - 1),
    }
    return choices if choice in ("auto", "search", *choices) else {"given": _given(choice, total, count), **choices}


def split(examples: Examples) -> tuple[Examples, Examples | None]:
    """Of one set, the first examples to judge on, and the others to fit to; None where those are too few."""
    positions = [len(each.tokens) - each.start for each in examples]
    at = bisect_left(list(accumulate(positions)), JUDGED_POSITIONS) + 1
    rest = Examples(list(examples)[at:])
    return examples.first(at), rest if sum(positions[at:]) >= JUDGED_POSITIONS else None


class Judge:
    """Compares choices of layers of one target.

    Args:
        model: the target.
        judged: choices are compared on the tokens of these from ``start`` on.
        fitted: the map is fitted to these; None for no map.
        part: the tokens that the draft will say, ``[size]`` int64; None for all.
    """

    def __init__(self, model: Any, judged: Examples, fitted: Examples | None, part: Tensor | None) -> None:
        self._model, self._part = model, part
        self._judged = _some(judged, JUDGED_POSITIONS)
        self._wanted = [self._pass(example)[1].softmax(-1) for example in self._judged]
        self._fitted = [] if fitted is None else _some(fitted, FITTED_POSITIONS)
        self._last = [self._pass(example)[0] for example in self._fitted]

    def fit(self, layers: tuple[int, ...]) -> Tensor | None:
        """From the last state of these layers to the target's: ``[hidden, hidden]`` float32; None without texts."""
        if not self._fitted:
            return None
        size = self._last[0].shape[-1]
        squares, products = (torch.zeros(size, size, dtype=torch.float64) for _ in range(2))
        with only_layers(self._model, layers):
            for example, wanted in zip(self._fitted, self._last, strict=True):
                own = self._pass(example)[0].double().cpu()
                squares += own.T @ own
                products += own.T @ wanted.double().cpu()
        squares += RIDGE * squares.diagonal().mean() * torch.eye(size, dtype=torch.float64)
        solved: Tensor = torch.linalg.solve(squares, products)
        return solved.float()

    def judge(self, name: str, layers: tuple[int, ...]) -> Judged:
        """How near a draft of these layers comes to the target."""
        change, sums, count = self.fit(layers), torch.zeros(3, dtype=torch.float64), 0
        with only_layers(self._model, layers):
            for example, p in zip(self._judged, self._wanted, strict=True):
                sums += self._apart(p, self._pass(example, change)[1])
                count += len(p)
        divergence, acceptance, agreement = (sums / max(1, count)).tolist()
        return Judged(name=name, layers=layers, divergence=divergence, acceptance=acceptance, agreement=agreement)

    def search(self, start: Judged, total: int) -> Judged:
        """Move one layer after the other to where most is accepted, its neighbours staying where they are."""
        best = start
        for at in range(len(start.layers)):
            low = best.layers[at - 1] + 1 if at else 0
            high = best.layers[at + 1] if at + 1 < len(best.layers) else total
            for layer in range(low, high):
                if layer != best.layers[at]:
                    found = self.judge("search", (*best.layers[:at], layer, *best.layers[at + 1 :]))
                    best = max(best, found, key=lambda each: each.acceptance)
        return best

    def _apart(self, p: Tensor, logits: Tensor) -> Tensor:
        """Sums over positions of divergence, acceptance and agreement, ``[3]`` float64."""
        own = p if self._part is None else p[:, self._part]
        q = (logits if self._part is None else logits[:, self._part]).log_softmax(-1)
        share = own.sum(-1, keepdim=True)
        divergence = (own / share * (own.clamp_min(1e-30).log() - share.log() - q)).sum(-1)
        favourites = q.argmax(-1) if self._part is None else self._part[q.argmax(-1)]
        figures = (divergence, torch.minimum(own, q.exp()).sum(-1), favourites == p.argmax(-1))
        return torch.stack([figure.double().sum().cpu() for figure in figures])

    @torch.inference_mode()
    def _pass(self, example: Example, change: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What goes into the head ``[positions, hidden]``, before the change, and logits, both float32."""
        seen: list[Tensor] = []

        def look(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
            states = given[0][0, example.start - 1 : -1]
            seen.append(states.float())
            return (states if change is None else (seen[0] @ change.to(states.device)).to(states.dtype),)

        hook = self._model.get_output_embeddings().register_forward_pre_hook(look)
        try:
            tokens = torch.tensor([example.tokens], device=self._model.device)
            logits: Tensor = self._model(input_ids=tokens, use_cache=False).logits
        finally:
            hook.remove()
        return seen[0], logits.float()


def _some(examples: Examples, positions: int) -> list[Example]:
    """Examples with so many positions at most, the last of them cut."""
    chosen: list[Example] = []
    for example in examples:
        taken = min(positions, len(example.tokens) - example.start)
        if taken > 0:
            chosen.append(Example(tokens=example.tokens[: example.start + taken], start=example.start))
            positions -= taken
    return chosen


def choose_layers(
    model: Any, texts: tuple[Examples, Examples | None], part: Tensor | None, count: int, choice: str
) -> tuple[list[Judged], Tensor | None]:
    """Choices of layers as they were compared, the one to take first, and what its head is to be multiplied with.

    Args:
        model: the target.
        texts: to compare them on, and to fit the head to; None leaves it.
        part: the tokens that the draft will say; None for all.
        count: layers to take.
        choice: ``auto`` takes the best of the usual ones, ``search`` improves it layer by layer; or the name of one, or
            layers by their numbers, such as ``0,1,28,29``. Those are compared with the usual ones and taken anyway.

    Raises:
        UsageError: an unknown choice, or layers that there are not.
    """
    total = len(decoder_layers(model))
    choices = choices_of(choice, total, count)
    judge = Judge(model, *texts, part)
    compared = sorted((judge.judge(*each) for each in choices.items()), key=lambda each: -each.acceptance)
    if choice == "search":
        found = judge.search(compared[0], total)
        compared = compared if found is compared[0] else [found, *compared]
    else:
        taken = "given" if "given" in choices else choice
        compared.sort(key=lambda each: each.name != taken)  # stable: the best first where none is taken by name
    return compared, judge.fit(compared[0].layers)


def _given(choice: str, total: int, count: int) -> tuple[int, ...]:
    try:
        layers = tuple(int(word) for word in choice.split(","))
    except ValueError:
        layers = ()
    if len(layers) != count or any(not 0 <= layer < total for layer in layers) or sorted(set(layers)) != list(layers):
        raise UsageError(
            f"layer_choice is {choice!r}; give auto, search, {', '.join(NAMED)}, "
            f"or {count} rising numbers below {total}"
        )
    return layers


@contextmanager
def only_layers(model: Any, layers: Sequence[int]) -> Iterator[None]:
    """Inside, the model has these of its layers only, and a configuration that says so."""
    whole, config = decoder_layers(model), text_config(model)
    stack = next(each for each in model.modules() if isinstance(each, nn.ModuleList) and list(each) == whole)
    kinds = getattr(config, "layer_types", None)
    try:
        del stack[:]
        stack.extend(whole[layer] for layer in layers)
        config.num_hidden_layers = len(layers)
        if kinds:
            config.layer_types = [kinds[layer] for layer in layers]
        yield
    finally:
        del stack[:]
        stack.extend(whole)
        config.num_hidden_layers = len(whole)
        if kinds:
            config.layer_types = kinds
