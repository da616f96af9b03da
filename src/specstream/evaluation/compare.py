"""Contestants of one target beside each other: the same prompts, greedy, whose output is plain decoding's is counted.

One process, one target, one loop (``contestants.py``). Speeds are of decoding: all contestants read the prompt alike,
and it counts for none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import eq
from statistics import median
from typing import Any, TypeVar

import numpy as np

from specstream.config import GenerationConfig
from specstream.engine.contestants import PLAIN, Run, by_turn, in_turn
from specstream.engine.generation import Generation, Parts
from specstream.engine.inventory import prepare
from specstream.engine.text import asked, encode
from specstream.errors import reason_of
from specstream.evaluation.quality import Values
from specstream.evaluation.statistics import plain_estimate, speed_ratio

Prompt = TypeVar("Prompt")

POSITIONS = 4
"""Drafted tokens of a pass whose acceptance is told one by one."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to decode.

    Attributes:
        name: of it.
        parts: with which it generates; all contestants share one target.
        parameters: that it needs beyond the target's own.
    """

    name: str
    parts: Parts
    parameters: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One generation in a comparison.

    Attributes:
        contestant: whose.
        prompt: index; of a group of prompts, if several are decoded at once.
        round: from 0.
        run: what was generated, and how fast.
        equal: outputs of it whose tokens are plain decoding's.
    """

    contestant: str
    prompt: int
    round: int
    run: Run
    equal: int


@dataclass(kw_only=True)
class Comparison:
    """All samples.

    Attributes:
        contestants: one of them is ``PLAIN``.
        samples: of the prompts that every contestant answered.
        failures: why the others could not be answered, by prompt.
    """

    contestants: Sequence[Contestant]
    samples: list[Sample] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)

    def of(self, contestant: str, prompts: Collection[int] | None = None) -> list[Sample]:
        """The samples of a contestant, on some prompts or on all."""
        wanted = [each for each in self.samples if each.contestant == contestant]
        return [each for each in wanted if prompts is None or each.prompt in prompts]

    def figures(self, prompts: Collection[int] | None = None) -> list[dict[str, Any]]:
        """What the samples of every contestant say together, as JSON holds it; none if nothing was answered.

        ``side`` is its name; ``mean_accepted_length`` the tokens for each pass of the target, its own included, 1 for
        plain decoding; ``nodes`` the drafted tokens that a pass scored, after any pruning; ``acceptance`` the share of
        passes in which the first, second, ... drafted token was accepted, where a pass that drafted nothing accepted
        nothing; ``tokens_per_second`` of decoding; ``ratio`` that over plain decoding's, all prompts together, with its
        95 % interval by resampling prompts; ``middle_ratio`` the median of the samples' own; ``equal`` the outputs
        whose tokens are plain decoding's, of ``outputs``.
        """
        plain = self.of(PLAIN, prompts)
        return [_figures(each, self.of(each.name, prompts), plain) for each in self.contestants if plain]


def compare(
    contestants: Sequence[Contestant],
    prompts: Sequence[Prompt],
    answer: Callable[[Parts, Prompt], Run],
    *,
    tolerant: bool = False,
    on_prompt: Callable[[int], None] | None = None,
    on_turn: Callable[[int, Mapping[str, Run]], None] | None = None,
) -> Comparison:
    """Every contestant on every prompt; the first prompt warms up and is counted when it comes again.

    Args:
        contestants: one of them is ``PLAIN``.
        prompts: whatever ``answer`` takes.
        answer: generates from a prompt.
        tolerant: a prompt that fails is noted, and the others go on.
        on_prompt: called with the number of prompts done.
        on_turn: called with a prompt's index and what all contestants made of it.
    """
    comparison = Comparison(contestants=contestants)
    for each in contestants:
        prepare(each.parts, 1)
    ways = {each.name: partial(answer, each.parts) for each in contestants}
    for turn in by_turn(in_turn(ways, prompts, errors="keep" if tolerant else "raise")):
        try:
            runs = turn.values()
        except Exception as error:  # one prompt is not worth the others
            comparison.failures[turn.prompt] = reason_of(error)
        else:
            for name in ways:
                equal = sum(map(eq, runs[name].tokens, runs[PLAIN].tokens))
                made = Sample(contestant=name, prompt=turn.prompt, round=turn.round, run=runs[name], equal=equal)
                comparison.samples.append(made)
            if on_turn is not None:
                on_turn(turn.prompt, runs)
        if on_prompt is not None:
            on_prompt(turn.prompt + 1)
    return comparison


def answer_text(
    parts: Parts, text: str, config: GenerationConfig, chat: bool | None = None, later: Sequence[str] = ()
) -> Run:
    """Generate from a text, and from what is asked after the answer.

    Args:
        parts: with which.
        text: what is asked.
        config: how much and by which rule.
        chat: through the chat template; None if there is one.
        later: further turns, which need a chat template and are left out without one.
    """
    prompt = asked(parts.tokenizer, text, chat)
    made = [Generation(parts, [encode(parts.tokenizer, prompt)], config).run()]
    if not isinstance(prompt, str):
        turns = list(prompt)
        for turn in later:
            (row,) = made[-1].rows
            turns += [{"role": "assistant", "content": made[-1].text(row)}, {"role": "user", "content": turn}]
            made.append(Generation(parts, [encode(parts.tokenizer, turns)], config).run())
    return Run.of(*made)


def answer_texts(parts: Parts, texts: Sequence[str], config: GenerationConfig) -> Run:
    """Generate from several texts at once, through the chat template if there is one, and note every pass.

    Args:
        parts: with which.
        texts: one for each row.
        config: how much and by which rule.
    """
    prompts = [encode(parts.tokenizer, asked(parts.tokenizer, text)) for text in texts]
    return Run.watched(Generation(parts, prompts, config))


def speed(runs: Iterable[Run]) -> float:
    """Tokens per second of decoding, all of them together."""
    listed = list(runs)
    return sum(each.new_tokens for each in listed) / sum(each.decode for each in listed)


def _figures(contestant: Contestant, samples: Sequence[Sample], plain: Sequence[Sample]) -> dict[str, Any]:
    runs, base = [each.run for each in samples], [each.run for each in plain]
    passes = [count for run in runs for count in run.passes]
    speedup = speed_ratio(_amounts(samples), _amounts(plain))
    assert speedup is not None
    return {
        "side": contestant.name,
        "parameters": contestant.parameters,
        "mean_accepted_length": sum(passes) / len(passes),
        "nodes": sum(run.drafted for run in runs) / len(passes),
        "acceptance": [sum(count > at for count in passes) / len(passes) for at in range(1, POSITIONS + 1)],
        "tokens_per_second": speed(runs),
        "ratio": speedup.value,
        "ratio_interval": plain_estimate(speedup),
        "middle_ratio": median(speed([own]) / speed([other]) for own, other in zip(runs, base, strict=True)),
        "equal": sum(each.equal for each in samples),
        "outputs": sum(len(run.tokens) for run in runs),
    }


def _amounts(samples: Sequence[Sample]) -> Values:
    """Tokens and seconds of each prompt, over its rounds: ``[prompts, 2]``."""
    sums: dict[int, list[float]] = {}
    for each in samples:
        own = sums.setdefault(each.prompt, [0.0, 0.0])
        own[0] += each.run.new_tokens
        own[1] += each.run.decode
    return np.array(list(sums.values()), np.float64).reshape(-1, 2)
