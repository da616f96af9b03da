"""Turns of a chat that begin with cached keys and values say, token for token, what they say without."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch

from specstream.core.decode import Reading, decode
from specstream.core.policy.policy import Speculation
from specstream.core.prefix_cache import PrefixCache
from specstream.core.rows import Row, start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from specstream.models.target.hf import HuggingFaceTarget
from tests.lossless.decoding import DRAFTERS, QUANTIZED, make_drafter
from tests.lossless.families import build, prompt

LARGE, SMALL = 1 << 30, 20_000
"""Bytes: for everything here, and for some 20 tokens of one text."""

SAMPLED = Sampling(temperature=0.8, top_k=20)
SPECULATION = Speculation(max_depth=3, controller=None)


def started(prompts: Sequence[Sequence[int]], sampling: Sampling, length: int = 16) -> list[Row]:
    rows = start_rows(prompts, range(len(prompts)), None, sampling=sampling, stopping=Stopping(max_new_tokens=length))
    for row in rows:
        row.repeats = True
    return rows


def said(target: Any, drafter: Any, rows: list[Row], prefixes: PrefixCache | None) -> list[list[int]]:
    for _ in decode(target, drafter, rows, speculation=SPECULATION, timings=Timings(), prefixes=prefixes):
        pass
    return [row.emitted for row in rows]


@cache
def native(family: str = "llama", dtype: torch.dtype = torch.float32) -> HuggingFaceTarget:
    target = HuggingFaceTarget(build(family, dtype), runtime="native")
    target.prepare()
    return target


@pytest.mark.parametrize(("sampling", "most"), [(Sampling(), LARGE), (Sampling(), SMALL), (SAMPLED, LARGE)])
@pytest.mark.parametrize("name", [*DRAFTERS, *QUANTIZED])
def test_turns_of_a_chat_say_what_they_say_without_the_cache(name: str, sampling: Sampling, most: int) -> None:
    """Two chats side by side, one of which is told from the other by its first tokens alone; then one answer twice."""
    if name == "router" and not sampling.greedy:
        pytest.skip("it takes drafters by chance of its own, and how drafts are drawn depends on them")
    target, prefixes = native(), PrefixCache(most)
    history = [prompt(40), [*prompt(25), *prompt(150, seed=5)]]
    for turn in range(3):
        # Drafters learn, so that both sides have one of the same past.
        plain = said(target, make_drafter(name, "llama"), started(history, sampling), None)
        rows = started(history, sampling)
        assert said(target, make_drafter(name, "llama"), rows, prefixes) == plain
        assert prefixes.nbytes <= most
        if turn and most == LARGE:
            assert all(row.cached > len(own) - 30 for row, own in zip(rows, history, strict=True))
        history = [[*own, *answer, *prompt(9, seed=turn + 7)] for own, answer in zip(history, plain, strict=True)]
    again = [history[0], [*history[0]], prompt(12, seed=99)]
    rows = started(again, sampling)
    assert said(target, make_drafter(name, "llama"), rows, prefixes) == said(
        target, make_drafter(name, "llama"), started(again, sampling), None
    )
    assert [row.exact for row in rows] == ["bits"] * 3
    assert rows[2].cached < 5
    if most == LARGE:
        assert rows[1].cached == len(again[1]) - 2, "the neighbour has read it just now"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi", "gpt2", "opt"])
def test_every_family_reuses_its_own_bits_or_none(family: str, dtype: torch.dtype) -> None:
    target, prefixes = native(family, dtype), PrefixCache(LARGE)
    first = prompt(140)
    (answer,) = said(target, make_drafter("lookup", family), started([first], Sampling(), 30), prefixes)
    second = [*first, *answer, *prompt(20, seed=1)]
    rows = started([second], Sampling(), 30)
    expected = said(target, make_drafter("none", family), started([second], Sampling(), 30), None)
    assert said(target, make_drafter("lookup", family), rows, prefixes) == expected
    assert (rows[0].cached > 140) == target.invariant
    if target.invariant:
        reused, read = target.begin_reading([second]), target.begin([second])
        reused.reuse(prefixes)
        while reused.read(7):
            pass
        for key, part in read.cache.parts(0, 0, len(second)).items():
            assert torch.equal(reused.cache.parts(0, 0, len(second))[key], part)


@pytest.mark.parametrize("name", ["none", "lookup", "streams", "draft_model"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_come_and_go_beside_others_leave_what_is_right(name: str, seed: int) -> None:
    """Hits and misses in one batch, pieces of 5 tokens, rows that leave before their end, a bound that drops."""
    chance, target, prefixes = random.Random(seed), native(), PrefixCache(60_000)
    texts = [prompt(30, seed=each) for each in range(3)]
    settings: dict[str, Any] = {"speculation": SPECULATION, "timings": Timings()}
    drafter, batch, hits = make_drafter(name, "llama"), None, 0
    for at in range(14):
        text = chance.choice(texts)
        (row,) = started([text[: chance.randint(10, len(text))]], Sampling(), chance.randint(1, 20))
        reading = Reading(target, drafter, [row], prefixes=prefixes, **settings)
        while (newcomer := reading.step(5)) is None:
            pass
        hits += row.cached > 0
        if batch is not None and batch.rows:
            batch.join(newcomer)
        else:
            batch = newcomer
        for _ in range(chance.randint(0, 4)):
            if batch.rows:
                batch.step()
        if at % 3 == 2 and batch.rows:
            gone = chance.choice(batch.rows)
            batch.leave(lambda row, gone=gone: row is gone)
        plain = said(
            target, make_drafter("none", "llama"), started([row.tokens[: row.prompt_length]], Sampling(), 20), None
        )
        assert row.emitted == plain[0][: len(row.emitted)]
        texts.append([*row.tokens, *prompt(4, seed=at + 20)])
        assert prefixes.nbytes <= 60_000
    assert hits > 3


@pytest.mark.parametrize("change", ["counted", "uncounted", "adapter"])
def test_another_state_of_the_weights_reuses_nothing(change: str) -> None:
    model = build.__wrapped__("llama")  # which is changed here, and nobody else's
    target, prefixes, tokens = HuggingFaceTarget(model, runtime="native"), PrefixCache(LARGE), prompt(60)
    said(target, make_drafter("none", "llama"), started([tokens], Sampling()), prefixes)
    weight = model.model.layers[0].self_attn.v_proj.weight
    with torch.no_grad():
        if change == "counted":
            weight.mul_(1.5)
        elif change == "uncounted":
            weight.data.mul_(1.5)
        else:
            model.model.layers[0].self_attn.v_proj.weight = torch.nn.Parameter(weight * 1.5)
    rows = started([tokens], Sampling())
    assert said(target, make_drafter("none", "llama"), rows, prefixes) == said(
        HuggingFaceTarget(model, runtime="native"), make_drafter("none", "llama"), started([tokens], Sampling()), None
    )
    assert rows[0].cached == 0
    again = started([tokens], Sampling())
    said(target, make_drafter("none", "llama"), again, prefixes)
    assert again[0].cached == len(tokens) - 2, "and what is read then is kept"


@pytest.mark.parametrize("runtime", ["eager", "static", "packed"])
def test_runtimes_that_promise_no_bits_reuse_nothing(runtime: Any) -> None:
    target, prefixes = HuggingFaceTarget(build("llama"), runtime=runtime), PrefixCache(LARGE)
    for _ in range(2):
        rows = started([prompt(30)], Sampling())
        said(target, make_drafter("none", "llama"), rows, prefixes)
        assert rows[0].cached == prefixes.nbytes == 0


def test_two_models_never_share_keys() -> None:
    prefixes, tokens = PrefixCache(LARGE), prompt(50)
    first, second = native(), HuggingFaceTarget(build("llama", noise=0.05), runtime="native")
    for target in (first, second, first, second):
        expected = said(target, make_drafter("none", "llama"), started([tokens], Sampling()), None)
        assert said(target, make_drafter("none", "llama"), started([tokens], Sampling()), prefixes) == expected
