"""Speculative streams on a frozen target: what it computes is kept, only the streams' own part is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from typing import Any, Literal

import torch
from torch import Tensor

from specstream.drafters.streams import StreamsDrafter
from specstream.errors import UsageError
from specstream.heads.multistream import MainStream
from specstream.heads.parallel import ParallelHead
from specstream.heads.shipped import left_out, shipped_for
from specstream.heads.stream_loss import early_exit_chances, early_exit_loss, stream_loss, stream_ranks
from specstream.heads.streams import KIND, Streams
from specstream.heads.streams_config import StreamsConfig
from specstream.heads.token_map import unit
from specstream.models.architecture.fingerprint import fingerprint
from specstream.training.config import StreamsSection, TrainConfig
from specstream.training.data import Batch, Examples
from specstream.training.hidden_state_cache import HiddenStateCache
from specstream.training.live_evaluation import LIVE_NODES, HeadTrainee, Live, judged, read_frozen
from specstream.training.trainee import Goal

THRESHOLDS = (0.05, 0.1, 0.2)
"""Of pruning, that an early exit is judged at."""

LIVE_PRUNING = 0.1
"""Of live decoding with an early exit in training."""

NOISE = 0.1
"""Size of fresh stream embeddings, against that of the states they are added to."""

RIDGE = 1e-3
"""Of the fit of a linear start, against the inputs' own variance."""


class MainStates:
    """The target's own pass over examples, from the streams' first layer on, kept where a folder is given."""

    def __init__(self, streams: Streams, folder: str | None, most_gb: float | None = None) -> None:
        self._streams = streams
        self._upper = range(streams.first, streams.first + streams.config.layers)
        self._kept = folder is not None
        self._cache = HiddenStateCache(folder, f"{fingerprint(streams.model)}/{streams.model.dtype}", most_gb)
        self._below_part = f"from {streams.first}"
        self._passes: dict[tuple[int, ...], MainStream] = {}  # of the batch that is read

    def first(self, tokens: Tensor) -> Tensor:
        """What goes into the streams' first layer at one example's tokens: ``[length]`` -> ``[length, hidden]``."""
        batch = Batch(tokens=tokens[None], mask=torch.ones_like(tokens[None], dtype=torch.bool), size=0)
        return self.read(batch).states[0]

    def read(self, batch: Batch) -> MainStream:
        """Of a batch; in the target's dtype."""
        if not self._kept:
            return self._streams.read(batch.tokens)
        upper = self._cache.batch(batch, self._below, self._below_part)
        final = self._cache.batch(batch, self._above, "final")
        dtype = self._streams.model.dtype
        self._passes.clear()
        return MainStream(
            upper["states"].to(dtype),
            final["final"].to(dtype),
            {layer: upper[f"keys.{layer}"].to(dtype) for layer in self._upper},
            {layer: upper[f"values.{layer}"].to(dtype) for layer in self._upper},
        )

    def _below(self, tokens: Tensor) -> dict[str, Tensor]:
        main = self._pass(tokens)
        self._cache.row(tokens[0], self._above, "final")
        return {
            "states": main.states,
            **{f"keys.{layer}": main.keys[layer] for layer in self._upper},
            **{f"values.{layer}": main.values[layer] for layer in self._upper},
        }

    def _above(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"final": self._pass(tokens).final}

    def _pass(self, tokens: Tensor) -> MainStream:
        """Once for both parts, also where they are not kept."""
        row = tuple(tokens[0].tolist())
        if row not in self._passes:
            with torch.no_grad():
                self._passes[row] = self._streams.read(tokens)
        return self._passes[row]


class StreamsTrainee(HeadTrainee):
    """Streams that learn what the target says."""

    def __init__(self, streams: Streams, states: MainStates, section: StreamsSection, live: Live) -> None:
        super().__init__(streams, live)
        self._streams, self._states, self._section = streams, states, section

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        main = self._states.read(batch)
        return stream_loss(self._streams, batch.tokens, batch.mask, main=main, soften=self._section.soften)

    def _ranks(self, batch: Batch) -> Tensor:
        return stream_ranks(self._streams, batch.tokens, batch.mask, self._states.read(batch))

    def _drafter(self, rates: list[list[float]]) -> StreamsDrafter:
        return StreamsDrafter(self._streams, nodes=LIVE_NODES, most=LIVE_NODES, rates=rates)


class EarlyExitTrainee(StreamsTrainee):
    """The early exit of streams that stay as they are; live decoding is pruned at ``LIVE_PRUNING``."""

    goal = Goal(figure="early_loss", rises=False)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        main, soften = self._states.read(batch), self._section.soften
        loss = early_exit_loss(self._streams, batch.tokens, batch.mask, main=main, soften=soften)
        return loss, {"early": loss.detach()}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """On the target's answers: its loss, and the share of their tokens that it would keep at some thresholds."""
        chances, prompts = judged(batches, self._chances)
        drafter = StreamsDrafter(
            self._streams,
            nodes=LIVE_NODES,
            most=LIVE_NODES,
            rates=self._streams.details.get("rates"),
            pruning=LIVE_PRUNING,
        )
        figures = {
            "early_loss": -float(chances.log().mean()),
            **{f"kept_{least}": float((chances >= least).double().mean()) for least in THRESHOLDS},
            **self._live.figures(drafter, self._streams.gamma, prompts),
        }
        self._streams.details["early_exit"]["figures"] = figures
        return figures

    def _chances(self, batch: Batch) -> Tensor:
        return early_exit_chances(self._streams, batch.tokens, batch.mask, self._states.read(batch))


def prepare(config: TrainConfig, device: str) -> tuple[StreamsTrainee, Any]:
    """Fresh streams of the target, or those of a folder."""
    section = config.streams
    frozen = read_frozen(config, device, section.live_prompts, section.live_tokens)
    if section.start_from is None:
        streams = Streams(frozen.model, shape_of(section), frozen.vocabulary(section.vocabulary))
        states = MainStates(streams, config.model.states_dir, config.model.states_gb)
        begin(streams, states.first, frozen.examples, section.fit_examples)
    else:
        streams = Streams.from_pretrained(start_folder(section.start_from, frozen.model), frozen.model)
        if section.chain_rank and not streams.config.chain_rank:
            streams.add_chain(section.chain_rank)
        if "gamma" in section.model_fields_set and section.train == "all":
            streams.add_streams(section.gamma)
        if section.pruning_rank and streams.early_exit is None:
            streams.add_early_exit(section.pruning_rank)
        states = MainStates(streams, config.model.states_dir, config.model.states_gb)
    if section.train == "early_exit":
        assert streams.early_exit is not None
        streams.early_exit.requires_grad_(True)
        streams.details["early_exit"] = frozen.record
        return EarlyExitTrainee(streams, states, section, frozen.live), frozen.tokenizer
    streams.requires_grad_(True)
    streams.details.update(frozen.record)
    return StreamsTrainee(streams, states, section, frozen.live), frozen.tokenizer


def start_folder(start_from: str, model: Any) -> str:
    """Where the head to go on from is; shipped ones are streams.

    Raises:
        UsageError: none are shipped for this model.
    """
    if start_from != "shipped":
        return start_from
    if (folder := shipped_for(model, KIND)) is None:
        why = left_out(model, KIND) or f"none come with the package for {model.config.model_type} of this size"
        raise UsageError(f"start_from is 'shipped': {why}; give a folder")
    return folder


def shape_of(section: StreamsSection, mode: Literal["lossless", "shared"] = "lossless") -> StreamsConfig:
    """What a section says streams are made of."""
    own = section.model_dump(include={field.name for field in fields(StreamsConfig)})
    return StreamsConfig(**{**own, "targets": tuple(section.targets), "mode": mode})


@torch.no_grad()
def begin(head: ParallelHead, states: Callable[[Tensor], Tensor], examples: Examples, count: int) -> None:
    """Give a fresh head a start of a fitting size.

    A linear start begins as the best guess, by least squares, at the state that the main stream will have at the next
    token, from the state at this one and the next token: depth 1 then starts as the main stream will at its place.
    Further depths start with as much of that guess, dimension by dimension, as tells something about their places.

    Args:
        head: with a linear start or, of streams, another.
        states: what goes into the layer that it starts from: tokens ``[length]`` -> ``[length, hidden]``.
        examples: whose first ``count`` are looked at.
        count: how many.
    """
    linear = not isinstance(head, Streams) or head.config.start == "linear"
    chosen = [examples[index].tokens for index in range(min(count if linear else 1, len(examples)))]
    fit = _Fit()
    size: list[Tensor] = []
    for tokens, here in _seen(head, states, chosen):
        size.append(here.square().mean().sqrt())
        if linear:
            fit.add(torch.cat([unit(here[:-1]), head.token_states(tokens[1:])], 1), here[1:])
    head.embeddings.normal_().mul_(NOISE * torch.stack(size).mean())
    if linear:
        weights, offset = fit.solve()
        hidden = head.embeddings.shape[1]
        head.from_state.copy_(weights[:hidden].T)
        head.from_token.copy_(weights[hidden:].T)
        head.embeddings[0].copy_(offset)
        _further(head, _seen(head, states, chosen))


def _seen(
    head: ParallelHead, states: Callable[[Tensor], Tensor], chosen: Iterable[tuple[int, ...]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and states of examples without the first, which is often unlike any other; those that are long enough."""
    for each in chosen:
        if len(each) > head.gamma + 2:
            tokens = torch.tensor(each, device=head.embeddings.device)
            yield tokens[1:], states(tokens)[1:].float()


def _further(head: ParallelHead, seen: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Scales and offsets of the streams behind the first: a regression with one input for every dimension."""
    gamma, hidden = head.embeddings.shape
    sums = torch.zeros(5, gamma, hidden, dtype=torch.float64, device=head.embeddings.device)
    for tokens, here in seen:
        guess = (head.linear_start(here[:-gamma], tokens[1 : 1 - gamma or None])[:, 0] - head.embeddings[0]).double()
        for ahead in range(1, gamma):
            there = here[1 + ahead :][: len(guess)].double()
            own = guess[: len(there)]
            parts = (torch.ones_like(own), own, there, own * own, own * there)
            sums[:, ahead] += torch.stack([part.sum(0) for part in parts])
    count, own, there, squares, products = sums[:, 1:]
    slopes = (products - own * there / count) / (squares - own * own / count).clamp_min(1e-9)
    head.scales[1:].copy_(slopes)
    head.embeddings[1:].add_((there - slopes * own) / count)


class _Fit:
    """Ridge regression from sums, in double precision."""

    def __init__(self) -> None:
        self._squares: Any = 0
        self._products: Any = 0

    def add(self, inputs: Tensor, outputs: Tensor) -> None:
        """Pairs ``[n, inputs]`` and ``[n, outputs]``."""
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1).double()
        self._squares = self._squares + inputs.T @ inputs
        self._products = self._products + inputs.T @ outputs.double()

    def solve(self) -> tuple[Tensor, Tensor]:
        """Weights ``[inputs, outputs]`` and the offset."""
        ridge = RIDGE * self._squares.diagonal()
        ridge[-1] = 0
        found = torch.linalg.solve(self._squares + ridge.diag(), self._products)
        return found[:-1].float(), found[-1].float()
