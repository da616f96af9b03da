"""A DFlash head as a drafter (``heads/dflash.py``): all depths in one pass, none knows what the others draft."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specstream.core.device.deferred import upload
from specstream.core.head_drafter import RANKS, HeadSession, Place
from specstream.core.ports import DraftRequest
from specstream.core.text_drafter import MOST, TextDrafter, TextSession
from specstream.core.tree_shapes import Candidates
from specstream.heads.dflash import DFlashHead
from specstream.heads.published import Memory

PREFERRED = 7
"""Drafted nodes of a tree where nobody says how many pay."""


class DFlashDrafter(TextDrafter):
    """Drafts with a DFlash head.

    The arguments are ``TextDrafter``'s.
    """

    name, parts = "dflash", "tokens of the DFlash head's block"
    head: DFlashHead

    def __init__(self, head: DFlashHead, *, nodes: int = PREFERRED, most: int = MOST, ranks: int = RANKS) -> None:
        super().__init__(head, nodes=nodes, most=most, ranks=ranks)

    def fresh(self) -> list[Memory]:
        return [Memory() for _ in self.head.layers]

    def read(
        self, kept: Sequence[list[Memory]], counts: Sequence[int], states: Tensor, tokens: Tensor, places: Tensor
    ) -> None:
        self.head.read(kept, counts, states, places)

    @torch.inference_mode()
    def candidates(
        self,
        session: HeadSession,
        places: Sequence[Place],
        requests: Sequence[DraftRequest],
        rows: Sequence[int],
    ) -> list[Candidates]:
        assert isinstance(session, TextSession)
        memories: list[list[Memory]] = session.caught_up(rows)
        device = self.head.vocabulary.device
        roots = upload([request.tokens[-1] for request in requests], device)
        positions = upload([len(request.tokens) - 1 for request in requests], device)
        depth = min(max(request.depth for request in requests), self.depth)
        shares = self.head.logits(roots, positions, memories, depth).softmax(-1)
        best = shares.topk(min(self.ranks, shares.shape[-1]), -1)
        drafted = self.head.vocabulary[best.indices].tolist(), best.values.tolist()
        return [Candidates(*own) for own in zip(*drafted, strict=True)]
