"""A block head as a drafter: one pass of its small layers drafts all depths (``heads/block.py``).

A session keeps, for each row, the head's keys and values of the latest committed positions. States of the target are
only there until its next pass, so they are put aside after each one; what the head makes of them is made when it is
asked to draft. Positions that were committed while the policy paused are missing: the others know where they stand.

A tree's candidates behind each other are weighed by the token-to-token map, and its chances by the head's confidence.
What earlier generations taught is not in the offers of a row that samples (``drafters/streams.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specstream.core.device.deferred import upload
from specstream.core.head_drafter import RANKS, HeadDrafter, HeadSession, Place
from specstream.core.ports import DraftRequest, HiddenStates, TargetSession, Verdict, hidden_states_of
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.core.tree_shapes import Candidates, RankAcceptance
from specstream.heads.block import BlockHead

PREFERRED, MOST = 4, 15
"""Drafted nodes of a tree where nobody says how many pay, and of the largest: passes of 5 and 16 tokens."""


class BlockDrafter(HeadDrafter):
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
        super().__init__(head, depth=head.gamma, nodes=nodes, most=most, ranks=ranks, rates=rates)

    def fixed_tree(self, nodes: int) -> BlockDrafter:
        return BlockDrafter(self.head, nodes=nodes, most=nodes, rates=self.rates)

    def tap(self, target: HiddenStates) -> None:
        target.tap(self.head.config.taps)

    def candidates(
        self,
        session: HeadSession,
        places: Sequence[Place],
        requests: Sequence[DraftRequest],
        rows: Sequence[int],
    ) -> list[Candidates]:
        assert isinstance(session, BlockSession)
        windows = session.windows(rows)
        last = torch.stack([window.last for window in windows])
        following = upload([request.tokens[-1] for request in requests], last.device)
        positions = upload([len(request.tokens) - 2 for request in requests], last.device)
        memory = [window.keys for window in windows], [window.values for window in windows]
        depth = min(max(request.depth for request in requests), self.depth)
        return self.head.candidates(last, positions, following, memory, self.ranks, depth)

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> BlockSession:
        states = hidden_states_of(session, self.name)
        self.tap(states)
        return BlockSession(self, states, self.acceptances(samplings))


@dataclass
class _Window:
    """The latest committed positions of a row.

    Attributes:
        keys: of those that the head has read, ``[n, layers, kv_heads, dim]``; empty before it has read any.
        values: likewise.
        last: what went into the last tap at the last committed node, ``[hidden]``; empty before there is one.
        states: of those that it has yet to read, ``[n, taps, hidden]`` for each pass.
        positions: of these, in one list.
        root: where the last token of the row stood in the last pass.
    """

    keys: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    last: Tensor = field(default_factory=lambda: torch.empty(0))
    states: list[Tensor] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    root: int = 0

    def wait(self, states: Tensor, most: int) -> None:
        """Put the states of a committed path aside, ``[n, taps, hidden]``."""
        self.states.append(states)
        self.positions += range(self.root, self.root + len(states))
        self.last = states[-1, -1]
        while len(self.positions) - len(self.states[0]) >= most:  # nobody asked for drafts for long
            del self.positions[: len(self.states.pop(0))]

    def read(self, keys: Tensor, values: Tensor, most: int) -> None:
        """Keep what the head made of the states that were waiting."""
        self.keys = torch.cat([self.keys, keys])[-most:] if len(self.keys) else keys[-most:]
        self.values = torch.cat([self.values, values])[-most:] if len(self.values) else values[-most:]
        self.states, self.positions = [], []


class BlockSession(HeadSession):
    """One batch at work, with a window for each row."""

    _drafter: BlockDrafter

    def __init__(self, drafter: BlockDrafter, target: HiddenStates, acceptances: list[RankAcceptance]) -> None:
        super().__init__(drafter, target, acceptances)
        self._windows = [_Window() for _ in acceptances]

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        for window, request in zip(self._windows, requests, strict=True):
            window.root = len(request.tokens) - 1
        return super().propose(requests)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """The states of all accepted nodes are put aside."""
        super().observe(verdicts)
        head = self._drafter.head
        for window, own in zip(self._windows, self.committed_states(verdicts, head.config.taps), strict=True):
            window.wait(own, head.config.window)

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self._windows = [self._windows[row] for row in rows]

    def join(self, other: HeadSession) -> None:
        assert isinstance(other, BlockSession)
        super().join(other)
        self._windows.extend(other._windows)

    def windows(self, rows: Sequence[int]) -> list[_Window]:
        """The windows of some rows; the head reads what waits there, of all rows in one product."""
        head, chosen = self._drafter.head, [self._windows[row] for row in rows]
        waiting = [window for window in chosen if window.states]
        if waiting:
            states = torch.cat([each for window in waiting for each in window.states])
            positions = upload([each for window in waiting for each in window.positions], states.device)
            sizes = [len(window.positions) for window in waiting]
            made = (torch.split(each, sizes) for each in head.memory(states, positions))
            for window, keys, values in zip(waiting, *made, strict=True):
                window.read(keys, values, head.config.window)
        return chosen
