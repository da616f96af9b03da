"""Lossless to the bit: where a session says "bits", every committed row has plain decoding's logits, bit for bit.

Which families, dtypes and batches get that far depends on the machine, so nothing here expects it of most; but what is
claimed must hold. The summary at the end of the run lists what was not claimed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specstream.core.ports import Drafter
from specstream.core.tree import TokenTree
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.none import NoDrafter
from specstream.models.hub.gguf import load_gguf
from specstream.models.hub.load import load_model
from specstream.models.invariance.widths import Exactness
from specstream.models.runtime import native
from specstream.models.runtime.capabilities import Quantization, RuntimeName, capabilities
from specstream.models.target.hf import HuggingFaceTarget
from specstream.models.target.session import PREFILL_CHUNK
from tests.gguf_files import write_gguf
from tests.lossless.cases import half
from tests.lossless.decoding import GAMMA, Recorded, make_drafter, run
from tests.lossless.families import FAMILIES, build, prompt
from tests.quantized_files import WAYS, write_quantized

NEW_TOKENS = 20
PROMPTS = (prompt(500), prompt(30, seed=1), prompt(505, seed=2))
"""Two of them outgrow a cache of 512 slots, at different times."""

BATCHES = {"3 rows": (0, 3), "1 row, growing": (0, 1), "1 row": (1, 2)}
RUNTIMES: tuple[RuntimeName, ...] = ("auto", "eager")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DRAFTERS = (
    "none",
    "lookup",
    "lookahead",
    "medusa",
    "streams",
    "streams-pruned",
    "block",
    "eagle3",
    "draft_model",
    "draft_model-tree",
    "mixed",
    "self:int8",
)
BRANCHING = ("lookahead", "medusa", "streams", "streams-pruned", "block", "eagle3", "draft_model-tree")


class Plain:
    """Plain decoding of each prompt alone: tokens, and the logits after every one of them."""

    def __init__(self, target: HuggingFaceTarget, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        self.tokens: list[list[int]] = []
        self.logits: list[Tensor] = []
        self.exact: list[str] = []
        for tokens in prompts:
            recorded = Recorded(target)
            (row,) = run(recorded, NoDrafter(), [tokens], new_tokens)
            self.tokens.append(row.emitted)
            self.logits.append(torch.stack(recorded.logits[0]))
            self.exact.append(row.exact)


def differences(plain: Plain, rows: Sequence[Any], logits: Sequence[Sequence[Tensor]], first: int = 0) -> list[str]:
    """What differs from plain decoding, in words; ``first`` is the prompt that row 0 belongs to."""
    found = []
    for index, (row, recorded) in enumerate(zip(rows, logits, strict=True), first):
        if row.emitted != plain.tokens[index]:
            found.append(f"prompt {index}: tokens")
        # A drafted token that was accepted beyond the last one wanted was scored too; plain decoding stopped there.
        got = torch.stack(list(recorded))[: len(plain.logits[index])]
        wrong = (got != plain.logits[index][: len(got)]).any(-1).nonzero()[:, 0].tolist()
        if wrong:
            found.append(f"prompt {index}: logits of rows {wrong}")
    return found


@cache
def target_of(family: str, dtype: str, runtime: RuntimeName) -> HuggingFaceTarget:
    """Its self-tests run once."""
    return HuggingFaceTarget(build(family, DTYPES[dtype]), runtime=runtime)


@lru_cache(maxsize=2)
def plain_of(family: str, dtype: str, runtime: RuntimeName) -> Plain:
    return Plain(target_of(family, dtype, runtime), PROMPTS, NEW_TOKENS)


@pytest.mark.parametrize(
    ("family", "dtype", "runtime", "drafter"),
    # Bits are those of passes, of which a drafter makes only the widths and the trees.
    half(FAMILIES, DTYPES, RUNTIMES, DRAFTERS),
)
def test_what_is_called_bits_is_equal_to_the_bit(
    family: str, dtype: str, runtime: RuntimeName, drafter: str, record_property: Callable[[str, object], None]
) -> None:
    target, plain = target_of(family, dtype, runtime), plain_of(family, dtype, runtime)
    if drafter in BRANCHING and not target.runtime.exact_branches:
        pytest.skip("this runtime is exact along the first path of a tree only, which is another test")
    for name, (first, last) in BATCHES.items():
        recorded = Recorded(target)
        rows = run(recorded, make_drafter(drafter, family, dtype=DTYPES[dtype]), PROMPTS[first:last], NEW_TOKENS)
        claimed = [index for index, row in enumerate(rows) if row.exact == "bits"]
        for index in claimed:
            assert plain.exact[first + index] == "bits"
            logits = recorded.logits[index : index + 1]
            assert differences(plain, rows[index : index + 1], logits, first + index) == []
        if len(claimed) < len(rows):
            record_property("rounding", f"{family} {dtype} {target.runtime.name} {drafter}, {name}")
        if family == "llama" and len(rows) == 1 and target.exactness is not None and target.exactness.base is not None:
            assert claimed == [0]


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
def test_a_quantised_target_keeps_its_own_bits(family: str, bits: Quantization) -> None:
    target = HuggingFaceTarget(build(family, torch.bfloat16), quantization=bits, head="int8")
    plain = Plain(target, PROMPTS, NEW_TOKENS)
    for drafter in ("lookup", "draft_model", "draft_model-tree", "streams", "self:int4"):
        for first, last in BATCHES.values():
            recorded = Recorded(target)
            rows = run(recorded, make_drafter(drafter, family, dtype=torch.bfloat16), PROMPTS[first:last], NEW_TOKENS)
            assert [row.exact for row in rows] == ["bits"] * len(rows)
            assert differences(plain, rows, recorded.logits, first) == []


SMALL = {"token_embd": "Q8_0", "ffn_down": "Q5_1", "attn_v": "Q5_0", "attn_output": "IQ4_NL", "ffn_up": "Q4_0"}
"""A format for each kind of tensor, the rest in Q4_1: of blocks of 32."""

SUPER = {"token_embd": "Q6_K", "ffn_down": "Q5_K", "attn_v": "Q3_K", "attn_output": "Q2_K", "ffn_up": "Q8_0"}
"""The same of blocks of 256, the rest in Q4_K, and one of the others among them."""


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("super_blocks", [False, True], ids=["blocks of 32", "of 256"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma2"])
def test_a_gguf_file_keeps_its_own_bits(architecture: str, super_blocks: bool, tmp_path: Path) -> None:
    kinds, rest = (SUPER, "Q4_K") if super_blocks else (SMALL, "Q4_1")
    sizes = {"hidden": 256, "inner": 512, "head": 64} if super_blocks else {}

    def load(noise: float) -> Any:
        kind = lambda name: kinds.get(name.split(".")[-2], rest)  # noqa: E731
        file = write_gguf(tmp_path / f"{noise}.gguf", architecture, kind=kind, seed=4, noise=noise, **sizes)
        return load_gguf(file, torch.bfloat16)[0]

    blocks_keep_their_bits(load, "native-gguf")


@pytest.mark.skipif(not native.available(), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("way", ["awq-32", "gptq-v1", "gptq-8", "ct-32", "ct-bytes"])
def test_a_quantised_checkpoint_keeps_its_own_bits(way: str, tmp_path: Path) -> None:
    def load(noise: float) -> Any:
        write_quantized(tmp_path / f"{noise}", build("llama", noise=noise), WAYS[way])
        return load_model(str(tmp_path / f"{noise}"), dtype="bfloat16")[0]

    blocks_keep_their_bits(load, f"native-{WAYS[way].method}")


def blocks_keep_their_bits(load: Callable[[float], Any], runtime: str) -> None:
    """Of a model in blocks, which ``load`` makes with so much noise."""
    target = HuggingFaceTarget(load(0))
    assert target.runtime.name == runtime
    plain = Plain(target, PROMPTS, NEW_TOKENS)
    drafts = {
        "lookup": lambda: LookupDrafter(min_ngram=1, branches=3),
        "draft": lambda: DraftModelDrafter(HuggingFaceTarget(load(0.05), exact=False), gamma=GAMMA, branches=2),
    }
    for drafter in drafts.values():
        for first, last in BATCHES.values():
            recorded = Recorded(target)
            rows = run(recorded, drafter(), PROMPTS[first:last], NEW_TOKENS)
            assert [row.exact for row in rows] == ["bits"] * len(rows)
            assert differences(plain, rows, recorded.logits, first) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_that_is_read_in_chunks_has_the_bits_of_one_piece_or_the_session_owns_up(
    family: str, dtype: str, runtime: RuntimeName
) -> None:
    target = target_of(family, dtype, runtime)
    # A piece that holds the whole prompt is met once for each length.
    pieces = {1: (1000,), 2: (256,), 130: (1000, 100), 700: (1000, 256, 100), 900: (PREFILL_CHUNK, 256, 100)}
    for length, mosts in pieces.items():
        tokens = prompt(length, seed=3)
        whole = target.begin([tokens[:-1]])
        expected = _step(whole, tokens[-1])
        for most in mosts:
            session, passes = target.begin_reading([tokens[:-1]]), 1
            while session.read(most):
                passes += 1
            got = _step(session, tokens[-1])
            torch.testing.assert_close(got, expected, rtol=0.1, atol=0.2)
            if session.exact == "bits":
                assert torch.equal(got, expected), f"{length} tokens, {most} at a time"
            if most >= PREFILL_CHUNK or target.invariant:
                assert session.exact == whole.exact
            assert passes >= (length - 1) / most


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_keeps_the_bits_along_its_first_path(family: str, dtype: str, runtime: RuntimeName) -> None:
    session, wrong = _after_a_commit(target_of(family, dtype, runtime), (0, 1, 2, 3))
    if session.exact == "bits":
        assert wrong == []


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_another_branch_keeps_the_bits_or_the_session_owns_up(family: str, dtype: str, runtime: RuntimeName) -> None:
    target = target_of(family, dtype, runtime)
    session, wrong = _after_a_commit(target, (0, 4, 5, 7))
    if session.exact == "bits":
        assert target.runtime.exact_branches
        assert wrong == []


def _after_a_commit(target: HuggingFaceTarget, path: tuple[int, ...]) -> tuple[Any, list[int]]:
    """Score one tree, commit this path, decode on; which of the rows are not plain decoding's."""
    tokens = prompt(40)
    tree = TokenTree.merge(tokens[30], [tokens[31:34], [0, 6, 7], [0, 6, 8]])
    session, plain = target.begin([tokens[:30]]), target.begin([tokens[:30]])
    scored = session.score([tree])[0]
    session.commit([path])
    got = [*(scored[node] for node in path), *(_step(session, token) for token in tokens[34:38])]
    expected = [_step(plain, token) for token in (*(tree.tokens[node] for node in path), *tokens[34:38])]
    return session, [at for at, rows in enumerate(zip(got, expected, strict=True)) if not torch.equal(*rows)]


def _step(session: Any, token: int) -> Tensor:
    logits: Tensor = session.score([TokenTree.chain([token])])[0, 0]
    session.commit([[0]])
    return logits


@pytest.fixture(scope="module")
def default_model(request: pytest.FixtureRequest) -> Any:
    """The real default model in bfloat16."""
    from transformers import AutoModelForCausalLM

    path = os.environ.get("SPECSTREAM_TEST_MODEL") or request.getfixturevalue("default_model_path")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()


REAL_PROMPTS = (
    [1, 504, 2998, 314, 260, 2240, 282, 4649, 30, 378, 2240, 282, 4649, 314],
    [1, 6403, 253, 2430, 563, 253, 2240, 28, 260, 2430, 563],
    list(range(300, 420)),
)
REAL_TOKENS = 24


@pytest.mark.model
def test_the_default_model_keeps_its_bits(default_model: Any) -> None:
    target = HuggingFaceTarget(default_model)
    plain = Plain(target, REAL_PROMPTS, REAL_TOKENS)
    draft = HuggingFaceTarget(default_model, exact=False)
    drafters: list[Drafter] = [LookupDrafter(min_ngram=1), DraftModelDrafter(draft)]
    for drafter in drafters:
        for batch in (REAL_PROMPTS, REAL_PROMPTS[:1]):
            recorded = Recorded(target)
            rows = run(recorded, drafter, batch, REAL_TOKENS)
            assert sum(row.stats.accepted for row in rows) > 0
            if rows[0].exact == "bits":
                assert differences(plain, rows, recorded.logits) == []
            if len(batch) == 1 and target.exactness.base is not None:
                assert rows[0].exact == "bits"


@pytest.mark.model
def test_a_self_test_that_certified_everything_would_be_caught(
    default_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = capabilities(default_model.device, default_model.dtype, keep_dtype=True)
    if "packed" in found.refused:
        pytest.skip(f"no kernels here whose bits depend on the width: {found.refused['packed']}")
    if _indifferent(HuggingFaceTarget(default_model, runtime="packed")):
        pytest.skip("on this machine one token alone has the bits of five side by side")
    monkeypatch.setattr(Exactness, "width", lambda self, rows, nodes, length, capacity: (nodes, True))
    target = HuggingFaceTarget(default_model, runtime="packed")
    plain = Plain(target, REAL_PROMPTS[:1], 10)
    recorded = Recorded(target)
    drafter = DraftModelDrafter(HuggingFaceTarget(default_model, exact=False))
    rows = run(recorded, drafter, REAL_PROMPTS[:1], 10)
    assert rows[0].exact == "bits"
    assert differences(plain, rows, recorded.logits) != []


def _indifferent(target: HuggingFaceTarget) -> bool:
    """Whether ten tokens, fed one by one, have the bits that they have in passes of five."""
    tokens = REAL_PROMPTS[2]
    rows = []
    for width in (1, 5):
        session = target.begin_unpadded([tokens[:60]])
        for start in range(60, 70, width):
            rows.append(session.score([TokenTree.chain(tokens[start : start + width])])[0])
            session.commit([range(width)])
    return torch.equal(torch.cat(rows[:10]), torch.cat(rows[10:]))
