"""Rotations that depend on how long the text is: a row gets those of its own text, whatever stands beside it."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from specstream.core.tree import TokenTree
from specstream.models.runtime.capabilities import RuntimeName
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.uncached import UncachedTarget
from tests.lossless.decoding import make_drafter, run
from tests.lossless.families import LONG, build, generated, prompt

NEW_TOKENS = 24
DRAFTERS = ("none", "lookup-tree", "draft_model-tree", "lookahead", "self:int8", "streams-learned", "mixed-tree")
RUNTIMES: dict[RuntimeName, tuple[str, ...]] = {
    "auto": DRAFTERS,
    "eager": ("none", "draft_model-tree", "streams-learned"),
    "packed": ("none",),
    "static": ("none", "lookup-tree"),
}


def prompts(family: str) -> list[list[int]]:
    """One that stays below the length, some that cross it, at once and later, and one that is beyond it."""
    limit = int(family.partition("-")[2])
    lengths = (12, limit - 12, limit - 1, limit, limit + 1, limit + 30)
    return [prompt(length, seed=length) for length in lengths]


@cache
def reference(family: str) -> list[list[int]]:
    """What ``generate`` of a fresh model gives for each prompt alone."""
    return [generated(build.__wrapped__(family), tokens, NEW_TOKENS) for tokens in prompts(family)]


@cache
def target(family: str, runtime: RuntimeName) -> HuggingFaceTarget:
    return HuggingFaceTarget(build(family), runtime=runtime)


@pytest.mark.parametrize(
    ("runtime", "drafter"), [(runtime, drafter) for runtime, drafters in RUNTIMES.items() for drafter in drafters]
)
@pytest.mark.parametrize("family", LONG)
def test_a_batch_is_its_texts_alone(family: str, runtime: RuntimeName, drafter: str) -> None:
    subject = target(family, runtime)
    rows = run(subject, make_drafter(drafter, family), prompts(family), NEW_TOKENS)
    assert [row.emitted for row in rows] == reference(family)
    assert subject.runtime.name == (runtime if runtime != "auto" else target("llama", runtime).runtime.name)
    crossing = prompts(family)[1:2]
    (alone,) = run(subject, make_drafter(drafter, family), crossing, NEW_TOKENS)
    assert alone.emitted == reference(family)[1]
    if drafter != "none":
        assert sum(row.stats.drafted for row in rows) > 0


@pytest.mark.parametrize("family", LONG)
def test_a_prompt_that_is_read_in_chunks_gets_the_rotations_of_all_of_it(family: str) -> None:
    subject = target(family, "auto")
    for tokens in prompts(family):
        expected = subject.begin([tokens[:-1]]).score([TokenTree.chain(tokens[-1:])])
        session = subject.begin_reading([tokens[:-1]])
        while session.read(10):
            pass
        got = session.score([TokenTree.chain(tokens[-1:])])
        torch.testing.assert_close(got[0, 0], expected[0, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", LONG)
def test_without_a_cache_every_pass_reads_the_text_as_it_is(family: str) -> None:
    uncached = UncachedTarget(target(family, "eager"))
    some = prompts(family)[:3]  # below the length, and across it later and at once
    rows = run(uncached, make_drafter("lookup-tree", family), some, NEW_TOKENS)
    for row, tokens in zip(rows, some, strict=True):
        assert row.emitted == generated(build.__wrapped__(family), tokens, NEW_TOKENS, use_cache=False)


@pytest.mark.parametrize("family", LONG)
def test_the_second_factors_make_a_difference(family: str) -> None:
    """With the first ones alone, texts would go on otherwise behind the length."""
    model = build.__wrapped__(family)
    model.config.rope_parameters["long_factor"] = model.config.rope_parameters["short_factor"]
    for tokens, expected in list(zip(prompts(family), reference(family), strict=True))[1:]:
        assert generated(model, tokens, NEW_TOKENS) != expected


@pytest.mark.parametrize("family", LONG)
def test_the_models_own_rotations_stay_as_they_were(family: str) -> None:
    model = build.__wrapped__(family)
    rotary = model.model.rotary_emb
    before = rotary.inv_freq.clone()
    session = HuggingFaceTarget(model, exact=False).begin_unpadded([prompt(150)])
    session.score([TokenTree.chain([3, 4])])
    assert torch.equal(rotary.inv_freq, before)
    assert "forward" not in rotary.__dict__


@pytest.mark.parametrize("family", LONG)
def test_a_long_text_of_the_users_is_no_change_of_the_model(family: str) -> None:
    model = build.__wrapped__(family)
    subject = HuggingFaceTarget(model, exact=False)
    session = subject.begin([prompt(20)])
    for length in (150, 10, 200):
        model(torch.tensor([prompt(length)]))
    subject.begin([prompt(30)])
    session.score([TokenTree.chain([3, 4])])
    assert subject.revision == 0
