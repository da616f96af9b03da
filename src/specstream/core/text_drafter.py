"""What drafters have in common whose heads read a whole text: tapped states at every committed position, once each.

What the target computed of a prompt is tapped while it is read, and what it computed of an answer after each pass.
States are only there until the next pass, so they are put aside after each one, and the head reads them when it is
asked to draft. Positions that were committed while the policy paused are missing: the others know where they stand.
A head that sees only the latest positions reads no others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from specstream.core.device.deferred import upload
from specstream.core.head_drafter import RANKS, HeadDrafter, HeadSession
from specstream.core.ports import DraftRequest, HiddenStates, TargetSession, TrainedHeads, Verdict, hidden_states_of
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.core.tree_shapes import RankAcceptance

CHUNK = 512
"""Positions of a prompt that a head reads at once."""


MOST = 15
"""Drafted nodes of the largest tree."""


class TextHead(TrainedHeads, Protocol):
    """A head that reads a whole text.

    Attributes:
        gamma: the deepest draft.
        taps: the target's layers whose inputs it reads.
    """

    @property
    def gamma(self) -> int: ...

    @property
    def taps(self) -> tuple[int, ...]: ...


class TextDrafter(HeadDrafter):
    """Drafts with a head that reads a whole text, to inherit from.

    Args:
        head: trained for the target.
        nodes: drafted nodes of the tree that is preferred unseen.
        most: of the largest.
        ranks: candidates of each depth.
        rates: how often the candidate of each rank is right at each depth, as far as known: ``rates[depth - 1][rank]``.

    Attributes:
        window: the latest positions that the head sees, None for all.

    Raises:
        UsageError: a tree without a node, a depth without a candidate.
    """

    head: TextHead
    window: int | None = None

    def __init__(
        self,
        head: TextHead,
        *,
        nodes: int,
        most: int = MOST,
        ranks: int = RANKS,
        rates: Sequence[Sequence[float]] | None = None,
    ) -> None:
        super().__init__(head, depth=head.gamma, nodes=nodes, most=most, ranks=ranks, rates=rates)
        self.taps = head.taps

    def fixed_tree(self, nodes: int) -> TextDrafter:
        return type(self)(self.head, nodes=nodes, most=nodes)

    @abstractmethod
    def fresh(self) -> Any:
        """What is kept of a row of which nothing was read."""

    @abstractmethod
    def read(self, kept: Sequence[Any], counts: Sequence[int], states: Tensor, tokens: Tensor, places: Tensor) -> None:
        """Read positions of several rows, one row behind the other.

        Args:
            kept: of each row, from ``fresh``; changed in place.
            counts: positions of each row.
            states: at the taps, ``[n, taps, hidden]``.
            tokens: behind the positions, ``[n]`` int64.
            places: the positions, ``[n]`` int64.
        """

    @property
    def reads(self) -> Collection[int]:
        return self.taps

    def tap(self, target: HiddenStates) -> None:
        target.tap(self.taps)

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> TextSession:
        states = hidden_states_of(session, self.name)
        self.tap(states)
        return TextSession(self, states, self.acceptances(samplings), prompts)


@dataclass
class Text:
    """One row's.

    Attributes:
        kept: what the drafter keeps of what was read.
        states: at the taps, of positions that are yet to be read, ``[n, taps, hidden]`` each.
        tokens: behind them.
        positions: theirs.
        root: where the last token of the row stood in the last pass.
    """

    kept: Any
    states: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    root: int = 0

    def wait(self, states: Tensor, tokens: Sequence[int], positions: Sequence[int], window: int | None) -> None:
        """Put positions aside, and forget those that the head will not see."""
        self.states.append(states)
        self.tokens += tokens
        self.positions += positions
        while window is not None and len(self.tokens) - len(self.states[0]) >= window:
            gone = len(self.states.pop(0))
            del self.tokens[:gone], self.positions[:gone]

    def take(self, most: int) -> tuple[Tensor, list[int], list[int]]:
        """The first positions of those that wait, at most so many."""
        states, tokens, positions = torch.cat(self.states), self.tokens, self.positions
        self.states = [states[most:]] if len(tokens) > most else []
        self.tokens, self.positions = tokens[most:], positions[most:]
        return states[:most], tokens[:most], positions[:most]


class TextSession(HeadSession):
    """One batch at work."""

    _drafter: TextDrafter

    def __init__(
        self,
        drafter: TextDrafter,
        target: HiddenStates,
        acceptances: list[RankAcceptance],
        prompts: Sequence[Sequence[int]],
    ) -> None:
        super().__init__(drafter, target, acceptances)
        self._texts = [Text(drafter.fresh()) for _ in prompts]
        for row, (text, prompt) in enumerate(zip(self._texts, prompts, strict=True)):
            if count := len(states := target.prompt_states(row, drafter.taps)):
                first = 0 if drafter.window is None else max(0, count - drafter.window)
                text.wait(states[first:], prompt[1 + first :], range(first, count), None)

    def read(self, most: int) -> bool:
        """Prompts, some positions of one row at a time."""
        waiting = [text for text in self._texts if text.states]
        if waiting:
            self._read(waiting[:1], min(most, CHUNK))
        return any(text.states for text in waiting)

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        for text, request in zip(self._texts, requests, strict=True):
            text.root = len(request.tokens) - 1
        return super().propose(requests)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """The states of all accepted nodes are put aside."""
        super().observe(verdicts)
        states = self.committed_states(verdicts, self._drafter.taps)
        for text, verdict, own in zip(self._texts, verdicts, states, strict=True):
            positions = range(text.root, text.root + len(own))
            text.wait(own[: len(verdict.tokens)], verdict.tokens[: len(own)], positions, self._drafter.window)

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self._texts = [self._texts[row] for row in rows]

    def join(self, other: HeadSession) -> None:
        assert isinstance(other, TextSession)
        super().join(other)
        self._texts.extend(other._texts)

    def caught_up(self, rows: Sequence[int]) -> list[Any]:
        """What is kept of some rows, all that waits there read, of all rows in one product."""
        chosen = [self._texts[row] for row in rows]
        if waiting := [text for text in chosen if text.states]:
            self._read(waiting, max(len(text.tokens) for text in waiting))
        return [text.kept for text in chosen]

    @torch.inference_mode()
    def _read(self, texts: Sequence[Text], most: int) -> None:
        """Up to so many positions of each."""
        taken = [text.take(most) for text in texts]
        states = torch.cat([own for own, _, _ in taken])
        tokens, places = (upload([each for own in taken for each in own[part]], states.device) for part in (1, 2))
        self._drafter.read([text.kept for text in texts], [len(own) for own, _, _ in taken], states, tokens, places)
