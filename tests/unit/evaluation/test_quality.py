from __future__ import annotations

import sys
from decimal import Decimal

import numpy as np
import pytest

from specstream.errors import MissingPackageError, UsageError
from specstream.evaluation.quality import counted, difference, estimate, final_number, normalised

ANSWERS = ["the cat sat on the mat", "a dog runs in the park", "there is a place in town", "hello"]
REFERENCES = [
    ["the cat sat on a mat", "a cat"],
    ["the dog runs in the park"],
    ["there is a nice place in town"],
    ["bye"],
]


def test_sql_matches_whatever_its_case_and_spaces():
    assert normalised(" SELECT  a\nFROM b ;") == "select a from b"
    answers = ["select A from b;", "SELECT b FROM b"]
    numbers = counted("exact_match", answers, [["SELECT a FROM b"], ["SELECT a FROM b"]])
    assert numbers.tolist() == [[1.0], [0.0]]
    assert estimate("exact_match", numbers).value == 50


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("He pays 3-1=2.\n#### 1,200", "1200"),
        ("The answer is $18.00. Then 5 more were asked.", "18"),
        ("so \\boxed{-3} it is, 7", "-3"),
        ("first 4, then 5.", "5"),
        ("3 - 4 = -1", "-1"),
        ("The answer is: unknown, of 9", "9"),
        ("2023-11", "11"),
        ("none", None),
        ("", None),
    ],
)
def test_the_number_that_an_answer_ends_in(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_an_exact_answer_is_a_number_and_no_text():
    numbers = counted("exact_answer", ["is 18.0", "is 17", "?"], [["#### 18"], ["#### 18"], ["#### 18"]])
    assert numbers.tolist() == [[1.0], [0.0], [0.0]]
    assert estimate("exact_answer", numbers).value == pytest.approx(100 / 3)


def test_programs_are_not_judged_by_their_text():
    with pytest.raises(UsageError, match="specstream evaluate --execute-code"):
        counted("pass@1", ["a"], [["a"]])
    assert estimate("pass@1", np.array([[1.0], [0.0], [1.0], [1.0]])).value == 75


def test_rouge_takes_the_reference_that_fits_best():
    pytest.importorskip("rouge_score")
    numbers = counted("rougeL", ["the cat sat"], [["a dog", "the cat sat"]])
    assert numbers.tolist() == [[1.0]]
    assert counted("rouge2", ["the cat sat"], [["the cat stood"]]).tolist() == [[0.5]]


def test_bleu_is_that_of_the_corpus():
    sacrebleu = pytest.importorskip("sacrebleu")
    streams = [[own[at] if at < len(own) else None for own in REFERENCES] for at in range(2)]
    expected = sacrebleu.metrics.BLEU().corpus_score(ANSWERS, streams).score
    assert estimate("bleu", counted("bleu", ANSWERS, REFERENCES)).value == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["exact_match", "rougeL", "bleu"])
def test_an_interval_holds_its_figure_and_repeats(metric):
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    numbers = counted(metric, [*ANSWERS, "bye"], [*REFERENCES, ["bye"]])
    found = estimate(metric, numbers)
    assert 0 <= found.low <= found.value <= found.high <= 100
    assert found.low < found.high
    assert found == estimate(metric, numbers)
    nothing = difference(metric, numbers, numbers)
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)


def test_the_interval_of_a_mean_is_what_statistics_says():
    hits = np.zeros((400, 1))
    hits[:100] = 1
    found = estimate("exact_match", hits)
    assert found.value == 25
    assert found.high - found.low == pytest.approx(2 * 1.96 * 100 * (0.25 * 0.75 / 400) ** 0.5, rel=0.1)


def test_pairs_tell_more_than_two_intervals():
    """One of 400 is better everywhere it differs; the examples' own spread cancels out."""
    hits = (np.arange(400) % 2)[:, None].astype(float)
    better = hits.copy()
    better[:40:2] = 1
    found = difference("exact_match", better, hits)
    assert found.value == 5
    assert 2 < found.low < found.high < 8


@pytest.mark.parametrize(("metric", "package"), [("rouge1", "rouge_score"), ("bleu", "sacrebleu")])
def test_a_missing_package_is_missed_with_the_line_to_run(monkeypatch, metric, package):
    for name in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=r"run: pip install '.\[eval\]'"):
        counted(metric, ["a"], [["a"]])
