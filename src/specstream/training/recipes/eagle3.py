"""An EAGLE-3 head on a frozen target: what that computes is kept, the head alone is trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from specstream.drafters.eagle import EagleDrafter
from specstream.errors import UsageError
from specstream.heads.eagle import EagleHead
from specstream.heads.eagle_loss import eagle_loss, eagle_ranks
from specstream.training.config import TrainConfig
from specstream.training.data import Batch
from specstream.training.live_evaluation import LIVE_NODES, HeadTrainee, Live, read_frozen
from specstream.training.recipes.block import TappedStates


class EagleTrainee(HeadTrainee):
    """A head that learns what the target says."""

    def __init__(self, head: EagleHead, states: TappedStates, live: Live) -> None:
        super().__init__(head, live)
        self._states = states

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return eagle_loss(self._head.train(), self._states.of(batch), batch.tokens, batch.mask)

    def _ranks(self, batch: Batch) -> Tensor:
        return eagle_ranks(self._head.train(), self._states.of(batch), batch.tokens, batch.mask)

    def _drafter(self, rates: list[list[float]]) -> EagleDrafter:
        return EagleDrafter(self._head.eval(), nodes=LIVE_NODES, most=LIVE_NODES)  # the head has the rates


def prepare(config: TrainConfig, device: str) -> tuple[EagleTrainee, Any]:
    """A fresh head of the target, or one that goes on from a folder's, in float32."""
    section = config.eagle3
    frozen = read_frozen(config, device, section.live_prompts, section.live_tokens)
    if section.start_from is not None:
        head = EagleHead.from_pretrained(section.start_from, frozen.model).float()
    else:
        size = len(frozen.counts)
        if section.vocabulary is not None and section.vocabulary > size:
            raise UsageError(f"vocabulary is {section.vocabulary} and the model has {size} tokens; give fewer, or null")
        head = EagleHead.fresh(frozen.model, section.taps, section.gamma, frozen.vocabulary(section.vocabulary))
    head.requires_grad_(True)
    if head.embeddings is not None:
        head.embeddings.requires_grad_(False)
    head.details.update(frozen.record)
    states = TappedStates(frozen.model, head.taps, config.model.states_dir, config.model.states_gb)
    return EagleTrainee(head, states, frozen.live), frozen.tokenizer
