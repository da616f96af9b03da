"""A block head as a drafter: one pass of its small layers drafts all depths (``heads/block.py``).

A session keeps, for each row, the head's keys and values of the latest committed positions, prompts included.

A tree's candidates behind each other are weighed by the token-to-token map.
What earlier generations taught is not in the offers of a row that samples (``drafters/streams.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specstream.core.device.deferred import upload
from specstream.core.head_drafter import RANKS, HeadSession, Place
from specstream.core.ports import DraftRequest
from specstream.core.text_drafter import MOST, TextDrafter, TextSession
from specstream.core.tree_shapes import Candidates
from specstream.heads.block import BlockHead

PREFERRED = 4
"""Drafted nodes of a tree where nobody says how many pay: a pass of 5 tokens."""


@dataclass
class _Window:
    """The latest committed positions of a row.

    Attributes:
        keys: of those, ``[n, layers, kv_heads, dim]``; empty before any was read.
        values: likewise.
        last: what went into the last tap at the last of them, ``[hidden]``.
    """

    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    last: Tensor = field(default_factory=lambda: torch.empty(0))

    def read(self, keys: Tensor, values: Tensor, last: Tensor, most: int) -> None:
        self.keys = torch.cat([self.keys, keys])[-most:] if len(self.keys) else keys[-most:]
        self.values = torch.cat([self.values, values])[-most:] if len(self.values) else values[-most:]
        self.last = last


class BlockDrafter(TextDrafter):
    """Drafts with a block head.

    Args:
        head: trained for the target.
        nodes: drafted nodes of the tree that is preferred unseen.
        most: of the largest.
        ranks: candidates of each depth.
        rates: how often the candidate of each rank is right at each depth, as far as known: ``rates[depth - 1][rank]``.

    Raises:
        UsageError: a tree without a node, a depth without a candidate.
    """

    name, parts = "block", "depths of the block head"
    head: BlockHead

    def __init__(
        self,
        head: BlockHead,
        *,
        nodes: int = PREFERRED,
        most: int = MOST,
        ranks: int = RANKS,
        rates: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__(head, nodes=nodes, most=most, ranks=ranks, rates=rates)
        self.window = head.config.window

    def fixed_tree(self, nodes: int) -> BlockDrafter:
        return BlockDrafter(self.head, nodes=nodes, most=nodes, rates=self.rates)

    def fresh(self) -> _Window:
        return _Window()

    def read(self, kept: Sequence[Any], counts: Sequence[int], states: Tensor, tokens: Tensor, places: Tensor) -> None:
        made = (torch.split(each, list(counts)) for each in self.head.memory(states, places))
        for window, *own, seen in zip(kept, *made, torch.split(states, list(counts)), strict=True):
            window.read(*own, seen[-1, -1], self.head.config.window)

    def candidates(
        self,
        session: HeadSession,
        places: Sequence[Place],
        requests: Sequence[DraftRequest],
        rows: Sequence[int],
    ) -> list[Candidates]:
        assert isinstance(session, TextSession)
        windows: list[_Window] = session.caught_up(rows)
        last = torch.stack([window.last for window in windows])
        following = upload([request.tokens[-1] for request in requests], last.device)
        positions = upload([len(request.tokens) - 2 for request in requests], last.device)
        memory = [window.keys for window in windows], [window.values for window in windows]
        depth = min(max(request.depth for request in requests), self.depth)
        return self.head.candidates(last, positions, following, memory, self.ranks, depth)
