"""The audit of losslessness: would plain decoding have chosen every token that speculation emitted?

Each prompt is decoded speculatively, then its output is decoded again, one token a pass, by the same target in the
same runtime. The second decoding is fed the tokens of the first whatever it would have chosen itself, so every
position is judged and not only those before the first divergence.

Where both decodings claim plain decoding's bits, any divergence fails. Elsewhere passes of different widths round
differently, and a divergence fails if its logit gap is above the noise: how far passes of other widths, over the same
tokens, move the gap between two of a position's likeliest tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from specstream.config import GenerationConfig, SamplingSettings, generation_config
from specstream.core.ports import Target
from specstream.core.rows import Row
from specstream.core.sampling import Sampling, process
from specstream.core.tree import TokenTree
from specstream.engine.engine import SpeculativeEngine
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import prepare
from specstream.engine.prompt_forms import several_prompts
from specstream.engine.results import Totals
from specstream.engine.text import Prompt, encode
from specstream.engine.tokens import TokenTexts
from specstream.errors import NumericalError, UsageError, count_of, must_be, takes

CANDIDATES = 16
"""Likeliest tokens of a position whose scores are compared: a token that rounding can choose is among them."""

WIDTHS = (2, 4, 8)
"""Tokens a pass of the re-decodings that measure noise; the depth of the speculation adds one more."""

MOST_NOISE = 1.0
"""Noise, over the spread of the logits, up to which it is believed to be rounding (SmolLM2 in bfloat16: 0.2). Passes
that differ by more do not compute the same thing, and must not excuse a divergence."""

_CONTEXT = 8  # tokens shown before a divergence


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A token that plain decoding, given the same tokens before it, would not have chosen.

    Attributes:
        prompt: index of the prompt.
        position: index of the token in the output.
        emitted: id of the token that speculation emitted.
        emitted_text: the same as text.
        plain: id of the token that plain decoding would have chosen.
        plain_text: the same as text.
        before: the text of the tokens just before.
        gap: plain decoding's score of its own choice minus its score of the emitted token, at least 0.
        exact: ``bits`` if both decodings claimed to be bit-equal here, else ``rounding``.
    """

    prompt: int
    position: int
    emitted: int
    emitted_text: str
    plain: int
    plain_text: str
    before: str
    gap: float
    exact: str


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much passes of different widths differ over the same tokens, in units of the logits.

    Attributes:
        gap: the largest change of the gap between two of a position's ``CANDIDATES`` likeliest tokens.
        logit: the largest change of the score of one of them.
        false_bits: the same as ``logit``, between passes that both claim to be bit-equal; 0 if they are.
        spread: standard deviation of a position's scores over the vocabulary, averaged over the positions.
        widths: tokens a pass of the decodings that were compared with those of one token a pass.
        comparisons: positions compared, over all widths.
    """

    gap: float
    logit: float
    false_bits: float
    spread: float
    widths: tuple[int, ...]
    comparisons: int

    @property
    def plausible(self) -> bool:
        """Whether this can be rounding."""
        return self.gap <= MOST_NOISE * self.spread


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit found.

    Attributes:
        prompts: how many were decoded.
        tokens: tokens audited.
        bits_tokens: those of them that both decodings claimed to be bit-equal for.
        drafted: drafted tokens that verification judged.
        accepted: those of them that it accepted.
        divergences: every one, in the order of the prompts.
        noise: what gaps are measured against.
    """

    prompts: int
    tokens: int
    bits_tokens: int
    drafted: int
    accepted: int
    divergences: tuple[Divergence, ...]
    noise: Noise

    @property
    def exact(self) -> str:
        """``bits`` if that was claimed for every token, else ``rounding``."""
        return "bits" if self.bits_tokens == self.tokens else "rounding"

    @property
    def rule(self) -> str:
        """The rule that was applied, in words."""
        bits, rounding = "any divergence fails", "a divergence fails if its gap is above the noise"
        if self.exact == "bits":
            return f"every token was claimed bit-equal to plain decoding: {bits}"
        if self.bits_tokens == 0:
            return f"passes are equal up to rounding: {rounding}"
        return (
            f"{self.bits_tokens} of {self.tokens} tokens were claimed bit-equal to plain decoding: {bits} among them; "
            f"of the others, {rounding}"
        )

    @property
    def largest_gap(self) -> float:
        return max((divergence.gap for divergence in self.divergences), default=0.0)

    @property
    def failures(self) -> tuple[Divergence, ...]:
        """The divergences that are no rounding."""
        return tuple(each for each in self.divergences if self.fails(each))

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the audit failed, a sentence each; none if it passed."""
        problems = []
        if failures := len(self.failures):
            problems.append(f"{failures} of {self.tokens} tokens are not those of plain decoding")
        if self.noise.false_bits > 0:
            problems.append(f"passes that claim to be bit-equal differ by {self.noise.false_bits:.3g}")
        if not self.noise.plausible:
            problems.append(
                f"passes of different widths move logit gaps by {self.noise.gap:.3g}, which is more than rounding: the "
                f"logits of a position spread by {self.noise.spread:.3g}"
            )
        return tuple(problems)

    @property
    def passed(self) -> bool:
        return not self.problems

    def fails(self, divergence: Divergence) -> bool:
        """Whether this divergence breaks what was claimed."""
        return divergence.exact == "bits" or divergence.gap > self.noise.gap

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; None stands for an infinite gap or noise."""
        noise = {**asdict(self.noise), "plausible": self.noise.plausible, "candidates": CANDIDATES}
        return {
            **asdict(self),
            "passed": self.passed,
            "problems": list(self.problems),
            "rule": self.rule,
            "exact": self.exact,
            "failures": len(self.failures),
            "largest_gap": None if math.isinf(self.largest_gap) else self.largest_gap,
            "noise": _finite(noise),
            "divergences": [_finite({**asdict(each), "fails": self.fails(each)}) for each in self.divergences],
        }


def audit(
    engine: SpeculativeEngine,
    prompts: Sequence[Prompt],
    *,
    batch_size: int = 1,
    on_batch: Callable[[int], None] | None = None,
    **settings: Unpack[SamplingSettings],
) -> AuditReport:
    """Audit what an engine generates from these prompts, with its drafter and settings as they are.

    Args:
        engine: what to audit.
        prompts: texts or chats.
        batch_size: prompts decoded at once.
        on_batch: called with the number of prompts done.
        **settings: override the engine's; see ``GenerationConfig``. Logits processors are called again, on the same
            contexts in the same order, for every decoding of a text.

    Raises:
        UsageError: a temperature above 0, no prompt, or one that cannot be used.
        NumericalError: the model's logits are NaN or infinite.
    """
    must_be(isinstance(engine, SpeculativeEngine), "engine", engine, "a SpeculativeEngine")
    config, batch_size = generation_config(engine.config.generation, settings), count_of("batch_size", batch_size)
    must_be(on_batch is None or takes(on_batch, 1), "on_batch", on_batch, "a function of the number of prompts")
    tokens = [encode(engine.tokenizer, prompt) for prompt in several_prompts(prompts, "prompts")]
    prepare(engine.parts, min(batch_size, len(tokens)))
    return audit_tokens(engine.parts, tokens, config, batch_size=batch_size, on_batch=on_batch)


def audit_tokens(
    parts: Parts,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    batch_size: int = 1,
    on_batch: Callable[[int], None] | None = None,
) -> AuditReport:
    """The same from the parts of an engine and the token ids of each prompt."""
    if config.temperature > 0:
        raise UsageError(f"temperature is {config.temperature}; give 0: sampled tokens have no single right choice")
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; give 1 or more")
    if not prompts:
        raise UsageError("there is no prompt to audit; give at least one")
    found = _Findings(parts, parts.sampling(config))
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        found.judge(Generation(parts, batch, config).run())
        if on_batch is not None:
            on_batch(start + len(batch))
    return found.report()


@dataclass(frozen=True)
class _Choice:
    """What plain decoding sees at one position.

    Attributes:
        candidates: its likeliest tokens, ``[CANDIDATES]`` int64.
        scores: theirs, ``[CANDIDATES]`` float32.
        exact: what the pass claimed to be.
    """

    candidates: Tensor
    scores: Tensor
    exact: str


@dataclass
class _Findings:
    """The audit at work: what has been found in the batches judged so far."""

    parts: Parts
    sampling: Sampling
    totals: Totals = field(default_factory=Totals)
    divergences: list[Divergence] = field(default_factory=list)
    bits_tokens: int = 0
    gap: float = 0.0
    logit: float = 0.0
    false_bits: float = 0.0
    spreads: float = 0.0
    comparisons: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(sorted({*WIDTHS, self.parts.speculation.max_depth + 1}))

    def judge(self, generation: Generation) -> None:
        """Judge one decoded batch, the next of the prompts."""
        rows, first = generation.rows, self.totals.requests
        target, choices = self.parts.target, dict[tuple[int, int], _Choice]()
        for row, position, logits, exact in _redecode(target, rows, 1):
            scores = self._scores(row, position, logits)
            choices[row.index, position] = self._compare(row, position, scores, exact, first)
        for width in self.widths:
            for row, position, logits, exact in _redecode(target, rows, width):
                self._measure(choices[row.index, position], self._scores(row, position, logits), exact)
        self.totals.add(rows, generation.timings.total)

    def report(self) -> AuditReport:
        noise = Noise(
            gap=self.gap,
            logit=self.logit,
            false_bits=self.false_bits,
            spread=self.spreads / max(1, self.totals.new_tokens),
            widths=self.widths,
            comparisons=self.comparisons,
        )
        return AuditReport(
            prompts=self.totals.requests,
            tokens=self.totals.new_tokens,
            bits_tokens=self.bits_tokens,
            drafted=self.totals.drafted,
            accepted=self.totals.accepted,
            divergences=tuple(sorted(self.divergences, key=lambda each: (each.prompt, each.position))),
            noise=noise,
        )

    def _scores(self, row: Row, position: int, logits: Tensor) -> Tensor:
        """What the choice is the argmax of, ``[vocab]`` float32."""
        context = row.tokens[: row.prompt_length + position] if self.sampling.needs_context else ()
        return process(logits, self.sampling, context)

    def _compare(self, row: Row, position: int, scores: Tensor, exact: str, first: int) -> _Choice:
        best, plain = scores.max(-1)
        if not torch.isfinite(best):
            raise NumericalError(
                f"the largest logit at token {position} of prompt {first + row.index} is {best.item()}"
            )
        # A row's own claim is for all of its output; plain decoding's may end while it goes on.
        exact = "bits" if row.exact == exact == "bits" else "rounding"
        self.bits_tokens += exact == "bits"
        self.spreads += float(scores[torch.isfinite(scores)].std())
        emitted = row.emitted[position]
        if emitted != int(plain):
            texts, at = TokenTexts(self.parts.tokenizer), row.prompt_length + position
            divergence = Divergence(
                prompt=first + row.index,
                position=position,
                emitted=emitted,
                emitted_text=texts.say(emitted),
                plain=int(plain),
                plain_text=texts.say(int(plain)),
                before=self.parts.tokenizer.decode(row.tokens[max(0, at - _CONTEXT) : at]),
                gap=float(best - scores[emitted]),
                exact=exact,
            )
            self.divergences.append(divergence)
        top = scores.topk(min(CANDIDATES, len(scores)))
        return _Choice(top.indices, top.values, exact)

    def _measure(self, choice: _Choice, scores: Tensor, exact: str) -> None:
        wide = scores[choice.candidates]
        # Tokens that a processor has ruled out are minus infinity in both.
        changes = torch.where(wide == choice.scores, 0.0, wide - choice.scores).nan_to_num(nan=math.inf)
        largest = float(changes.abs().max())
        self.comparisons += 1
        self.logit = max(self.logit, largest)
        self.gap = max(self.gap, float(changes.max() - changes.min()) if math.isfinite(largest) else largest)
        if choice.exact == exact == "bits":
            self.false_bits = max(self.false_bits, largest)


def _redecode(target: Target, rows: Sequence[Row], width: int) -> Iterator[tuple[Row, int, Tensor, str]]:
    """Decode the rows' outputs again, ``width`` tokens a pass, in the batch they were decoded in.

    A width of 1 is plain decoding: the same passes as the loop's with empty trees, finished rows leaving alike.

    Yields:
        The row, the position in its output, the logits ``[vocab]`` that the token there is chosen from, and what the
        session claims its rows to be.
    """
    active = list(rows)
    session = target.begin([row.tokens[: row.prompt_length - 1] for row in active])
    start = 0
    while active:
        # The token at a position is chosen after the one before it; the first after the prompt's last.
        chunks = [row.tokens[row.prompt_length - 1 : -1][start : start + width] for row in active]
        logits = session.score([TokenTree.chain(chunk) for chunk in chunks])
        session.commit([range(len(chunk)) for chunk in chunks])
        for index, row in enumerate(active):
            for at in range(len(chunks[index])):
                yield row, start + at, logits[index, at], session.exact
        start += width
        alive = [index for index, row in enumerate(active) if len(row.emitted) > start]
        if 0 < len(alive) < len(active):
            session.keep(alive)
        active = [active[index] for index in alive]


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity."""
    return {key: None if isinstance(each, float) and math.isinf(each) else each for key, each in values.items()}
