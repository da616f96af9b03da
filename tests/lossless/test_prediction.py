"""What is expected of a row (``Row.expected``) changes no token, whoever drafts beside what is copied from it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from specstream.core.decode import decode
from specstream.core.policy.policy import Speculation
from specstream.core.rows import Row, start_rows
from specstream.core.sampling import Sampling
from specstream.core.stats import Timings
from specstream.core.stopping import Stopping
from tests.lossless.decoding import DRAFTERS, GAMMA, make_drafter
from tests.lossless.families import VOCAB
from tests.lossless.test_greedy_matrix import NEW_TOKENS, PROMPTS, reference, target


def decoded(family: str, drafter: str, sampling: Sampling, expected: Sequence[Sequence[int]]) -> list[Row]:
    rows = start_rows(PROMPTS, range(3), None, sampling=sampling, stopping=Stopping(max_new_tokens=NEW_TOKENS))
    for row, text in zip(rows, expected, strict=True):
        row.expected, row.repeats = text, True
    speculation, own = Speculation(max_depth=GAMMA), make_drafter(drafter, family)
    for _ in decode(target(family, "packed"), own, rows, speculation=speculation, timings=Timings()):
        pass
    return rows


def half_right(tokens: Sequence[int], text: Sequence[int]) -> list[int]:
    """What comes, but for every ninth token, behind the end of the prompt."""
    return [*tokens[-8:], *((each + (at % 9 == 8)) % VOCAB for at, each in enumerate(text))]


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tokens_equal_those_of_generate(family: str, drafter: str) -> None:
    expected = reference(family)
    texts = [half_right(*each) for each in zip(PROMPTS[:2], expected, strict=False)]
    rows = decoded(family, drafter, Sampling(), [*texts, ()])  # of the third nothing is expected
    assert [row.emitted for row in rows] == expected
    if drafter == "lookup":
        assert all(row.stats.target_passes < 16 for row in rows[:2])


def test_a_seed_repeats_with_the_same_prediction() -> None:
    sampling = Sampling(temperature=0.9)
    first = decoded("llama", "lookup", sampling, [()] * 3)
    texts = [half_right(row.tokens[: row.prompt_length], row.emitted) for row in first]
    again = [[row.emitted for row in decoded("llama", "lookup", sampling, texts)] for _ in range(2)]
    assert again[0] == again[1]
