"""Lossless to the bit: where a session says "bits", every committed row has plain decoding's logits, bit for bit.

Which families, dtypes and batches get that far depends on the machine, so nothing here expects it of any; but what is
claimed must hold. `pytest -rP` prints the claims.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from specstream.core.tree import TokenTree
from specstream.drafters.draft_model import DraftModelDrafter
from specstream.drafters.lookup import LookupDrafter
from specstream.drafters.none import NoDrafter
from specstream.models.exactness import Exactness
from specstream.models.hf import HuggingFaceTarget
from tests.lossless.decoding import Recorded, make_drafter, run
from tests.lossless.families import FAMILIES, build, prompt

NEW_TOKENS = 24
PROMPTS = (prompt(500), prompt(30, seed=1), prompt(505, seed=2))
"""Two of them outgrow a cache of 512 slots, at different times."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DRAFTERS = ("lookup", "draft_model", "draft_model-tree")


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


@lru_cache(maxsize=2)
def case(family: str, dtype: str, runtime: str) -> tuple[HuggingFaceTarget, Plain]:
    target = HuggingFaceTarget(build(family, DTYPES[dtype]), runtime=runtime)  # type: ignore[arg-type]
    return target, Plain(target, PROMPTS, NEW_TOKENS)


@pytest.mark.parametrize("drafter", ["none", *DRAFTERS])
@pytest.mark.parametrize("runtime", ["packed", "eager"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_called_bits_is_equal_to_the_bit(family: str, dtype: str, runtime: str, drafter: str) -> None:
    target, plain = case(family, dtype, runtime)
    claims = {}
    for batch in (PROMPTS, PROMPTS[:1]):
        recorded = Recorded(target)
        rows = run(recorded, make_drafter(drafter, family, dtype=DTYPES[dtype]), batch, NEW_TOKENS)
        claimed = [index for index, row in enumerate(rows) if row.exact == "bits"]
        claims[len(batch)] = f"{len(claimed)} of {len(batch)} rows"
        for index in claimed:
            assert plain.exact[index] == "bits"
            assert differences(plain, rows[index : index + 1], recorded.logits[index : index + 1], index) == []
    print(f"{family} {dtype} {runtime} {drafter}: bits in {claims} (base width {target.exactness.base})")
    if family == "llama" and drafter in ("lookup", "draft_model") and target.exactness.base is not None:
        assert claims[1] == "1 of 1 rows"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_keeps_the_bits_along_its_first_path_and_owns_up_to_the_others(family: str, dtype: str) -> None:
    target = HuggingFaceTarget(build(family, DTYPES[dtype]))
    tokens = prompt(40)
    tree = TokenTree.merge(tokens[30], [tokens[31:34], [5, 6], [tokens[31], 7]])
    plain, session = target.begin([tokens[:30]]), target.begin([tokens[:30]])
    expected = [_step(plain, token) for token in tokens[30:36]]
    scored = session.score([tree])[0]
    session.commit([(0, 1, 2, 3)])
    after = [*scored[:4], *(_step(session, token) for token in tokens[34:36])]
    if session.exact == "bits":
        assert [bool(torch.equal(got, want)) for got, want in zip(after, expected, strict=True)] == [True] * 6
    session.score([TokenTree.merge(1, [[2, 3], [4]])])
    session.commit([(0, 3)])
    assert session.exact == "rounding"


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
    drafters = {
        "lookup": LookupDrafter(min_ngram=1),
        "draft_model": DraftModelDrafter(HuggingFaceTarget(default_model, exact=False)),
    }
    for name, drafter in drafters.items():
        for first, batch in ((0, REAL_PROMPTS), (0, REAL_PROMPTS[:1])):
            recorded = Recorded(target)
            rows = run(recorded, drafter, batch, REAL_TOKENS)
            print(f"{name}, batch {len(batch)}: {[row.exact for row in rows]}, base {target.exactness.base}")
            assert sum(row.stats.accepted for row in rows) > 0
            if rows[0].exact == "bits":
                assert differences(plain, rows, recorded.logits, first) == []
            if len(batch) == 1 and target.exactness.base is not None:
                assert rows[0].exact == "bits"


@pytest.mark.model
def test_a_self_test_that_certified_everything_would_be_caught(
    default_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if _narrowest(HuggingFaceTarget(default_model)) == 1:
        pytest.skip("on this machine one token alone has the bits of five side by side")
    monkeypatch.setattr(Exactness, "width", lambda self, rows, nodes, length, capacity: (nodes, True))
    target = HuggingFaceTarget(default_model)
    plain = Plain(target, REAL_PROMPTS[:1], REAL_TOKENS)
    recorded = Recorded(target)
    rows = run(recorded, DraftModelDrafter(HuggingFaceTarget(default_model, exact=False)), REAL_PROMPTS[:1], REAL_TOKENS)
    assert rows[0].exact == "bits"
    assert differences(plain, rows, recorded.logits) != []


def _narrowest(target: HuggingFaceTarget) -> int:
    """1 if a token alone has the bits that it has in a pass of five, else 5."""
    tokens = list(REAL_PROMPTS[2])
    rows = [
        target.begin_unpadded([tokens[:60]]).score([TokenTree.chain(tokens[60 : 60 + width])])[0, 0] for width in (1, 5)
    ]
    return 1 if torch.equal(*rows) else 5
