"""Rows that join and leave a running batch say what they would say alone, whoever is beside them.

With tables every number is exact, so rows that sample with a seed are compared too; with tiny transformers models the
caches, masks and taps of all drafters are, in float32 and, to the bit, in bf16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor

from specstream.core.decode import Batch
from specstream.core.policy.controller import Controller
from specstream.core.policy.policy import Speculation
from specstream.core.rows import Row, start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.models.runtime.capabilities import RuntimeName
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.uncached import UncachedTarget
from tests.lossless.decoding import make_drafter
from tests.lossless.families import build, prompt
from tests.lossless.test_greedy import DRAFTERS, TARGET
from tests.lossless.test_greedy_matrix import NEW_TOKENS, PROMPTS, reference
from tests.lossless.test_greedy_matrix import target as hf_target

SAMPLINGS = (
    lambda: Sampling(),
    lambda: Sampling(temperature=0.8, top_k=4),
    lambda: Sampling(repetition_penalty=1.4),
    lambda: Sampling(temperature=1.0, processors=(NoRepeatNGramLogitsProcessor(3),)),
)


@dataclass(frozen=True)
class Arrival:
    """A request: it comes before round ``at`` and, if ``leaves`` is a number, its client goes before that round."""

    at: int
    prompt: tuple[int, ...]
    length: int
    sampling: int = 0
    seed: int = 0
    ends: frozenset[int] = frozenset()
    leaves: int | None = None


def batch_of(arrival: Arrival, target: Any, drafter: Any, speculation: Speculation) -> Batch:
    sampling = SAMPLINGS[arrival.sampling]()
    (row,) = start_rows(
        [arrival.prompt],
        [arrival.seed],
        target.context_length,
        sampling=sampling,
        stopping=Stopping(max_new_tokens=arrival.length, eos_token_ids=arrival.ends),
    )
    row.repeats = not sampling.greedy
    return Batch(
        target,
        drafter,
        [row],
        speculation=speculation,
        timings=Timings(),
    )


def serve(arrivals: Sequence[Arrival], begin: Callable[[Arrival], Batch]) -> list[Row]:
    """Everyone's row, in the order of ``arrivals``; those that left early are unfinished."""
    rows: dict[Arrival, Row] = {}
    batch: Batch | None = None
    waiting, now = list(arrivals), 0
    while waiting or (batch and batch.rows):
        for arrival in [each for each in waiting if each.at <= now]:
            waiting.remove(arrival)
            newcomer = begin(arrival)
            rows[arrival] = newcomer.rows[0]
            if batch and batch.rows:
                batch.join(newcomer)
            else:
                batch = newcomer
        if batch:
            gone = {id(rows[each]) for each in rows if each.leaves is not None and each.leaves <= now}
            batch.leave(lambda row, gone=gone: id(row) in gone)
            if batch.rows:
                batch.step()
        now += 1
    return [rows[arrival] for arrival in arrivals]


def alone(arrival: Arrival, begin: Callable[[Arrival], Batch]) -> Row:
    batch = begin(arrival)
    (row,) = batch.rows
    while batch.rows:
        batch.step()
    return row


arrivals = st.lists(
    st.builds(
        Arrival,
        at=st.integers(0, 12),
        prompt=st.lists(st.integers(0, 4), min_size=1, max_size=9).map(tuple),
        length=st.integers(1, 14),
        sampling=st.integers(0, len(SAMPLINGS) - 1),
        seed=st.integers(0, 2**32),
        ends=st.frozensets(st.integers(0, 4), max_size=1),
        leaves=st.none() | st.integers(1, 14),
    ),
    min_size=2,
    max_size=6,
    unique=True,
)


@pytest.mark.parametrize("adaptive", [False, True], ids=["as deep as allowed", "as deep as pays"])
@pytest.mark.parametrize("name", [name for name in DRAFTERS if name != "oracle"])
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(arrivals=arrivals)
def test_whoever_comes_and_goes(name: str, adaptive: bool, arrivals: list[Arrival]) -> None:
    def speculation() -> Speculation:
        return Speculation(max_depth=5, controller=Controller() if adaptive else None)

    shared = speculation()
    drafter = DRAFTERS[name]()
    together = serve(arrivals, lambda each: batch_of(each, TARGET, drafter, shared))
    for arrival, row in zip(arrivals, together, strict=True):
        expected = alone(arrival, lambda each: batch_of(each, TARGET, DRAFTERS[name](), speculation()))
        if row.finish_reason is None:
            assert arrival.leaves is not None
            assert row.emitted == expected.emitted[: len(row.emitted)]
        else:
            assert (row.emitted, row.finish_reason) == (expected.emitted, expected.finish_reason)


def schedule(prompts: Sequence[Sequence[int]]) -> list[Arrival]:
    """Someone is always there; one leaves in the middle, and the first row of the cache goes before the last comes."""
    first, second, third = map(tuple, prompts)
    return [
        Arrival(at=0, prompt=first, length=9),
        Arrival(at=2, prompt=second, length=NEW_TOKENS),
        Arrival(at=3, prompt=third, length=NEW_TOKENS, leaves=8),
        Arrival(at=4, prompt=third, length=NEW_TOKENS - 4),
        Arrival(at=11, prompt=first, length=20),
    ]


def check(target: Any, drafter: Any, expected: Sequence[Sequence[int]]) -> list[Row]:
    speculation = Speculation(max_depth=3)
    coming = schedule(PROMPTS)
    rows = serve(coming, lambda each: batch_of(each, target, drafter, speculation))
    for arrival, row in zip(coming, rows, strict=True):
        whole = expected[[tuple(each) for each in PROMPTS].index(arrival.prompt)]
        assert row.emitted == whole[: len(row.emitted)]
        assert len(row.emitted) == arrival.length or arrival.leaves is not None
    return rows


RUNTIMES: dict[RuntimeName, tuple[str, ...]] = {
    "auto": (
        *(
            "none",
            "lookup",
            "lookahead",
            "medusa",
            "streams-learned",
            "streams-pruned",
            "block-learned",
            "eagle3-learned",
            "dflash-learned",
        ),
        *("draft_model", "draft_model-tree", "draft_model-part", "mixed", "mixed-streams"),
    ),
    "eager": ("medusa", "streams-learned", "block-learned", "eagle3-learned", "draft_model-tree"),
    "static": ("none", "lookup-tree", "draft_model", "mixed-streams"),
}


@pytest.mark.parametrize(("runtime", "drafter"), [(each, name) for each, names in RUNTIMES.items() for name in names])
def test_tokens_equal_those_of_generate(runtime: RuntimeName, drafter: str) -> None:
    rows = check(hf_target("llama", runtime), make_drafter(drafter, "llama"), reference("llama"))
    assert drafter == "none" or sum(row.stats.drafted for row in rows)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom", "opt"])
def test_of_other_families_too(family: str) -> None:
    check(hf_target(family, "auto"), make_drafter("mixed", family), reference(family))


def test_without_a_cache_too() -> None:
    check(UncachedTarget(hf_target("llama", "eager")), make_drafter("streams-learned", "llama"), reference("llama"))


@pytest.mark.parametrize("drafter", ["none", "mixed", "streams-learned"])
def test_in_bf16_the_bits_are_those_of_a_lone_run(drafter: str) -> None:
    target = HuggingFaceTarget(build("llama", torch.bfloat16))
    rounds: dict[int, list[torch.Tensor]] = {}

    def begin(arrival: Arrival) -> Batch:
        batch = batch_of(
            arrival, target, make_drafter(drafter, "llama", dtype=torch.bfloat16), Speculation(max_depth=3)
        )
        (row,) = batch.rows
        rounds[id(row)] = []
        row.watch = lambda logits, tokens: rounds[id(row)].extend(logits.clone())
        return batch

    for arrival, row in _kept(begin):
        expected = alone(arrival, begin)
        if row.exact == expected.exact == "bits":
            assert row.emitted == expected.emitted[: len(row.emitted)]
            for ours, theirs in zip(rounds[id(row)], rounds[id(expected)], strict=False):
                assert torch.equal(ours, theirs)
        else:
            pytest.skip("no widths are bit-equal here")


def _kept(begin: Callable[[Arrival], Batch]) -> Iterator[tuple[Arrival, Row]]:
    coming = schedule(PROMPTS)
    yield from list(zip(coming, serve(coming, begin), strict=True))


def test_a_row_whose_numbers_are_none_harms_no_other() -> None:
    """In the same batch: one row's processor raises, one's watcher, one's logits are NaN for it alone."""

    def broken(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > 6:
            raise ValueError("broken")
        return scores

    def nan(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores * torch.nan if input_ids.shape[1] > 7 else scores

    def fails(logits: torch.Tensor, tokens: Sequence[int]) -> None:
        raise KeyError("nobody looks")

    drafter, speculation = DRAFTERS["mixed chain, near"](), Speculation(max_depth=4, controller=Controller())
    healthy = Arrival(at=0, prompt=(0, 1, 2), length=20)
    batch = batch_of(healthy, TARGET, drafter, speculation)
    (row,) = batch.rows
    bad = []
    for processors in ((broken,), (nan,), ()):
        rules = {"sampling": Sampling(processors=processors), "stopping": Stopping(max_new_tokens=20)}
        (own,) = start_rows([[3, 1, 2]], [0], None, **rules)
        own.watch = None if processors else fails
        bad.append(own)
        batch.join(Batch(TARGET, drafter, [own], speculation=speculation, timings=Timings()))
    while batch.rows:
        batch.step()
    assert row.emitted == TARGET.favourites([0, 1, 2], 20)
    assert [type(each.error).__name__ for each in bad] == ["ValueError", "NumericalError", "KeyError"]
    assert {each.finish_reason for each in bad} == {"error"}
    for each in bad:
        assert each.emitted == TARGET.favourites([3, 1, 2], len(each.emitted))


@pytest.mark.parametrize("runtime", ["auto", "eager", "static"])
def test_a_row_that_needs_a_larger_cache_comes_and_goes(runtime: RuntimeName) -> None:
    """The cache grows for a newcomer, for those who are there, and the draft's with it."""
    target, speculation = hf_target("llama", runtime), Speculation(max_depth=3)
    drafter = make_drafter("mixed", "llama")
    coming = [
        Arrival(at=0, prompt=tuple(prompt(9)), length=24),
        Arrival(at=2, prompt=tuple(prompt(530, seed=3)), length=6),
        Arrival(at=4, prompt=tuple(prompt(505, seed=4)), length=20),
        Arrival(at=6, prompt=tuple(prompt(9)), length=12),
    ]

    def begin(arrival: Arrival) -> Batch:
        return batch_of(arrival, target, drafter, speculation)

    for arrival, row in zip(coming, serve(coming, begin), strict=True):
        assert row.emitted == alone(arrival, begin).emitted
        assert len(row.emitted) == arrival.length
