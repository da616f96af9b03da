"""An EAGLE-3 head as a drafter (``heads/eagle.py``): its layer drafts the likeliest token, and on behind that.

A tree is that chain, with the other candidates of each depth as leaves beside it. The head sees the whole text: what
the target computed of a prompt is tapped while it is read, and what it computed of an answer after each pass. Positions
that were committed while the policy paused are missing: the others know where they stand.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specstream.core.device.deferred import upload
from specstream.core.head_drafter import RANKS, HeadDrafter, HeadSession, Place
from specstream.core.ports import DraftRequest, HiddenStates, TargetSession, Verdict, hidden_states_of
from specstream.core.sampling import Sampling
from specstream.core.tree import TokenTree
from specstream.core.tree_shapes import Candidates, RankAcceptance, Ranked
from specstream.heads.eagle import EagleHead, Memory

PREFERRED, MOST = 5, 15
"""Drafted nodes of a tree where nobody says how many pay, and of the largest."""


class EagleDrafter(HeadDrafter):
    """Drafts with an EAGLE-3 head.

    Args:
        head: trained for the target.
        nodes: drafted nodes of the tree that is preferred unseen.
        most: of the largest.
        ranks: candidates of each depth.

    Raises:
        UsageError: a tree without a node, a depth without a candidate.
    """

    name, parts = "eagle3", "steps of the EAGLE-3 head"
    head: EagleHead

    def __init__(self, head: EagleHead, *, nodes: int = PREFERRED, most: int = MOST, ranks: int = RANKS) -> None:
        super().__init__(head, depth=head.gamma, nodes=nodes, most=most, ranks=ranks, rates=None)

    def fixed_tree(self, nodes: int) -> EagleDrafter:
        return EagleDrafter(self.head, nodes=nodes, most=nodes)

    @property
    def reads(self) -> Collection[int]:
        return self.head.config.taps

    def unlearned(self) -> RankAcceptance:
        return RankAcceptance(RankAcceptance.unknown(self.depth, self.ranks).rates, spine=True)

    def tap(self, target: HiddenStates) -> None:
        target.tap(self.head.config.taps)

    @torch.inference_mode()
    def candidates(
        self,
        session: HeadSession,
        places: Sequence[Place],
        requests: Sequence[DraftRequest],
        rows: Sequence[int],
    ) -> list[Candidates]:
        assert isinstance(session, EagleSession)
        texts = session.caught_up(rows)
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

    def begin(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], session: TargetSession
    ) -> EagleSession:
        states = hidden_states_of(session, self.name)
        self.tap(states)
        begun = EagleSession(self, states, self.acceptances(samplings))
        for row, prompt in enumerate(prompts):
            begun.expect(row, states.prompt_states(row, self.head.config.taps), prompt)
        return begun


@dataclass(frozen=True)
class Spine(Candidates):
    """A chain of the likeliest, and others beside it: nothing was drafted behind those."""

    def behind(self, at: int, rank: int) -> Ranked:
        return super().behind(at, rank) if rank == 0 else ()


@dataclass
class _Text:
    """One row's.

    Attributes:
        memory: of the layer.
        output: of its last position, ``[width]``; empty before there is one.
        last: that position.
        states: at the taps, of positions that are yet to be read, ``[n, taps, hidden]`` each.
        tokens: behind them.
        positions: theirs.
        root: where the last token of the row stood in the last pass.
    """

    memory: Memory = field(default_factory=Memory)
    output: Tensor = field(default_factory=lambda: torch.empty(0))
    last: int = -1
    states: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    root: int = 0

    def take(self, most: int) -> tuple[Tensor, list[int], list[int]]:
        """The first positions of those that wait, at most so many."""
        states, tokens, positions = torch.cat(self.states), self.tokens, self.positions
        self.states = [states[most:]] if len(tokens) > most else []
        self.tokens, self.positions = tokens[most:], positions[most:]
        return states[:most], tokens[:most], positions[:most]


class EagleSession(HeadSession):
    """One batch at work, with the layer's keys and values for each row."""

    _drafter: EagleDrafter

    def __init__(self, drafter: EagleDrafter, target: HiddenStates, acceptances: list[RankAcceptance]) -> None:
        super().__init__(drafter, target, acceptances)
        self._texts = [_Text() for _ in acceptances]

    def expect(self, row: int, states: Tensor, prompt: Sequence[int]) -> None:
        """A prompt is to be read: states at its first positions; the token behind each is known."""
        text = self._texts[row]
        if len(states):
            text.states, text.tokens, text.positions = [states], list(prompt[1:]), list(range(len(states)))

    def read(self, most: int) -> bool:
        """Prompts, in passes of up to 512 tokens of one row."""
        waiting = [text for text in self._texts if text.states]
        if waiting:
            self._read([waiting[0]], min(most, 512))
        return any(text.states for text in waiting)

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        for text, request in zip(self._texts, requests, strict=True):
            text.root = len(request.tokens) - 1
        return super().propose(requests)

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """The states of all accepted nodes are put aside."""
        super().observe(verdicts)
        states = self.committed_states(verdicts, self._drafter.head.config.taps)
        for text, verdict, own in zip(self._texts, verdicts, states, strict=True):
            text.states.append(own[: len(verdict.tokens)])
            text.tokens += verdict.tokens[: len(own)]
            text.positions += range(text.root, text.root + len(own))

    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        self._texts = [self._texts[row] for row in rows]

    def join(self, other: HeadSession) -> None:
        assert isinstance(other, EagleSession)
        super().join(other)
        self._texts.extend(other._texts)

    def caught_up(self, rows: Sequence[int]) -> list[_Text]:
        """The texts of some rows, all that waits there read, of all rows in one product."""
        chosen = [self._texts[row] for row in rows]
        if waiting := [text for text in chosen if text.states]:
            self._read(waiting, max(len(text.tokens) for text in waiting))
        return chosen

    @torch.inference_mode()
    def _read(self, texts: Sequence[_Text], most: int) -> None:
        """Up to so many positions of each."""
        head, taken = self._drafter.head, [text.take(most) for text in texts]
        hidden = head.combined(torch.cat([states for states, _, _ in taken]))
        tokens, positions = (upload([each for own in taken for each in own[part]], hidden.device) for part in (1, 2))
        counts = [len(own) for _, own, _ in taken]
        output = head.step(hidden, tokens, positions, list(zip([text.memory for text in texts], counts, strict=True)))
        for text, own, (_, _, at) in zip(texts, torch.split(output, counts), taken, strict=True):
            text.output, text.last = own[-1], at[-1]
