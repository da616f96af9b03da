from __future__ import annotations

import pytest

from benchmarks.scaling import (
    LLAMA_8B,
    LLAMA_70B,
    answers_a_second,
    fleet,
    gain,
    last_row_that_pays,
    pass_seconds,
    paying,
    rows_that_fit,
)


def test_a_lone_row_waits_for_the_weights() -> None:
    assert LLAMA_8B.cache_bytes == 131_072
    assert pass_seconds(LLAMA_8B, 1, 1, 0) == pytest.approx(16.06e9 / 2.68e12)
    assert gain(LLAMA_8B, 1, 1, 0, 4, 2.0) == 2.0


def test_many_rows_wait_for_the_arithmetic() -> None:
    assert pass_seconds(LLAMA_8B, 1, 400, 0, 5) == pytest.approx(2 * 8.03e9 * 2000 / 494.5e12)
    assert gain(LLAMA_8B, 1, 400, 0, 4, 2.0) == pytest.approx(2 / 5)


def test_what_does_not_fit_is_none() -> None:
    assert rows_that_fit(LLAMA_8B, 1, 2048) == int((72e9 - 16.06e9) / (2048 * 131_072))
    assert rows_that_fit(LLAMA_70B, 1, 2048) == 0


def test_drafting_pays_up_to_a_number_of_rows_that_grows_with_the_context() -> None:
    rows = [last_row_that_pays(LLAMA_8B, 1, context, 4, 1.3) for context in (256, 512)]
    assert rows[0] < rows[1]
    assert gain(LLAMA_8B, 1, rows[1], 512, 4, 1.3) >= 1 > gain(LLAMA_8B, 1, rows[1] + 1, 512, 4, 1.3)


def test_an_answer_costs_its_prompt_and_its_share_of_the_passes() -> None:
    step = pass_seconds(LLAMA_8B, 1, 10, 600)
    prompt = 2 * 8.03e9 * 500 / 494.5e12
    found = answers_a_second(LLAMA_8B, 1, rows=10, prompt=500, answer=200)
    assert found == pytest.approx(1 / (200 * step / 10 + prompt))


def test_the_tables_have_a_cell_for_each_column() -> None:
    for cells in (fleet(), paying()):
        assert {len(row) for row in cells} == {len(cells[0])}
