"""Medusa-1 heads on a frozen target, for the comparison with streams: the same data, the same loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from specstream.core.tree_shapes import rank_rates
from specstream.drafters.medusa import MedusaDrafter
from specstream.heads.medusa import MedusaHeads
from specstream.models.architecture.fingerprint import fingerprint
from specstream.training.config import TrainConfig
from specstream.training.data import Batch
from specstream.training.hidden_state_cache import HiddenStateCache
from specstream.training.live_evaluation import LIVE_NODES, RANKS, HeadTrainee, Live, judged, read_frozen
from specstream.training.trainee import drafted_figures


class MedusaTrainee(HeadTrainee):
    """Heads that learn what the target says."""

    def __init__(self, heads: MedusaHeads, kept: HiddenStateCache, live: Live) -> None:
        super().__init__(heads, live)
        self._heads, self._kept = heads, kept

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self._heads.loss_of(self._states(batch), batch.tokens, batch.mask)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """How the heads' drafts fare: on the target's answers, and in decoding itself."""
        ranks, prompts = judged(batches, self._ranks)
        self._heads.rates = rank_rates(ranks, RANKS)
        drafter = MedusaDrafter(self._heads, nodes=LIVE_NODES)
        figures = {**drafted_figures(ranks), **self._live.figures(drafter, self._heads.depth, prompts)}
        self._heads.record["figures"] = figures
        return figures

    def _ranks(self, batch: Batch) -> Tensor:
        return self._heads.ranks(self._states(batch), batch.tokens, batch.mask)

    def _states(self, batch: Batch) -> Tensor:
        states = self._kept.batch(batch, lambda tokens: {"final": self._heads.states_of(tokens)})
        return states["final"].to(next(iter(self._heads.parameters())).dtype)


def prepare(config: TrainConfig, device: str) -> tuple[MedusaTrainee, Any]:
    """Fresh heads of the target."""
    section = config.medusa
    frozen = read_frozen(config, device, section.live_prompts, section.live_tokens)
    vocabulary, model = frozen.vocabulary(section.vocabulary), frozen.model
    heads = MedusaHeads(model, num_heads=section.num_heads, num_layers=section.num_layers, token_map=vocabulary)
    heads.record.update(frozen.record)
    identity = f"{fingerprint(model)}/{model.dtype}/final"
    kept = HiddenStateCache(config.model.states_dir, identity, config.model.states_gb)
    return MedusaTrainee(heads, kept, frozen.live), frozen.tokenizer
