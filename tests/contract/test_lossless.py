"""A part of the losslessness matrix: every family with every kind of drafter, and every runtime."""

from __future__ import annotations

import pytest

from specstream.models.runtime.capabilities import RuntimeName
from tests.lossless import test_greedy_matrix as matrix
from tests.lossless.families import FAMILIES

CASES: dict[RuntimeName, tuple[str, ...]] = {
    "auto": (
        *("none", "lookup-tree", "lookahead", "medusa", "streams-learned", "streams-pruned", "block-learned"),
        *("draft_model", "draft_model-part", "mixed-tree", "mixed-streams", "router", "self:int8"),
    ),
    "eager": ("streams-learned", "mixed-tree"),
    "packed": ("draft_model-tree",),
    "static": ("draft_model",),
}


@pytest.mark.parametrize(("runtime", "drafter"), [(each, name) for each, names in CASES.items() for name in names])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_those_of_generate(family: str, runtime: RuntimeName, drafter: str) -> None:
    matrix.test_tokens_equal_those_of_generate(family, runtime, drafter)
