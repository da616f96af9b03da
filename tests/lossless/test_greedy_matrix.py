"""Greedy decoding equals transformers' own, token for token: drafter x family x batch x tree x runtime, float32."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from specstream.core.ports import Drafter
from specstream.core.stats import RowStats
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.none import NoDrafter
from specstream.models.hub.gguf import load_gguf
from specstream.models.hub.load import load_model
from specstream.models.runtime import native
from specstream.models.runtime.capabilities import Quantization, RuntimeName
from specstream.models.target.hf import HuggingFaceTarget
from tests.gguf_files import write_gguf
from tests.lossless.cases import half
from tests.lossless.decoding import DRAFTERS, GAMMA, PROMPTS, QUANTIZED, lessons, make_drafter, run
from tests.lossless.families import FAMILIES, WINDOW, build, generated
from tests.quantized_files import WAYS, write_quantized

NEW_TOKENS, ALONE = 36, 12
"""Of each row of a batch, and of one that stands alone."""
RUNTIMES: dict[RuntimeName, tuple[str, ...]] = {
    "auto": tuple(QUANTIZED),  # "native" where there is a compiler, else "packed"
    "packed": ("none", "draft_model-tree"),
    "static": (
        "none",
        "lookup-tree",
        "draft_model",
        "mixed-streams",
    ),  # on CUDA "auto" is "graphs": these passes, captured
}
QUANTISED_WITH = (
    *("lookup-tree", "lookahead", "medusa", "streams-learned", "block-learned", "eagle3-learned", "draft_model-tree"),
    "mixed-streams",
    "router",
    "self:int8",
)
"""What drafts for targets in fewer bits. They are models of their own, so only without drafts there is a reference."""


@cache
def reference(family: str) -> list[list[int]]:
    """What ``generate`` gives for each prompt alone."""
    texts = zip(PROMPTS, lessons(build(family)), strict=True)
    return [text[0, len(tokens) :][:NEW_TOKENS].tolist() for tokens, text in texts]


@cache
def target(family: str, runtime: RuntimeName) -> HuggingFaceTarget:
    return HuggingFaceTarget(build(family), runtime=runtime)


@pytest.mark.parametrize(
    ("family", "runtime", "drafter"),
    # Each drafter with each family, in one runtime after the other: a runtime sees trees, not who made them.
    [
        *half(FAMILIES, ("eager", "auto"), DRAFTERS),
        *((family, runtime, drafter) for family in FAMILIES for runtime in RUNTIMES for drafter in RUNTIMES[runtime]),
    ],
)
def test_tokens_equal_those_of_generate(family: str, runtime: RuntimeName, drafter: str) -> None:
    if drafter == "self:int4" and not native.available():
        pytest.skip("drafts of four bits need a C++ compiler")
    expected = reference(family)
    batch = run(target(family, runtime), make_drafter(drafter, family), PROMPTS, NEW_TOKENS)
    assert [row.emitted for row in batch] == expected
    (alone,) = run(target(family, runtime), make_drafter(drafter, family), PROMPTS[:1], ALONE)
    assert alone.emitted == expected[0][:ALONE]
    stats = [row.stats for row in (*batch, alone)]
    if drafter == "none":
        assert _drafted(stats) == (0, 0)
    if drafter.startswith(("draft_model", "mixed")) and drafter != "mixed-streams":
        assert min(_drafted(stats)) > 0, "a test in which nothing is accepted, or nothing rejected, shows little"


@cache
def quantised(family: str, bits: Quantization) -> tuple[HuggingFaceTarget, list[list[int]]]:
    """A target in fewer bits, and what it says of each prompt alone without drafts."""
    own = HuggingFaceTarget(build(family), quantization=bits, head="int8")
    return own, [run(own, make_drafter("none", family), [tokens], NEW_TOKENS)[0].emitted for tokens in PROMPTS]


@pytest.mark.parametrize(("family", "bits", "drafter"), half(FAMILIES, ("int8", "int4"), QUANTISED_WITH))
def test_a_quantised_target_says_what_it_says_without_drafts(family: str, bits: Quantization, drafter: str) -> None:
    if bits == "int4" and not native.available():
        pytest.skip("weights of four bits need a C++ compiler")
    own, expected = quantised(family, bits)
    batch = run(own, make_drafter(drafter, family), PROMPTS, NEW_TOKENS)
    assert [row.emitted for row in batch] == expected
    assert min(_drafted([row.stats for row in batch])) > 0 or drafter != "draft_model-tree"


SCALED: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 4.0},
    "yarn": {"type": "yarn", "factor": 4.0, "original_context_length": 32},
}
"""How rotations are scaled, as files say it."""


@cache
def in_blocks(stored: str, noise: float = 0.0) -> Any:
    """A GGUF file of an architecture, or a checkpoint that is quantised in some way; ``noise`` makes a draft of it."""
    with tempfile.TemporaryDirectory() as folder:
        if stored in WAYS:
            write_quantized(Path(folder) / "model", build("llama", noise=noise), WAYS[stored])
            return load_model(f"{folder}/model", dtype="float32")[0]
        architecture, _, way = stored.partition("-")
        fields = {f"{architecture}.rope.scaling.{key}": value for key, value in SCALED.get(way, {}).items()}
        file = Path(folder) / "model.gguf"
        write_gguf(file, architecture, kind=in_several_kinds, seed=4, noise=noise, fields=fields)
        return load_gguf(file, torch.float32)[0]


@cache
def target_in_blocks(stored: str, runtime: RuntimeName) -> tuple[HuggingFaceTarget, list[list[int]]]:
    """A target, and what it says of each prompt alone without drafts."""
    own = HuggingFaceTarget(in_blocks(stored), runtime=runtime)
    if runtime == "eager":
        return own, [generated(own.model, tokens, NEW_TOKENS, eos_token_id=None) for tokens in PROMPTS]
    # Kernels of its own are a model of their own.
    return own, [run(own, NoDrafter(), [tokens], NEW_TOKENS)[0].emitted for tokens in PROMPTS]


@cache
def draft_in_blocks(stored: str, bits: Quantization = "none") -> HuggingFaceTarget:
    return HuggingFaceTarget(in_blocks(stored, 0.05), exact=False, quantization=bits)


def in_several_kinds(name: str) -> str:
    return {"token_embd": "Q8_0", "ffn_down": "Q5_1"}.get(name.split(".")[-2], "Q4_1")


@pytest.mark.parametrize("drafter", ["none", "lookup-tree", "draft_model-tree", "draft_model-int4"])
@pytest.mark.parametrize("runtime", ["eager", "auto"])
@pytest.mark.parametrize(
    "stored", ["llama", "llama-linear", "qwen2-yarn", "awq-32", "gptq-v1", "gptq-8", "ct-32", "ct-bytes"]
)
def test_weights_in_blocks_say_what_they_say_without_drafts(stored: str, runtime: RuntimeName, drafter: str) -> None:
    own, expected = target_in_blocks(stored, runtime)
    assert len({token for output in expected for token in output}) >= 8
    drafts: dict[str, Callable[[], Drafter]] = {
        "none": NoDrafter,
        "lookup-tree": lambda: LookupDrafter(min_ngram=1, branches=3),
        "draft_model-tree": lambda: DraftModelDrafter(draft_in_blocks(stored), gamma=GAMMA, branches=2),
        "draft_model-int4": lambda: DraftModelDrafter(draft_in_blocks(stored, "int4"), gamma=GAMMA),
    }
    if drafter == "draft_model-int4" and not native.available():
        pytest.skip("drafts of four bits need a C++ compiler")
    batch = run(own, drafts[drafter](), PROMPTS, NEW_TOKENS)
    assert [row.emitted for row in batch] == expected
    (alone,) = run(own, drafts[drafter](), PROMPTS[:1], ALONE)
    assert alone.emitted == expected[0][:ALONE]
    assert min(_drafted([row.stats for row in (*batch, alone)])) > 0 or drafter == "none"


@pytest.mark.parametrize(
    "drafter",
    [
        "lookup",
        "lookup-memory",
        "lookahead",
        "recycling",
        "medusa",
        "streams-learned",
        "block-learned",
        "eagle3-learned",
        "dflash-learned",
        "mixed-streams",
        "router",
    ],
)
def test_others_accept_and_reject_too(drafter: str) -> None:
    stats: list[RowStats] = []
    for family in FAMILIES:
        stats += [
            row.stats for row in run(target(family, "packed"), make_drafter(drafter, family), PROMPTS, NEW_TOKENS)
        ]
        if min(_drafted(stats)) > 0:
            return
    pytest.fail("of all families nothing was accepted, or nothing rejected")


def test_runners_up_are_accepted_and_rejected_too() -> None:
    drafters = [make_drafter("draft_model-priced", family) for family in FAMILIES]
    for family, drafter in zip(FAMILIES, drafters, strict=True):
        run(target(family, "packed"), drafter, PROMPTS, NEW_TOKENS)
    assert min(drafter.beside for drafter in drafters) > 0
    assert 0 < sum(drafter.taken for drafter in drafters) < sum(drafter.beside for drafter in drafters)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_are_worth_decoding(family: str) -> None:
    """Outputs that vary, longer than the windows: a wrong mask or position cannot hide."""
    assert all(len(tokens) + NEW_TOKENS > 5 * WINDOW for tokens in PROMPTS)
    assert len({token for output in reference(family) for token in output}) >= 8


def _drafted(stats: list[RowStats]) -> tuple[int, int]:
    """How many drafted tokens were accepted, and how many were not."""
    accepted = sum(row.accepted for row in stats)
    return accepted, sum(row.drafted for row in stats) - accepted
