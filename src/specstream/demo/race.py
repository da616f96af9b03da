"""Plain and speculative decoding of one prompt, side by side in one process.

They take turns, pass by pass: whose own clock is behind has the next. So each runs as it would alone, on all cores, and
a page sees them move as if they ran at the same time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from specstream.core.rows import Round, Row
from specstream.engine.contestants import PLAIN, interleaved
from specstream.engine.generation import Generation
from specstream.engine.text import TextStream
from specstream.engine.tokens import TokenTexts


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The text that one token completed.

    Attributes:
        text: empty where a character is not complete yet.
        drafter: who proposed the token; None for the model's own.
        round: the pass that emitted it, from 1.
    """

    text: str
    drafter: str | None
    round: int


@dataclass(frozen=True, kw_only=True)
class ShownRound:
    """One pass over a tree, as it is drawn.

    Attributes:
        number: from 1.
        drafter: who drafted the tree; None if nobody did.
        labels: of every node's token, the root's first.
        parents: of every node; the root's is -1.
        accepted: nodes that were accepted and emitted, from the top; without the root.
        own: of the model's own token; None where the output ends before it.
    """

    number: int
    drafter: str | None
    labels: tuple[str, ...]
    parents: tuple[int, ...]
    accepted: tuple[int, ...]
    own: str | None

    @property
    def drafted(self) -> int:
        """Drafted nodes."""
        return len(self.parents) - 1


class Side:
    """One of the two on its way: a batch of one row."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.pieces: list[Piece] = []
        self.rounds: list[ShownRound] = []
        self._texts = TokenTexts(generation.parts.tokenizer)
        self._stream = TextStream(generation.parts.tokenizer)

    @property
    def row(self) -> Row:
        return self.generation.rows[0]

    @property
    def finished(self) -> bool:
        return self.row.finish_reason is not None

    @property
    def seconds(self) -> float:
        """Of its own, the prompt's included."""
        return self.generation.timings.total

    @property
    def speed(self) -> float:
        """Tokens per second so far, the prompt not counted; 0 before the first."""
        return self.generation.speed if self.row.emitted else 0.0

    def steps(self) -> Iterator[None]:
        """One pass a step; the first reads the prompt too.

        Raises:
            NumericalError: the model's logits are NaN or infinite.
        """
        for (passed,) in self.generation.rounds():
            shown = self._shown(passed)
            self.rounds.append(shown)
            for at, token in enumerate(passed.tokens):
                drafter = (passed.drafter or "drafted") if at < len(shown.accepted) else None
                self.pieces.append(Piece(text=self._stream.push([token]), drafter=drafter, round=shown.number))
            if self.finished and self.pieces and (rest := self._stream.finish(self.generation.text(self.row))):
                self.pieces.append(Piece(text=rest, drafter=self.pieces[-1].drafter, round=shown.number))
            yield

    def _shown(self, passed: Round) -> ShownRound:
        accepted = passed.path[1 : len(passed.tokens) + 1]
        own = passed.tokens[len(accepted) :]
        return ShownRound(
            number=len(self.rounds) + 1,
            drafter=passed.drafter,
            labels=tuple(map(self._texts.say, passed.tree.tokens)),
            parents=passed.tree.parents,
            accepted=accepted,
            own=self._texts.say(own[0]) if own else None,
        )


class Race:
    """Both sides: a batch of one row without drafts, and the same prompt and settings with a drafter."""

    def __init__(self, plain: Generation, speculative: Generation) -> None:
        self.plain, self.speculative = Side(plain), Side(speculative)

    @property
    def finished(self) -> bool:
        return self.plain.finished and self.speculative.finished

    @property
    def greedy(self) -> bool:
        return self.speculative.generation.config.temperature == 0

    @property
    def speedup(self) -> float | None:
        """Tokens per second of one over the other's so far; None before both have some."""
        return self.speculative.speed / self.plain.speed if self.plain.speed and self.speculative.speed else None

    @property
    def agreed(self) -> int:
        """How many tokens are the same, from the first on."""
        pairs = zip(self.plain.row.emitted, self.speculative.row.emitted, strict=False)
        return next((at for at, (one, other) in enumerate(pairs) if one != other), self.compared)

    @property
    def equal(self) -> bool:
        """Whether both outputs are the same, token for token, as far as they have come."""
        return self.plain.row.emitted == self.speculative.row.emitted

    @property
    def compared(self) -> int:
        """How many tokens both have."""
        return min(len(self.plain.row.emitted), len(self.speculative.row.emitted))

    def run(self, every: float) -> Iterator[Race]:
        """Go on to the end, yielding this race at most once in so many seconds, and at the end."""
        sides, shown = {PLAIN: self.plain, "speculative": self.speculative}, time.monotonic()
        for _ in interleaved({name: side.steps() for name, side in sides.items()}, lambda name: sides[name].seconds):
            if time.monotonic() - shown >= every and not self.finished:
                yield self
                shown = time.monotonic()
        yield self
