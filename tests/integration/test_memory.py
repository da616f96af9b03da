"""The engine with a memory of its answers: drafts change, outputs do not, and seeds repeat."""

from __future__ import annotations

import pytest

from specstream import SpeculativeEngine
from specstream.errors import UsageError

PROMPTS = ["the cat sat on the", "one two three one two three one", "def add(a, b):"]
FIXED = {"adaptive": False, "drafter": "lookup"}


def passes(results):
    return sum(each.target_passes for each in results)


def tokens(results):
    return [each.token_ids for each in results]


def test_the_same_prompts_again_take_fewer_passes_and_say_the_same(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, **FIXED)
    plain = SpeculativeEngine(model, tokenizer, drafter="none").generate(PROMPTS, max_new_tokens=30)
    first, again = (engine.generate(PROMPTS, max_new_tokens=30) for _ in range(2))
    assert tokens(first) == tokens(again) == tokens(plain)
    assert passes(again) < 0.5 * passes(first)
    assert sum(each.drafts.get("memory", 0) for each in first) < sum(each.drafts.get("memory", 0) for each in again)


def test_off_it_remembers_nothing(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, memory=False, **FIXED)
    first, again = (engine.generate(PROMPTS, max_new_tokens=30) for _ in range(2))
    assert passes(first) == passes(again)
    assert "memory" not in {name for each in again for name in each.drafts}


def test_a_stream_is_remembered_once_it_was_read(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, **FIXED)
    begun = engine.stream(PROMPTS[0], max_new_tokens=30)
    next(begun)
    assert len(engine.parts.memory.index) == 0
    list(begun)
    assert len(engine.parts.memory.index) > 30


@pytest.mark.parametrize("drafter", ["lookup", "auto", "recycling"])
def test_a_seed_repeats_whatever_was_generated_meanwhile(model, tokenizer, drafter):
    """The shape of a tree decides how chance is spent."""
    settings = {"temperature": 0.9, "seed": 5, "max_new_tokens": 30}
    engine = SpeculativeEngine(model, tokenizer, drafter=drafter)
    first = tokens(engine.generate(PROMPTS, **settings))
    engine.generate(PROMPTS, max_new_tokens=30)
    assert tokens(engine.generate(PROMPTS, **settings)) == first
    assert tokens(SpeculativeEngine(model, tokenizer, drafter=drafter).generate(PROMPTS, **settings)) == first


def test_measurements_are_not_remembered(model, tokenizer):
    engine = SpeculativeEngine(model, tokenizer, measure_baseline=True, **FIXED)
    engine.benchmark(PROMPTS[:1], num_runs=1, max_new_tokens=8)
    assert len(engine.parts.memory.index) == 0


def test_a_file_is_gone_on_from_by_another_engine(model, tokenizer, tmp_path):
    file = tmp_path / "answers"
    first = SpeculativeEngine(model, tokenizer, memory=file, **FIXED).generate(PROMPTS, max_new_tokens=30)
    again = SpeculativeEngine(model, tokenizer, memory=file, **FIXED).generate(PROMPTS, max_new_tokens=30)
    assert tokens(first) == tokens(again)
    assert passes(again) < 0.5 * passes(first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"drafter": "none", "memory": "answers"},
            "memory is 'answers' and drafter is 'none', which makes no use of it",
        ),
        ({"memory": "answers/"}, "memory is 'answers/', which is the name of a folder; give that of a file"),
    ],
)
def test_what_would_do_nothing_is_refused(model, tokenizer, settings, message):
    with pytest.raises(UsageError) as caught:
        SpeculativeEngine(model, tokenizer, **settings)
    assert message in str(caught.value)
    SpeculativeEngine(model, tokenizer, drafter="none", memory=False)


def test_a_file_may_be_under_the_home_folder(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    SpeculativeEngine(model, tokenizer, memory="~/kept/answers", **FIXED).generate(PROMPTS[0], max_new_tokens=4)
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
