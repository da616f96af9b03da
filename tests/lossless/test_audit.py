"""The audit agrees with the proofs here: what every drafter makes of several families passes it, in batches too."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from specstream.config import GenerationConfig
from specstream.core.policy.policy import Speculation
from specstream.engine.generation import Parts
from specstream.evaluation.audit import audit_tokens
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.uncached import UncachedTarget
from tests.lossless.cases import half
from tests.lossless.decoding import DRAFTERS, GAMMA, make_drafter
from tests.lossless.families import build, prompt
from tests.unit.evaluation.test_audit import Letters

PROMPTS = (prompt(12), prompt(30, seed=1), prompt(7, seed=2))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@cache
def target_of(family: str, dtype: str, exact: bool) -> HuggingFaceTarget:
    return HuggingFaceTarget(build(family, DTYPES[dtype]), exact=exact)


def parts_of(target: object, drafter: str, family: str) -> Parts:
    return Parts(
        target=target,
        drafter=make_drafter(drafter, family),
        tokenizer=Letters(),
        eos_token_ids=frozenset(),
        speculation=Speculation(max_depth=GAMMA),
    )


@pytest.mark.parametrize(
    ("drafter", "exact", "family", "dtype"),
    half(DRAFTERS, ("bits", "rounding"), ("llama", "bloom"), DTYPES),
)
def test_every_drafter_passes(drafter, exact, family, dtype):
    parts = parts_of(target_of(family, dtype, exact == "bits"), drafter, family)
    report = audit_tokens(parts, PROMPTS, GenerationConfig(max_new_tokens=12), batch_size=2)
    assert report.passed, report.problems
    assert report.tokens == 36
    assert (report.drafted == 0) == (drafter == "none")
    assert dtype == "bfloat16" or report.divergences == ()


def test_passes_without_a_cache_are_audited_too():
    target = target_of("llama", "float32", False)
    parts = parts_of(UncachedTarget(target), "lookup", "llama")
    report = audit_tokens(parts, PROMPTS[:1], GenerationConfig(max_new_tokens=10))
    assert report.passed, report.problems
    assert report.exact == "rounding"
