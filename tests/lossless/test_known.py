"""What a rule of a row's own drafts (``Row.known``) changes no token, whoever drafts in the other rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from specstream.core.decode import RULE, decode
from specstream.core.policy.policy import Speculation
from specstream.core.rows import start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from tests.lossless.decoding import DRAFTERS, GAMMA, make_drafter
from tests.lossless.families import VOCAB
from tests.lossless.test_greedy_matrix import NEW_TOKENS, PROMPTS, reference, target


def half_known(text: Sequence[int]) -> Callable[[Sequence[int]], Sequence[int]]:
    """In two rounds of three as many tokens as a tree holds, and more; of those every fifth is another."""

    def known(tokens: Sequence[int]) -> Sequence[int]:
        at = len(tokens)
        coming = [(each + (place % 5 == 4)) % VOCAB for place, each in enumerate(text[at : at + GAMMA + 2], at)]
        return coming if at % 3 else ()

    return known


@pytest.mark.parametrize("drafter", [name for name in DRAFTERS if name != "streams-pruned"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tokens_equal_those_of_generate(family: str, drafter: str) -> None:
    expected = reference(family)
    rows = start_rows(PROMPTS, range(3), None, sampling=Sampling(), stopping=Stopping(max_new_tokens=NEW_TOKENS))
    for row, tokens in zip(rows[:2], expected, strict=False):  # the third has no rule
        row.known = half_known([*row.tokens, *tokens])
    speculation, own = Speculation(max_depth=GAMMA), make_drafter(drafter, family)
    for _ in decode(target(family, "packed"), own, rows, speculation=speculation, timings=Timings()):
        pass
    assert [row.emitted for row in rows] == expected
    assert [row.stats.drafts[RULE] > 3 for row in rows] == [True, True, False]
    assert all(0 < row.stats.accepted < row.stats.drafted for row in rows[:2])
