"""Speculative streams in the shared mode: the base is fine-tuned with its streams (Bhendawade et al., equation 3).

The base learns the next token through LoRA, the streams theirs, and their gradients reach the base too. The result is
a new model and streams that are bound to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specstream.core.tree_shapes import rank_rates
from specstream.errors import UsageError
from specstream.heads.stream_loss import stream_loss, stream_ranks
from specstream.heads.streams import Streams
from specstream.models.architecture.fingerprint import fingerprint
from specstream.training.config import TrainConfig
from specstream.training.data import Batch
from specstream.training.live_evaluation import RANKS, judged, read_frozen
from specstream.training.lora import MODEL, LoRAAdapter, adapter_of
from specstream.training.recipes.streams import MainStates, begin, shape_of
from specstream.training.trainee import Goal, drafted_figures

STREAMS = "streams"
"""The folder of the streams, beside that of the model."""


class SharedTrainee:
    """A base and its streams, in the shared mode, that learn together; ``name`` is the new model's, for people."""

    goal = Goal(figure="loss", rises=False)

    def __init__(self, adapter: LoRAAdapter, streams: Streams, name: str) -> None:
        self._adapter, self._streams, self._name = adapter, streams, name

    def parameters(self) -> Iterable[nn.Parameter]:
        return [*self._adapter.trainable_parameters(), *self._streams.parameters()]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        model = self._adapter.get_adapted_model()
        model.train()
        try:
            return stream_loss(self._streams, batch.tokens, batch.mask)
        finally:
            model.eval()

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The loss that is trained on, its part for the next token, and how the streams' drafts fare."""
        seen = list(batches)
        sums = dict.fromkeys(("loss", "next_loss"), 0.0)
        for batch in seen:
            share = float(batch.mask.sum()) / sum(float(each.mask.sum()) for each in seen)
            loss, parts = stream_loss(self._streams, batch.tokens, batch.mask)
            sums["loss"] += share * float(loss)
            sums["next_loss"] += share * float(parts["next"])
        ranks, _ = judged(seen, lambda batch: stream_ranks(self._streams, batch.tokens, batch.mask))
        figures = {**sums, **drafted_figures(ranks)}
        self._streams.details.update(rates=rank_rates(ranks, RANKS), figures=figures)
        return figures

    def save(self, folder: Path) -> None:
        """The new model in ``model``, and in ``streams`` what is bound to it."""
        merged = self._adapter.save_merged(folder / MODEL)
        base = {"name": self._name, "fingerprint": fingerprint(merged)}
        self._streams.save(folder / STREAMS, base=base, base_parameters=int(merged.num_parameters()))


def prepare(config: TrainConfig, device: str) -> tuple[SharedTrainee, Any]:
    """The target with a fresh adapter and fresh streams."""
    section = config.streams
    refused: Mapping[str, Any] = {
        "model.states_dir": config.model.states_dir,
        "streams.start_from": section.start_from,
        "streams.soften": section.soften,
    }
    for name, value in refused.items():
        if value:
            raise UsageError(f"{name} is {value!r} and recipe 'shared' trains the base too; leave it out")
    frozen = read_frozen(config, device, 0, section.live_tokens)
    streams = Streams(frozen.model, shape_of(section, "shared"), frozen.vocabulary(section.vocabulary))
    begin(streams, MainStates(streams, None).first, frozen.examples, section.fit_examples)
    torch.manual_seed(config.training.seed)  # as the recipe lora: the same adapter to begin with
    adapter = adapter_of(config.lora, frozen.model, frozen.tokenizer)
    streams.details.update(frozen.record)
    name = f"{config.model.target_model}, tuned in {Path(config.training.output_dir).name}"
    return SharedTrainee(adapter, streams, name), frozen.tokenizer
