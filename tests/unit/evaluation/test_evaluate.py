"""Figures of an evaluation against those that were computed by hand."""

from __future__ import annotations

import pytest

from specstream.config import GenerationConfig
from specstream.evaluation import evaluate as evaluating
from specstream.evaluation.answers import Answers
from specstream.evaluation.evaluate import answer_text, code_of, judge, results
from specstream.evaluation.evaluate_config import Loaded
from specstream.evaluation.execution import Outcome
from specstream.evaluation.tasks.task import Task, TaskExample
from tests.tiny import tiny_tokenizer

TASK = Task(
    format="jsonl",
    prompt="{q}",
    references=["a"],
    category="kind",
    metrics=["exact_match"],
    category_metrics={"sums": ["exact_answer"]},
)


def said(text, tokens, seconds, passes, drafted=0, accepted=0):
    return {
        "texts": [text],
        "tokens": tokens,
        "passes": passes,
        "drafted": drafted,
        "accepted": accepted,
        "seconds": seconds,
        "total_seconds": seconds + 1,
        "exact": "bits",
    }


@pytest.fixture
def answers(tmp_path):
    """Four answers, of which one differs, and one failure."""
    kept = Answers(tmp_path, {})
    kinds = ["sums", "sql", "sql", "sums", "sql"]
    plain = ["#### 7", "select a", "no", "is 9", ""]
    speculative = ["#### 7", "select a", "SELECT b", "is 9", ""]
    for at in range(4):
        kept.add(
            {
                "example": at,
                "where": f"here:{at}",
                "category": kinds[at],
                "equal": at != 2,
                "plain": said(plain[at], 10, 4.0, 10),
                "speculative": said(speculative[at], 10, 2.0, 5, drafted=8, accepted=5),
            }
        )
    kept.add({"example": 4, "where": "here:4", "category": "sql", "error": "it broke"})
    return kept


@pytest.fixture
def loaded():
    references = [("7",), ("SELECT a;",), ("select b",), ("8",), ("x",)]
    kinds = ["sums", "sql", "sql", "sums", "sql"]
    examples = [
        TaskExample(prompt=str(at), references=references[at], where=f"here:{at}", category=kinds[at])
        for at in range(5)
    ]
    return Loaded(name="made", task=TASK, examples=examples, source="here")


def test_figures_are_those_computed_by_hand(answers, loaded):
    found = results(loaded, answers, {})
    own = found["all"]
    assert (own["answers"], own["equal"], own["exact"]) == (4, 3, "bits")
    assert found["different"] == ["here:2"]
    assert [each["error"] for each in found["failures"]] == ["it broke"]
    match = own["quality"]["exact_match"]
    assert (match["plain"]["value"], match["speculative"]["value"]) == (25, 50), "of sums no text matches"
    assert match["difference"]["value"] == 25
    assert match["difference"]["low"] == 0 < match["difference"]["high"]
    assert own["quality"]["exact_answer"]["plain"]["value"] == 50
    assert own["quality"]["exact_answer"]["examples"] == 2
    assert own["speedup"]["value"] == pytest.approx(2), "10 tokens in 2 s against 4 s"
    assert own["speedup_with_prompt"]["value"] == pytest.approx(5 / 3), "in 3 s against 5 s"
    assert own["tokens_per_second"] == {"plain": 2.5, "speculative": 5.0}
    assert (own["mean_accepted_length"], own["acceptance_rate"]) == (2, 5 / 8)


def test_categories_have_their_own_figures(answers, loaded):
    categories = results(loaded, answers, {})["categories"]
    assert list(categories) == ["sums", "sql"]
    assert set(categories["sql"]["quality"]) == {"exact_match"}
    assert categories["sql"]["quality"]["exact_match"]["speculative"]["value"] == 100
    assert (categories["sums"]["equal"], categories["sql"]["equal"]) == (2, 1)


def test_without_an_answer_there_are_no_figures(tmp_path, loaded):
    kept = Answers(tmp_path, {})
    kept.add({"example": 0, "where": "here:0", "category": "sums", "error": "it broke"})
    assert results(loaded, kept, {})["all"] is None


def test_a_single_example_has_a_speedup_without_an_interval(answers, loaded):
    answers.records = {0: answers.records[0]}
    speedup = results(loaded, answers, {})["all"]["speedup"]
    assert (speedup["value"], speedup["low"], speedup["high"]) == (pytest.approx(2), None, None)


def test_programs_are_run_once_for_both_sides_and_counted(answers, loaded, monkeypatch):
    ran = []

    def run_program(source, limits):
        ran.append(source)
        return Outcome(passed="7" in source or "SELECT" in source, reason="", isolation=())

    monkeypatch.setattr("specstream.evaluation.evaluate.run_program", run_program)
    task = TASK.model_copy(update={"metrics": ["pass@1"], "program": "it = '{answer_of_the_model}'"})
    loaded = Loaded(name="made", task=task, examples=loaded.examples, source="here")
    assert judge(loaded, answers, execute=False, on_example=lambda done: None) == {}
    done = []
    outcomes = judge(loaded, answers, execute=True, on_example=done.append)
    assert len(ran) == 5, "four of plain decoding, and one that differs"
    assert done == [1, 2, 3, 4]
    own = results(loaded, answers, outcomes)["all"]["quality"]["pass@1"]
    assert (own["plain"]["value"], own["speculative"]["value"], own["examples"]) == (25, 50, 4)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("    return 1", "    return 1"),
        ("Sure:\n```python\ndef f():\n    return 1\n```\nDone.", "\ndef f():\n    return 1\n"),
        ("```\nx = 1", "\nx = 1"),
        ("```py\na\n```\n```python\nb\n```", "\na\n"),
    ],
)
def test_code_is_in_the_first_fence_or_everywhere(answer, code):
    assert code_of(answer) == code


def test_later_turns_are_asked_after_the_answers(monkeypatch):
    asked = []

    class Chat:
        """Stands for a generation: answers with the number of turns it was asked."""

        def __init__(self, parts, prompts, config):
            asked.append(prompts[0])
            self.rows = [None]

        def run(self):
            return self

        def text(self, row):
            return f"answer {len(asked)}"

    monkeypatch.setattr(evaluating, "Generation", Chat)
    monkeypatch.setattr(evaluating, "encode", lambda tokenizer, prompt: prompt)
    monkeypatch.setattr(evaluating, "Run", type("Runs", (), {"of": staticmethod(lambda *made: len(made))}))
    parts = type("Parts", (), {"tokenizer": tiny_tokenizer()})
    assert answer_text(parts, "one", GenerationConfig(), True, ["two", "three"]) == 3
    assert [turn["content"] for turn in asked[-1]] == ["one", "answer 1", "two", "answer 2", "three"]
    assert answer_text(parts, "one", GenerationConfig(), False, ["two"]) == 1
    assert asked[-1] == "one"
