"""An EAGLE-3 head as a drafter (``heads/eagle.py``): its layer drafts the likeliest token, and on behind that.

A tree is that chain, with the other candidates of each depth as leaves beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specstream.core.device.deferred import upload
from specstream.core.head_drafter import RANKS, HeadSession, Place
from specstream.core.ports import DraftRequest
from specstream.core.text_drafter import MOST, TextDrafter, TextSession
from specstream.core.tree_shapes import Candidates, RankAcceptance, Ranked
from specstream.heads.eagle import EagleHead
from specstream.heads.published import Memory

PREFERRED = 5
"""Drafted nodes of a tree where nobody says how many pay."""


@dataclass
class _Kept:
    """Of one row.

    Attributes:
        memory: of the layer.
        output: of its last position, ``[width]``; empty before there is one.
        last: that position.
    """

    memory: Memory = field(default_factory=Memory)
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    last: int = -1


class EagleDrafter(TextDrafter):
    """Drafts with an EAGLE-3 head.

    The arguments are ``TextDrafter``'s.
    """

    name, parts = "eagle3", "steps of the EAGLE-3 head"
    head: EagleHead

    def __init__(self, head: EagleHead, *, nodes: int = PREFERRED, most: int = MOST, ranks: int = RANKS) -> None:
        super().__init__(head, nodes=nodes, most=most, ranks=ranks)

    def unlearned(self) -> RankAcceptance:
        known = [each[: self.ranks] for each in self.head.details.get("rates", ())]
        return RankAcceptance(known or RankAcceptance.unknown(self.depth, self.ranks).rates, spine=True)

    def fresh(self) -> _Kept:
        return _Kept()

    def read(
        self, kept: Sequence[_Kept], counts: Sequence[int], states: Tensor, tokens: Tensor, places: Tensor
    ) -> None:
        memories = list(zip([each.memory for each in kept], counts, strict=True))
        output = self.head.step(self.head.combined(states), tokens, places, memories)
        for each, own, at in zip(
            kept, torch.split(output, list(counts)), torch.split(places, list(counts)), strict=True
        ):
            each.output, each.last = own[-1], int(at[-1])

    @torch.inference_mode()
    def candidates(
        self,
        session: HeadSession,
        places: Sequence[Place],
        requests: Sequence[DraftRequest],
        rows: Sequence[int],
    ) -> list[Candidates]:
        assert isinstance(session, TextSession)
        texts: list[_Kept] = session.caught_up(rows)
        depth = min(max(request.depth for request in requests), self.depth)
        tokens, chances = [list[list[int]]() for _ in texts], [list[list[float]]() for _ in texts]
        output = torch.stack([text.output for text in texts])
        ahead = upload([text.last + 1 for text in texts], output.device)
        lengths = [text.memory.length for text in texts]
        for at in range(depth):
            best = self.head.logits(output).softmax(-1).topk(min(self.ranks, len(self.head.vocabulary)), -1)
            drafted = self.head.vocabulary[best.indices]
            for row, own in enumerate(zip(drafted.tolist(), best.values.tolist(), strict=True)):
                tokens[row].append(own[0])
                chances[row].append(own[1])
            if at + 1 < depth:
                memories = [(text.memory, 1) for text in texts]
                output = self.head.step(self.head.fed_back(output), drafted[:, 0], ahead + at, memories)
        for text, length in zip(texts, lengths, strict=True):  # what was drafted is read again if it is accepted
            text.memory.length = length
        return [Spine(*own) for own in zip(tokens, chances, strict=True)]


@dataclass(frozen=True)
class Spine(Candidates):
    """A chain of the likeliest, and others beside it: nothing was drafted behind those."""

    def behind(self, at: int, rank: int) -> Ranked:
        return super().behind(at, rank) if rank == 0 else ()
