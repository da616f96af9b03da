"""What samples of contestants say together, and what becomes of a prompt that fails."""

from __future__ import annotations

from typing import Any

import pytest

from specstream.config import GenerationConfig
from specstream.engine.contestants import PLAIN, Run
from specstream.errors import UsageError
from specstream.evaluation import compare as comparing
from specstream.evaluation.compare import Comparison, Contestant, Sample, answer_text, compare
from tests.tiny import tiny_tokenizer

NOTHING: Any = None
CONTESTANTS = [Contestant(name=PLAIN, parts=NOTHING), Contestant(name="own", parts=NOTHING, parameters=7)]


def run(passes: list[int], seconds: float, token: int = 1) -> Run:
    return Run(
        tokens=[[token] * sum(passes)],
        texts=[""],
        emitted=[passes],
        drafted=0,
        accepted=0,
        rejected=0,
        prefill=9.0,
        decode=seconds,
        exact="bits",
    )


def sample(contestant: str, prompt: int, what: Run, equal: int = 1) -> Sample:
    return Sample(contestant=contestant, prompt=prompt, round=0, run=what, equal=equal)


def test_figures_are_of_all_samples_and_the_median_of_each_pair() -> None:
    comparison = Comparison(contestants=CONTESTANTS)
    for prompt, (plain, own) in enumerate([(4.0, 1.0), (8.0, 4.0), (4.0, 4.0)]):
        comparison.samples += [sample(PLAIN, prompt, run([1] * 4, plain))]
        comparison.samples += [sample("own", prompt, run([3, 1], own), equal=int(prompt > 0))]
    plain, own = comparison.figures()
    assert (plain["ratio"], plain["middle_ratio"], plain["mean_accepted_length"]) == (1, 1, 1)
    assert (own["parameters"], own["outputs"], own["equal"]) == (7, 3, 2)
    assert own["tokens_per_second"] == pytest.approx(12 / 9)
    assert own["ratio"] == own["ratio_interval"]["value"] == pytest.approx(16 / 9)
    assert own["ratio_interval"]["low"] < 1 < own["ratio_interval"]["high"], "three prompts that disagree"
    assert own["middle_ratio"] == 2
    assert own["mean_accepted_length"] == 2
    assert own["acceptance"] == [0.5, 0.5, 0, 0]
    assert [each["ratio"] for each in comparison.figures([1, 2])] == [1, pytest.approx(12 / 8)]
    assert comparison.figures([9]) == []


@pytest.mark.parametrize("tolerant", [True, False])
def test_a_prompt_that_fails_is_noted_or_ends_all(monkeypatch: pytest.MonkeyPatch, tolerant: bool) -> None:
    monkeypatch.setattr(comparing, "prepare", lambda parts, rows: None)
    ways = [Contestant(name=PLAIN, parts="p"), Contestant(name="own", parts="o")]  # type: ignore[arg-type]

    def answer(parts: Any, prompt: int) -> Run:
        if prompt == 1 and parts == "o":
            raise UsageError("too long")
        return run([2], 1.0, token=prompt if parts == "p" or prompt < 2 else 9)

    done: list[int] = []
    if not tolerant:
        with pytest.raises(UsageError, match="too long"):
            compare(ways, [0, 1, 2], answer)
        return
    found = compare(ways, [0, 1, 2], answer, tolerant=True, on_prompt=done.append)
    assert done == [1, 2, 3]
    assert found.failures == {1: "UsageError: too long"}
    assert [(each.contestant, each.prompt, each.equal) for each in found.samples] == [
        *[(PLAIN, 0, 1), ("own", 0, 1)],
        *[(PLAIN, 2, 1), ("own", 2, 0)],
    ]


def test_later_turns_are_asked_after_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Chat:
        """Stands for a generation: answers with the number of turns it was asked."""

        def __init__(self, parts: Any, prompts: list[Any], config: GenerationConfig) -> None:
            asked.append(prompts[0])
            self.rows = [None]

        def run(self) -> Chat:
            return self

        def text(self, row: None) -> str:
            return f"answer {len(asked)}"

    monkeypatch.setattr(comparing, "Generation", Chat)
    monkeypatch.setattr(comparing, "encode", lambda tokenizer, prompt: prompt)
    monkeypatch.setattr(comparing, "Run", type("Runs", (), {"of": staticmethod(lambda *made: len(made))}))
    parts: Any = type("Parts", (), {"tokenizer": tiny_tokenizer()})
    assert answer_text(parts, "one", GenerationConfig(), True, ["two", "three"]) == 3  # type: ignore[comparison-overlap]
    assert [turn["content"] for turn in asked[-1]] == ["one", "answer 1", "two", "answer 2", "three"]
    assert answer_text(parts, "one", GenerationConfig(), False, ["two"]) == 1  # type: ignore[comparison-overlap]
    assert asked[-1] == "one"
