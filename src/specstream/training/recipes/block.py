"""A block head on a frozen target: what that computes is kept, the head alone is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from specstream.drafters.block import BlockDrafter
from specstream.heads.block import KIND, BlockConfig, BlockHead
from specstream.heads.block_loss import block_loss, block_ranks
from specstream.heads.depths import TargetStates
from specstream.heads.folder import kind_of
from specstream.heads.streams import Streams
from specstream.models.architecture.fingerprint import fingerprint
from specstream.models.architecture.hidden_states import States, decoder_layers, tapped
from specstream.training.config import BlockSection, TrainConfig
from specstream.training.data import Batch
from specstream.training.hidden_state_cache import HiddenStateCache
from specstream.training.live_evaluation import LIVE_NODES, HeadTrainee, Live, read_frozen
from specstream.training.recipes.streams import begin, start_folder

LIKELIEST = 64
"""Tokens of the target's distributions that are looked at."""


class TappedStates:
    """The target's own pass over examples: its taps and what it says, kept where a folder is given."""

    def __init__(
        self, model: Any, taps: Sequence[int], folder: str | None = None, most_gb: float | None = None
    ) -> None:
        self._model, self._taps = model, taps
        identity = f"{fingerprint(model)}/{model.dtype}/taps {','.join(map(str, taps))}, top {LIKELIEST}"
        self._kept = HiddenStateCache(folder, identity, most_gb)

    def of(self, batch: Batch) -> TargetStates:
        found = self._kept.batch(batch, self._pass)
        taps = torch.unflatten(found["taps"], -1, (len(self._taps), -1))
        return TargetStates(taps, found["tokens"].long(), found["logs"].float().exp())

    def last(self, tokens: Tensor) -> Tensor:
        """What goes into the last tap at ``[length]`` tokens, ``[length, hidden]``."""
        taps = self._kept.row(tokens, self._pass)["taps"][0]
        return taps[:, -int(taps.shape[-1]) // len(self._taps) :]

    @torch.no_grad()
    def _pass(self, tokens: Tensor) -> dict[str, Tensor]:
        model, states = self._model, States(dict.fromkeys(self._taps))
        with tapped(model, decoder_layers(model), states, fused=False):
            logits = model(input_ids=tokens, use_cache=False).logits
        taps = [each for tap in self._taps if (each := states[tap]) is not None]
        likeliest, logs = list[Tensor](), list[Tensor]()
        for row in logits:  # one by one: in float32 those of a batch are gigabytes
            exact = row.float()
            best = exact.topk(min(LIKELIEST, exact.shape[-1]))
            likeliest.append(best.indices.int())
            logs.append(best.values - exact.logsumexp(-1, keepdim=True))
        return {"taps": torch.cat(taps, -1), "tokens": torch.stack(likeliest), "logs": torch.stack(logs)}


class BlockTrainee(HeadTrainee):
    """A block head that learns what the target says."""

    def __init__(self, head: BlockHead, states: TappedStates, section: BlockSection, live: Live) -> None:
        super().__init__(head, live)
        self._states, self._section = states, section

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return block_loss(self._head, self._states.of(batch), batch.tokens, batch.mask, self._section.anchors)

    def _ranks(self, batch: Batch) -> Tensor:
        return block_ranks(self._head, self._states.of(batch), batch.tokens, batch.mask)

    def _drafter(self, rates: list[list[float]]) -> BlockDrafter:
        return BlockDrafter(self._head, nodes=LIVE_NODES, most=LIVE_NODES, rates=rates)


def prepare(config: TrainConfig, device: str) -> tuple[BlockTrainee, Any]:
    """A fresh head of the target, or one that goes on from what a folder holds."""
    section = config.block
    frozen = read_frozen(config, device, section.live_prompts, section.live_tokens)
    folder = None if section.start_from is None else start_folder(section.start_from, frozen.model)
    if folder is not None and kind_of(folder) == KIND:
        head = BlockHead.from_pretrained(folder, frozen.model).requires_grad_(True)
        states = TappedStates(frozen.model, head.config.taps, config.model.states_dir, config.model.states_gb)
    else:
        streams = None if folder is None else Streams.from_pretrained(folder, frozen.model)
        vocabulary = frozen.vocabulary(section.vocabulary) if streams is None else streams.vocabulary
        head = BlockHead(frozen.model, shape_of(section, streams), vocabulary)
        states = TappedStates(frozen.model, head.config.taps, config.model.states_dir, config.model.states_gb)
        begin(head, states.last, frozen.examples, section.fit_examples)
        if streams is not None:
            take_from(streams, head)
    head.details.update(frozen.record)
    return BlockTrainee(head, states, section, frozen.live), frozen.tokenizer


def shape_of(section: BlockSection, streams: Streams | None) -> BlockConfig:
    """What a section says a head is made of; a token-to-token map is no smaller than that of the streams."""
    own = section.model_dump(include={field.name for field in fields(BlockConfig)})
    if section.chain_rank and streams is not None:
        own["chain_rank"] = max(section.chain_rank, streams.config.chain_rank)
    return BlockConfig(**own)


@torch.no_grad()
def take_from(streams: Streams, head: BlockHead) -> None:
    """Give a fresh head what streams of the same base learned: the token-to-token map, and the linear start.

    The map's low-rank factors are padded, so that it is the same map at first. The start fits only where streams begin
    in the layer that the head's last tap is of; elsewhere the head keeps its own by least squares.
    """
    if head.chain is not None and streams.chain is not None:
        rank = streams.config.chain_rank
        head.chain.down[:rank] = streams.chain.down
        head.chain.up[:, :rank] = streams.chain.up
        if head.chain.gate is not None and streams.chain.gate is not None:
            head.chain.gate[:rank] = streams.chain.gate
    if streams.config.start == "linear" and streams.first == head.config.taps[-1]:
        depth = min(head.gamma, streams.gamma)
        for name in ("from_state", "from_token"):
            getattr(head, name).copy_(getattr(streams, name))
        for name in ("embeddings", "scales"):
            own, theirs = getattr(head, name), getattr(streams, name)
            own[:depth], own[depth:] = theirs[:depth], theirs[depth - 1]
